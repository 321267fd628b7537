"""Interpretability metrics: pure functions on codes and attributes.

``paper_protocol`` gives the numbers of published tables, ``sound_protocol`` those to believe, and ``reference_codes``
the rows that a table needs beside them: a metric that noise or a mere size axis passes says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from scripts.metrics.correlations import (
    all_correlations,
    line_predictions,
    own_partial_spearman,
    paired_spearman,
    partial_spearman,
    r2,
    ratio,
    significant,
)
from scripts.metrics.disentanglement import dci, dmig_jackknife, gap, modularity
from scripts.metrics.information import joint_information
from scripts.metrics.preconditions import (
    LEAST_SUBJECTS,
    check_groups,
    checked,
    checked_dimensions,
    finite,
    first_reasons,
    obstacles,
    without_complete_subjects,
)
from scripts.metrics.resampling import bootstrap, interval_within, report, summary, without_groups

ACTIVE_VARIANCE = 0.01
PAPER_SCORES = ("scc", "modularity", "sap", "mig")


def spearman(codes: Sequence, attributes: Sequence) -> np.ndarray:
    """Spearman correlation of each attribute with the dimension that is regularized for it (SCC on fixed dimensions).

    Args:
        codes: (subjects, D); dimension k belongs to attribute k.
        attributes: (subjects, A) with A up to D; a missing (NaN) value leaves its subject out of its attribute.

    Returns:
        (A,); NaN where a correlation is undefined: fewer than 3 subjects, or a constant code or attribute.
    """
    codes, attributes = _paired(codes, attributes)
    return paired_spearman(codes, attributes, _once(codes))[0]


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
        train_attributes, test_attributes: (subjects, A); a missing (NaN) value leaves its subject out of its attribute.

    Returns:
        (A,); NaN where it is undefined: fewer than 3 training or test subjects, a code that is constant over training
        subjects, or an attribute that is constant over either.
    """
    train_codes, train_attributes = _paired(train_codes, train_attributes)
    test_codes, test_attributes = _paired(test_codes, test_attributes)
    predictions = line_predictions(train_codes, train_attributes, test_codes)
    return r2(test_attributes, predictions, _once(test_codes))[0]


def partial_correlations(codes: Sequence, attributes: Sequence) -> np.ndarray:
    """Spearman correlation of each attribute with each dimension, given the other attributes.

    The partial SCC of ``sound_protocol`` for all dimensions: in a model whose attributes are apart, each attribute has
    one dimension. An attribute that is constant or known for fewer than 10 subjects is not among the others.

    Args:
        codes: (subjects, D).
        attributes: (subjects, A); subjects with a missing (NaN) value are left out.

    Returns:
        (A, D); NaN where it is undefined: such an attribute, a constant dimension, one of both that the other
        attributes determine, or fewer subjects with all attributes than 10 or the number of attributes + 2.
    """
    codes, attributes = finite(codes, attributes)
    reasons = obstacles(attributes, "")
    reasons = first_reasons(reasons, without_complete_subjects(attributes, reasons))
    return partial_spearman(codes, attributes, [not reason for reason in reasons], _once(codes))[0]


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
    codes, attributes = checked(codes, attributes, names)
    for name, known in zip(names, np.isfinite(attributes).sum(axis=0), strict=True):
        if known < LEAST_SUBJECTS:
            raise ValueError(f"{name} is known for {known} subjects, of at least {LEAST_SUBJECTS}: leave it out")
    dimensions, scores = _paper_scores(codes, attributes, _once(codes) > 0, seed)
    each = scores.pop("interpretability")[0]
    interpretability = {name: (int(k), float(value)) for name, k, value in zip(names, dimensions[0], each, strict=True)}
    return {
        "interpretability": interpretability | {"mean": (-1, float(each.mean()))},
        **{name: float(values.mean()) for name, values in scores.items()},
    }


def paper_intervals(
    codes: Sequence,
    attributes: Sequence,
    names: Sequence[str],
    groups: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> dict:
    """The values of ``paper_protocol`` with 95% intervals, from a delete-group jackknife with 10 groups of subjects.

    The dimension of an attribute is picked anew without each group, as the protocol does: the interval is of what the
    protocol would give on other subjects, and a dimension that barely won adds to it. Reported is the dimension of all
    subjects.

    Pitfalls: those of ``paper_protocol``, and an interval says nothing of its bias. Where the picked dimension changes
    from group to group, as on noise, scores jump and the jackknife is rough. The mutual information without a group is
    as ``information_of_subsets`` has it.

    Args:
        codes, attributes, names, seed: as in ``paper_protocol``; seed also draws the groups of the jackknife.
        groups: name -> attributes over which to average the interpretability, by default {"all": names}.

    Returns:
        ``scc``, ``modularity``, ``sap``, ``mig`` and, inside of ``interpretability``, each of the groups: dicts of
        ``value``, ``low`` and ``high``; and ``each`` in ``interpretability``: name -> the same with ``dimension``. An
        attribute that is constant or known for fewer than 10 subjects is left out, as if it had not been given. Where
        that leaves nothing the value is NaN, the dimension -1, and ``undefined`` gives the reason in words.
    """
    codes, attributes = checked(codes, attributes, names)
    groups = {"all": names} if groups is None else groups
    check_groups(groups, names)
    reasons = obstacles(attributes, "")
    picked, each, scores = _paper_replicates(codes, attributes, np.array([not reason for reason in reasons]), seed)

    def mean(values: np.ndarray, reason: str) -> dict:
        return summary(values[0], values[1:], interval_within(0, 1), reason)

    def mean_of(members: Sequence[str]) -> dict:
        columns = [list(names).index(name) for name in members]
        defined = [k for k in columns if not reasons[k]]
        return mean(each[:, defined], f"undefined for every attribute ({reasons[columns[0]]})")

    interpretability = {group: mean_of(members) for group, members in groups.items()}
    interpretability["each"] = {
        name: mean(each[:, k : k + 1], reasons[k]) | {"dimension": int(picked[k])} for k, name in enumerate(names)
    }
    overall = f"undefined for every attribute ({reasons[0]})"
    return {"interpretability": interpretability} | {name: mean(values, overall) for name, values in scores.items()}


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
    - dmig: see ``disentanglement.dmig``;
    - dci: disentanglement as ``value``, with ``completeness`` and ``informativeness``, see ``disentanglement.dci``;
    - active_units: dimensions whose code varies by more than 0.01 (variance) over test subjects (Burda et al. 2016).

    Intervals hold 95% and are of the subjects: they say nothing of another training run. They come from a bootstrap
    of 1000 resamples of the test subjects, for r2, scc and active_units (percentiles). partial_scc, dmig and dci have
    a delete-group jackknife with 10 groups (Student's t): the repeated subjects of a bootstrap would look like perfect
    information to a nearest-neighbor estimate, their ties blur what is left of ranks (simulated, its intervals held a
    partial correlation of 0.99 in no case), and trees take long to fit again.

    Pitfalls: partial_scc asks whether z_k knows what the other attributes do not tell of a_k. A size axis that is an
    exact mixture of all attributes knows it, and scores high (0.8 for six volumes); with an error of measurement as
    small as a fifth of its standard deviation it does not. Only dmig unmasks both. partial_scc needs subjects who have
    every (defined) attribute; with n subjects and A attributes only about n - A are left to speak. The mean over
    attributes is taken over those for which a metric is defined.

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
    train = checked(train_codes, train_attributes, names, "training ")
    test = checked(test_codes, test_attributes, names, "test ")
    if train[0].shape[1] != test[0].shape[1]:
        raise ValueError(
            f"Training codes have {train[0].shape[1]} dimensions and test codes {test[0].shape[1]}: take both from "
            "one model."
        )
    dimensions = checked_dimensions(dimensions, len(names), test[0].shape[1])
    fixed = test[0][:, dimensions]
    on_test = obstacles(test[1], "test ", fixed)
    on_both = first_reasons(obstacles(train[1], "training ", train[0][:, dimensions]), on_test)
    without_codes = first_reasons(obstacles(train[1], "training "), obstacles(test[1], "test "))
    predictions = line_predictions(train[0][:, dimensions], train[1], fixed)
    resampled = partial(bootstrap, subjects=len(fixed), seed=seed)
    return {
        "r2": report(names, on_both, *resampled(partial(r2, test[1], predictions))),
        "scc": report(names, on_test, *resampled(partial(paired_spearman, fixed, test[1]))),
        "partial_scc": report(
            names,
            first_reasons(on_test, without_complete_subjects(test[1], on_test)),
            *_partial_jackknife(fixed, test[1], [not reason for reason in on_test], seed),
            interval=interval_within(-1, 1),
            otherwise="the other attributes determine the ranks of the attribute or of its code",
        ),
        "dmig": report(
            names,
            on_test,
            *dmig_jackknife(*test, dimensions, seed),
            interval=interval_within(-np.inf, 1),
            otherwise="another attribute carries all of its information",
        ),
        "dci": dci(train, test, without_codes, seed),
        "active_units": summary(*resampled(partial(_active_units, test[0]))),
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
    centered = np.where(known, attributes - ratio(np.where(known, attributes, 0).sum(axis=0), known.sum(axis=0)), 0)
    oracle = ratio(centered, np.sqrt(ratio(np.square(centered).sum(axis=0), known.sum(axis=0))))
    axis = np.linalg.svd(oracle, full_matrices=False)[2][0]
    size = oracle @ axis * np.sign(axis.sum())  # large hearts have large codes
    size = ratio(size, size.std()) + size_error * rng.standard_normal(len(size))
    size = np.repeat(size[:, None], count, axis=1)
    return {
        "noise": noise,
        "heart size": np.hstack([size, noise[:, count:]]),
        "oracle": np.hstack([oracle, noise[:, count:]]),
    }


def _once(codes: np.ndarray) -> np.ndarray:
    """Weights of a sample in which each subject occurs once."""
    return np.ones((1, len(codes)))


def _paired(codes: Sequence, attributes: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Each attribute and the code on the dimension of its index, (subjects, A) each."""
    codes, attributes = np.asarray(codes, dtype=float), np.asarray(attributes, dtype=float)
    return codes[:, np.arange(attributes.shape[1])], attributes


def _paper_replicates(
    codes: np.ndarray, attributes: np.ndarray, defined: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Dimensions (A,), and R² (11, A) and the other scores (11, any): of all subjects and without each group."""
    subsets = np.vstack([_once(codes) > 0, without_groups(len(codes), seed)])
    picked, each = np.full(len(defined), -1), np.full((len(subsets), len(defined)), np.nan)
    if not defined.any():
        return picked, each, dict.fromkeys(PAPER_SCORES, each)
    dimensions, scores = _paper_scores(codes, attributes[:, defined], subsets, seed)
    picked[defined], each[:, defined] = dimensions[0], scores.pop("interpretability")
    return picked, each, scores


def _paper_scores(
    codes: np.ndarray, attributes: np.ndarray, subsets: np.ndarray, seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The dimension picked for each attribute, (S, A), and per score what its mean is taken of, (S, any)."""
    information, among = joint_information(codes, attributes, subsets, seed)
    pearson, rank = np.stack([all_correlations(codes[rows], attributes[rows]) for rows in subsets], axis=1)
    dimensions = information.argmax(axis=1)
    explained = np.square(pearson)  # of a line with offset, R² is the squared correlation
    unknown = np.isnan(information).any(axis=1)  # a group of the jackknife may hold all who know the attribute
    picked = np.take_along_axis(explained, dimensions[:, None], axis=1)[:, 0]
    scores = (
        np.where(unknown, np.nan, picked),
        significant(rank, subsets.astype(int) @ np.isfinite(attributes)).max(axis=1),
        modularity(information)[:, None],
        gap(explained),
        ratio(gap(information), np.diagonal(among, axis1=1, axis2=2)),
    )
    return dimensions, dict(zip(("interpretability", *PAPER_SCORES), scores, strict=True))


def _partial_jackknife(
    codes: np.ndarray, attributes: np.ndarray, defined: Sequence[bool], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Partial Spearman correlation (A,) of each attribute with its own code, and the replicates (10, A)."""
    weights = np.vstack([_once(codes), without_groups(len(codes), seed)])
    value, *replicates = own_partial_spearman(codes, attributes, defined, weights)
    return value, np.array(replicates)


def active_units(codes: np.ndarray) -> int:
    """How many dimensions of codes (N, D) vary by more than 0.01 (variance) over the subjects (Burda et al. 2016)."""
    return int(_active_units(codes, _once(codes)).item())


def _active_units(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    centered = codes - codes.mean(axis=0)
    variance = weights @ np.square(centered) / codes.shape[0] - np.square(weights @ centered / codes.shape[0])
    return (variance > ACTIVE_VARIANCE).sum(axis=1, keepdims=True).astype(float)
