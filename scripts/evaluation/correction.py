"""Instruments corrected by scans of hearts whose attributes are known, before they measure those that a model makes.

What has learned with noise draws to the mean: it finds thin walls too thick and thick ones too thin, and as much less
of a change. By how much, scans tell that it has not learned from. (How codes become mL is another matter, see
``scripts.calibration``.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.utils.enums import CommonKeys as Keys
from scipy import stats

from scripts.cohort.datalist import load_items, read_datalist
from scripts.evaluation.instruments import Instrument

SLOPES = 0.5, 2.0  # of an instrument that a line can correct


class MeasuredLine(NamedTuple):
    """Measured values as a line of true ones."""

    slope: float = 1.0
    offset: float = 0.0


class Corrected:
    """An instrument whose values are corrected, for each attribute, by its line of measured on true values.

    Args:
        instrument: to correct; as it is until ``fit`` has found lines.
        names: of its attributes.

    Attributes:
        lines: attribute to line, of those that are corrected.
    """

    def __init__(self, instrument: Instrument, names: Sequence[str]) -> None:
        self.instrument, self.names = instrument, tuple(names)
        self.lines: dict[str, MeasuredLine] = {}

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Attributes, as of ``Instrument``."""
        values = self.instrument(image)
        slopes, offsets = values.new_tensor([self.lines.get(name, MeasuredLine()) for name in self.names]).T
        return (values - offsets) / slopes

    @torch.no_grad()
    def fit(self, loader: Iterable[Mapping[str, Any]], fewest: int, device: str | torch.device) -> None:
        """Take the lines from scans that the instrument has not learned from.

        Args:
            loader: of batches with ``image`` (B, C, H, W) and true ``attributes`` (B, A), NaN where not known.
            fewest: scans that a line takes. An attribute with less of them, or with a slope outside ``SLOPES``, which
                no line can make good, stays as it is.
            device: of the instrument.
        """
        batches = [(self.instrument(batch[Keys.IMAGE].to(device)).cpu(), batch["attributes"].cpu()) for batch in loader]
        if batches:
            measured, truth = (torch.cat(parts).double().numpy() for parts in zip(*batches, strict=True))
            found = {name: line_of(truth[:, k], measured[:, k], fewest) for k, name in enumerate(self.names)}
            self.lines = {name: line for name, line in found.items() if line is not None}


def line_of(truth: np.ndarray, measured: np.ndarray, fewest: int) -> MeasuredLine | None:
    """The least-squares line of pairs (N,); None where there is none to correct by, see ``Corrected.fit``."""
    known = np.isfinite(truth) & np.isfinite(measured)
    if np.count_nonzero(known) < fewest or np.ptp(truth[known]) == 0:
        return None
    fit = stats.linregress(truth[known], measured[known])
    return MeasuredLine(float(fit.slope), float(fit.intercept)) if SLOPES[0] < fit.slope < SLOPES[1] else None


def correct(
    instrument: Corrected, name: str, loader: Iterable[Mapping[str, Any]], fewest: int, device: str | torch.device
) -> Corrected:
    """Correct an instrument by scans, and print its slopes; see ``Corrected.fit``."""
    instrument.fit(loader, fewest, device)
    print(f"The {name} {correction_sentence(instrument.lines, instrument.names)}", flush=True)
    return instrument


def correction_sentence(lines: Mapping[str, MeasuredLine], names: Sequence[str]) -> str:
    """What an instrument with these names is corrected by, and which of them are not corrected, for people."""
    slopes = ", ".join(f"{name} {line.slope:.2f}" for name, line in lines.items())
    left = [name for name in names if name not in lines]
    parts = [f"is corrected by scans that it has not learned from, on which its slopes were {slopes}"] if lines else []
    if left:
        which = "" if not lines else f" for {', '.join(left)}"
        parts.append(
            f"is not corrected{which}: that takes more such scans, or a slope within {SLOPES[0]:g} to {SLOPES[1]:g}"
        )
    return "; it ".join(parts) + "."


def scans_of(
    section: str | None, datalist: str | os.PathLike, limit: int | None = None, **options: Any
) -> list[dict[str, Any]]:
    """The first items of a section, at most so many, as of ``load_items``; none where it is empty, or None."""
    return load_items(datalist, section=section, **options)[:limit] if read_datalist(datalist).get(section) else []
