"""Do two methods differ on the same subjects? Resampling tests between the runs of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from scripts.cohort.privacy import PSEUDONYMS, read_pseudonyms
from scripts.evaluation.study import METRICS, Run, read_metrics
from scripts.metrics.correlations import line_predictions, own_partial_spearman, paired_spearman, r2
from scripts.metrics.preconditions import LEAST_SUBJECTS, obstacles
from scripts.metrics.resampling import GROUPS, bootstrap, jackknife_interval, two_sided_p, without_groups
from scripts.storage import read_csv

QUALITIES = ("SSIM", "LPIPS", "MSE")  # per subject, averaged over phases
RESAMPLED = (*QUALITIES, "R²", "SCC")

# From weights (W, subjects), how often each subject counts, to figures (W, F).
Statistic = Callable[[np.ndarray], np.ndarray]


def label(run: Run) -> str:
    """Method and, where it is not that of the configs, the weight of the attribute loss."""
    return run.method if run.gamma is None else f"{run.method}, γ {run.gamma:g}"


def paired_tests(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Differences of each method from the first one of the plan, over the seeds that both have finished.

    A subject is drawn, or left out, with all of its seeds, and differences are averaged over seeds: interval and p are
    of the subjects, for these trainings, and say nothing of others. p is adjusted for all tests of an input together
    (Benjamini and Hochberg).

    Returns:
        One dict per input, method and figure: ``difference``, ``low``, ``high``, ``p``; or ``undefined`` with the
        reason, where the two were not judged on the same subjects.
    """
    tests = []
    for phases in dict.fromkeys(run.phases for run in runs):
        by_label: dict[str, dict[int, Run]] = {}
        for run in runs:
            if run.phases == phases:
                by_label.setdefault(label(run), {})[run.seed] = run
        first, *others = by_label
        found = []
        for other in others:
            pairs = [(run, by_label[first].get(seed)) for seed, run in sorted(by_label[other].items())]
            pairs = [(a, b) for a, b in pairs if b is not None and a.finished and b.finished]
            if pairs:
                about = {"input": phases, "method": other, "reference": first, "seeds": len(pairs)}
                found += [about | test for test in compare(pairs)]
        tests += adjusted(found)
    return tests


def adjusted(tests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tests with p adjusted for their number."""
    defined = [test for test in tests if "p" in test]
    p = stats.false_discovery_control([test["p"] for test in defined]) if defined else []
    for test, value in zip(defined, p, strict=True):
        test["p"] = float(value)
    return list(tests)


def compare(pairs: Sequence[tuple[Run, Run]]) -> Iterator[dict[str, Any]]:
    """The tests of one method against another, over their seeds."""
    loaded = [(run_statistics(a), run_statistics(b)) for a, b in pairs]
    if any("" in names for pair in loaded for names, _, _ in pair):
        yield {"figure": "", "undefined": f"{PSEUDONYMS} of a run, by which subjects are paired, lacks some of them"}
        return
    if any(a[0] != b[0] for a, b in loaded):
        yield {"figure": "", "undefined": "they were judged on different subjects of a seed"}
        return
    if any(len(names) < LEAST_SUBJECTS for (names, _, _), _ in loaded):
        yield {"figure": "", "undefined": f"fewer than {LEAST_SUBJECTS} subjects were judged"}
        return
    subjects = sorted({subject for (names, _, _), _ in loaded for subject in names})
    places = [[subjects.index(name) for name in names] for (names, _, _), _ in loaded]

    def differences(which: int, weights: np.ndarray) -> np.ndarray:
        """Mean over seeds (W, F)."""
        pairs = zip(loaded, places, strict=True)
        return np.mean([a[which](weights[:, own]) - b[which](weights[:, own]) for (a, b), own in pairs], axis=0)

    values, samples = bootstrap(partial(differences, 1), len(subjects))
    for figure, value, drawn in zip(RESAMPLED, values, samples.T, strict=True):
        drawn = drawn[np.isfinite(drawn)]
        if math.isfinite(value) and len(drawn):
            low, high = np.percentile(drawn, [2.5, 97.5])
            yield {"figure": figure, "difference": value, "low": low, "high": high, "p": two_sided_p(drawn)}
    # A bootstrap's ties would bias partial correlations of ranks, see ``sound_protocol``.
    weights = np.vstack([np.ones((1, len(subjects))), without_groups(len(subjects))])
    value, *replicates = differences(2, weights)[:, 0]
    if np.isfinite([value, *replicates]).all():
        low, high = jackknife_interval(value, np.array(replicates))
        error = (high - low) / 2 / stats.t.ppf(0.975, GROUPS - 1)
        p = float(2 * stats.t.sf(abs(value) / error, GROUPS - 1)) if error > 0 else 1.0
        yield {"figure": "partial SCC", "difference": value, "low": low, "high": high, "p": p}


def run_statistics(run: Run) -> tuple[list[str], Statistic, Statistic]:
    """Test subjects of a run by name, and the functions to its ``RESAMPLED`` figures and to its partial SCC.

    The runs of a study have different pseudonyms: what pairs their subjects are the names.
    """
    description = read_metrics(run)["description"]
    names = {str(number): subject for subject, number in read_pseudonyms(run.folder).items()}
    rows = read_csv(run.folder / METRICS.parent / "subjects.csv")
    rows = sorted(rows, key=lambda row: names.get(row["pseudonym"], ""))
    training, test = ([row for row in rows if row["section"] == s] for s in ("training", description["section"]))
    phases = description["data"]["phases"]
    quality = np.array([[np.mean([float(row[f"{q}_{p}"]) for p in phases]) for q in QUALITIES] for row in test])
    codes, attributes = codes_and_attributes(test, description)
    predictions = line_predictions(*codes_and_attributes(training, description), codes)
    usable = np.array([not reason for reason in obstacles(attributes, "test ")])
    return (
        [names.get(row["pseudonym"], "") for row in test],
        partial(_resampled, quality, codes[:, usable], attributes[:, usable], predictions[:, usable]),
        partial(_partial, codes[:, usable], attributes[:, usable]),
    )


def codes_and_attributes(
    rows: Sequence[Mapping[str, str]], description: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """(subjects, A) each: the codes of the attributes' dimensions, turned as in the evaluation, and the attributes."""
    names, dimensions = description["data"]["attributes"], description["dimensions"]
    codes = np.array([[float(row[f"z{k}"]) for k in dimensions] for row in rows]) * description["signs"]
    return codes, np.array([[float(row[name] or "nan") for name in names] for row in rows])


def _resampled(
    quality: np.ndarray, codes: np.ndarray, attributes: np.ndarray, predictions: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    means = weights @ quality / weights.sum(axis=1, keepdims=True)
    explained, ordered = r2(attributes, predictions, weights), paired_spearman(codes, attributes, weights)
    return np.column_stack([means, _mean(explained), _mean(ordered)])


def _partial(codes: np.ndarray, attributes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _mean(own_partial_spearman(codes, attributes, [True] * codes.shape[1], weights))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over attributes (W, 1); NaN without any."""
    return values.mean(axis=1, keepdims=True) if values.shape[1] else np.full((len(values), 1), np.nan)
