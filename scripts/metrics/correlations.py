"""Correlations and lines between codes and attributes, of weighted subjects.

``weights`` (W, subjects) say how often each subject counts in each of W samples: ones for the sample as it is, numbers
of draws for a bootstrap. A result has one entry per sample; NaN stands where it is undefined.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from scripts.metrics.information import is_constant, known_patterns

LEAST_PAIRS = 3  # two points always lie on a line


def paired_spearman(codes: np.ndarray, attributes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman correlation (W, A) of each code with its attribute; subjects who lack one of both are left out."""
    known = np.isfinite(codes) & np.isfinite(attributes)
    pairs = [
        rank_correlation(np.column_stack([code, attribute]), weights * rows)[:, 0, 1]
        for code, attribute, rows in zip(codes.T, attributes.T, known.T, strict=True)
    ]
    return np.where(weights @ known < LEAST_PAIRS, np.nan, np.column_stack(pairs))


def partial_spearman(
    codes: np.ndarray, attributes: np.ndarray, defined: Sequence[bool], weights: np.ndarray
) -> np.ndarray:
    """Spearman correlation (W, A, D) of each attribute with each code, given the other attributes.

    Attributes that are not ``defined`` get NaN and are not among the others; subjects need all that are defined.
    """
    columns, count = np.flatnonzero(defined), codes.shape[1]
    result = np.full((len(weights), attributes.shape[1], count), np.nan)
    attributes = attributes[:, columns]
    correlations = rank_correlation(np.hstack([codes, attributes]), weights * np.isfinite(attributes).all(axis=1))
    places = count + np.arange(len(columns))
    for place, column in zip(places, columns, strict=True):
        result[:, column] = _given(correlations, [place, *range(count)], places[places != place])[:, 0, 1:]
    return result


def own_partial_spearman(
    codes: np.ndarray, attributes: np.ndarray, defined: Sequence[bool], weights: np.ndarray
) -> np.ndarray:
    """``partial_spearman`` (W, A) of each attribute with its own code, codes (subjects, A)."""
    return np.diagonal(partial_spearman(codes, attributes, defined, weights), axis1=1, axis2=2)


def line_predictions(train_codes: np.ndarray, train_attributes: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Attributes (subjects, A) by the least-squares line from each code, fitted on training subjects.

    NaN without a line: fewer than 3 training subjects know both, or the code or the attribute is constant on them.
    """
    known = np.isfinite(train_codes) & np.isfinite(train_attributes)
    predictions = np.full(codes.shape, np.nan)
    for k, rows in enumerate(known.T):
        x, y = train_codes[rows, k], train_attributes[rows, k]
        if len(x) >= LEAST_PAIRS and not is_constant(np.column_stack([x, y])).any():
            slope = np.dot(x - x.mean(), y) / np.square(x - x.mean()).sum()
            predictions[:, k] = y.mean() + slope * (codes[:, k] - x.mean())
    return predictions


def r2(truth: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """R² (W, A) of predictions: 1 - residual / total variance; subjects who lack one of both are left out."""
    known = np.isfinite(truth) & np.isfinite(predictions)
    target, residual = np.zeros(truth.shape), np.where(known, truth - predictions, 0)
    for k, rows in enumerate(known.T):
        if rows.sum() >= LEAST_PAIRS and not is_constant(truth[rows, k : k + 1])[0]:
            target[rows, k] = truth[rows, k] - truth[rows, k].mean()
    total = weights @ np.square(target) - np.square(weights @ target) / np.maximum(weights @ known, 1)
    varies = total > 1e-12 * np.square(target).sum(axis=0)  # a resample of a single value has no R²
    return 1 - np.divide(weights @ np.square(residual), total, out=np.full(total.shape, np.nan), where=varies)


def all_correlations(codes: np.ndarray, attributes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pearson and Spearman correlation of each dimension with each attribute, (D, A) each; 0 for constant columns."""
    count = codes.shape[1]
    pearson, spearman = np.zeros((2, count, attributes.shape[1]))
    for rows, columns in known_patterns(attributes):
        if not rows.any():
            continue
        values = np.hstack([codes[rows], attributes[np.ix_(rows, columns)]])
        values = np.where(is_constant(values), 0, values)
        once = np.ones((1, len(values)))
        scaled = ratio(values - values.mean(axis=0), np.ptp(values, axis=0))
        pearson[:, columns] = np.nan_to_num(correlation(scaled, once, least=1e-20)[0, :count, count:])
        spearman[:, columns] = np.nan_to_num(rank_correlation(values, once)[0, :count, count:])
    return pearson, spearman


def significant(rank: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """abs(Spearman), (S, D, A), 0 where a two-sided t test on the number of subjects (S, A) gives p > 0.05."""
    freedom = subjects[:, None] - 2
    t = stats.t.ppf(0.975, freedom)
    return np.where(np.abs(rank) >= t / np.sqrt(freedom + t**2), np.abs(rank), 0)  # the t test, solved for rho


def rank_correlation(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman correlations (W, columns, columns); NaN for a column that is constant where weights are not 0."""
    return correlation(np.stack([ranks(column, weights) for column in np.nan_to_num(values).T], axis=2), weights)


def correlation(values: np.ndarray, weights: np.ndarray, least: float = 1e-6) -> np.ndarray:
    """Pearson correlations (W, columns, columns) of values, (subjects, columns) or one such table per sample.

    NaN for columns whose sum of squares is not above the least.
    """
    total = weights.sum(axis=1)[:, None, None]
    centered = values - weights[:, None] @ values / np.maximum(total, 1)
    covariance = np.swapaxes(centered * weights[:, :, None], 1, 2) @ centered
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    return _quotient(covariance, variance[:, :, None], variance[:, None], least)


def ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks (W, subjects) of subjects that occur as often as their weight says; ties share their mean rank."""
    distinct, value = np.unique(values, return_inverse=True)
    order = np.argsort(value, kind="stable")
    start = np.searchsorted(value[order], np.arange(len(distinct)))
    copies = np.add.reduceat(weights[:, order], start, axis=1)
    return (np.cumsum(copies, axis=1) - copies / 2 + 0.5)[:, value]


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient that is 0 where the denominator is."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.zeros(shape), where=np.broadcast_to(denominator, shape) != 0)


def _given(correlations: np.ndarray, kept: Sequence[int], others: Sequence[int]) -> np.ndarray:
    """Partial correlations (W, kept, kept) given the others, from matrices of correlations."""
    cross = correlations[:, kept][:, :, others]
    inverse = np.linalg.pinv(np.nan_to_num(correlations[:, others][:, :, others]), rcond=1e-10, hermitian=True)
    left = correlations[:, kept][:, :, kept] - cross @ inverse @ np.swapaxes(np.nan_to_num(cross), 1, 2)
    variance = np.diagonal(left, axis1=1, axis2=2)
    return _quotient(left, variance[:, :, None], variance[:, None], least=1e-9)


def _quotient(covariance: np.ndarray, first: np.ndarray, second: np.ndarray, least: float) -> np.ndarray:
    """Correlation from a covariance and two variances; NaN unless both of these exceed the least."""
    varies = (first > least) & (second > least)
    scale = np.sqrt(np.where(varies, first, 1) * np.where(varies, second, 1))
    return np.where(varies, np.clip(covariance / scale, -1, 1), np.nan)
