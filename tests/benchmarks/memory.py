"""Peak memory of the full-size training step on the CPU, with and without micro-batches, and what these change.

``python -m tests.benchmarks.memory [--output memory.json]`` runs each case in a process of its own, and compares the
gradients of a batch of 16 in one piece with those of its micro-batches.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from tests.benchmarks.report import RESULTS, OtherLoad, write_result
from tests.benchmarks.step import Kind, make_batch, read_config

SIZE = 128
CASES = {
    "batch 8": (8, {}),
    "batch 8, checkpointing": (8, {"checkpointing": True}),
    "batch 16": (16, {}),
    "batch 16, checkpointing": (16, {"checkpointing": True}),
    "batch 128, micro-batches of 8": (128, {"micro_batch_size": 8}),
}
COMPARED = {"micro_batch_size": 4}
NOTE = (
    "Two AR-SIVAE steps with the settings of train.json (128 x 128, ED and ES, VGG16) in float32, and a batch of the "
    "validation. Memory is the largest that the process had, PyTorch and weights included. The gradient of a batch of "
    "16 in micro-batches of 4 differs "
    "from that in one piece by {difference:.1e} of its length. Other processes took {load:.0%} of the machine."
)


def gradients(batch_size: int, overrides: Mapping[str, Any]) -> tuple[torch.Tensor, float, float]:
    """All gradients of the first step, the seconds of the second one, and the peak memory of this process in GB."""
    torch.manual_seed(0)
    config = read_config(Kind(False, overrides | {"batch_size": batch_size}), SIZE)
    trainer, batch = config.get_parsed_content("train#trainer"), make_batch(batch_size, SIZE)
    trainer.state.epoch = 1
    torch.manual_seed(1)
    trainer._iteration(trainer, batch)
    flat = torch.cat([parameter.grad.flatten() for parameter in trainer.network.parameters()])
    start = time.perf_counter()
    trainer._iteration(trainer, batch)
    seconds = time.perf_counter() - start
    validate(config, trainer.network, batch["image"])
    return flat, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@torch.no_grad()
def validate(config: ConfigParser, network: torch.nn.Module, images: torch.Tensor) -> None:
    """What the validation computes of one of its batches."""
    shown = images[: config.get_parsed_content("validation_batch_size")]
    config.get_parsed_content("reconstruction_loss").per_value(network.eval()(shown), shown)


def in_new_process(*arguments: Any) -> tuple[torch.Tensor, float, float]:
    """``gradients`` in a process whose peak is that of nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(gradients, *arguments).result()


def main() -> None:
    """Run all cases and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "memory.json")
    arguments = parser.parse_args()
    load = OtherLoad()
    rows, found = [], {}
    for name, (batch_size, overrides) in CASES.items():
        found[name], seconds, peak = in_new_process(batch_size, overrides)
        rows.append({"step": name, "peak memory (GB)": peak, "seconds of a step": seconds})
        print(rows[-1], flush=True)
    whole, split = found["batch 16"], in_new_process(16, COMPARED)[0]
    note = NOTE.format(difference=float((split - whole).norm() / whole.norm()), load=load.share())
    write_result(arguments.output, "Memory of a training step", note, rows)


if __name__ == "__main__":
    main()
