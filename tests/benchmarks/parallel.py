"""Images per second of a distributed training step on the CPU: two processes of one thread beside one such process.

``python -m tests.benchmarks.parallel [--output parallel.json] [--batch 16] [--repeats 4]`` runs full-size AR-SIVAE
steps of the same global batch, in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ignite.distributed as idist
import torch

from scripts.distributed import local_batch_size, own_rows
from tests.benchmarks.report import RESULTS, ROOT, OtherLoad, write_result
from tests.benchmarks.step import Kind, make_batch, read_config

SIZE = 128
NOTE = (
    "AR-SIVAE steps with the settings of train.json (128 x 128, ED and ES, VGG16, float32) at a global batch of "
    "{batch}, each process on one thread; medians of {repeats} steps, measured in turns. Other processes took "
    "{load:.0%} of the machine."
)


def steps(batch_size: int, repeats: int, path: Path) -> None:
    """Time steps in this process, or in each of those of ``torchrun``; the first one writes the seconds."""
    if torch.distributed.is_torchelastic_launched():
        torch.distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = read_config(Kind(False), SIZE).get_parsed_content("train#trainer")
    trainer.state.epoch = 1
    rows = own_rows(local_batch_size(batch_size))
    batch = {name: values[rows] for name, values in make_batch(batch_size, SIZE).items()}
    seconds = []
    for _ in range(repeats + 1):  # the first one prepares
        idist.barrier()
        start = time.perf_counter()
        trainer._iteration(trainer, batch)
        idist.barrier()
        seconds.append(time.perf_counter() - start)
    if idist.get_rank() == 0:
        path.write_text(" ".join(map(str, seconds[1:])))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def launch(processes: int, batch_size: int, repeats: int) -> list[float]:
    """Seconds of the steps of so many processes."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds.txt"
        own = ["tests.benchmarks.parallel", f"--batch={batch_size}", f"--repeats={repeats}", f"--worker={path}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", *launcher, *own], cwd=ROOT, env=environment, check=True)
        return [float(value) for value in path.read_text().split()]


def main() -> None:
    """Measure in turns and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "parallel.json")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        steps(arguments.batch, arguments.repeats, arguments.worker)
        return
    load, seconds = OtherLoad(), {1: [], 2: []}
    for _ in range(2):
        for processes, found in seconds.items():
            found += launch(processes, arguments.batch, arguments.repeats // 2)
    rates = {processes: arguments.batch / statistics.median(found) for processes, found in seconds.items()}
    rows = [
        {"processes": f"{processes} of 1 thread", "images/s": rate, "ratio to one": rate / rates[1]}
        for processes, rate in rates.items()
    ]
    note = NOTE.format(batch=arguments.batch, repeats=arguments.repeats, load=load.share())
    write_result(arguments.output, "Training on several devices", note, rows)


if __name__ == "__main__":
    main()
