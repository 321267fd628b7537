"""Time and memory of an evaluation at the size of the paper: 804 two-phase subjects at 128 x 128.

``python -m tests.benchmarks.evaluation <dataset_dir> <datalist> <work folder>`` judges an untrained model of few
channels on the subjects of a datalist, repeated under new names, and prints where the time goes. The network passes
(model, LPIPS, features, ceiling) are counted apart.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer

from scripts.cohort.datalist import read_datalist
from scripts.cohort.split import SECTIONS
from scripts.evaluation.ceiling import AttributeRegressor
from scripts.networks import VariationalAutoencoder
from scripts.perceptual import LPIPSDistance, PooledFeatures

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"


# What counts as network passes: class or module, and the name of its function.
NETWORKS = {
    "encode": (VariationalAutoencoder, "encode"),
    "decode": (VariationalAutoencoder, "decode"),
    "LPIPS": (LPIPSDistance, "forward"),
    "features": (PooledFeatures, "forward"),
    "predict": (AttributeRegressor, "forward"),
    "train the ceiling": (SupervisedTrainer, "run"),
}


def count_time(owner: type, method: str) -> list[float]:
    """Replace a method by one that appends its seconds to the list that is returned; not within another one."""
    original, times = getattr(owner, method), []

    def timed(*args, **kwargs):
        if count_time.inside:
            return original(*args, **kwargs)
        count_time.inside, start = True, time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            count_time.inside = False
            times.append(time.perf_counter() - start)

    setattr(owner, method, timed)
    return times


count_time.inside = False


def repeat(datalist: Path, training: int, test: int, path: Path) -> Path:
    """Write a datalist with as many subjects as asked for, each a copy of a real one under a new name."""
    content = read_datalist(datalist)
    items = [item for name in SECTIONS for item in content[name]]
    copies = [items[k % len(items)] | {"subject": f"copy{k:05}"} for k in range(training + test)]
    path.write_text(json.dumps(content | {"training": copies[:training], "validation": [], "test": copies[training:]}))
    return path


def main() -> None:
    """Run the evaluation and time it."""
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
    spent = {name: count_time(owner, method) for name, (owner, method) in NETWORKS.items()}
    start = time.perf_counter()
    config.get_parsed_content("run")
    whole = time.perf_counter() - start
    networks = {name: sum(times) for name, times in spent.items()}
    print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in networks.items()))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rest = whole - sum(networks.values())
    print(f"whole {whole:.1f} s, without networks and ceiling {rest:.1f} s; peak memory {memory:.2f} GiB")


if __name__ == "__main__":
    main()
