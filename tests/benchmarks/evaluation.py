"""Time and memory of an evaluation at the size of the paper: 804 two-phase subjects at 128 x 128.

``python -m tests.benchmarks.evaluation <dataset_dir> <datalist> <work folder>`` judges an untrained model of few
channels on the subjects of a datalist, repeated under new names, and prints where the time goes. The network passes
(model, LPIPS, features, ceiling) are counted apart.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import time
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from scripts.cohort.datalist import read_datalist
from scripts.cohort.split import SECTIONS

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"


def repeat(datalist: Path, training: int, test: int, path: Path) -> Path:
    """Write a datalist with as many subjects as asked for, each a copy of a real one under a new name."""
    content = read_datalist(datalist)
    items = [item for name in SECTIONS for item in content[name]]
    copies = [items[k % len(items)] | {"subject": f"copy{k:05}"} for k in range(training + test)]
    path.write_text(json.dumps(content | {"training": copies[:training], "validation": [], "test": copies[training:]}))
    return path


def main() -> None:
    """Run the evaluation under a profiler."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("datalist", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--training", type=int, default=200)
    parser.add_argument("--test", type=int, default=804)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    config = ConfigParser()
    config.read_config([CONFIGS / "train.json", CONFIGS / "evaluate.json"])
    datalist = repeat(arguments.datalist, arguments.training, arguments.test, arguments.work / "datalist.json")
    config.update(
        {
            "dataset_dir": str(arguments.dataset_dir),
            "datalist": str(datalist),
            "output_dir": str(arguments.work),
            "channels": [8] * 5,
            "ceiling_epochs": 1,
        }
    )
    torch.manual_seed(0)
    torch.save(config.get_parsed_content("network_def").state_dict(), arguments.work / "model.pt")
    profile, start = cProfile.Profile(), time.perf_counter()
    profile.enable()
    config.get_parsed_content("run")
    profile.disable()
    whole = time.perf_counter() - start
    calls = pstats.Stats(profile).stats
    for step in ("fit", "run", "write", "judge", "both_protocols", "quality_summary", "image_quality", "figures"):
        found = [(file, cumulative) for (file, _, name), (*_, cumulative, _) in calls.items() if name == step]
        for file, cumulative in sorted(found, key=lambda pair: -pair[1])[:1]:
            print(f"{step:16} {cumulative:7.1f} s  {Path(file).name}")
    networks = sum(c for (file, _, name), (*_, c, _) in calls.items() if name == "_call_impl" and "torch" in file)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"whole {whole:.1f} s, of which in torch modules {networks:.1f} s; peak memory {memory:.2f} GiB")


if __name__ == "__main__":
    main()
