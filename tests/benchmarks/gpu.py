"""Speed, memory and utilization of the training step on a GPU, beside what the card reaches in the same run.

``python -m tests.benchmarks.gpu [--output gpu.json] [--batch 128] [--micro 32] [--steps 10]`` runs the AR-SIVAE step of
train.json in each precision, compiled or not, on the whole batch and in micro-batches. It ends with 1 where there is no
GPU; ``--device cpu`` with small sizes tries the script out.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.utils import set_determinism
from torch.utils.flop_counter import FlopCounterMode

from scripts.engines import set_tf32
from tests.benchmarks.report import RESULTS, write_result
from tests.benchmarks.step import Kind, convolution_rate, make_batch, network_layers, rate, trainer_step

PRECISIONS = ("float32", "bfloat16", "float16")
LABELS = {"float32": "float32 (TF32)"}
COMPILE_STEPS = 3
NOTE = (
    "AR-SIVAE step with the settings of train.json at a batch of {batch}, ED and ES at {size}×{size}; mean of {steps} "
    "steps, data on the device. The peaks are the fastest 3×3 convolution of the network, forward and backward, and a "
    "matrix product of {matrix}×{matrix}, in the same precision and run. Operations are those of convolutions and "
    "matrix products, two per multiplication with addition."
)


def has_gpu(device: str) -> bool:
    return device.startswith("cuda")


def wait(device: str) -> None:
    """Until the device has finished."""
    if has_gpu(device):
        torch.cuda.synchronize(device)


def matrix_rate(size: int, dtype: torch.dtype, device: str) -> float:
    """Best rate of a square matrix product, in operations per second."""
    left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    return rate(2 * size**3, lambda: left @ right, device)


def peaks(arguments: argparse.Namespace, dtype: torch.dtype) -> dict[str, float]:
    """What the device reaches in one precision, in TFLOP/s."""
    device = arguments.device
    layers = network_layers(arguments.size)
    return {
        "convolution": max(convolution_rate(*layer, arguments.batch, dtype, device) for layer in layers) / 1e12,
        "matrix": matrix_rate(arguments.matrix, dtype, device) / 1e12,
    }


@contextmanager
def utilization(device: str) -> Iterator[list[float]]:
    """Collect how busy the GPU is, 0 to 1, five times a second; nothing where there is no ``nvidia-smi``."""
    found: list[float] = []
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    try:
        if not has_gpu(device):
            raise FileNotFoundError
        process = subprocess.Popen(
            [*query, f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except OSError:
        yield found
        return
    try:
        yield found
    finally:
        process.terminate()
        found += [float(line) / 100 for line in process.communicate()[0].split() if line.isdigit()]


def count_operations(overrides: Mapping[str, Any], size: int, device: str) -> float:
    """Operations per image, counted on two images, each a micro-batch where there are some."""
    eager = dict(overrides) | {"compile": False}
    if eager["micro_batch_size"]:
        eager["micro_batch_size"] = 1
    step, batch = trainer_step(Kind(False, eager), size, device), make_batch(2, size)
    with FlopCounterMode(display=False) as counter:
        step(batch)
    return counter.get_total_flops() / 2


def time_steps(step: Callable[[Any], object], batch: Any, steps: int, device: str) -> tuple[float, float | None]:
    """Seconds per step, and the mean utilization meanwhile (None: unknown)."""
    with utilization(device) as busy:
        wait(device)
        start = time.perf_counter()
        for _ in range(steps):
            step(batch)
        wait(device)
        seconds = (time.perf_counter() - start) / steps
    return seconds, statistics.mean(busy) if busy else None


def measure(arguments: argparse.Namespace, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the table, without its name and the peaks.

    Raises:
        RuntimeError: where the step does not fit, or cannot be compiled.
    """
    device, size = arguments.device, arguments.size
    torch.manual_seed(0)
    torch.compiler.reset()
    operations = count_operations(overrides, size, device)
    step = trainer_step(Kind(False, overrides), size, device)
    batch = {name: values.to(device) for name, values in make_batch(arguments.batch, size).items()}
    for _ in range(COMPILE_STEPS):
        step(batch)
    if has_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)
    seconds, busy = time_steps(step, batch, arguments.steps, device)
    memory = torch.cuda.max_memory_reserved(device) / 1e9 if has_gpu(device) else None
    return {
        "images/s": arguments.batch / seconds,
        "peak memory (GB)": memory,
        "utilization": "unknown" if busy is None else busy,
        "TFLOP/s": operations * arguments.batch / seconds / 1e12,
    }


def measure_all(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of the table."""
    for precision in arguments.precisions:
        peak = peaks(arguments, getattr(torch, precision))
        cases = itertools.product([False, True], [None, arguments.micro])
        for compiled, micro in cases:
            parts = (
                LABELS.get(precision, precision),
                "compiled" * compiled,
                f"micro-batches of {micro}" if micro else "",
            )
            found = {"step": ", ".join(filter(None, parts))}
            try:
                found |= measure(arguments, {"precision": precision, "compile": compiled, "micro_batch_size": micro})
                found["share of convolution peak"] = found["TFLOP/s"] / peak["convolution"]
            except RuntimeError as error:  # one case that fails does not cost the others
                found["images/s"] = f"failed: {str(error).splitlines()[0][:60]}"
            found |= {f"{name} peak (TFLOP/s)": value for name, value in peak.items()}
            print(found, flush=True)
            yield found
            if has_gpu(arguments.device):
                torch.cuda.empty_cache()


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--micro", type=int, default=32, help="images of a micro-batch")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, default=128, help="height and width of the images")
    parser.add_argument("--matrix", type=int, default=8192, help="rows and columns of the matrix product")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    arguments = parser.parse_args()
    if has_gpu(arguments.device) and not torch.cuda.is_available():
        sys.exit("There is no GPU here: nothing was measured.")
    set_determinism(0)  # both as the training does: it costs some of cuDNN's kernels
    set_tf32(True)
    note = NOTE.format_map(vars(arguments))
    write_result(arguments.output, "Training step on a GPU", note, list(measure_all(arguments)))


if __name__ == "__main__":
    main()
