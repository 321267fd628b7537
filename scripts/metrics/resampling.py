"""Intervals over subjects: bootstrap and delete-group jackknife, and how a value with its interval is reported.

A report is a dict of ``value``, ``low`` and ``high`` (95 %). Where a value is undefined the three are NaN, and
``undefined`` gives the reason in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


def interval_within(least: float, most: float) -> Callable[[float, np.ndarray], tuple[float, float]]:
    """``jackknife_interval`` of a metric that has bounds: not beyond them."""

    def interval(value: float, samples: np.ndarray) -> tuple[float, float]:
        low, high = jackknife_interval(value, samples)
        return max(low, least), min(high, most)

    return interval


def two_sided_p(samples: np.ndarray) -> float:
    """Bootstrap test of a difference: min(1, 2 (1 + min(#{d ≤ 0}, #{d ≥ 0})) / (1 + n)) for the n resamples d.

    It is the level at which the percentile interval would reach zero, and never below 2 / (1 + n).
    """
    return min(1.0, float(2 * (1 + min((samples <= 0).sum(), (samples >= 0).sum())) / (1 + len(samples))))


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


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> dict:
    """Mean of per-subject values, such as SSIM, with a bootstrap interval.

    Args:
        values: (n,), one per subject; missing (NaN) ones are left out.
        seed: of the bootstrap.

    Returns:
        ``value``, ``low``, ``high``; undefined below 3 subjects.
    """
    values = np.asarray(values, dtype=float)
    known = values[~np.isnan(values)]
    if len(known) < LEAST_VALUES:
        return undefined(f"values are known for {len(known)} subjects, of at least {LEAST_VALUES}")
    return summary(*bootstrap(lambda weights: (weights @ known / weights.sum(axis=1))[:, None], len(known), seed))
