"""Disentanglement scores: how exclusively dimensions and attributes belong together.

All but DCI read a matrix of scores, dimensions × attributes, with any axes in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats
from sklearn.ensemble import GradientBoostingRegressor

from scripts.metrics.correlations import ratio
from scripts.metrics.information import joint_information
from scripts.metrics.resampling import interval_within, jackknife, summary, without_groups

CONTENDERS = 5  # per attribute, the dimensions that may come second within the jackknife of DMIG
DCI_TREES = {"n_estimators": 50, "learning_rate": 0.1, "max_depth": 3}
DCI_DIMENSIONS = 16  # offered to the trees of an attribute at most, and
DCI_SUBJECTS = 500  # shown at most: their time grows with both

CodesAndAttributes = tuple[np.ndarray, np.ndarray]


def gap(scores: np.ndarray) -> np.ndarray:
    """Per attribute, the largest score over dimensions minus the second."""
    none = np.zeros_like(scores[..., :1, :])  # with one dimension, the second is 0
    ordered = np.sort(np.concatenate([none, scores], axis=-2), axis=-2)
    return ordered[..., -1, :] - ordered[..., -2, :]


def modularity(information: np.ndarray) -> np.ndarray:
    """Per dimension 1 - (Σ I² - max I²) / (max I² · (A - 1)) over attributes, 0 without information; the mean."""
    largest, total = np.square(information.max(axis=-1)), np.square(information).sum(axis=-1)
    leaked = ratio(total - largest, largest * max(information.shape[-1] - 1, 1))
    return np.where(largest == 0, 0, 1 - leaked).mean(axis=-1)


def dmig(information: np.ndarray, among: np.ndarray, dimensions: np.ndarray) -> np.ndarray:
    """Dependency-aware mutual information gap (Watcharasupat and Lerch 2021), on fixed dimensions.

    DMIG_i = [I(a_i; z_i) - max over j ≠ i of I(a_i; z_j)] / H. If the second dimension j is the regularized one of
    attribute l, H = H(a_i | a_l) = I(a_i; a_i) - I(a_i; a_l), else H = H(a_i) = I(a_i; a_i): what a_i shares with a_l
    is in z_l rightly. The oracle z_k = a_k scores exactly 1, and a size axis on two dimensions exactly 0.

    Pitfall: entropies are the nearest-neighbor information of an attribute on itself and grow with the number of
    subjects, so values of an imperfect model are comparable at equal numbers only.

    Args:
        information: (D, A) between codes and attributes.
        among: (A, A) between attributes.
        dimensions: the regularized dimension of each attribute.

    Returns:
        (A,); NaN where H is not positive.
    """
    attributes = np.arange(len(dimensions))
    others = np.vstack([np.array(information), np.zeros(len(dimensions))])  # without another dimension, the second is 0
    others[dimensions, attributes] = -np.inf
    second = others.argmax(axis=0)
    owner = np.full(len(others), -1)
    owner[dimensions] = attributes
    shared = np.where(owner[second] >= 0, among[owner[second], attributes], 0)
    entropy = among[attributes, attributes] - shared
    lead = information[dimensions, attributes] - others[second, attributes]
    return np.divide(lead, entropy, out=np.full(len(dimensions), np.nan), where=entropy > 1e-9)


def dmig_jackknife(
    codes: np.ndarray, attributes: np.ndarray, dimensions: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """DMIG (A,) and its replicates (10, A), in which only the 5 most informative dimensions may come second."""
    [information], [among] = joint_information(codes, attributes, np.ones((1, len(codes)), bool), seed)
    best = np.argsort(np.nan_to_num(information), axis=0)[-CONTENDERS:].ravel()
    kept = np.concatenate([dimensions, np.setdiff1d(best, dimensions)])
    replicates = joint_information(codes[:, kept], attributes, without_groups(len(codes), seed), seed)
    own = np.arange(len(dimensions))
    return dmig(information, among, dimensions), np.array([dmig(*pair, own) for pair in zip(*replicates, strict=True)])


def dci(train: CodesAndAttributes, test: CodesAndAttributes, reasons: Sequence[str], seed: int = 0) -> dict:
    """Disentanglement, completeness and informativeness (Eastwood and Williams 2018), with jackknife intervals.

    From R, the importance of dimension i for attribute k: disentanglement is the mean over dimensions, weighted by
    their share of R, of 1 - entropy of R[i] over attributes in base A; completeness is the mean over attributes of
    1 - entropy of R[:, k] over dimensions in base D; informativeness is the mean R² on test subjects. R is the
    importance in gradient-boosted trees, 50 per attribute and 3 deep (``DCI_TREES``), with two departures, as noise
    scored no less than the oracle among 128 dimensions without them:

    - the importances of an attribute are multiplied by its R², or by 0 if that is negative: trees that predict nothing
      say nothing of a dimension;
    - their splits choose among the 16 dimensions that correlate most with the attribute (``DCI_DIMENSIONS``), others
      have no importance: splits that choose among a random √D of all, as is usual, would mostly find noise.

    They are grown on 500 training subjects with the attribute (``DCI_SUBJECTS``, drawn once), or on all if there are
    fewer.

    Pitfalls: a dimension that an attribute follows up and down again, without correlation, may be missed. Values depend
    on the trees and on the number of training subjects: compare at equal ones only.

    Args:
        train, test: codes (subjects, D) and attributes (subjects, A); a missing (NaN) value leaves its subject out of
            its attribute.
        reasons: why an attribute is left out; empty if it is not.
        seed: of the draw, the trees and the groups.

    Returns:
        Report of the disentanglement, with those of ``completeness`` and ``informativeness`` inside.
    """
    columns = np.flatnonzero([not reason for reason in reasons])
    if len(columns):
        codes, attributes = train[0], _thinned(train[1][:, columns], seed)
        test_codes, test_attributes = test[0], test[1][:, columns]
        values, replicates = jackknife(
            lambda fit, score: _dci_scores(
                (codes[fit], attributes[fit]), (test_codes[score], test_attributes[score]), seed
            ),
            len(codes),
            len(test_codes),
            seed=seed,
        )
    else:
        values, replicates = np.full(3, np.nan), np.empty((0, 3))
    nothing = "" if len(columns) else f"no attribute can be used ({reasons[0]})"
    why = nothing or "needs two attributes", nothing or "needs two dimensions", nothing
    bounds = interval_within(0, 1), interval_within(0, 1), interval_within(-np.inf, 1)
    scores = [summary(values[k : k + 1], replicates[:, k : k + 1], bounds[k], why[k]) for k in range(3)]
    return scores[0] | {"completeness": scores[1], "informativeness": scores[2]}


def _thinned(attributes: np.ndarray, seed: int) -> np.ndarray:
    """Attributes that at most 500 subjects know, the same for all attributes where none are missing."""
    order = np.random.default_rng(seed).permutation(len(attributes))
    thinned = attributes.copy()
    thinned[order] = np.where(np.isfinite(attributes[order]).cumsum(axis=0) > DCI_SUBJECTS, np.nan, attributes[order])
    return thinned


def _dci_scores(train: CodesAndAttributes, test: CodesAndAttributes, seed: int) -> np.ndarray:
    """Disentanglement, completeness and informativeness."""
    importances, scores = zip(*_importances(train, test, seed), strict=True)
    importances = np.column_stack(importances) * np.maximum(np.nan_to_num(scores), 0)
    weights = importances.sum(axis=1)
    disentanglement = np.dot(weights, _concentration(importances)) / max(weights.sum(), 1e-12)
    return np.array([disentanglement, _concentration(importances.T).mean(), np.mean(scores)])


def _importances(train: CodesAndAttributes, test: CodesAndAttributes, seed: int) -> Iterator[tuple[np.ndarray, float]]:
    """Per attribute, the importances (D,) of the codes in gradient-boosted trees, and their R² on test subjects."""
    for k in range(train[1].shape[1]):
        fitted, scored = (np.isfinite(attributes[:, k]) for _, attributes in (train, test))
        if not (fitted.any() and scored.any()):  # a group of the jackknife may hold all who know the attribute
            yield np.zeros(train[0].shape[1]), np.nan
            continue
        codes, values, truth = train[0][fitted], train[1][fitted, k], test[1][scored, k]
        offered = _most_correlated(codes, values)
        model = GradientBoostingRegressor(**DCI_TREES, random_state=seed).fit(codes[:, offered], values)
        importances = np.zeros(codes.shape[1])
        importances[offered] = model.feature_importances_
        wrong = np.square(truth - model.predict(test[0][np.ix_(scored, offered)])).sum()
        total = np.square(truth - truth.mean()).sum()
        yield importances, 1 - wrong / total if total > 0 else np.nan


def _most_correlated(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The dimensions whose correlation with the values is largest, at most 16 of them."""
    correlation = ratio((values - values.mean()) @ (codes - codes.mean(axis=0)), codes.std(axis=0))
    return np.sort(np.argsort(-np.abs(correlation), kind="stable")[:DCI_DIMENSIONS])


def _concentration(amounts: np.ndarray) -> np.ndarray:
    """1 - entropy of each row's shares, in base of their number: 1 if one has all, 0 if all have the same."""
    shares = ratio(amounts, amounts.sum(axis=1, keepdims=True))
    if amounts.shape[1] == 1:
        return np.full(len(amounts), np.nan)
    return 1 - stats.entropy(np.where(shares.sum(axis=1, keepdims=True) > 0, shares, 1), axis=1, base=amounts.shape[1])
