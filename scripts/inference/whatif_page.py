"""One picture of a counterfactual: scan, heart before and after, what changed, and every volume beside what was asked.

Drawn for a page 1,200 pixels wide, and for print without color, like the page of an inference.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from scripts.cohort.attributes import UNITS, VOLUMES, derived
from scripts.counterfactual import ALL_ELSE_EQUAL, KINDS
from scripts.figures import (
    DIFFERENCE_LIMIT,
    LARGE,
    NORMAL,
    OUTLINE_NOTE,
    OUTLINES,
    SMALL,
    WHITE,
    WIDTH,
    attribute_name,
    outlines,
)
from scripts.inference.answers import Answer, far_sentence, gap_notes, missed_sentence
from scripts.inference.page import DPI, FOOTER, WARNING, caution_lines, picture_rows, range_sentence, row_names
from scripts.storage import atomic_path
from scripts.views import View

COLUMNS = ("scan", "before", "after", "after − before")
LEFT, TOP, BOTTOM = 0.45, 2.1, 1.15  # inches around the images: above are the title and what is wrong, below notes
LINE = 0.16  # inches
CELL, PAD = 1.4, 0.04  # inches of an image, and between two
CHART = (7.2, 7.95)  # inches from the left: where the range of volumes begins and ends
NUMBERS = {"mask": 8.3, "before": 8.72, "asked": 9.12, "after": 9.48, "change": 9.94}  # right edges from the left
ROW = 0.38  # inches of an attribute
LARGEST = (6.5, 3.4)  # inches from the left, and of the side, of the picture that shows one slice large
DASH = 6  # parts of a pixel of the image, of which outlines have four to a side
AFTER, RANGE = "tab:blue", "0.86"
Part = tuple[np.ndarray, torch.Tensor | None]  # image (H, W) and maps (3, H, W)


def draw_page(answer: Answer, view: View, path: str | os.PathLike, warning: str = "") -> None:
    """Write the page of one answer as PNG, see ``page_figure``; the folder must exist."""
    with atomic_path(path) as part:
        page_figure(answer, view, warning).savefig(part)


def page_figure(answer: Answer, view: View, warning: str = "") -> Figure:
    """The page of one answer.

    Args:
        answer: its images (C, H, W) have the channels of the view; of each phase the pictured slices are shown.
        view: of these channels.
        warning: what every page has to say of the model; nothing where all is well.
    """
    names = row_names(view)
    numbers = ROW * (len(answer.before) + len(ejection(answer))) + 1.2
    figure = Figure(figsize=(WIDTH, TOP + BOTTOM + max(len(names) * (CELL + PAD), numbers)), dpi=DPI)
    text(figure, LEFT, 0.25, title(answer), fontsize=LARGE + 2, weight="bold")
    tell_state(figure, answer, warning)
    hearts = answer.result.image, answer.result.reconstruction, answer.image
    rows = list(zip(*(picture_rows(heart, view) for heart in hearts), strict=True))
    for row, parts in enumerate(rows):
        axes = [image_axis(figure, row, column) for column in range(len(COLUMNS))]
        axes[0].set_ylabel(names[row], fontsize=NORMAL, weight="bold", labelpad=4)
        draw_row(axes, parts)
    for axis, name in zip(figure.axes, COLUMNS, strict=False):
        axis.set_title(name, fontsize=NORMAL, pad=4)
    difference_bar(figure, figure.axes[len(COLUMNS) - 1], len(names))
    volumes_chart(figure, answer)
    if view.mapped and len(names) * (CELL + PAD) > numbers + LARGEST[1]:
        most = most_changed(answer.request.attribute, names, rows)
        draw_large(figure, names[most], rows[most], TOP + numbers)
    notes(figure, answer, view)
    return figure


def title(answer: Answer) -> str:
    """What was asked, in words."""
    name = answer.request.attribute
    before, after, unit = answer.before[name], answer.asked[name], UNITS.get(name, "")
    rest = ("" if answer.request.kind == ALL_ELSE_EQUAL else "the rest ") + KINDS[answer.request.kind]
    amount = after - before
    digits = 0 if abs(amount - round(amount)) < 0.05 else 1
    change, start, end = f"{amount:+.{digits}f}".replace("-", "−"), f"{before:.{digits}f}", f"{after:.{digits}f}"
    return f"What if {attribute_name(name)} changed by {change} {unit}, from {start} to {end} {unit}, {rest}?"


def image_axis(figure: Figure, row: int, column: int) -> Axes:
    """A place for an image."""
    place = (LEFT + column * (CELL + PAD), TOP + row * (CELL + PAD), CELL, CELL)
    return figure.add_axes(box(figure, *place), xticks=[], yticks=[])


def draw_row(axes: Sequence[Axes], parts: Sequence[Part]) -> None:
    """Scan, before and after with the outlines of their maps, and what after has more than before.

    Args:
        axes: four.
        parts: of scan, before and after.
    """
    (_, (before, maps), (after, _)) = parts
    for axis, (image, own) in zip(axes, parts, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        if own is not None:
            lay_outlines(axis, own, below=maps if image is after else None)
    axes[3].imshow(after - before, cmap="gray", vmin=-DIFFERENCE_LIMIT, vmax=DIFFERENCE_LIMIT)


def most_changed(attribute: str, names: Sequence[str], rows: Sequence[Sequence[Part]]) -> int:
    """The row whose maps change most, of those that show the phase of an attribute."""
    changes = [float((after - before).abs().sum()) for _, (_, before), (_, after) in rows]
    own = [row for row, name in enumerate(names) if name[:2] in attribute]
    return max(own or range(len(rows)), key=changes.__getitem__)


def draw_large(figure: Figure, name: str, parts: Sequence[Part], top: float) -> None:
    """Show a slice once more, so large that one sees the outlines move."""
    (_, (_, maps), (after, changed)) = parts
    axis = figure.add_axes(box(figure, LARGEST[0], top + 0.2, LARGEST[1], LARGEST[1]), xticks=[], yticks=[])
    axis.imshow(after, cmap="gray", vmin=0, vmax=1)
    lay_outlines(axis, changed, below=maps)
    axis.set_title(f"{name}: after (dashed: before)", fontsize=NORMAL, pad=4)


def lay_outlines(axis: Axes, maps: torch.Tensor, below: torch.Tensor | None = None) -> None:
    """Lay the outlines of maps over the image of an axis, over dashed ones of others."""
    if below is not None:
        axis.imshow(dashed_outlines(below), extent=axis.images[0].get_extent())
    axis.imshow(outlines(maps), extent=axis.images[0].get_extent())


def dashed_outlines(maps: torch.Tensor) -> np.ndarray:
    """Outlines in black and white by turns: one of them is seen on blood, the other on muscle."""
    picture = outlines(maps, [WHITE] * len(OUTLINES))
    rows, columns = np.indices(picture.shape[:2])
    picture[(rows + columns) // DASH % 2 == 1, :3] = 0
    return picture


def difference_bar(figure: Figure, axis: Axes, rows: int) -> None:
    """The scale of the differences, below the last of them."""
    place = (LEFT + 3 * (CELL + PAD) + 0.1, TOP + rows * (CELL + PAD) + 0.06, CELL - 0.2, 0.09)
    bar = figure.colorbar(axis.images[0], cax=figure.add_axes(box(figure, *place)), orientation="horizontal")
    ends = (-DIFFERENCE_LIMIT, 0, DIFFERENCE_LIMIT)
    bar.set_ticks(ends, labels=[f"{end:+g}".replace("-", "−") if end else "0" for end in ends])
    bar.ax.tick_params(labelsize=SMALL, pad=1, length=2)


def volumes_chart(figure: Figure, answer: Answer) -> None:
    """One row per attribute: its trained range, the heart before, what was asked, and the heart after, with numbers."""
    count, others = len(answer.before), ejection(answer)
    axis = figure.add_axes(box(figure, CHART[0], TOP + 0.2, CHART[1] - CHART[0], ROW * count))
    axis.set_xlim(0, 1.05 * max(high for _, high in answer.limits.values()))
    axis.set_ylim(count - 0.5, -0.5)
    for y, name in enumerate(answer.before):
        draw_volume(axis, y, answer, name)
        numbers = answer.before[name], answer.asked.get(name), answer.after[name]
        number_row(figure, y, answer, name, numbers)
    for y, (name, (before, after)) in enumerate(others.items(), start=count):
        number_row(figure, y + 1, answer, name, (before, None, after))
    for name, place in NUMBERS.items():
        text(figure, place, TOP + 0.1, name, ha="right", fontsize=SMALL)
    axis.set_yticks([])
    axis.tick_params(axis="x", labelsize=SMALL)
    axis.locator_params(axis="x", nbins=3)
    axis.set_xlabel(", ".join(dict.fromkeys(UNITS.get(name, "") for name in answer.before)), fontsize=SMALL, labelpad=1)
    axis.spines[["left", "right", "top"]].set_visible(False)
    figure.legend(
        handles=legend_handles(),
        loc="upper left",
        bbox_to_anchor=box(figure, 6.45, TOP + 0.2 + ROW * (count + 1 + len(others)), 3, 0)[:2],
        **{"ncols": 4, "frameon": False, "fontsize": SMALL, "borderpad": 0, "columnspacing": 1.0},
        handletextpad=0.4,
    )


def number_row(figure: Figure, y: int, answer: Answer, name: str, numbers: tuple[float, float | None, float]) -> None:
    """Write a name and its numbers: of the scan's mask, before, asked, after, and the change."""
    style = {"fontsize": NORMAL, "weight": "bold" if name == answer.request.attribute else "normal", "va": "center"}
    top = TOP + 0.2 + (y + 0.5) * ROW
    label = attribute_name(name) if name in answer.before else f"{name} ({UNITS.get(name, '')})"
    text(figure, CHART[0] - 0.1, top, label, ha="right", **style)
    before, _, after = numbers
    values = (answer.result.item.get(name), *numbers)
    shown = ["–" if value is None else f"{value:.0f}" for value in values]
    change = round(after) - round(before)  # of the numbers shown, so that a reader who subtracts them finds it
    shown.append(f"{change:+d}".replace("-", "−") if change else "0")
    for content, place in zip(shown, NUMBERS.values(), strict=True):
        text(figure, place, top, content, ha="right", **style)


def ejection(answer: Answer) -> dict[str, tuple[float, float]]:
    """Ejection fractions before and after, where the volumes that they follow from are known."""
    if not set(VOLUMES) <= set(answer.before):
        return {}
    before, after = derived(answer.before), derived(answer.after)
    return {name: (before[name], after[name]) for name in ("LVEF", "RVEF")}


def draw_volume(axis: Axes, y: int, answer: Answer, name: str) -> None:
    """The marks of one attribute."""
    low, high = answer.limits[name]
    axis.add_patch(Rectangle((low, y - 0.25), high - low, 0.5, facecolor=RANGE, zorder=1))
    style = {"clip_on": False, "zorder": 4, "markeredgecolor": "black"}
    axis.plot([answer.before[name], answer.after[name]], [y, y], "-", color=AFTER, linewidth=2, zorder=3)
    axis.plot([answer.before[name]], [y], "o", color="white", markersize=7, **style)
    axis.plot([answer.after[name]], [y], "o", color=AFTER, markersize=5, **style)
    if name in answer.asked:
        axis.plot([answer.asked[name]], [y], "|", color="black", markersize=15, markeredgewidth=1.5, zorder=5)


def legend_handles() -> list[Line2D | Rectangle]:
    """What the marks mean."""
    ring = {"linestyle": "none", "markeredgecolor": "black", "marker": "o"}
    return [
        Line2D([], [], color="white", markersize=7, label="before", **ring),
        Line2D([], [], color=AFTER, markersize=5, label="after", **ring),
        Line2D([], [], linestyle="none", marker="|", color="black", markersize=12, label="asked"),
        Rectangle((0, 0), 1, 1, facecolor=RANGE, label="trained range"),
    ]


def tell_state(figure: Figure, answer: Answer, warning: str) -> None:
    """What is wrong with the model, the answer or the scan: before anybody looks at the pictures."""
    warnings = "\n".join(filter(None, (warning, warning_of(answer))))
    text(figure, LEFT, 0.38, warnings, fontsize=NORMAL, va="top", weight="bold", color=WARNING)
    top = 0.42 + LINE * len(warnings.splitlines())
    note = text(figure, LEFT, top, range_sentence(answer.result), fontsize=NORMAL, va="top")
    if answer.result.novelty.out_of_range:
        note.set(weight="bold", bbox={"boxstyle": "square,pad=0.35", "facecolor": "white", "linewidth": 2})
    gap = caution_lines(gap_notes(answer.before, answer.result.item))
    below = LINE * (len(note.get_text().splitlines()) + 0.5)
    text(figure, LEFT, top + below, gap, fontsize=NORMAL, va="top")


def notes(figure: Figure, answer: Answer, view: View) -> None:
    """What one has to know to read the page."""
    height = figure.get_figheight()
    lines = ["Before is the model's reconstruction, after is no scan of anybody; mask: measured on the scan's mask."]
    if view.mapped:
        lines.append(f"{OUTLINE_NOTE} Dashed, on the heart after: those before.")
    if answer.by_maps:
        lines.append("Volumes before and after are those of the decoded maps.")
    text(figure, LEFT, height - 0.5, "\n".join(lines), fontsize=SMALL, va="center")
    text(figure, LEFT, height - 0.12, FOOTER, fontsize=SMALL, va="center", color="0.35")


def warning_of(answer: Answer) -> str:
    """Why the numbers or the pictures after are not to be taken for the asked heart; nothing where they are."""
    told = "" if answer.by_maps else "NOT MEASURED: numbers are told by the code; the pictures may show others."
    moves = missed_sentence(answer.after, answer.asked), far_sentence(answer.moved)
    return "\n".join(filter(None, (told, "  ".join(filter(None, moves)))))


def text(figure: Figure, left: float, top: float, content: str, **style: object) -> object:
    """Text at a place in inches from the upper left corner."""
    width, height = figure.get_size_inches()
    return figure.text(left / width, 1 - top / height, content, **style)


def box(figure: Figure, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
    """A rectangle for ``add_axes``; in inches, ``top`` from the upper edge."""
    w, h = figure.get_size_inches()
    return left / w, (h - top - height) / h, width / w, height / h
