"""Mutual information between continuous codes and attributes, estimated from nearest neighbors."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import joblib
import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma

NEIGHBORS = 3
SPARE = 6  # neighbors to search beyond, as subsets may lack the first ones
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
    return information_of_subsets(codes, attributes, np.ones((1, len(codes)), bool), seed)[0]


def information_of_subsets(codes: np.ndarray, attributes: np.ndarray, subsets: np.ndarray, seed: int = 0) -> np.ndarray:
    """``mutual_information`` (S, D, A) of each of the subsets, (S, subjects) of booleans, quicker than one by one.

    The neighbors of all subjects are searched once, and a subset takes those that it has. So the columns are in units
    of the standard deviation of all subjects, and not of the subset, which moves the estimate by little.
    """
    jitter = JITTER * np.random.default_rng(seed).standard_normal((2, len(codes), 1))
    result = np.zeros((len(subsets), codes.shape[1], attributes.shape[1]))
    for code_rows, dimensions in known_patterns(codes):
        for attribute_rows, columns in known_patterns(attributes):
            rows = code_rows & attribute_rows
            result[np.ix_(np.arange(len(subsets)), dimensions, columns)] = _information(
                codes[np.ix_(rows, dimensions)], attributes[np.ix_(rows, columns)], jitter[:, rows], subsets[:, rows]
            )
    return result


def joint_information(
    codes: np.ndarray, attributes: np.ndarray, subsets: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mutual information of codes with attributes, (S, D, A), and among attributes, (S, A, A)."""
    information = information_of_subsets(np.hstack([codes, attributes]), attributes, subsets, seed)
    return information[:, : codes.shape[1]], information[:, codes.shape[1] :]


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
    return joblib.cpu_count()


def _information(codes: np.ndarray, attributes: np.ndarray, jitter: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """Mutual information (S, D, A) of all pairs of columns, without missing values."""
    result = np.zeros((len(subsets), codes.shape[1], attributes.shape[1]))
    dimensions, columns = np.flatnonzero(~is_constant(codes)), np.flatnonzero(~is_constant(attributes))
    enough = np.flatnonzero(subsets.sum(axis=1) >= NEIGHBORS + 2)
    if len(dimensions) and len(columns) and len(enough):
        x = _standardized(codes[:, dimensions]) + jitter[0]
        y = _standardized(attributes[:, columns]) + jitter[1]
        row = partial(
            _row,
            y=y.T.copy(),
            orders=np.argsort(y.T),
            subsets=subsets[enough],
            digammas=np.concatenate([[-np.inf], digamma(np.arange(1, len(codes) + 1))]),
        )
        with ThreadPoolExecutor(workers()) as pool:  # the tree and the searches let other threads run
            rows = np.array(list(pool.map(row, x.T.copy())))
        result[np.ix_(enough, dimensions, columns)] = np.moveaxis(rows, 2, 0)
    result[subsets.sum(axis=1) < NEIGHBORS + 2] = np.nan
    return result


def _standardized(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0)


def _row(x: np.ndarray, y: np.ndarray, orders: np.ndarray, subsets: np.ndarray, digammas: np.ndarray) -> np.ndarray:
    """Mutual information (A, S) of one code with each row of y, given their ascending orders; digammas[i] is ψ(i)."""
    order = np.argsort(x)
    place = np.argsort(order)
    x, subsets = x[order], subsets[:, order]  # what is near in the plane is then near in memory: faster searches
    n = subsets.sum(axis=1)
    values = np.empty((len(y), len(n)))
    for k, ascending in enumerate(orders):
        radii = _radii(np.column_stack([x, y[k][order]]), subsets)
        for s, (radius, inside) in enumerate(zip(radii, subsets, strict=True)):
            upward = ascending[inside[place[ascending]]]
            near = _within(x[inside], radius[inside]), _within(y[k][upward], radius[place[upward]])
            values[k, s] = digammas[n[s]] + digammas[NEIGHBORS] - (digammas[near[0]] + digammas[near[1]]).mean()
    return np.maximum(values, 0)


def _radii(points: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """Distance (S, n) of each point of a subset to its k-th neighbor in the subset; other points have any number."""
    tree = cKDTree(points, leafsize=10, compact_nodes=False, balanced_tree=False)  # quickest to build and ask once
    own = NEIGHBORS + 1  # a point is its own first neighbor
    if subsets.all():
        return np.tile(tree.query(points, k=[own], p=np.inf)[0].T, (len(subsets), 1))
    distances, neighbors = tree.query(points, k=min(own + SPARE, len(points)), p=np.inf)
    reached = subsets[:, neighbors].cumsum(axis=2, dtype=np.int8) >= own
    radii = distances[np.arange(len(points)), reached.argmax(axis=2)]
    for s in np.flatnonzero((subsets & ~reached[:, :, -1]).any(axis=1)):  # too many neighbors are not in the subset
        inside = subsets[s]
        radii[s, inside] = _radii(points[inside], np.ones((1, inside.sum()), bool))[0]
    return radii


def _within(values: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """For each of the ascending values, how many of them are nearer than its radius, itself included."""
    # The neighbor that sets the radius must not count, whichever way value ± radius is rounded.
    largest = max(-values[0], values[-1])
    inside = np.maximum(radius - 4 * np.finfo(float).eps * largest, 0)
    return np.searchsorted(values, values + inside, "right") - np.searchsorted(values, values - inside, "left")
