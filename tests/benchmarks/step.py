"""Speed of the training step beside the plain transcription of the equations, at full size, in one run.

``python -m tests.benchmarks.step [--output step.json] [--repeats 3] [--batch 8] [--size 128]`` runs every kind of step
once per repetition, one after the other, and between two of them the fastest 3x3 convolution of the network, forward
and backward: a slower clock then counts for all. The steps of the trainers and the transcription run in a process each,
since the trainers change how their process hands out memory. A step's operations are those of the convolutions and
matrix products that were executed, as PyTorch counts them, at two per multiplication with addition.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scripts.allocator import keep_freed_memory
from scripts.perceptual import layer_positions, load_trunk
from tests.benchmarks.report import RESULTS, OtherLoad, write_result
from tests.benchmarks.transcription import FeatureError, Weights, introspective_step, vae_step

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
Batch = dict[str, torch.Tensor]

# Below the resolution of single precision, as the public code has it: its terms are computed and change nothing.
STRICT = {"eta": 1e-8}
NO_TRUNK = {"perceptual_weight": 0}
BFLOAT16 = {"precision": "bfloat16"}
COMPACT = ConfigParser.load_config_files([str(CONFIGS / "compact.json")])
ALEXNET = {key: COMPACT[key] for key in ("trunk", "trunk_layers")}


class Kind(NamedTuple):
    """One kind of step.

    Args:
        plain: by the transcription, else by the trainer.
        overrides: of the config.
        overlays: of train.json.
    """

    plain: bool
    overrides: Mapping[str, Any] = {}
    overlays: Sequence[str] = ()


BASE = "transcription, VGG16"
KINDS = {
    BASE: Kind(True, STRICT),
    "trainer, VGG16, strict (η = 1e-8)": Kind(False, STRICT),
    "trainer, VGG16, default": Kind(False),
    "trainer, AlexNet": Kind(False, ALEXNET),
    "trainer, VGG16, bfloat16": Kind(False, BFLOAT16),
    "transcription, squared error only": Kind(True, STRICT | NO_TRUNK),
    "trainer, squared error only": Kind(False, NO_TRUNK),
    "transcription, Attri-VAE": Kind(True, {}, ["attri_vae.json"]),
    "trainer, Attri-VAE": Kind(False, {}, ["attri_vae.json"]),
}


def read_config(kind: Kind, size: int, device: str = "cpu") -> ConfigParser:
    """The config of a training of one kind, without its data."""
    config = ConfigParser()
    config.read_config([CONFIGS / name for name in ("train.json", *kind.overlays)])
    without_data = {"device": f"$torch.device('{device}')", "train#dataloader": "$[None]", "train#handlers": []}
    config.update(without_data | {"spatial_size": [size, size]} | dict(kind.overrides))
    return config


def trainer_step(kind: Kind, size: int, device: str = "cpu") -> Callable[[Batch], object]:
    """The step of the config's trainer."""
    trainer = read_config(kind, size, device).get_parsed_content("train#trainer")
    trainer.state.epoch = 1
    return lambda batch: trainer._iteration(trainer, batch)


def transcribed_step(kind: Kind, size: int) -> Callable[[Batch], object]:
    """The same step by the transcription."""
    config = read_config(kind, size)
    network = config.get_parsed_content("network_def")
    weights = Weights(**{name: config.get_parsed_content(name) for name in Weights._fields})
    perceptual = None
    if weights.perceptual_weight:
        name, layers = config["trunk"], config["trunk_layers"]
        trunk = load_trunk(name)
        positions = layer_positions(name, trunk)
        perceptual = FeatureError(trunk, sorted(positions[layer] for layer in layers))
    introspective = config["family"] == "introspective"
    step = introspective_step if introspective else vae_step
    parts = (network.encoder, network.decoder) if introspective else (network,)
    learning_rate = config.get_parsed_content("learning_rate")
    optimizers = [torch.optim.Adam(part.parameters(), learning_rate) for part in parts]
    names = ("codes", "prior", "reconstructed", "generated", "reconstructed_again", "generated_again")

    def run(batch: Batch) -> object:
        noise = {name: torch.randn(len(batch["image"]), network.latent_dim) for name in names}
        return step(network, *optimizers, batch["image"], batch["attributes"], noise, weights, perceptual)

    return run


@cache
def make_step(name: str, size: int) -> Callable[[Batch], object]:
    """The step of a kind, made once in each process."""
    torch.manual_seed(0)
    kind = KINDS[name]
    return (transcribed_step if kind.plain else trainer_step)(kind, size)


def make_batch(count: int, size: int) -> Batch:
    """Random images of two phases and six attributes."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 2, size, size, generator=generator)
    return {"image": image, "attributes": torch.rand(count, 6, generator=generator)}


def run_step(name: str, count: int, size: int) -> float:
    """Seconds of one step."""
    step, batch = make_step(name, size), make_batch(count, size)
    start = time.perf_counter()
    step(batch)
    return time.perf_counter() - start


def count_operations(name: str, size: int) -> int:
    """Floating-point operations per image."""
    step, batch = make_step(name, size), make_batch(1, size)
    with FlopCounterMode(display=False) as counter:
        step(batch)
    return counter.get_total_flops()


def rate(operations: int, run: Callable[[], object], device: str = "cpu", seconds: float = 0.5) -> float:
    """Best rate, in operations per second, of what takes so many operations and is run again and again."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        wait()
        start = time.perf_counter()
        run()
        wait()
        best = min(best, time.perf_counter() - start)
    return operations / best


def convolution_rate(
    width: int, size: int, count: int, dtype: torch.dtype, device: str = "cpu", seconds: float = 0.5
) -> float:
    """Best rate of a 3x3 convolution with so many channels in and out, forward and both ways backward."""
    layout = {"device": device, "dtype": dtype, "memory_format": torch.channels_last}
    layer = nn.Conv2d(width, width, 3, padding=1).to(**layout)
    image = torch.rand(count, width, size, size).to(**layout).requires_grad_()
    gradient = torch.rand_like(image)

    def run() -> object:
        return torch.autograd.grad(layer(image), [image, *layer.parameters()], gradient)

    return rate(6 * 9 * width**2 * count * size**2, run, device, seconds)


def network_layers(size: int) -> list[tuple[int, int]]:
    """Channels, and height and width, of the 3x3 convolutions of the full-size network."""
    return [(64, size), (128, size // 2), (256, size // 4), (512, size // 8)]


class Peak:
    """The peak rate of convolutions in each precision, measured again whenever asked for.

    Args:
        count, size: of the images.
    """

    def __init__(self, count: int, size: int) -> None:
        keep_freed_memory()
        self.count = count
        self.best = {
            dtype: max(network_layers(size), key=lambda layer: convolution_rate(*layer, count, dtype))
            for dtype in (torch.float32, torch.bfloat16)
        }

    def measure(self) -> dict[torch.dtype, float]:
        """Operations per second."""
        return {dtype: convolution_rate(*layer, self.count, dtype) for dtype, layer in self.best.items()}


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """All kinds, ``repeats`` times in turns: the rows of the table, and all seconds by kind."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as plain, ProcessPoolExecutor(1, spawn) as ours:
        processes = {name: plain if KINDS[name].plain else ours for name in arguments.kinds}
        operations = {
            name: process.submit(count_operations, name, arguments.size).result() for name, process in processes.items()
        }
        peak = Peak(arguments.batch, arguments.size)
        seconds, peaks = ({name: [] for name in processes} for _ in range(2))
        for repeat in range(arguments.repeats):
            before = peak.measure()
            for name, process in processes.items():
                seconds[name].append(process.submit(run_step, name, arguments.batch, arguments.size).result())
                after = peak.measure()
                dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
                peaks[name].append(max(before[dtype], after[dtype]))
                before = after
                print(f"[{repeat + 1}/{arguments.repeats}] {name}: {seconds[name][-1]:.2f} s", flush=True)
    rows = [row(name, operations[name], arguments.batch, seconds, peaks[name]) for name in processes]
    return rows, seconds


def row(
    name: str, operations: int, count: int, seconds: Mapping[str, list[float]], peaks: list[float]
) -> dict[str, Any]:
    """Medians over the repetitions; ratios are taken within each."""
    own, base = seconds[name], seconds.get(BASE, [])
    rates = [count * operations / time for time in own]
    return {
        "step": name,
        "seconds": statistics.median(own),
        "times the speed of the first": statistics.median(b / a for a, b in zip(own, base, strict=True))
        if base
        else None,
        "GMAC per image": operations / 2e9,
        "GFLOP/s": statistics.median(rates) / 1e9,
        "peak GFLOP/s": statistics.median(peaks) / 1e9,
        "share of peak": statistics.median(rate / peak for rate, peak in zip(rates, peaks, strict=True)),
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "step.json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=128, help="height and width of the images")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    arguments = parser.parse_args()
    load = OtherLoad()
    rows, seconds = measure(arguments)
    others = load.share()
    note = (
        f"Full-size network, ED and ES at {arguments.size}×{arguments.size}, batches of {arguments.batch}, Adam; "
        f"medians of {arguments.repeats} repetitions in turns. The transcription computes every term of the equations "
        "anew, with the perceptual network as the published code has it (not frozen, three equal channels). The peak "
        "is the fastest 3×3 convolution of the network, forward and backward, right before and after each step, in the "
        f"same precision. Others took {others:.0%} of the cores meanwhile."
    )
    write_result(arguments.output, "Training step", note, rows, seconds=seconds)


if __name__ == "__main__":
    main()
