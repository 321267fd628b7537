"""Mutual information between continuous codes and attributes, estimated from nearest neighbors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma

NEIGHBORS = 3
JITTER = 1e-10  # of a standard deviation: parts tied values, and moves no others past each other


def mutual_information(codes: np.ndarray, attributes: np.ndarray, seed: int = 0) -> np.ndarray:
    """Mutual information of each code dimension with each attribute, in nats.

    First estimator of Kraskov, Stögbauer and Grassberger (2004) with k = 3, as scikit-learn's
    ``mutual_info_regression``: I = ψ(n) + ψ(k) - mean(ψ(n_x + 1) + ψ(n_y + 1)), where n_x and n_y count the other
    subjects that are nearer in x, or in y, than the k-th neighbor is in the plane (maximum norm). Negative estimates
    become 0; a constant column carries no information, exactly 0.

    Pitfalls: of a continuous variable with itself the information is infinite, and what is estimated, about
    ψ(n) - ψ(4), grows with the number of subjects: compare scores that divide by it at equal n only. Repeated
    subjects, as a bootstrap draws them, look like perfect information. The jitter is one vector for all codes and one
    for all attributes, so that a code equal to an attribute gets exactly the attribute's own information.

    Args:
        codes: (subjects, D).
        attributes: (subjects, A). A subject with a missing (NaN) value is left out of the pairs that lack it.
        seed: of the jitter.

    Returns:
        (D, A); NaN for pairs that fewer than 5 subjects know.
    """
    jitter = JITTER * np.random.default_rng(seed).standard_normal((2, len(codes), 1))
    result = np.zeros((codes.shape[1], attributes.shape[1]))
    for code_rows, dimensions in known_patterns(codes):
        for attribute_rows, columns in known_patterns(attributes):
            rows = code_rows & attribute_rows
            result[np.ix_(dimensions, columns)] = _information(
                codes[np.ix_(rows, dimensions)], attributes[np.ix_(rows, columns)], jitter[:, rows]
            )
    return result


def known_patterns(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(mask of rows, indices of columns) for each set of columns that are known for the same rows."""
    patterns, pattern = np.unique(np.isfinite(values).T, axis=0, return_inverse=True)
    for index, rows in enumerate(patterns):
        yield rows, np.flatnonzero(pattern.ravel() == index)


def is_constant(values: np.ndarray) -> np.ndarray:
    """Per column, whether its values differ by no more than rounding."""
    if not len(values):
        return np.ones(values.shape[1], bool)
    return np.ptp(values, axis=0) <= 1e-12 * np.abs(values).max(axis=0)


def workers() -> int:
    """Threads to use: the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _information(codes: np.ndarray, attributes: np.ndarray, jitter: np.ndarray) -> np.ndarray:
    """Mutual information of all pairs of columns, without missing values."""
    n = len(codes)
    if n < NEIGHBORS + 2:
        return np.full((codes.shape[1], attributes.shape[1]), np.nan)
    result = np.zeros((codes.shape[1], attributes.shape[1]))
    dimensions, columns = np.flatnonzero(~is_constant(codes)), np.flatnonzero(~is_constant(attributes))
    if not (len(dimensions) and len(columns)):
        return result
    x = _standardized(codes[:, dimensions]) + jitter[0]
    y = _standardized(attributes[:, columns]) + jitter[1]
    table = np.concatenate([[-np.inf], digamma(np.arange(1, n + 1))])
    with ThreadPoolExecutor(workers()) as pool:  # the tree and the searches let other threads run
        rows = pool.map(partial(_row, y=y.T.copy(), orders=np.argsort(y.T), digammas=table), x.T.copy())
        result[np.ix_(dimensions, columns)] = list(rows)
    return result


def _standardized(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0)


def _row(x: np.ndarray, y: np.ndarray, orders: np.ndarray, digammas: np.ndarray) -> list[float]:
    """Mutual information of one code with each row of y, whose ascending orders are given; digammas[i] is ψ(i)."""
    order, n = np.argsort(x), len(x)
    place = np.argsort(order)
    x = x[order]  # what is near in the plane is then near in memory, and the searches are faster
    values = []
    for row, ascending in zip(y, orders, strict=True):
        points = np.column_stack([x, row[order]])
        tree = cKDTree(points, leafsize=10, compact_nodes=False, balanced_tree=False)  # quickest to build and ask once
        radius = tree.query(points, k=[NEIGHBORS + 1], p=np.inf)[0][:, 0]  # a point is its own first neighbor
        near = digammas[_within(x, radius)] + digammas[_within(row[ascending], radius[place[ascending]])]
        values.append(max(0.0, digammas[n] + digammas[NEIGHBORS] - near.mean()))
    return values


def _within(values: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """For each of the ascending values, how many of them are nearer than its radius, itself included."""
    # The neighbor that sets the radius must not count, whichever way value ± radius is rounded.
    largest = max(-values[0], values[-1])
    inside = np.maximum(radius - 4 * np.finfo(float).eps * largest, 0)
    return np.searchsorted(values, values + inside, "right") - np.searchsorted(values, values - inside, "left")
