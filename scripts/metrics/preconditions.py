"""What the interpretability metrics expect of codes and attributes, and why they say nothing of an attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scripts.metrics.information import is_constant

LEAST_SUBJECTS = 10


def finite(codes: Sequence, attributes: Sequence, which: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Codes (subjects, D), finite, and attributes (subjects, A), which may be NaN, as arrays; ValueError otherwise."""
    codes, attributes = np.asarray(codes, dtype=float), np.asarray(attributes, dtype=float)
    if codes.ndim != 2 or attributes.ndim != 2 or len(codes) != len(attributes):
        raise ValueError(
            f"The {which}codes have shape {codes.shape} and the attributes {attributes.shape}: give (subjects, "
            "dimensions) and (subjects, attributes) with the same subjects in the same order."
        )
    if not np.isfinite(codes).all():
        wrong = np.flatnonzero(~np.isfinite(codes).all(axis=1)).tolist()
        raise ValueError(f"The {which}codes of rows {wrong[:5]} are not finite: mend the encoder or leave them out.")
    if np.isinf(attributes).any():
        raise ValueError(f"The {which}attributes hold infinite values: write NaN where a value is missing.")
    return codes, attributes


def checked(
    codes: Sequence, attributes: Sequence, names: Sequence[str], which: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """As ``finite``, with enough subjects and with a name for each attribute."""
    codes, attributes = finite(codes, attributes, which)
    if len(codes) < LEAST_SUBJECTS:
        raise ValueError(f"There are {len(codes)} {which}subjects: give at least {LEAST_SUBJECTS}.")
    if isinstance(names, str) or len(names) != attributes.shape[1] or not len(names) or not codes.shape[1]:
        raise ValueError(f"{names!r} must name the {attributes.shape[1]} columns of the {which}attributes, one each.")
    if len({*names, "mean"}) <= len(names):
        raise ValueError(f"The names {list(names)} must differ from each other and from 'mean': rename an attribute.")
    return codes, attributes


def check_groups(groups: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
    """ValueError unless each group lists attributes."""
    for group, members in groups.items():
        if group == "each" or isinstance(members, str) or not len(members) or not set(members) <= set(names):
            raise ValueError(
                f"The group {group!r} of {members!r} must not be 'each' and must list some of {list(names)}."
            )


def checked_dimensions(dimensions: Sequence[int] | None, attributes: int, latent_dim: int) -> np.ndarray:
    """The dimension of each attribute, (A,); by default the first A in order."""
    chosen = np.arange(attributes) if dimensions is None else np.asarray(dimensions)
    distinct = set(chosen.ravel().tolist())
    if chosen.shape != (attributes,) or len(distinct) < attributes or not distinct <= set(range(latent_dim)):
        raise ValueError(
            f"The dimensions {chosen.tolist()} must be {attributes} different integers, one per attribute, from 0 to "
            f"{latent_dim - 1}."
        )
    return chosen.astype(int)


def obstacles(attributes: np.ndarray, where: str, codes: np.ndarray | None = None) -> list[str]:
    """Per attribute, why nothing can be said about it (and its code) on these subjects; empty if something can."""
    reasons = []
    for k, known in enumerate(np.isfinite(attributes).T):
        if known.sum() < LEAST_SUBJECTS:
            reasons.append(f"known for {known.sum()} {where}subjects, of at least {LEAST_SUBJECTS}")
        elif is_constant(attributes[known, k : k + 1])[0]:
            reasons.append(f"the attribute is constant over the {where}subjects")
        elif codes is not None and is_constant(codes[known, k : k + 1])[0]:
            reasons.append(f"its code is constant over the {where}subjects")
        else:
            reasons.append("")
    return reasons


def first_reasons(reasons: list[str], others: list[str]) -> list[str]:
    """Per attribute, its reason in the first list that has one."""
    return [reason or other for reason, other in zip(reasons, others, strict=True)]


def without_complete_subjects(attributes: np.ndarray, reasons: list[str]) -> list[str]:
    """Why there is no partial correlation: too few subjects with all of the attributes that have no reason yet."""
    known = np.isfinite(attributes[:, [not reason for reason in reasons]]).all(axis=1).sum()
    least = max(LEAST_SUBJECTS, len(reasons) + 2)  # what a regression on the others leaves must not be determined
    return [f"{known} test subjects have all attributes, of at least {least}" if known < least else ""] * len(reasons)
