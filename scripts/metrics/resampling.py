"""Intervals over subjects: bootstrap and delete-group jackknife, and how a value with its interval is reported.

A report is a dict of ``value``, ``low`` and ``high`` (95 %). Where a value is undefined the three are NaN, and
``undefined`` gives the reason in words.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import stats

from scripts.metrics.information import workers

RESAMPLES = 1000
GROUPS = 10  # of the jackknife
LEAST_VALUES = 3  # for the interval of a mean


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], subjects: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A statistic of the subjects as they are, (A,), and of 1000 resamples, (1000, A).

    Args:
        statistic: from weights (W, subjects), how often each subject was drawn, to values (W, A).
        subjects: their number.
        seed: of the draws: equal seeds draw equal subjects.
    """
    samples = np.concatenate([statistic(weights) for weights in _resamples(subjects, seed)])
    return statistic(np.ones((1, subjects)))[0], samples


def _resamples(subjects: int, seed: int) -> Iterator[np.ndarray]:
    """Weights (resamples, subjects), in blocks that stay small in memory."""
    rng = np.random.default_rng(seed)
    block = max(1, 400_000 // subjects)
    for start in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - start)
        drawn = rng.integers(subjects, size=(count, subjects)) + subjects * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * subjects).reshape(count, subjects).astype(float)


def jackknife(statistic: Callable[..., np.ndarray], *subjects: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A statistic of all subjects, (A,), and without each of 10 groups in turn, (10, A), in threads.

    Args:
        statistic: from the indices of the subjects that are left to values (A,); one argument per set of subjects, of
            which each loses a group at a time.
        subjects: how many each set has.
        seed: of the groups.
    """
    remaining = zip(*(map(np.flatnonzero, without_groups(count, seed)) for count in subjects), strict=True)
    parts = [tuple(np.arange(count) for count in subjects), *remaining]
    with ThreadPoolExecutor(workers()) as pool:
        values, *replicates = pool.map(lambda part: statistic(*part), parts)
    return np.asarray(values), np.array(replicates)


def without_groups(subjects: int, seed: int = 0) -> np.ndarray:
    """Who is left (10, subjects) when each of 10 random groups is taken away in turn."""
    group = np.empty(subjects, int)
    group[np.random.default_rng(seed).permutation(subjects)] = np.arange(subjects) * GROUPS // subjects
    return group != np.arange(GROUPS)[:, None]


def bootstrap_interval(value: float, samples: np.ndarray) -> tuple[float, float]:
    """Percentiles of the resamples, whatever the value."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def jackknife_interval(value: float, samples: np.ndarray) -> tuple[float, float]:
    """Student's t interval around the value, from its replicates without each group."""
    error = np.sqrt((len(samples) - 1) / len(samples) * np.square(samples - samples.mean()).sum())
    reach = float(stats.t.ppf(0.975, max(len(samples) - 1, 1)) * error)
    return value - reach, value + reach


def summary(
    values: Sequence[float], samples: np.ndarray, interval: Callable = bootstrap_interval, reason: str = ""
) -> dict:
    """Mean of the values with its interval from samples (resamples, values), or the reason why there is none."""
    if not len(values) or not np.isfinite(values).all():
        return undefined(reason)
    value, samples = float(np.mean(values)), samples.mean(axis=1)
    samples = samples[np.isfinite(samples)]  # a resample may be too poor for the metric
    low, high = interval(value, samples) if len(samples) else (float("nan"), float("nan"))
    return {"value": value, "low": low, "high": high}


def undefined(reason: str) -> dict:
    """The report of a value that is undefined."""
    return dict.fromkeys(("value", "low", "high"), float("nan")) | {"undefined": reason}


def report(
    names: Sequence[str],
    reasons: Sequence[str],
    values: np.ndarray,
    samples: np.ndarray,
    interval: Callable = bootstrap_interval,
    otherwise: str = "the metric is undefined on these subjects",
) -> dict:
    """The mean over the attributes for which a metric is defined, and each of them as ``per_attribute``.

    Args:
        names: of the attributes.
        reasons: why an attribute's value is undefined; empty if it may be defined.
        values: (A,).
        samples: (resamples, A).
        interval: from a value and its samples to low and high.
        otherwise: the reason where a value is NaN and no reason was given.
    """
    reasons = [
        reason or ("" if np.isfinite(value) else otherwise) for reason, value in zip(reasons, values, strict=True)
    ]
    defined = [not reason for reason in reasons]
    overall = summary(values[defined], samples[:, defined], interval, f"undefined for every attribute ({reasons[0]})")
    each = {
        name: summary(values[k : k + 1] if defined[k] else [], samples[:, k : k + 1], interval, reasons[k])
        for k, name in enumerate(names)
    }
    return overall | {"per_attribute": each}


def bootstrap_mean(values: Sequence[float], seed: int = 0, groups: Sequence[Hashable] | None = None) -> dict:
    """Mean of per-subject values, such as SSIM, with a bootstrap interval.

    Args:
        values: (n,); missing (NaN) ones are left out.
        seed: of the bootstrap.
        groups: the subject of each value, where subjects have several (one per training run): subjects are drawn, each
            with all of its values, as values of one subject are not independent. By default each value is a subject.

    Returns:
        ``value``, ``low``, ``high``; undefined below 3 subjects.
    """
    return _resampled_mean(values, seed, groups)[0]


def paired_difference(
    a: Sequence[float], b: Sequence[float], seed: int = 0, groups: Sequence[Hashable] | None = None
) -> dict:
    """Mean of a - b over pairs of values of the same subject, with a bootstrap interval and test.

    Args:
        a, b: (n,), in the same order; pairs with a missing (NaN) value are left out.
        seed, groups: as in ``bootstrap_mean``.

    Returns:
        ``value``, ``low``, ``high`` and ``p`` = min(1, 2 (1 + min(#{d ≤ 0}, #{d ≥ 0})) / (1 + 1000)) with d the mean
        differences of the 1000 resamples: two-sided, the level at which the interval would reach zero, and never below
        0.002. Undefined below 3 subjects.
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(f"Pairs need values of the same subjects: there are {np.shape(a)} and {np.shape(b)}.")
    result, samples = _resampled_mean(np.subtract(a, b, dtype=float), seed, groups)
    smaller = min((samples <= 0).sum(), (samples >= 0).sum())
    p = min(1.0, 2 * (1 + smaller) / (1 + len(samples))) if len(samples) else float("nan")
    return result | {"p": float(p)}


def _resampled_mean(values: Sequence[float], seed: int, groups: Sequence[Hashable] | None) -> tuple[dict, np.ndarray]:
    """The report of a mean, and the means of the resamples of subjects."""
    values = np.asarray(values, dtype=float)
    groups = np.arange(values.size) if groups is None else np.asarray(groups)
    if values.ndim != 1 or groups.shape != values.shape:
        raise ValueError(f"Give one value per row and its subject: there are {values.shape} and {groups.shape}.")
    known = np.isfinite(values)
    subjects, subject = np.unique(groups[known], return_inverse=True)
    if len(subjects) < LEAST_VALUES:
        what = "subject has a value" if len(subjects) == 1 else "subjects have a value"
        return undefined(f"{len(subjects)} {what}, of at least {LEAST_VALUES}"), np.empty(0)
    total, count = np.bincount(subject, values[known]), np.bincount(subject)
    mean, samples = bootstrap(lambda weights: (weights @ total / (weights @ count))[:, None], len(subjects), seed)
    return summary(mean, samples), samples[:, 0]
