"""Does a changed heart do what was asked? Requested against measured changes of attributes, and the measuring itself.

A request asks one attribute of one subject for a change in mL. An instrument then measures what has become of all
attributes. Every figure is a ratio of sums over subjects, so that a bootstrap draws subjects with all of their
requests: those of one subject are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from scripts.metrics.preconditions import LEAST_SUBJECTS
from scripts.metrics.resampling import bootstrap, report

FIGURES = ("slope", "r2", "error", "monotonicity", "drift")
ERRORS = ("error", "bias", "slope")
LINE = 6  # sums of a line: number of pairs, x, y, x², x y, y²


def faithfulness(requested: np.ndarray, measured: np.ndarray, names: Sequence[str], seed: int = 0) -> dict[str, dict]:
    """Whether measured changes are those that were requested.

    Args:
        requested: (A, subjects, R, A): by how many mL each attribute was to change where attribute k was asked to: all
            others by 0, or as they go with it; NaN for requests that were not made.
        measured: (A, subjects, R, A): by how many mL each attribute did change; NaN where that is not known.
        names: of the attributes.
        seed: of the bootstrap.

    Returns:
        Figure to its mean over attributes, with ``per_attribute``; each with a 95 % interval of the subjects:

        - ``slope`` of the least-squares line of measured on requested changes, 1 if the change has the asked size;
        - ``r2``: share of the measured changes' variance that this line explains;
        - ``error``: mean absolute difference of measured and requested change, in mL;
        - ``monotonicity``: share of neighboring requests of a subject, among them that for no change, of which the
          larger one has the larger measured value;
        - ``drift``: mean absolute difference of the other attributes' changes from what was requested of them, in parts
          of the change that was asked for.

    Raises:
        ValueError: for arrays that do not fit each other, or requests for no change.
    """
    requested, measured = _checked(requested, measured, names)
    sums = [change_sums(*asked, k) for k, asked in enumerate(zip(requested, measured, strict=True))]
    reasons = [_too_few(np.count_nonzero(of_one[:, 0]), "requests that were measured") for of_one in sums]
    return _reports(FIGURES, change_figures, sums, names, reasons, seed)


def measurement(truth: np.ndarray, measured: np.ndarray, names: Sequence[str], seed: int = 0) -> dict[str, dict]:
    """How well an instrument measures attributes whose values are known.

    Args:
        truth, measured: (subjects, A), in mL; NaN where not known.
        names: of the attributes.
        seed: of the bootstrap.

    Returns:
        As ``faithfulness``: ``error`` (mean absolute) and ``bias`` (mean) of measured minus true value, and the
        ``slope`` of measured on true values: an instrument that draws all hearts towards the mean has one below 1, and
        will find the same share of a change.
    """
    sums = [value_sums(*pair) for pair in zip(np.transpose(truth), np.transpose(measured), strict=True)]
    reasons = [_too_few(np.count_nonzero(of_one[:, 0]), "values that were measured") for of_one in sums]
    return _reports(ERRORS, value_figures, sums, names, reasons, seed)


def subject_means(values: np.ndarray, names: Sequence[str], seed: int = 0) -> dict:
    """Means of what is known per subject, such as an error of each request.

    Args:
        values: (A, subjects, ...), NaN where not known. Each known value of a subject counts alike.
        names: of the A rows.
        seed: of the bootstrap.

    Returns:
        The mean over the rows, and ``per_attribute``, with intervals.
    """
    flat = np.reshape(values, (*np.shape(values)[:2], -1))
    known = np.isfinite(flat)
    sums = np.stack([np.where(known, flat, 0).sum(axis=2), known.sum(axis=2)], axis=-1)
    reasons = [_too_few(count, "known values") for count in known.any(axis=2).sum(axis=1)]
    return _reports(("mean",), lambda total: _ratio(total[:, :1], total[:, 1:]), sums, names, reasons, seed)["mean"]


def change_sums(requested: np.ndarray, measured: np.ndarray, attribute: int) -> np.ndarray:
    """What ``change_figures`` needs to know of each subject: (subjects, LINE + 5).

    Args:
        requested, measured: (subjects, R, A).
        attribute: the one that was asked to change.
    """
    asked, own = requested[..., attribute], measured[..., attribute]
    wrong = np.abs(measured - requested)
    strayed = np.delete(wrong, attribute, axis=2) / np.abs(asked)[..., None]
    rising, neighbors = order_counts(asked, own)
    parts = [np.nansum(wrong[..., attribute], axis=1), rising, neighbors]
    parts += [np.nansum(strayed, axis=(1, 2)), np.isfinite(strayed).sum(axis=(1, 2))]
    return np.column_stack([line_sums(asked, own), *parts])


def change_figures(sums: np.ndarray) -> np.ndarray:
    """``FIGURES`` (W, 5) from sums over subjects (W, LINE + 5)."""
    error, rising, neighbors, strayed, others = sums[:, LINE:].T
    slope, r2 = line_of(sums[:, :LINE])
    return np.column_stack([slope, r2, _ratio(error, sums[:, 0]), _ratio(rising, neighbors), _ratio(strayed, others)])


def value_sums(truth: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """What ``value_figures`` needs to know of each subject: (subjects, LINE + 2), from (subjects,) both."""
    known = np.isfinite(truth) & np.isfinite(measured)
    wrong = np.where(known, measured - truth, 0)
    return np.column_stack([line_sums(truth[:, None], measured[:, None]), np.abs(wrong), wrong])


def value_figures(sums: np.ndarray) -> np.ndarray:
    """``ERRORS`` (W, 3) from sums over subjects (W, LINE + 2)."""
    return np.column_stack([_ratio(sums[:, LINE:], sums[:, :1]), line_of(sums[:, :LINE])[0]])


def line_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sums over the known pairs (subjects, n) of each subject, from which a common line follows: (subjects, LINE)."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(known, x, 0), np.where(known, y, 0)
    return np.stack([part.sum(axis=1) for part in (known, x, y, x * x, x * y, y * y)], axis=1)


def line_of(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and R² (W,) of the least-squares line of y on x, from sums (W, LINE).

    The slope is NaN where x is constant. Of a constant y the line explains nothing: R² is 0.
    """
    count, x, y, xx, xy, yy = sums.T
    spread_x, spread_y, both = count * xx - x * x, count * yy - y * y, count * xy - x * y
    tiny = 1e-12  # of the squares: what rounding leaves of a constant's variance
    varies = spread_x > tiny * count * xx
    slope = np.where(varies, _ratio(both, spread_x), np.nan)
    r2 = np.where(spread_y > tiny * count * yy, _ratio(both * both, spread_x * spread_y), 0.0)
    return slope, np.where(varies, r2, np.nan)


def order_counts(requested: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each subject's neighboring requests, with no change among them, how many rise in the measured value, of all.

    Args:
        requested, measured: (subjects, R).
    """
    nothing = np.zeros((len(requested), 1))
    x, y = np.hstack([nothing, requested]), np.hstack([nothing, measured])
    order = np.argsort(np.where(np.isfinite(y), x, np.nan), axis=1)  # NaN comes last
    steps = np.diff(np.take_along_axis(np.where(np.isfinite(x), y, np.nan), order, axis=1), axis=1)
    return (steps > 0).sum(axis=1), np.isfinite(steps).sum(axis=1)


def _reports(
    figures: Sequence[str],
    of_sums: Callable[[np.ndarray], np.ndarray],
    sums: Sequence[np.ndarray],
    names: Sequence[str],
    reasons: Sequence[str],
    seed: int,
) -> dict[str, dict]:
    """Each figure of each attribute with its interval; all attributes have the same draws of subjects."""
    found = [bootstrap(lambda weights, own=own: of_sums(weights @ own), len(own), seed) for own in sums]
    values, samples = np.stack([part[0] for part in found]), np.stack([part[1] for part in found], axis=1)
    return {
        figure: report(names, reasons, values[:, column], samples[:, :, column])
        for column, figure in enumerate(figures)
    }


def _checked(requested: np.ndarray, measured: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    requested, measured = np.asarray(requested, float), np.asarray(measured, float)
    count = len(names)
    if requested.ndim != 4 or requested.shape != measured.shape or requested.shape[::3] != (count, count):
        raise ValueError(
            f"requested has shape {requested.shape} and measured {measured.shape}: give (A, subjects, R, A) for the "
            f"{count} attributes {list(names)}."
        )
    if any((asked[..., k] == 0).any() for k, asked in enumerate(requested)):
        raise ValueError("A request for a change of 0 mL tells nothing of changes: leave it out.")
    return requested, measured


def _too_few(count: int, what: str) -> str:
    return f"{count} subjects have {what}, of at least {LEAST_SUBJECTS}" if count < LEAST_SUBJECTS else ""


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where there is nothing."""
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole != 0)
