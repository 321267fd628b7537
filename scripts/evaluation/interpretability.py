"""The interpretability of a model's codes beside the rows that tell what the numbers mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from scripts.evaluation.records import SubjectRecords
from scripts.metrics import paper_intervals, reference_codes, sound_protocol
from scripts.metrics.correlations import all_correlations

MODEL, SAMPLED, CEILING = "model", "model, sampled z", "supervised ceiling"


class CodeRow(NamedTuple):
    """Codes of one row of a table.

    Args:
        training, test: (subjects, D).
        dimensions: of each attribute.
        signs: of each attribute: -1 where the codes have been turned, since they fell with the attribute.
    """

    training: np.ndarray
    test: np.ndarray
    dimensions: np.ndarray
    signs: np.ndarray


def code_rows(
    training: SubjectRecords,
    test: SubjectRecords,
    regularized: bool,
    size_error: float = 0.0,
    predictions: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> dict[str, CodeRow]:
    """The model's codes, the reference codes, and the supervised ceiling.

    Args:
        training, test: of one model.
        regularized: whether dimension k was trained to follow attribute k. Where none was, each attribute gets the
            dimension that follows it best in training subjects, turned where it falls with it.
        size_error: see ``reference_codes``.
        predictions: the supervised regressor's attributes of training and test subjects, (subjects, A) each.
        seed: of the sampled codes and of the noise in reference codes.
    """
    count, latent_dim = training.attributes.shape[1], training.codes.shape[1]
    dimensions, signs = own = np.arange(count), np.ones(count)
    if not regularized:
        dimensions, signs = matched_dimensions(training.codes, training.attributes)
    turn = np.ones(latent_dim)
    turn[dimensions] = signs
    drawn = training.sampled_codes(seed), test.sampled_codes(seed + 1)
    rows = {
        MODEL: CodeRow(turn * training.codes, turn * test.codes, dimensions, signs),
        SAMPLED: CodeRow(*(turn * codes for codes in drawn), dimensions, signs),
    }
    split = [len(training.pseudonyms)]
    references = reference_codes(np.concatenate([training.attributes, test.attributes]), latent_dim, seed, size_error)
    if predictions is not None:
        # As wide as the others, since some metrics fall with the number of dimensions.
        references[CEILING] = np.hstack([np.concatenate(predictions), references["noise"][:, count:]])
    return rows | {name: CodeRow(*np.split(codes, split), *own) for name, codes in references.items()}


def matched_dimensions(codes: np.ndarray, attributes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One dimension per attribute, none twice, such that the sum of absolute Spearman correlations is largest.

    Args:
        codes: (subjects, D).
        attributes: (subjects, A); NaN where missing.

    Returns:
        Dimensions (A,) and the signs of their correlations (A,).
    """
    correlation = all_correlations(codes, attributes)[1].T
    dimensions = linear_sum_assignment(-np.abs(correlation))[1]
    return dimensions, np.where(correlation[np.arange(len(dimensions)), dimensions] < 0, -1.0, 1.0)


def both_protocols(
    rows: Mapping[str, CodeRow],
    training_attributes: np.ndarray,
    test_attributes: np.ndarray,
    names: Sequence[str],
    seed: int = 0,
) -> dict[str, dict]:
    """Paper protocol (test subjects only) and sound protocol of every row.

    Args:
        rows: name -> codes.
        training_attributes, test_attributes: (subjects, A).
        names: of the attributes.
        seed: of resampling, jitter and trees.

    Returns:
        ``paper`` and ``sound``, each row -> metrics. A protocol that cannot be computed, as with fewer than 10 subjects
        in a section, is ``{"undefined": reason}``.
    """
    groups = {"all": list(names)} | {phase: [name for name in names if phase in name] for phase in ("EDV", "ESV")}
    groups = {group: members for group, members in groups.items() if members}
    paper, sound = {}, {}
    for row, codes in rows.items():
        try:
            paper[row] = paper_intervals(codes.test, test_attributes, names, groups, seed)
        except ValueError as error:
            paper[row] = {"undefined": str(error)}
        try:
            sound[row] = sound_protocol(
                codes.training, training_attributes, codes.test, test_attributes, names, codes.dimensions, seed
            )
        except ValueError as error:
            sound[row] = {"undefined": str(error)}
    return {"paper": paper, "sound": sound}
