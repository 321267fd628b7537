"""Held-out interpretability of compact AR-SIVAE on ACDC: seeded splits, trained and encoded by the command line.

``python -m tests.benchmarks.acdc <ACDC training folder> <work folder>`` imports and prepares ACDC, trains on 80
patients per seed with the last weights judged (so that the 20 others select nothing), and writes ``results.json``: SCC
on the fixed dimensions and R² of a line fitted on training patients, mean ± half of the 95 % interval over the splits.
Finished runs are not redone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

import numpy as np
from scipy import stats

from scripts.cohort.attributes import VOLUMES
from scripts.evaluation.study import command
from scripts.metrics import held_out_r2, spearman
from scripts.storage import read_csv, write_json

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundle" / "configs"
SPLIT = (0.8, 0.2, 0.0)


def bundle(run_id: str, *configs: str, **overrides: object) -> None:
    """One ``monai.bundle run``; raises CalledProcessError when it fails."""
    subprocess.run(command(run_id, [CONFIGS / config for config in configs], overrides), check=True)


def run_seed(seed: int, dataset: Path, folder: Path) -> dict[str, object]:
    """Train, encode and score one split."""
    done = folder / "score.json"
    if done.exists():
        return json.loads(done.read_text())
    paths = {"dataset_dir": str(dataset), "output_dir": str(folder)}
    bundle("prepare", "cohort.json", **paths, seed=seed, split=list(SPLIT))
    start = time.perf_counter()
    bundle("training", "train.json", "compact.json", **paths, seed=seed)
    minutes = (time.perf_counter() - start) / 60
    datalist = str(folder / "datalist.json")
    last = str(folder / "last.pt")
    bundle("run", "inference.json", "compact.json", **paths, datalist=datalist, ckpt_path=last)
    score = score_codes(folder) | {"seed": seed, "training_minutes": round(minutes, 1)}
    write_json(done, score)
    return score


def score_codes(folder: Path) -> dict[str, object]:
    """SCC and R² of the held-out patients, per attribute and in the mean."""
    rows = {row["subject"]: row for row in read_csv(folder / "codes.csv")}
    columns = list(next(iter(rows.values())))[1 : 1 + len(VOLUMES)]
    datalist = json.loads((folder / "datalist.json").read_text())
    sets = []
    for section in ("training", "validation"):
        items = datalist[section]
        sets.append(np.array([[float(rows[item["subject"]][column]) for column in columns] for item in items]))
        sets.append(np.array([[item[name] for name in VOLUMES] for item in items]))
    scc, r2 = spearman(*sets[2:]), held_out_r2(*sets)
    return {
        "scc": float(scc.mean()),
        "r2": float(r2.mean()),
        "scc_per_attribute": dict(zip(VOLUMES, scc.round(4).tolist(), strict=True)),
        "r2_per_attribute": dict(zip(VOLUMES, r2.round(4).tolist(), strict=True)),
        "patients": [len(sets[0]), len(sets[2])],
    }


def interval(values: list[float]) -> dict[str, float]:
    """Mean and half of its 95 % interval (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
    return {"mean": round(float(np.mean(values)), 4), "half_width": round(float(half), 4)}


def main() -> None:
    """Run all seeds and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    dataset = arguments.work / "dataset"
    if not (dataset / "info.csv").exists():
        bundle("import_acdc", "cohort.json", source_dir=str(arguments.source), dataset_dir=str(dataset))
    scores = [run_seed(seed, dataset, arguments.work / f"seed{seed}") for seed in arguments.seeds]
    results = {metric: interval([score[metric] for score in scores]) for metric in ("scc", "r2")}
    write_json(arguments.work / "results.json", results | {"runs": scores})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
