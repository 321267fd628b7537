"""Which subjects train the model, which select it, and which judge it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SECTIONS = ("training", "validation", "test")


def split_subjects(subjects: Sequence[str], fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Assign every subject to a section, at random but reproducibly.

    Args:
        subjects: subject names, in any order.
        fractions: shares of training, validation and test; they add up to 1.
        seed: the same seed and subjects give the same split.

    Returns:
        subject to section.

    Raises:
        ValueError: for fractions that are negative or do not add up to 1.
    """
    if not are_shares(fractions):
        raise ValueError(
            f"split {fractions!r} needs three shares (training, validation, test) that add up to 1: set --split, such "
            "as --split '[0.7,0.15,0.15]'."
        )
    order = np.random.default_rng(seed).permutation(sorted(subjects))
    ends = np.round(np.cumsum(fractions) * len(order)).astype(int)
    parts = np.split(order, ends[:-1])
    return {str(subject): section for section, part in zip(SECTIONS, parts, strict=True) for subject in part}


def are_shares(fractions: Any) -> bool:
    """Whether these are the shares of the three sections."""
    try:
        shares = np.array(fractions, float)
    except (TypeError, ValueError):
        return False
    return shares.shape == (len(SECTIONS),) and bool((shares >= 0).all()) and bool(np.isclose(shares.sum(), 1))


def split_by_column(rows: Sequence[Mapping[str, str]], column: str) -> dict[str, str]:
    """Read every subject's section from a column of the user table.

    Args:
        rows: cohort rows with ``subject`` and the column.
        column: its values are ``training``, ``validation`` or ``test``.

    Raises:
        ValueError: when values are none of these.
    """
    wrong = sum(row.get(column) not in SECTIONS for row in rows)
    if wrong:
        raise ValueError(
            f"split_column '{column}' is none of {', '.join(SECTIONS)} for {wrong} of {len(rows)} subjects; see this "
            "column of cohort.csv, and mend the user table."
        )
    return {row["subject"]: row[column] for row in rows}
