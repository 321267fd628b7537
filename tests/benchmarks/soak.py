"""Trainings of all four methods from many seeds on phantoms: how many end, and what their logs warn of.

``python -m tests.benchmarks.soak <work folder> [--subjects 100] [--seeds 10] [--epochs 60] [--warmup 30]
[--output soak.json]`` draws the phantoms, then runs the command line. Introspective methods show themselves generated
images for all epochs after the warm-up, which is a larger share than in ``compact.json``: it is there that they can
diverge. Trainings that an earlier run in the same work folder has ended are taken from it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.charts import read_scalars
from scripts.cohort.phantom import write_cohort
from scripts.cohort.prepare import prepare
from scripts.evaluation.study import command
from scripts.storage import write_json
from tests.benchmarks.acdc import interval
from tests.benchmarks.report import RESULTS, write_result

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
METHODS = {"AR-SIVAE": (), "SIVAE": ("sivae.json",), "Attri-VAE": ("attri_vae.json",), "β-VAE": ("beta_vae.json",)}
WARNINGS = {
    "vanished gradient": "the adversarial gradient has vanished",
    "exploding divergence": "the divergence explodes",
    "posterior collapse": "posterior collapse",
}
NOTE = (
    "Made by `make soak`: each method trained from {seeds} seeds, `compact.json` and `phantom.json` with {epochs} "
    "epochs, the introspective ones with generated images from epoch {first} on, on {subjects} phantoms. Ended are the "
    "trainings that reached their last epoch; not finite are those that stopped at a loss, weight or metric that is no "
    "number; the warnings are counted by trainings that gave them at least once. Loss and SCC are those of the "
    "validation in the last epoch, mean ± 95 % interval (Student's t) over seeds."
)


def train(folder: Path, work: Path, overlays: tuple[str, ...], keys: Mapping[str, Any]) -> int:
    """Run a training to its end, or go on with it; gives its exit status."""
    files = [CONFIGS / name for name in ("train.json", "compact.json", "phantom.json", *overlays)]
    paths = {"dataset_dir": str(work / "scans"), "datalist": str(work / "datalist.json"), "output_dir": str(folder)}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "run.log", "w") as log:
        return subprocess.run(command("training", files, {**paths, **keys}), stdout=log, stderr=log).returncode


def outcome(folder: Path, status: int, epochs: int) -> dict[str, Any]:
    """What a training came to."""
    text = (folder / "run.log").read_text()
    found: dict[str, Any] = {"ended": status == 0, "not finite": "FloatingPointError" in text}
    found |= {name: len(set(re.findall(rf"{phrase}.* epoch (\d+)", text))) for name, phrase in WARNINGS.items()}
    scalars = read_scalars(folder / "tensorboard") if (folder / "tensorboard").is_dir() else {}
    for name in ("val_reconstruction_loss", "val_scc"):
        steps, values = scalars.get(name, ([], []))
        found[name] = float(values[-1]) if len(steps) and steps[-1] == epochs else None
    return found


def told(values: list[float | None]) -> str | None:
    """Mean and 95 % interval of what is there, where that is enough for one."""
    known = [value for value in values if value is not None]
    return "{mean:.4f} ± {half_width:.4f}".format_map(interval(known)) if len(known) > 1 else None


def row(method: str, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of a method."""
    total = len(outcomes)
    counted = ("ended", "not finite", *WARNINGS)
    cells = {name: f"{sum(bool(each[name]) for each in outcomes)} of {total}" for name in counted}
    cells |= {"reconstruction loss": told([each["val_reconstruction_loss"] for each in outcomes])}
    return {"method": method, **cells, "SCC": told([each["val_scc"] for each in outcomes])}


def main() -> None:
    """Train what is not finished, and write what all came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--subjects", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json")
    arguments = parser.parse_args()
    work = arguments.work
    if not (work / "datalist.json").is_file():
        write_cohort(work / "scans", subjects=arguments.subjects, seed=0, failing=0)
        prepare(work / "scans", work)
    keys = {"max_epochs": arguments.epochs, "warmup_epochs": arguments.warmup, "val_interval": 5}
    runs = [(seed, method) for seed in range(arguments.seeds) for method in METHODS]
    outcomes: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for seed, method in tqdm(runs, desc="soak", unit="training"):
        folder = work / f"{method}_{seed}"
        if not (folder / "outcome.json").is_file():
            status = train(folder, work, METHODS[method], {**keys, "seed": seed})
            write_json(folder / "outcome.json", {"seed": seed, **outcome(folder, status, arguments.epochs)})
        outcomes[method].append(json.loads((folder / "outcome.json").read_text()))
    note = NOTE.format(**vars(arguments), first=arguments.warmup + 1)
    rows = [row(method, found) for method, found in outcomes.items()]
    write_result(arguments.output, "Soak: four methods from many seeds", note, rows, outcomes=outcomes)


if __name__ == "__main__":
    main()
