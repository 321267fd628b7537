"""Interpretability metrics: pure functions on codes and attributes.

``paper_protocol`` gives the numbers of published tables, ``sound_protocol`` those to believe, and ``reference_codes``
the rows that a table needs beside them: a metric that noise or a mere size axis passes says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from scipy import stats
from sklearn.ensemble import GradientBoostingRegressor

from scripts.information import is_constant, known_patterns, mutual_information, workers

LEAST_SUBJECTS = 10
RESAMPLES = 1000
GROUPS = 10  # of the delete-group jackknife
CONTENDERS = 5  # per attribute, the dimensions that may come second within the jackknife of DMIG
ACTIVE_VARIANCE = 0.01
DCI_TREES = {"n_estimators": 50, "learning_rate": 0.1, "max_depth": 3, "max_features": "sqrt"}


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


def paper_protocol(codes: Sequence, attributes: Sequence, names: Sequence[str], seed: int = 0) -> dict:
    """The interpretability metrics as the AR-VAE evaluation defines them, to compare with published tables.

    Interpretability, Modularity, SAP and SCC of Pati and Lerch (2021), MIG of Chen et al. (2018) on continuous
    attributes. With I the matrix of mutual information (dimensions × attributes):

    - interpretability: per attribute, the dimension of largest I and the R² of a line through it;
    - scc: abs(Spearman) where p <= 0.05, else 0; largest over dimensions, mean over attributes;
    - modularity: per dimension 1 - (Σ I² - max I²) / (max I² · (A - 1)), 0 without information; mean over dimensions;
    - sap: squared Pearson correlation, largest minus second over dimensions; mean over attributes;
    - mig: I, largest minus second over dimensions, by the attribute's information on itself; mean over attributes.

    Pitfalls: everything is fitted and scored on the same subjects, and the dimension is picked by the outcome, so
    the scores rise with the number of dimensions. On correlated attributes one size axis does well in scc and
    interpretability, pure noise does in modularity, and sap and mig fall as dimensions share a common factor.

    Args:
        codes: (subjects, D).
        attributes: (subjects, A); a missing (NaN) value leaves its subject out of its attribute.
        names: of the attributes.
        seed: of the jitter of the mutual information.

    Returns:
        ``interpretability``: name -> (dimension, R²), with ``mean`` -> (-1, mean); the other scores as floats. A
        constant code or attribute scores 0.
    """
    codes, attributes = _checked(codes, attributes, names)
    for name, known in zip(names, np.isfinite(attributes).sum(axis=0), strict=True):
        if known < LEAST_SUBJECTS:
            raise ValueError(f"{name} is known for {known} subjects, of at least {LEAST_SUBJECTS}: leave it out")
    information = mutual_information(codes, attributes, seed)
    own = np.array([mutual_information(column, column, seed)[0, 0] for column in np.split(attributes, len(names), 1)])
    pearson, rank = _correlations(codes, attributes)
    dimensions = information.argmax(axis=0)
    r2 = np.square(pearson[dimensions, np.arange(len(names))])  # of a line with offset, R² is the squared correlation
    interpretability = {name: (int(k), float(value)) for name, k, value in zip(names, dimensions, r2, strict=True)}
    return {
        "interpretability": interpretability | {"mean": (-1, float(r2.mean()))},
        "scc": float(_significant(rank, attributes).max(axis=0).mean()),
        "modularity": _modularity(information),
        "sap": float(_gap(np.square(pearson)).mean()),
        "mig": float(_ratio(_gap(information), own).mean()),
    }


def sound_protocol(
    train_codes: Sequence,
    train_attributes: Sequence,
    test_codes: Sequence,
    test_attributes: Sequence,
    names: Sequence[str],
    dimensions: Sequence[int] | None = None,
    seed: int = 0,
) -> dict:
    """Interpretability on unseen subjects, each attribute on the dimension that was regularized for it.

    With z_k the code of attribute a_k:

    - r2: of the line from z_k to a_k, fitted on training subjects, scored on test subjects;
    - scc: Spearman correlation of z_k and a_k, with its sign;
    - partial_scc: the same given the other attributes: Pearson correlation of what is left of both ranks after a
      linear regression on the ranks of the others. This tells an attribute dimension from a size axis with an error;
    - dmig: see ``_dmig``;
    - dci: disentanglement as ``value``, with ``completeness`` and ``informativeness``, see ``_dci_scores``;
    - active_units: dimensions whose code varies by more than 0.01 (variance) over test subjects (Burda et al. 2016).

    Intervals hold 95% and are of the subjects: they say nothing of another training run. They come from a bootstrap
    of 1000 resamples of the test subjects, for r2, scc, partial_scc and active_units (percentiles). dmig and dci have
    a delete-group jackknife with 10 groups (Student's t): the repeated subjects of a bootstrap would look like perfect
    information to a nearest-neighbor estimate, and trees take long to fit again.

    Pitfalls: partial_scc asks whether z_k knows what the other attributes do not tell of a_k. A size axis that is an
    exact mixture of all attributes knows it, and scores high (0.8 for six volumes); with an error of measurement as
    small as a fifth of its standard deviation it does not. Only dmig unmasks both. partial_scc needs subjects who have
    every (defined) attribute; with n subjects and A attributes only about n - A are left to speak, and below 30
    subjects its interval covers nearly everything. The repeats in a bootstrap blur ranks that hang on fine differences:
    there the interval may lie below the value. The mean over attributes is taken over those for which a metric is
    defined.

    Args:
        train_codes, test_codes: (subjects, D), means of the posterior and not samples.
        train_attributes, test_attributes: (subjects, A); a missing (NaN) value leaves its subject out of its attribute.
        names: of the attributes.
        dimensions: the regularized dimension of each attribute; by default the first A in order.
        seed: of the resampling, the jitter and the trees.

    Returns:
        Per metric a dict of ``value``, ``low``, ``high`` and, but for dci and active_units, ``per_attribute`` (name ->
        the same). Where a value is undefined it is NaN, and ``undefined`` gives the reason in words.
    """
    train = _checked(train_codes, train_attributes, names, "training ")
    test = _checked(test_codes, test_attributes, names, "test ")
    if train[0].shape[1] != test[0].shape[1]:
        raise ValueError(
            f"Training codes have {train[0].shape[1]} dimensions and test codes {test[0].shape[1]}: take both from "
            "one model."
        )
    dimensions = _checked_dimensions(dimensions, len(names), test[0].shape[1])
    fixed = test[0][:, dimensions]
    on_test = _obstacles(test[1], "test", fixed)
    on_both = _first(_obstacles(train[1], "training", train[0][:, dimensions]), on_test)
    without_codes = _first(_obstacles(train[1], "training"), _obstacles(test[1], "test"))
    resampled = partial(_bootstrapped, subjects=len(fixed), seed=seed)
    return {
        "r2": _report(names, on_both, *resampled(_r2(train[0][:, dimensions], train[1], fixed, test[1], on_both))),
        "scc": _report(names, on_test, *resampled(partial(_scc, fixed, test[1]))),
        "partial_scc": _report(
            names,
            _first(on_test, _without_complete_subjects(test[1], on_test)),
            *resampled(partial(_partial_scc, fixed, test[1], [not reason for reason in on_test])),
            otherwise="the other attributes determine the ranks of the attribute or of its code",
        ),
        "dmig": _report(
            names,
            on_test,
            *_dmig_jackknife(*test, dimensions, seed),
            interval=_jackknife_interval,
            otherwise="another attribute carries all of its information",
        ),
        "dci": _dci_report(train, test, without_codes, seed),
        "active_units": _summary(*resampled(partial(_active_units, test[0]))),
    }


def reference_codes(attributes: Sequence, latent_dim: int, seed: int, size_error: float = 0) -> dict[str, np.ndarray]:
    """Codes of three made-up encoders that unmask a bad metric; dimension k belongs to attribute k.

    - ``noise``: standard normal, all of it;
    - ``heart size``: the first principal component of the standardized attributes on each attribute's dimension,
      measured with an error, the same on all of them;
    - ``oracle``: the standardized attribute itself on its dimension. Both have noise on the other dimensions.

    Pitfall: call it once for all subjects and split afterwards; two calls standardize apart.

    Args:
        attributes: (subjects, A). A missing (NaN) value counts as the mean.
        latent_dim: number of dimensions, A or more.
        seed: of the noise.
        size_error: standard deviation of the error of the size axis, whose own is 1. Without one the axis is an exact
            mixture of the attributes, which no encoder gets to see, and a partial correlation finds each in it.

    Returns:
        name -> (subjects, latent_dim).
    """
    attributes = np.asarray(attributes, dtype=float)
    if attributes.ndim != 2:
        raise ValueError(f"attributes have shape {attributes.shape}: give (subjects, attributes).")
    count = attributes.shape[1]
    if latent_dim < count:
        raise ValueError(f"{latent_dim} dimensions cannot hold {count} attributes: give at least {count}.")
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((len(attributes), latent_dim))
    known = np.isfinite(attributes)
    centered = np.where(known, attributes - _ratio(np.where(known, attributes, 0).sum(axis=0), known.sum(axis=0)), 0)
    oracle = _ratio(centered, np.sqrt(_ratio(np.square(centered).sum(axis=0), known.sum(axis=0))))
    axis = np.linalg.svd(oracle, full_matrices=False)[2][0]
    size = oracle @ axis * np.sign(axis.sum())  # large hearts have large codes
    size = _ratio(size, size.std()) + size_error * rng.standard_normal(len(size))
    size = np.repeat(size[:, None], count, axis=1)
    return {
        "noise": noise,
        "heart size": np.hstack([size, noise[:, count:]]),
        "oracle": np.hstack([oracle, noise[:, count:]]),
    }


# What both protocols expect


def _checked(
    codes: Sequence, attributes: Sequence, names: Sequence[str], which: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    codes, attributes = np.asarray(codes, dtype=float), np.asarray(attributes, dtype=float)
    if codes.ndim != 2 or attributes.ndim != 2 or len(codes) != len(attributes):
        raise ValueError(
            f"The {which}codes have shape {codes.shape} and the attributes {attributes.shape}: give (subjects, "
            "dimensions) and (subjects, attributes) with the same subjects in the same order."
        )
    if len(codes) < LEAST_SUBJECTS:
        raise ValueError(f"There are {len(codes)} {which}subjects: give at least {LEAST_SUBJECTS}.")
    if isinstance(names, str) or len(names) != attributes.shape[1] or not len(names) or not codes.shape[1]:
        raise ValueError(f"{names!r} must name the {attributes.shape[1]} columns of the {which}attributes, one each.")
    if len({*names, "mean"}) <= len(names):
        raise ValueError(f"The names {list(names)} must differ from each other and from 'mean': rename an attribute.")
    if not np.isfinite(codes).all():
        wrong = np.flatnonzero(~np.isfinite(codes).all(axis=1)).tolist()
        raise ValueError(f"The {which}codes of rows {wrong[:5]} are not finite: mend the encoder or leave them out.")
    if np.isinf(attributes).any():
        raise ValueError(f"The {which}attributes hold infinite values: write NaN where a value is missing.")
    return codes, attributes


def _checked_dimensions(dimensions: Sequence[int] | None, attributes: int, latent_dim: int) -> np.ndarray:
    chosen = np.arange(attributes) if dimensions is None else np.asarray(dimensions)
    distinct = set(chosen.ravel().tolist())
    if chosen.shape != (attributes,) or len(distinct) < attributes or not distinct <= set(range(latent_dim)):
        raise ValueError(
            f"The dimensions {chosen.tolist()} must be {attributes} different integers, one per attribute, from 0 to "
            f"{latent_dim - 1}."
        )
    return chosen.astype(int)


def _obstacles(attributes: np.ndarray, where: str, codes: np.ndarray | None = None) -> list[str]:
    """Per attribute, why nothing can be said about it (and its code) on these subjects; empty if something can."""
    reasons = []
    for k, known in enumerate(np.isfinite(attributes).T):
        if known.sum() < LEAST_SUBJECTS:
            reasons.append(f"known for {known.sum()} {where} subjects, of at least {LEAST_SUBJECTS}")
        elif is_constant(attributes[known, k : k + 1])[0]:
            reasons.append(f"the attribute is constant over the {where} subjects")
        elif codes is not None and is_constant(codes[known, k : k + 1])[0]:
            reasons.append(f"its code is constant over the {where} subjects")
        else:
            reasons.append("")
    return reasons


def _first(reasons: list[str], others: list[str]) -> list[str]:
    return [reason or other for reason, other in zip(reasons, others, strict=True)]


def _without_complete_subjects(attributes: np.ndarray, reasons: list[str]) -> list[str]:
    """Why there is no partial correlation: too few subjects with all of the attributes that have no reason yet."""
    known = np.isfinite(attributes[:, [not reason for reason in reasons]]).all(axis=1).sum()
    least = max(LEAST_SUBJECTS, len(reasons) + 2)  # what a regression on the others leaves must not be determined
    return [f"{known} test subjects have all attributes, of at least {least}" if known < least else ""] * len(reasons)


# Correlations and gaps


def _correlations(codes: np.ndarray, attributes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pearson and Spearman correlation of each dimension with each attribute, (D, A) each; 0 for constant columns."""
    pearson, rank = np.zeros((2, codes.shape[1], attributes.shape[1]))
    for rows, columns in known_patterns(attributes):
        x, y = codes[rows], attributes[np.ix_(rows, columns)]
        pearson[:, columns] = _unit(x).T @ _unit(y)
        rank[:, columns] = _unit(stats.rankdata(x, axis=0)).T @ _unit(stats.rankdata(y, axis=0))
    return pearson, rank


def _unit(values: np.ndarray) -> np.ndarray:
    """Columns without mean and of length 1; constant ones become 0."""
    centered = np.where(is_constant(values), 0, values - values.mean(axis=0))
    return _ratio(centered, np.linalg.norm(centered, axis=0))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient that is 0 where the denominator is."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.zeros(shape), where=np.broadcast_to(denominator, shape) != 0)


def _significant(rank: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """abs(Spearman), 0 where a two-sided t test gives p > 0.05."""
    freedom = np.isfinite(attributes).sum(axis=0) - 2
    t = stats.t.ppf(0.975, freedom)
    return np.where(np.abs(rank) >= t / np.sqrt(freedom + t**2), np.abs(rank), 0)  # the t test, solved for rho


def _modularity(information: np.ndarray) -> float:
    largest, total = np.square(information.max(axis=1)), np.square(information).sum(axis=1)
    leaked = _ratio(total - largest, largest * max(information.shape[1] - 1, 1))
    return float(np.where(largest > 0, 1 - leaked, 0).mean())


def _gap(scores: np.ndarray) -> np.ndarray:
    """Per attribute, the largest score over dimensions minus the second."""
    ordered = np.sort(np.vstack([np.zeros_like(scores[:1]), scores]), axis=0)  # with one dimension, the second is 0
    return ordered[-1] - ordered[-2]


# Bootstrap: a resample is how often each subject was drawn, so that every metric is a weighted one


def _bootstrapped(statistic: Callable, subjects: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The statistic of the subjects as they are, (A,), and of the resamples, (1000, A)."""
    resampled = np.concatenate([statistic(weights) for weights in _resamples(subjects, seed)])
    return statistic(np.ones((1, subjects)))[0], resampled


def _resamples(subjects: int, seed: int) -> Iterator[np.ndarray]:
    """Weights (resamples, subjects), in blocks that stay small in memory."""
    rng = np.random.default_rng(seed)
    block = max(1, 400_000 // subjects)
    for start in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - start)
        drawn = rng.integers(subjects, size=(count, subjects)) + subjects * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * subjects).reshape(count, subjects).astype(float)


def _r2(
    train_codes: np.ndarray, train_attributes: np.ndarray, codes: np.ndarray, attributes: np.ndarray, reasons: list[str]
) -> Callable:
    """The function from weights of the test subjects to R² (weights, A) of the training subjects' lines."""
    known = np.isfinite(attributes)
    target, residual = np.zeros(attributes.shape), np.zeros(attributes.shape)
    for k in [k for k, reason in enumerate(reasons) if not reason]:
        fitted = np.isfinite(train_attributes[:, k])
        x, y = train_codes[fitted, k], train_attributes[fitted, k]
        slope = np.dot(x - x.mean(), y) / np.square(x - x.mean()).sum()
        rows = known[:, k]
        target[rows, k] = attributes[rows, k] - attributes[rows, k].mean()
        residual[rows, k] = attributes[rows, k] - y.mean() - slope * (codes[rows, k] - x.mean())
    return partial(_weighted_r2, target, np.square(residual), known.astype(float))


def _weighted_r2(target: np.ndarray, squared: np.ndarray, known: np.ndarray, weights: np.ndarray) -> np.ndarray:
    scale = np.square(target).sum(axis=0)
    total = weights @ np.square(target) - np.square(weights @ target) / np.maximum(weights @ known, 1)
    varies = total > 1e-12 * scale  # a resample of a single value has no R²
    return 1 - np.divide(weights @ squared, total, out=np.full(total.shape, np.nan), where=varies)


def _scc(codes: np.ndarray, attributes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    known = np.isfinite(attributes)
    pairs = [
        _rank_correlation(np.column_stack([codes[:, k], attributes[:, k]]), weights * known[:, k])
        for k in range(codes.shape[1])
    ]
    return np.column_stack([pair[:, 0, 1] for pair in pairs])


def _partial_scc(codes: np.ndarray, attributes: np.ndarray, defined: list[bool], weights: np.ndarray) -> np.ndarray:
    result = np.full((len(weights), len(defined)), np.nan)
    columns = np.flatnonzero(defined)
    if not len(columns):
        return result
    codes, attributes = codes[:, columns], attributes[:, columns]
    correlation = _rank_correlation(np.hstack([codes, attributes]), weights * np.isfinite(attributes).all(axis=1))
    count = len(columns)
    for k, column in enumerate(columns):
        others = [count + other for other in range(count) if other != k]
        result[:, column] = _given(correlation, [k, count + k], others)
    return result


def _given(correlation: np.ndarray, pair: list[int], others: list[int]) -> np.ndarray:
    """Partial correlation of a pair of columns given the others, from matrices of correlations."""
    cross = correlation[:, pair][:, :, others]
    inverse = np.linalg.pinv(np.nan_to_num(correlation[:, others][:, :, others]), rcond=1e-10, hermitian=True)
    left = correlation[:, pair][:, :, pair] - cross @ inverse @ np.swapaxes(np.nan_to_num(cross), 1, 2)
    variances = left[:, 0, 0], left[:, 1, 1]
    return _quotient(left[:, 0, 1], *variances, least=1e-9)


def _quotient(covariance: np.ndarray, first: np.ndarray, second: np.ndarray, least: float) -> np.ndarray:
    """Correlation from a covariance and two variances; NaN unless both of these exceed the least."""
    varies = (first > least) & (second > least)
    scale = np.sqrt(np.where(varies, first, 1) * np.where(varies, second, 1))
    return np.where(varies, np.clip(covariance / scale, -1, 1), np.nan)


def _rank_correlation(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman correlations (weights, columns, columns); NaN for a column that is constant where weights are not 0."""
    ranks = np.stack([_ranks(column, weights) for column in np.nan_to_num(values).T], axis=1)
    total = weights.sum(axis=1)[:, None, None]
    ranks -= (ranks @ weights[:, :, None]) / np.maximum(total, 1)
    covariance = (ranks * weights[:, None]) @ np.swapaxes(ranks, 1, 2)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    return _quotient(covariance, variance[:, :, None], variance[:, None], least=1e-6)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks (weights, subjects) of subjects that occur as often as their weight says; ties share their mean rank."""
    distinct, value = np.unique(values, return_inverse=True)
    order = np.argsort(value, kind="stable")
    start = np.searchsorted(value[order], np.arange(len(distinct)))
    copies = np.add.reduceat(weights[:, order], start, axis=1)
    return (np.cumsum(copies, axis=1) - copies / 2 + 0.5)[:, value]


def _active_units(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    centered = codes - codes.mean(axis=0)
    variance = weights @ np.square(centered) / codes.shape[0] - np.square(weights @ centered / codes.shape[0])
    return (variance > ACTIVE_VARIANCE).sum(axis=1, keepdims=True).astype(float)


# Jackknife: the statistic again and again, each time without one group of subjects


def _without_groups(subjects: int, seed: int) -> list[np.ndarray]:
    order = np.random.default_rng(seed).permutation(subjects)
    return [np.setdiff1d(order, group) for group in np.array_split(order, GROUPS)]


def _dmig_jackknife(
    codes: np.ndarray, attributes: np.ndarray, dimensions: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """DMIG (A,) and its replicates (10, A), in which only the 5 most informative dimensions may come second."""
    information = mutual_information(codes, attributes, seed)
    value = _dmig(information, mutual_information(attributes, attributes, seed), dimensions)
    best = np.argsort(np.nan_to_num(information), axis=0)[-CONTENDERS:].ravel()
    kept = np.concatenate([dimensions, np.setdiff1d(best, dimensions)])
    replicates = [
        _dmig(
            mutual_information(codes[np.ix_(rows, kept)], attributes[rows], seed),
            mutual_information(attributes[rows], attributes[rows], seed),
            np.arange(len(dimensions)),
        )
        for rows in _without_groups(len(codes), seed)
    ]
    return value, np.array(replicates)


def _dmig(information: np.ndarray, among: np.ndarray, dimensions: np.ndarray) -> np.ndarray:
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
    gap = information[dimensions, attributes] - others[second, attributes]
    return np.divide(gap, entropy, out=np.full(len(dimensions), np.nan), where=entropy > 1e-9)


def _dci(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], seed: int
) -> Iterator[tuple[np.ndarray, float]]:
    """Per attribute, the importances (D,) of the codes in gradient-boosted trees, and their R² on test subjects."""
    for k in range(train[1].shape[1]):
        fitted, scored = (np.isfinite(attributes[:, k]) for _, attributes in (train, test))
        if not (fitted.any() and scored.any()):  # a group of the jackknife may hold all who know the attribute
            yield np.zeros(train[0].shape[1]), np.nan
            continue
        model = GradientBoostingRegressor(**DCI_TREES, random_state=seed)
        model.fit(train[0][fitted], train[1][fitted, k])
        truth = test[1][scored, k]
        wrong, total = np.square(truth - model.predict(test[0][scored])).sum(), np.square(truth - truth.mean()).sum()
        yield model.feature_importances_, 1 - wrong / total if total > 0 else np.nan


def _dci_scores(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], seed: int) -> np.ndarray:
    """Disentanglement, completeness and informativeness (Eastwood and Williams 2018).

    From R, the importance of dimension i for attribute k: disentanglement is the mean over dimensions, weighted by
    their share of R, of 1 - entropy of R[i] over attributes in base A; completeness is the mean over attributes of
    1 - entropy of R[:, k] over dimensions in base D; informativeness is the mean R² on test subjects. The trees are
    50 per attribute, 3 deep, each split choosing among √D dimensions (``DCI_TREES``).

    Pitfalls: attributes that correlate share their dimensions' importance, so even an oracle stays below 1; values
    depend on the trees, and compare only with values from the same ones.
    """
    importances, r2 = zip(*_dci(train, test, seed), strict=True)
    importances = np.column_stack(importances)
    weights = importances.sum(axis=1)
    disentanglement = np.dot(weights, _concentration(importances)) / max(weights.sum(), 1e-12)
    return np.array([disentanglement, _concentration(importances.T).mean(), np.mean(r2)])


def _concentration(amounts: np.ndarray) -> np.ndarray:
    """1 - entropy of each row's shares, in base of their number: 1 if one has all, 0 if all have the same."""
    shares = _ratio(amounts, amounts.sum(axis=1, keepdims=True))
    if amounts.shape[1] == 1:
        return np.full(len(amounts), np.nan)
    return 1 - stats.entropy(np.where(shares.sum(axis=1, keepdims=True) > 0, shares, 1), axis=1, base=amounts.shape[1])


def _dci_report(train: tuple, test: tuple, reasons: list[str], seed: int) -> dict:
    columns = np.flatnonzero([not reason for reason in reasons])
    train, test = ((codes, attributes[:, columns]) for codes, attributes in (train, test))
    values, replicates = np.full(3, np.nan), np.full((GROUPS, 3), np.nan)
    if len(columns):
        parts = [(train, test)] + [
            (tuple(array[rows] for array in train), tuple(array[others] for array in test))
            for rows, others in zip(*(_without_groups(len(codes), seed) for codes, _ in (train, test)), strict=True)
        ]
        with ThreadPoolExecutor(workers()) as pool:  # growing a tree lets other threads run
            values, *replicates = pool.map(lambda part: _dci_scores(*part, seed), parts)
    nothing = "" if len(columns) else f"no attribute can be used ({reasons[0]})"
    why = nothing or "needs two attributes", nothing or "needs two dimensions", nothing
    scores = [
        _summary(values[k : k + 1], np.array(replicates)[:, k : k + 1], _jackknife_interval, why[k]) for k in range(3)
    ]
    return scores[0] | {"completeness": scores[1], "informativeness": scores[2]}


# Reports


def _bootstrap_interval(value: float, samples: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def _jackknife_interval(value: float, samples: np.ndarray) -> tuple[float, float]:
    error = np.sqrt((len(samples) - 1) / len(samples) * np.square(samples - samples.mean()).sum())
    reach = float(stats.t.ppf(0.975, max(len(samples) - 1, 1)) * error)
    return value - reach, value + reach


def _report(
    names: Sequence[str],
    reasons: list[str],
    values: np.ndarray,
    samples: np.ndarray,
    interval: Callable = _bootstrap_interval,
    otherwise: str = "the metric is undefined on these subjects",
) -> dict:
    """The mean over the attributes for which the metric is defined, and each attribute."""
    reasons = [
        reason or ("" if np.isfinite(value) else otherwise) for reason, value in zip(reasons, values, strict=True)
    ]
    defined = [not reason for reason in reasons]
    overall = _summary(values[defined], samples[:, defined], interval, f"undefined for every attribute ({reasons[0]})")
    each = {
        name: _summary(values[k : k + 1] if defined[k] else [], samples[:, k : k + 1], interval, reasons[k])
        for k, name in enumerate(names)
    }
    return overall | {"per_attribute": each}


def _summary(
    values: Sequence[float], samples: np.ndarray, interval: Callable = _bootstrap_interval, reason: str = ""
) -> dict:
    """Mean of the values with its interval from samples (resamples, values), or the reason why there is none."""
    if not len(values) or not np.isfinite(values).all():
        return {"value": float("nan"), "low": float("nan"), "high": float("nan"), "undefined": reason}
    value, samples = float(np.mean(values)), samples.mean(axis=1)
    samples = samples[np.isfinite(samples)]  # a resample may be too poor for the metric
    low, high = interval(value, samples) if len(samples) else (float("nan"), float("nan"))
    return {"value": value, "low": low, "high": high}
