"""Interpretability metrics: pure functions on codes and attributes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def spearman(codes: Sequence, attributes: Sequence) -> np.ndarray:
    """Spearman correlation of each attribute with the dimension that is regularized for it (SCC on fixed dimensions).

    Args:
        codes: (subjects, D); dimension k belongs to attribute k.
        attributes: (subjects, A) with A up to D; a missing (NaN) value leaves its subject out of its attribute.

    Returns:
        (A,); NaN where a correlation is undefined: fewer than 3 subjects, or a constant code or attribute.
    """
    codes, attributes = np.asarray(codes, dtype=float), np.asarray(attributes, dtype=float)
    return np.array([_spearman(codes[:, k], attributes[:, k]) for k in range(attributes.shape[1])])


def _spearman(code: np.ndarray, attribute: np.ndarray) -> float:
    known = np.isfinite(attribute) & np.isfinite(code)
    code, attribute = code[known], attribute[known]
    if len(code) < 3 or np.ptp(code) == 0 or np.ptp(attribute) == 0:
        return float("nan")
    return float(stats.spearmanr(code, attribute).statistic)


def mean_spearman(codes: Sequence, attributes: Sequence) -> float:
    """Mean of ``spearman`` over the attributes for which it is defined; NaN when it is for none."""
    values = spearman(codes, attributes)
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")


def held_out_r2(
    train_codes: Sequence, train_attributes: Sequence, test_codes: Sequence, test_attributes: Sequence
) -> np.ndarray:
    """R² of each attribute on unseen subjects, from a line through its regularized dimension.

    The line is fitted on training subjects and scored on the others: 1 - residual / total variance, which is
    negative when the line does worse than the test subjects' mean.

    Args:
        train_codes, test_codes: (subjects, D); dimension k belongs to attribute k.
        train_attributes, test_attributes: (subjects, A), without missing values.

    Returns:
        (A,).
    """
    train_codes, train_attributes, test_codes, test_attributes = (
        np.asarray(values, dtype=float) for values in (train_codes, train_attributes, test_codes, test_attributes)
    )
    scores = []
    for k in range(train_attributes.shape[1]):
        slope, offset = np.polyfit(train_codes[:, k], train_attributes[:, k], 1)
        residual = test_attributes[:, k] - (slope * test_codes[:, k] + offset)
        scores.append(
            1 - np.square(residual).sum() / np.square(test_attributes[:, k] - test_attributes[:, k].mean()).sum()
        )
    return np.array(scores)
