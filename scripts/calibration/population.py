"""What training subjects tell of codes and attributes together: the ranges, and how one follows the other.

Counterfactuals (``scripts.counterfactual``) are asked within these ranges, and follow these lines. All is fitted by
least squares; were codes and attributes jointly Gaussian, the lines would be the conditional means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Population:
    """The training subjects' codes (D dimensions) and attributes (A, of which dimension k follows attribute k).

    Plain numbers, tuples and lists, for JSON.

    Args:
        attributes: names, in the order of their dimensions.
        low, high: (A,), range of each attribute in its unit (mL for volumes), in whole units around the extremes, which
            are those of single subjects.
        mean, spread: (D,), mean and standard deviation of the codes.
        attribute_mean: (A,).
        slopes: (D, A); the mean code given attribute k alone is ``mean + slopes[:, k] * (a_k - attribute_mean[k])``.
        matrix, intercept: (A, A) and (A,); the least-squares estimate of all attributes from the regularized dimensions
            together is ``matrix @ z[:A] + intercept``.

    Raises:
        ValueError: for parts that are no finite numbers, or whose shapes do not fit each other.
    """

    attributes: tuple[str, ...]
    low: list[float]
    high: list[float]
    mean: list[float]
    spread: list[float]
    attribute_mean: list[float]
    slopes: list[list[float]]
    matrix: list[list[float]]
    intercept: list[float]

    def __post_init__(self) -> None:
        count, dimensions = len(self.attributes), len(self.mean)
        shapes = dict.fromkeys(("low", "high", "attribute_mean", "intercept"), (count,))
        shapes |= {
            "mean": (dimensions,),
            "spread": (dimensions,),
            "slopes": (dimensions, count),
            "matrix": (count, count),
        }
        for name, expected in shapes.items():
            values = np.asarray(getattr(self, name), float)
            if values.shape != expected:
                raise ValueError(f"the population's {name} has shape {values.shape}; expected {expected}")
            if not np.isfinite(values).all():
                raise ValueError(f"the population's {name} has values that are not finite")

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Population:
        """Made again from what ``state`` gave, also by way of JSON."""
        return cls(**{**state, "attributes": tuple(state["attributes"])})

    def state(self) -> dict[str, Any]:
        """What makes the same again, for JSON."""
        return asdict(self) | {"attributes": list(self.attributes)}


def fit_population(codes: np.ndarray, attributes: np.ndarray, names: Sequence[str]) -> Population:
    """Fit a population to training subjects.

    Args:
        codes: (subjects, D) with D of at least A.
        attributes: (subjects, A); NaN where missing, which is left out.
        names: of the attributes, in the order of their dimensions.

    Raises:
        ValueError: for an attribute that no subject has.
    """
    unknown = [name for name, values in zip(names, attributes.T, strict=True) if not np.isfinite(values).any()]
    if unknown:
        raise ValueError(f"no training subject has a value of {', '.join(unknown)}")
    known = [np.isfinite(values) for values in attributes.T]
    own = codes[:, : len(names)]
    slopes = [conditional_slope(codes[k], values[k]) for k, values in zip(known, attributes.T, strict=True)]
    planes = [fit_plane(own[k], values[k]) for k, values in zip(known, attributes.T, strict=True)]
    return Population(
        attributes=tuple(names),
        low=np.floor(np.nanmin(attributes, axis=0)).tolist(),
        high=np.ceil(np.nanmax(attributes, axis=0)).tolist(),
        mean=codes.mean(0).tolist(),
        spread=codes.std(0).tolist(),
        attribute_mean=np.nanmean(attributes, axis=0).tolist(),
        slopes=np.stack(slopes, axis=1).tolist(),
        matrix=[weights.tolist() for weights, _ in planes],
        intercept=[offset for _, offset in planes],
    )


def conditional_slope(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """By how much the mean code (D,) grows with an attribute (subjects,): 0 for one that is the same in all."""
    apart = values - values.mean()
    variance = np.mean(apart**2)
    return apart @ (codes - codes.mean(0)) / len(values) / (variance if variance else 1.0)


def fit_plane(codes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights (A,) and offset of the least-squares estimate of an attribute (subjects,) from codes (subjects, A)."""
    design = np.column_stack([codes, np.ones(len(codes))])
    *weights, offset = np.linalg.lstsq(design, values, rcond=None)[0]
    return np.array(weights), float(offset)
