"""A world in which all is known: a decoder that answers as it is told to, and instruments that read what it shows.

The image of a heart holds its volumes in three pixels, and its maps what the model says of them.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from scripts.evaluation.faithfulness import Faithfulness
from scripts.evaluation.instruments import SelfReport
from scripts.views import View

NAMES = ("LVEDV", "RVEDV", "MyoEDV")
VIEW = View(["ED"], "stack", "masks", stack_slices=1, slice_distance=20)
SPACING, SIZE = 20.0, 8
MEAN, SCALE = 100.0, 20.0  # mL of a code of 0, and per unit of it
CAPACITY = SIZE**2 * SPACING**2 * VIEW.slice_distance / 1000  # mL of a map that is 1 everywhere
IN_MAPS = [NAMES.index(f"{name}EDV") for name in ("LV", "Myo", "RV")]


class Generator(nn.Module):
    """Decodes volumes, and encodes what its maps say.

    Args:
        strength: share of a change that the image shows; the maps claim all of it.
        drift: share of a change of LVEDV that RVEDV follows by, in the image.
        memory: share of a code that is left after decoding and encoding.
        spill: by how much a pixel beside the heart changes with the code of LVEDV.
    """

    def __init__(self, strength: float = 1.0, drift: float = 0.0, memory: float = 1.0, spill: float = 0.0) -> None:
        super().__init__()
        self.strength, self.drift, self.memory, self.spill = strength, drift, memory, spill

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        image = torch.zeros(len(codes), 4, SIZE, SIZE)
        shown = self.strength * SCALE * codes[:, :3]
        shown[:, 1] += self.drift * SCALE * codes[:, 0]
        image[:, 0, 0, :3] = (MEAN + shown) / 1000
        image[:, 0, -1, -1] = 0.5 + self.spill * codes[:, 0]
        image[:, 1:] = ((MEAN + SCALE * codes[:, IN_MAPS]) / CAPACITY)[:, :, None, None]
        return image

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        claimed = image[:, 1:, 0, 0] * CAPACITY
        codes = (claimed[:, np.argsort(IN_MAPS)] - MEAN) / SCALE * self.memory
        return codes, torch.zeros_like(codes)


class Segmentation:
    """Knows that the heart is the first row of the image."""

    view = VIEW

    def segment(self, image: torch.Tensor) -> torch.Tensor:
        maps = torch.zeros(len(image), 3, SIZE, SIZE)
        maps[:, 0, 0] = 1
        return torch.cat([image[:, :1], maps], dim=1)


def reader(image: torch.Tensor) -> torch.Tensor:
    """The volumes that an image shows."""
    return 1000 * image[:, 0, 0, :3]


def distance(image: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """In the place of LPIPS: the largest difference."""
    return (image - other).abs().amax((1, 2, 3))


def records(codes: np.ndarray) -> SimpleNamespace:
    """Subjects whose attributes are those of their codes."""
    return SimpleNamespace(codes=codes, attributes=MEAN + SCALE * codes, pseudonyms=list(range(len(codes))))


def hearts(count: int = 12, seed: int = 0) -> np.ndarray:
    """Codes, of which few are near the ends of the trained range."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3))


TRAINED = np.concatenate([hearts(40, 1), [[3.0] * 3, [-3.0] * 3]])  # 40 to 160 mL


def ask(network: Generator, codes: np.ndarray | None = None, **changes):
    """Measure the faithfulness of a generator."""
    codes = hearts() if codes is None else codes
    scans = Generator().decode(torch.as_tensor(codes, dtype=torch.float32))
    options = {"regularized": True, "changes": [-20, -10, 10, 20], "round_trip": [-10, 10], "batch_size": 8} | changes
    instruments = {"reader": reader, "self-report": SelfReport(VIEW, SPACING, NAMES)}
    loader = [{"image": part} for part in scans.split(5)]
    made = Faithfulness(
        network,
        VIEW,
        SPACING,
        NAMES,
        instruments=instruments,
        segmentation=Segmentation(),
        lpips=distance,
        loader=loader,
        **options,
    )
    return made.measure(records(TRAINED), records(codes))
