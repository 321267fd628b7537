"""Attributes in mL from the regularized dimensions, with intervals that hold for subjects nobody has fitted.

Dimension k orders subjects by attribute k; a line gives it the attribute's unit. The line is fitted on training
subjects and judged on validation subjects only (split-conformal prediction: Vovk et al., Algorithmic Learning in a
Random World, 2005; Lei et al., JASA 2018): the k-th smallest of n absolute residuals, k = ceil((n + 1) level),
is exceeded by a new subject of the same population with a probability of at most 1 - level, whatever the line is worth.
The validation subjects have also chosen the checkpoint, by their reconstruction error, which makes them a little more
like training subjects than new ones are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
    """An attribute and the ends of its interval in its unit (mL for volumes); NaN ends where there is no interval."""

    value: float
    low: float
    high: float

    def from_zero(self) -> Estimate:
        """The estimate of an attribute that cannot be below zero: an interval loses no true value by it."""
        return Estimate(*(end if math.isnan(end) else max(end, 0.0) for end in self))


class Line(NamedTuple):
    """How a dimension of the code tells an attribute.

    Args:
        dimension: of the code.
        slope, intercept: of the line, in the attribute's unit.
        half_width: of the interval; None without validation subjects.
        level: share of new subjects that the interval covers at least; None without an interval.
        r2: of the validation subjects, against the mean of the training subjects: at 0 and below, the dimension tells
            nothing; None with fewer than two of them.
    """

    dimension: int
    slope: float
    intercept: float
    half_width: float | None
    level: float | None
    r2: float | None = None

    def estimate(self, codes: np.ndarray) -> Estimate:
        """The attribute of one subject from its mean code (D,)."""
        value = self.intercept + self.slope * float(codes[self.dimension])
        half = math.nan if self.half_width is None else self.half_width
        return Estimate(value, value - half, value + half)


def fit_line(training: Sequence[np.ndarray], validation: Sequence[np.ndarray], dimension: int, level: float) -> Line:
    """Fit an attribute's line on training subjects, and its interval on validation subjects.

    Args:
        training, validation: codes (subjects, D) and attribute (subjects,); NaN where missing, which is left out.
        dimension: that follows the attribute.
        level: of the interval; where too few validation subjects support it, the largest level that they do.
    """
    z, values = known(*training, dimension)
    # Without two different codes there is no slope: the mean is the best estimate.
    fit = stats.linregress(z, values) if len(np.unique(z)) > 1 else None
    slope, intercept = (float(fit.slope), float(fit.intercept)) if fit else (0.0, float(np.mean(values)))
    mean = float(np.mean(values))
    z, values = known(*validation, dimension)
    residuals = values - intercept - slope * z
    half, reached = conformal_quantile(np.abs(residuals), level)
    spread = float(np.sum((values - mean) ** 2))
    r2 = 1 - float(np.sum(residuals**2)) / spread if len(values) > 1 and spread else None
    return Line(dimension, slope, intercept, half, reached, r2)


def known(codes: np.ndarray, attribute: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Dimension and attribute of the subjects that have a value."""
    present = np.isfinite(attribute)
    return codes[present, dimension], attribute[present]


def conformal_quantile(residuals: np.ndarray, level: float) -> tuple[float | None, float | None]:
    """Half of the interval's width and the level that it has, from absolute residuals (n,).

    n residuals support no level above n / (n + 1): 95 % needs 19 of them.
    """
    count = len(residuals)
    if not count:
        return None, None
    rank = math.ceil(round((count + 1) * level, 9))  # rounded: 20 * 0.95 must not become 20
    reached = level if rank <= count else count / (count + 1)
    return float(np.sort(residuals)[min(rank, count) - 1]), reached


def shortfalls(lines: Mapping[str, Line], level: float) -> list[str]:
    """What to tell of attributes whose interval has not the level that was asked for, one line per level."""
    groups: dict[float | None, list[str]] = {}
    for name, line in lines.items():
        if line.level is None or line.level < level:
            groups.setdefault(line.level, []).append(name)
    return [_shortfall(", ".join(names), reached, level) for reached, names in groups.items()]


def _shortfall(names: str, reached: float | None, level: float) -> str:
    needed = math.ceil(round(level / (1 - level), 9))
    if reached is None:
        return f"No interval for {names}: no validation subject has a value; {100 * level:g} % need {needed} of them."
    return (
        f"Intervals of {names} hold at {100 * reached:.3g} % only: {100 * level:g} % need {needed} validation subjects."
    )
