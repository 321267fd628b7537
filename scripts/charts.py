"""Plots of numbers: codes against attributes, partial correlations, training curves, and a study's trade-off.

All are drawn for a page 1,000 pixels wide and for print without color: what differs in color differs in shape, line
style or lightness, too. No plot names a subject.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.figures import DPI, LARGE, NORMAL, SMALL, WIDTH, attribute_name, number
from scripts.metrics import held_out_r2, spearman
from scripts.metrics.faithfulness import line_of, line_sums

STYLES = (("black", "-"), ("tab:blue", "--"), ("tab:orange", "-."), ("tab:red", ":"))
MARKERS = "osD^vPX*<>"
FILLS = ("black", "white", "tab:blue", "tab:orange", "tab:gray")
NEGATIVE = -0.1  # correlations below it are marked; nearer to zero, a sign means nothing
VALIDATION = "val_"  # begins the tags that have one value per epoch; the others have one per iteration
# Title, label of the y axis, logarithmic or not, and tag -> label of each panel of the training curves
PANELS = (
    (
        "losses",
        "loss, mean of an epoch",
        True,
        {"loss": "whole network", "encoder_loss": "encoder", "decoder_loss": "decoder"},
    ),
    ("attribute loss", "before its weight γ", True, {"attribute_loss": "training"}),
    (
        "reconstruction",
        "loss per value of the image",
        True,
        {"reconstruction_loss": "training", "val_reconstruction_loss": "validation"},
    ),
    ("interpretability", "mean Spearman correlation", False, {"val_scc": "validation"}),
    (
        "divergence from the prior",
        "KL divergence (nats)",
        False,
        {"kl_real": "scans", "kl_reconstructed": "reconstructed", "kl_generated": "generated"},
    ),
    (
        "adversarial term",
        "log of exp(ELBO)\n(vanishes below −16)",
        False,
        {"log_exp_elbo_reconstructed": "reconstructed", "log_exp_elbo_generated": "generated"},
    ),
)


def scatter_figure(
    train_codes: np.ndarray,
    train_attributes: np.ndarray,
    test_codes: np.ndarray,
    test_attributes: np.ndarray,
    names: Sequence[str],
    unit: str | Mapping[str, str] = "mL",
    labels: Sequence[str] | None = None,
    section: str = "test",
) -> Figure:
    """Each attribute against its dimension.

    The line and the 95% prediction interval, in which a new subject is expected to lie, come from the training
    subjects; R² and the Spearman correlation (SCC) in the titles are those of the test subjects.

    Args:
        train_codes, test_codes: (subjects, D), in standard deviations of the prior; dimension k belongs to attribute k.
        train_attributes, test_attributes: (subjects, A); a missing (NaN) value leaves its subject out.
        names: of the attributes.
        unit: of all attributes, or name -> unit.
        labels: what to call each column of the codes, by default z0, z1, ...
        section: of the datalist, that of the subjects that are judged.
    """
    figure, axes = _panels(len(names))
    units = unit if isinstance(unit, Mapping) else dict.fromkeys(names, unit)
    r2 = held_out_r2(train_codes, train_attributes, test_codes, test_attributes)
    scc = spearman(test_codes, test_attributes)
    labels = [f"z{k}" for k in range(len(names))] if labels is None else labels
    for k, (axis, name) in enumerate(zip(axes, names, strict=True)):
        train, test = _known(train_codes, train_attributes, k), _known(test_codes, test_attributes, k)
        if _has_line(*train):
            _draw_line(axis, *train, reach=np.concatenate([train[0], test[0]]))
        axis.plot(*train, "o", color="0.6", markersize=3, label="training subjects", zorder=1)
        axis.plot(
            *test, "D", color="black", markerfacecolor="white", markersize=4.5, label=f"{section} subjects", zorder=3
        )
        axis.set_title(f"{attribute_name(name)}:  R² {number(r2[k])},  SCC {number(scc[k])}", fontsize=LARGE)
        axis.set_xlabel(f"code {labels[k]} (SD of the prior)", fontsize=NORMAL)
        axis.set_ylabel(f"{name} ({units[name]})", fontsize=NORMAL)
    handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    title = f"R² (of this line) and SCC (Spearman correlation) are those of the {len(test_codes)} {section} subjects"
    _legend_below(figure, handles, title)
    return figure


def regression(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Line of least squares, and half the width of the 95% prediction interval of a new observation.

    Args:
        x, y: (n,), n at least 3, x not constant.
        at: where to predict.
    """
    slope, offset = np.polyfit(x, y, 1)
    error = np.sqrt(np.square(y - slope * x - offset).sum() / (len(x) - 2))
    spread = 1 + 1 / len(x) + np.square(at - x.mean()) / np.square(x - x.mean()).sum()
    return slope * at + offset, stats.t.ppf(0.975, len(x) - 2) * error * np.sqrt(spread)


def correlation_figure(
    matrix: np.ndarray, names: Sequence[str], labels: Sequence[str], relation: str = "is regularized for"
) -> Figure:
    """Partial correlations of attributes and dimensions, the pair that belongs together in a frame.

    Lightness shows the strength; the sign, which a print in gray would lose, stands in the number, and cells below
    ``NEGATIVE`` are hatched.

    Args:
        matrix: (A, D), in [-1, 1]; NaN where undefined.
        names: of the A attributes.
        labels: name of each of the D dimensions; attribute k belongs to the k-th of them. Ten are legible.
        relation: what joins them, in words.
    """
    rows, columns = np.shape(matrix)
    figure = Figure(figsize=(WIDTH, 1.4 + 0.62 * rows), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(np.abs(matrix), cmap="Greys", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix):
        ink = "white" if abs(value) > 0.55 else "black"
        box = {"boxstyle": "square,pad=0.15", "facecolor": image.to_rgba(abs(value)), "edgecolor": "none"}
        text = number(value) if np.isfinite(value) else "undefined"
        axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=LARGE, bbox=box)
        if value < NEGATIVE:
            _cell(axis, row, column, hatch="//", edgecolor="0.4", linewidth=0)
        if row == column:
            _cell(axis, row, column, edgecolor="black", linewidth=2.5)
    axis.set_xticks(range(columns), [_owner(k, names, label) for k, label in enumerate(labels)])
    axis.set_yticks(range(rows), [attribute_name(name) for name in names])
    axis.tick_params(labelsize=NORMAL, length=0)
    axis.set_xlabel(f"dimension (and the attribute that it {relation}: framed)", fontsize=NORMAL)
    axis.set_ylabel("attribute", fontsize=NORMAL)
    bar = figure.colorbar(image, ax=axis, pad=0.01, fraction=0.05)
    bar.set_label(f"absolute partial Spearman correlation\n(hatched: below {number(NEGATIVE)})", fontsize=NORMAL)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def change_figure(requested: np.ndarray, measured: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Measured against requested changes, a panel per attribute.

    Dots are subjects, by the first instrument, whose line the titles describe; marks are each instrument's means with
    the interval of 95% of the mean.

    Args:
        requested: (A, subjects, R), in mL; NaN where a request was not made.
        measured: name of an instrument, the one to believe first, to what it measured, (A, subjects, R).
        names: of the attributes.
    """
    figure, axes = _panels(len(names))
    reach = 1.1 * np.max(np.abs(requested), initial=1, where=np.isfinite(requested))
    first = next(iter(measured.values()))
    for k, (axis, name) in enumerate(zip(axes, names, strict=True)):
        axis.axline((0, 0), slope=1, color="0.6", linewidth=1, linestyle="--", label="as requested", zorder=0)
        axis.plot(requested[k].ravel(), first[k].ravel(), ".", color="0.75", markersize=3, zorder=1)
        for index, (instrument, values) in enumerate(measured.items()):
            _draw_means(axis, requested[k], values[k], instrument, index, reach)
        slope, r2 = (float(value[0]) for value in line_of(line_sums(requested[k], first[k]).sum(0, keepdims=True)))
        axis.set_title(f"{attribute_name(name)}:  slope {number(slope)},  R² {number(r2)}", fontsize=LARGE)
        axis.set_xlabel("requested change (mL)", fontsize=NORMAL)
        axis.set_ylabel("measured change (mL)", fontsize=NORMAL)
        axis.set_xlim(-reach, reach)
    handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    _legend_below(figure, handles, f"slope, R² and dots (subjects) by {next(iter(measured))}; means with 95% intervals")
    return figure


def curves_figure(
    scalars: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    warmup_epochs: int = 0,
    iterations_per_epoch: int | None = None,
) -> Figure:
    """Training curves over epochs, each kind of quantity in a panel of its own.

    What is logged in each iteration is shown as the mean of each epoch.

    Args:
        scalars: tag -> (steps, values), as ``read_scalars`` gives it. Tags that begin with ``val_`` count epochs, the
            others iterations.
        warmup_epochs: epochs without generated images; their end is marked.
        iterations_per_epoch: by default what follows from the last iteration and the last validated epoch.
    """
    curves = _by_epoch(scalars, iterations_per_epoch or _epoch_length(scalars))
    panels = [panel for panel in PANELS if curves.keys() & panel[3].keys()]
    last = max(epochs[-1] for epochs, _ in curves.values())
    figure, axes = _panels(len(panels), height=2.5)
    for axis, (title, label, logarithmic, tags) in zip(axes, panels, strict=True):
        shown = [(curves[tag], name) for tag, name in tags.items() if tag in curves]
        for (curve, name), (color, line) in zip(shown, STYLES, strict=False):
            axis.plot(*curve, color=color, linestyle=line, linewidth=1.5, label=name)
        if 0 < warmup_epochs <= last:
            axis.axvline(warmup_epochs, color="0.5", linewidth=1, linestyle=(0, (1, 2)), label="end of warm-up")
        axis.set_title(title, fontsize=LARGE)
        axis.set_ylabel(label, fontsize=NORMAL)
        axis.set_xlabel("epoch", fontsize=NORMAL)
        axis.set_xlim(0, last * 1.02)
        if logarithmic:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.legend(fontsize=SMALL)
    return figure


def read_scalars(tensorboard_dir: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """All scalars of a folder of TensorBoard event files: tag -> (steps, values), by rising step.

    A training that was killed and resumed has repeated some steps; the value that was written last counts.

    Raises:
        FileNotFoundError: when the folder is missing or holds no scalars.
    """
    if not Path(tensorboard_dir).is_dir():
        raise FileNotFoundError(f"There is no folder '{tensorboard_dir}' with a TensorBoard log.")
    # Every writer of a run counts steps of its own, so a falling step does not mean that older ones are orphans.
    events = EventAccumulator(str(tensorboard_dir), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    tags = events.Tags()["scalars"]
    if not tags:
        raise FileNotFoundError(f"'{tensorboard_dir}' holds no TensorBoard scalars; name the folder of a training.")
    return {tag: _last_values(events.Scalars(tag)) for tag in tags}


def pareto_figure(
    points: Sequence[Mapping],
    x_label: str = "SSIM on test subjects",
    y_label: str = "partial Spearman correlation on test subjects",
) -> Figure:
    """What each method pays in reconstruction for interpretability, over the weight γ of the attribute loss.

    Args:
        points: each with ``method``, ``gamma`` (None where a method has none), ``x``, ``y`` (both better when higher)
            and the ends of their intervals ``x_low``, ``x_high``, ``y_low``, ``y_high``.
        x_label, y_label: what x and y are.
    """
    figure = Figure(figsize=(WIDTH, 6), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    front = np.array(pareto_front([(point["x"], point["y"]) for point in points]))
    if len(front):  # steps: between two points, only what both of them reach has been shown to be possible
        axis.step(*front.T, where="pre", color="0.85", linewidth=4, label="Pareto front", zorder=1)
    for index, method in enumerate(dict.fromkeys(point["method"] for point in points)):
        _draw_method(axis, method, [point for point in points if point["method"] == method], index)
    axis.set_xlabel(f"{x_label} (higher is better)", fontsize=LARGE)
    axis.set_ylabel(f"{y_label} (higher is better)", fontsize=LARGE)
    axis.tick_params(labelsize=NORMAL)
    axis.grid(color="0.9", linewidth=0.6)
    figure.legend(loc="outside upper center", ncols=5, fontsize=NORMAL, frameon=False)
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (x, y) that no other one matches in one value and exceeds in the other, by rising x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted((point for point in points if np.isfinite(point).all()), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]


def _panels(count: int, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure of three panels per row."""
    across = min(count, 3)
    rows = -(-count // across)
    figure = Figure(figsize=(WIDTH, height * rows + 0.5), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    axes = figure.subplots(rows, across, squeeze=False).ravel()
    for axis in axes:
        axis.tick_params(labelsize=SMALL)
    for axis in axes[count:]:
        axis.remove()
    return figure, list(axes[:count])


def _legend_below(figure: Figure, handles: Mapping, title: str) -> None:
    figure.legend(
        handles.values(),
        handles.keys(),
        title=title,
        loc="outside lower center",
        ncols=4,
        fontsize=NORMAL,
        title_fontsize=NORMAL,
        frameon=False,
    )


def _draw_means(axis: Axes, requested: np.ndarray, measured: np.ndarray, label: str, index: int, reach: float) -> None:
    """Mean measured change at each request with its interval, beside those of other instruments."""
    at = np.unique(requested[np.isfinite(requested)])
    groups = [measured[(requested == value) & np.isfinite(measured)] for value in at]
    means = [group.mean() if len(group) else np.nan for group in groups]
    errors = [stats.t.ppf(0.975, len(g) - 1) * stats.sem(g) if len(g) > 1 else np.nan for g in groups]
    style = {"markerfacecolor": FILLS[index % len(FILLS)], "markeredgecolor": "black", "ecolor": "black"}
    axis.errorbar(
        at + (index - 1) * 0.03 * reach,
        means,
        yerr=errors,
        fmt=MARKERS[index % len(MARKERS)],
        markersize=5,
        elinewidth=0.8,
        capsize=2,
        label=label,
        zorder=2 + index,
        **style,
    )


def _known(codes: np.ndarray, attributes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and values of the subjects whose attribute k is known."""
    code, attribute = np.asarray(codes, dtype=float)[:, k], np.asarray(attributes, dtype=float)[:, k]
    known = np.isfinite(attribute)
    return code[known], attribute[known]


def _has_line(code: np.ndarray, attribute: np.ndarray) -> bool:
    return len(code) > 2 and np.ptp(code) > 0


def _draw_line(axis: Axes, code: np.ndarray, attribute: np.ndarray, reach: np.ndarray) -> None:
    at = np.linspace(reach.min(), reach.max(), 50)
    line, half = regression(code, attribute, at)
    axis.plot(at, line, color="black", linewidth=1.2, label="line fitted on training subjects", zorder=2)
    axis.fill_between(at, line - half, line + half, color="0.9", label="its 95% prediction interval", zorder=0)


def _cell(axis: Axes, row: int, column: int, **style) -> None:
    axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, clip_on=False, **style))


def _owner(k: int, names: Sequence[str], label: str) -> str:
    return f"{label}\n{names[k]}" if k < len(names) else label


def _epoch_length(scalars: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> int:
    epochs = max((max(steps) for tag, (steps, _) in scalars.items() if tag.startswith(VALIDATION)), default=1)
    iterations = max((max(steps) for tag, (steps, _) in scalars.items() if not tag.startswith(VALIDATION)), default=1)
    return max(iterations // epochs, 1)


def _by_epoch(scalars: Mapping, iterations: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """tag -> (epochs, values), from one value per epoch or per iteration."""
    curves = {}
    for tag, (steps, values) in scalars.items():
        length = 1 if tag.startswith(VALIDATION) else iterations
        epochs, place = np.unique((np.asarray(steps) - 1) // length + 1, return_inverse=True)
        curves[tag] = epochs, np.bincount(place, values) / np.bincount(place)
    return curves


def _last_values(events: Sequence) -> tuple[np.ndarray, np.ndarray]:
    latest = {event.step: event.value for event in sorted(events, key=lambda event: event.wall_time)}
    steps = sorted(latest)
    return np.array(steps), np.array([latest[step] for step in steps])


def _draw_method(axis: Axes, method: str, points: Sequence[Mapping], index: int) -> None:
    """Points of one method with their intervals, each with its γ."""
    x, y = (np.array([point[key] for point in points], dtype=float) for key in "xy")
    errors = [
        np.abs([[point[f"{key}_{end}"] - point[key] for point in points] for end in ("low", "high")]) for key in "xy"
    ]
    axis.errorbar(
        x,
        y,
        xerr=errors[0],
        yerr=errors[1],
        fmt=MARKERS[index % len(MARKERS)],
        color="black",
        markerfacecolor=FILLS[index % len(FILLS)],
        markersize=8,
        ecolor="0.4",
        elinewidth=0.8,
        capsize=2,
        label=method,
        zorder=2,
    )
    for point in points:
        if point["gamma"] is not None:
            at = point["x"], point["y"]
            axis.annotate(f"γ = {point['gamma']:g}", at, (6, 5), textcoords="offset points", fontsize=SMALL)
