"""One picture per subject: scan, reconstruction and difference, and the estimates on the cohort's distribution.

Drawn for a page 1,000 pixels wide and for print without color: what differs in color differs in shape, too. A page
names no subject; the folder that it lies in does.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from scripts.calibration.calibration import PERCENTILES
from scripts.calibration.lines import Estimate
from scripts.calibration.novelty import Novelty
from scripts.cohort.attributes import UNITS
from scripts.cohort.layout import PREDICTED
from scripts.figures import (
    DIFFERENCE_LIMIT,
    LARGE,
    NARROW_OUTLINE_NOTE,
    NORMAL,
    SMALL,
    WIDTH,
    attribute_name,
    outlines,
    pictures,
)
from scripts.inference.results import Result
from scripts.storage import atomic_path
from scripts.views import View, as_view

DPI = 120
LEFT, TOP, BOTTOM = 0.45, 0.5, 1.35  # inches around the images
CELL, PAD = 1.62, 0.05  # inches of an image, and between two
STRIPS = (6.55, 8.35)  # inches from the left: where the distributions begin and end
ROW = 0.42  # inches of an attribute
AXIS = 0.45  # inches of the numbers below a group of attributes of one unit
ABOVE, BELOW = -0.1, 0.18  # rows from the middle of one to estimate and mask value: neither hides the other
ROOM = 1.35  # what an axis shows, in parts of the largest value of the distributions: intervals reach beyond them
ESTIMATE, INK = "tab:blue", "black"
BANDS = (((2.5, 97.5), "0.86"), ((25, 75), "0.68"))  # percentiles of the cohort, and their gray
COLUMNS = ("scan", "reconstruction", "reconstruction − scan")
WARNING = "firebrick"
ACROSS = 110  # bold characters that a page has room for
FOOTER = (
    "Each slice is turned so that the RV lies on the left.  V: volume, ED/ES: end-diastole/-systole, Myo: myocardium.  "
    "Research only, not for diagnosis."
)
INDICATORS = {
    "error_ED": "reconstruction error at ED",
    "error_ES": "reconstruction error at ES",
    "kl": "divergence of the code",
    "code": "distance of the code",
    "motion": "like motion",
    "inverted": "like inverted contrast",
    "mirrored": "like a mirror image",
    "swapped": "like ED and ES exchanged",
    "other_slice": "like another slice",
}
FROM_MASKS = ("LVEF", "RVEF", "LVSV", "RVSV", "LVM", "HR", "LVCO")


class Page:
    """Draw pages one after another: what all have in common is drawn once, which makes the others fast.

    Args:
        view: of the channels of the images, or phases; of each phase the pictured slices are shown.
        quantiles: attribute -> ``PERCENTILES`` of the training cohort; of an attribute without any, the distribution is
            not shown.
        level: of the estimates' intervals.
        warning: what every page has to say of the model; nothing where all is well.
    """

    def __init__(
        self,
        view: View | Sequence[str],
        quantiles: Mapping[str, np.ndarray | None],
        level: float = 0.95,
        warning: str = "",
    ) -> None:
        self.view = as_view(view)
        self.names = row_names(self.view)
        height = TOP + BOTTOM + max(len(self.names) * (CELL + PAD), Strips.height(quantiles))
        self.figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        self.images = [self.image_row(row, name) for row, name in enumerate(self.names)]
        self.outlines = [[self.outline(image) for image in row[:2]] for row in self.images if self.view.mapped]
        self.strips = Strips(self, quantiles, level) if quantiles else None
        self.text(LEFT, height - 0.17, warning, fontsize=NORMAL, weight="bold", color=WARNING)
        self.mask_note = self.text(LEFT, 0.8, "", fontsize=NORMAL)
        self.range_note = self.text(LEFT, 0.42, "", fontsize=NORMAL)
        self.text(LEFT, 0.12, FOOTER, fontsize=SMALL, color="0.35")
        if self.view.mapped:
            self.text(LEFT, 1.17, NARROW_OUTLINE_NOTE, fontsize=SMALL)
        self.difference_bar()
        for artist in self.moving():
            artist.set_animated(True)
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.figure.bbox)

    def box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """A rectangle for ``add_axes``; in inches, ``top`` from the upper edge."""
        w, h = self.figure.get_size_inches()
        return left / w, (h - top - height) / h, width / w, height / h

    def text(self, left: float, bottom: float, text: str, **style: object) -> Artist:
        """Text at a place in inches from the lower left corner."""
        width, height = self.figure.get_size_inches()
        return self.figure.text(left / width, bottom / height, text, va="center", **style)

    def image_row(self, row: int, name: str) -> list[AxesImage]:
        """Places for the three images of a channel."""
        shown = []
        for column, title in enumerate(COLUMNS):
            place = (LEFT + column * (CELL + PAD), TOP + row * (CELL + PAD), CELL, CELL)
            axis = self.figure.add_axes(self.box(*place), xticks=[], yticks=[])
            limits = (-DIFFERENCE_LIMIT, DIFFERENCE_LIMIT) if title == COLUMNS[-1] else (0, 1)
            shown.append(axis.imshow(np.zeros((2, 2)), cmap="gray", vmin=limits[0], vmax=limits[1]))
            if row == 0:
                axis.set_title(title, fontsize=NORMAL, pad=4)
            if column == 0:
                axis.set_ylabel(name, fontsize=LARGE, weight="bold", labelpad=4)
        return shown

    @staticmethod
    def outline(image: AxesImage) -> AxesImage:
        """A place for the outlines of maps over an image."""
        return image.axes.imshow(np.zeros((2, 2, 4)))

    def difference_bar(self) -> None:
        """The scale of the differences, below them."""
        left, top = LEFT + 2 * (CELL + PAD), TOP + len(self.names) * (CELL + PAD) + 0.06
        axis = self.figure.add_axes(self.box(left + 0.1, top, CELL - 0.2, 0.09))
        bar = self.figure.colorbar(self.images[0][2], cax=axis, orientation="horizontal")
        bar.set_ticks(
            (-DIFFERENCE_LIMIT, 0, DIFFERENCE_LIMIT), labels=(f"−{DIFFERENCE_LIMIT:g}", "0", f"+{DIFFERENCE_LIMIT:g}")
        )
        bar.ax.tick_params(labelsize=SMALL, pad=1, length=2)

    def moving(self) -> list[Artist]:
        """What differs between two pages."""
        strips = self.strips.moving() if self.strips else []
        images = (image for rows in (self.images, self.outlines) for row in rows for image in row)
        return [*images, *strips, self.mask_note, self.range_note]

    def draw(self, result: Result, path: str | os.PathLike) -> None:
        """Write the page of one subject as PNG.

        Args:
            result: its images (C, H, W) have the channels of the page's view.
            path: target; its folder must exist.
        """
        pairs = [picture_rows(values, self.view) for values in (result.image, result.reconstruction)]
        for row, (scan, _), (reconstruction, _) in zip(self.images, *pairs, strict=True):
            for shown, image in zip(row, (scan, reconstruction, reconstruction - scan), strict=True):
                show(shown, image, image.shape)
        for row, *both in zip(self.outlines, *pairs, strict=bool(self.outlines)):
            for shown, (image, maps) in zip(row, both, strict=True):
                show(shown, outlines(maps), image.shape)
        if self.strips:
            self.strips.update(result)
        self.mask_note.set_text(mask_sentence(result.item))
        self.mark_range(result)
        self.canvas.restore_region(self.background)
        for artist in self.moving():
            self.figure.draw_artist(artist)
        with atomic_path(path) as part:
            Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3]).save(part, compress_level=4)

    def mark_range(self, result: Result) -> None:
        """Say whether the scan is in range, in a frame when it is not."""
        outside = result.novelty is not None and bool(result.novelty.out_of_range)
        self.range_note.set_text(range_sentence(result))
        self.range_note.set_weight("bold" if outside else "normal")
        frame = {"boxstyle": "square,pad=0.45", "facecolor": "white", "edgecolor": INK, "linewidth": 2}
        self.range_note.set_bbox(frame if outside else None)


def row_names(view: View) -> list[str]:
    """What the rows of a page show: each phase, and of several slices each one that is pictured."""
    names = [view.slice_names[index] for index in view.pictured]
    return [phase if len(names) == 1 else f"{phase}, {name}" for phase in view.phases for name in names]


def picture_rows(values: np.ndarray, view: View) -> list[tuple[np.ndarray, torch.Tensor | None]]:
    """Image (H, W) and maps (3, H, W) of each row of a page, of all channels (C, H, W)."""
    slices = list(pictures(torch.as_tensor(values)[None], view))
    return [
        (each.images[0, phase].numpy(), None if each.maps is None else each.maps[0, phase])
        for phase in range(len(view.phases))
        for each in slices
    ]


def show(shown: AxesImage, picture: np.ndarray, shape: Sequence[int]) -> None:
    """Put a picture in a place where an image of a shape (H, W) fits."""
    shown.set_data(picture)
    shown.set_extent((-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5))


class Strips:
    """One row per attribute: the training cohort's distribution in gray, the estimate, and the value of the mask.

    Args:
        page: to draw on.
        quantiles, level: as of ``Page``.
    """

    def __init__(self, page: Page, quantiles: Mapping[str, np.ndarray | None], level: float) -> None:
        self.rows: list[Strip] = []
        top, units = TOP + 0.05, {name: UNITS[name] for name in quantiles}
        for unit in dict.fromkeys(units.values()):
            names = [name for name in quantiles if units[name] == unit]
            height = ROW * len(names)
            axis = page.figure.add_axes(page.box(STRIPS[0], top, STRIPS[1] - STRIPS[0], height))
            style_axis(axis, names, unit, [quantiles[name] for name in names])
            self.rows += [Strip(axis, y, name, unit, quantiles[name]) for y, name in enumerate(names)]
            top += height + AXIS
        handles = legend_handles(level) if any(values is not None for values in quantiles.values()) else []
        page.figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=page.box(STRIPS[0] - 0.95, top, 4.5, 0)[:2],
            **{"ncols": 2, "frameon": False, "fontsize": SMALL, "handlelength": 1.6, "columnspacing": 1.2},
            borderpad=0,
        )

    @staticmethod
    def height(names: Collection[str]) -> float:
        """Inches that the rows, the axes below them and the legend take."""
        return ROW * len(names) + AXIS * len({UNITS[name] for name in names}) if names else 0.0

    def moving(self) -> list[Artist]:
        """What differs between two pages."""
        return [artist for row in self.rows for artist in row.moving()]

    def update(self, result: Result) -> None:
        """Show the values of a subject."""
        for row in self.rows:
            row.update(result.estimates.get(row.name), result.item.get(row.name))


class Strip:
    """One attribute's row.

    Args:
        axis: to draw on.
        y: the row's place on it.
        name, unit: of the attribute.
        quantiles: as of ``Page``.
    """

    def __init__(self, axis: Axes, y: int, name: str, unit: str, quantiles: np.ndarray | None) -> None:
        self.name, self.unit, self.axis = name, unit, axis
        if quantiles is not None:
            for (low, high), gray in BANDS:
                ends = np.interp((low, high), PERCENTILES, quantiles)
                axis.add_patch(Rectangle((ends[0], y - 0.3), ends[1] - ends[0], 0.6, facecolor=gray, zorder=1))
            axis.plot([np.median(quantiles)] * 2, (y - 0.3, y + 0.3), color="white", linewidth=1.5, zorder=2)
        style = {"markeredgecolor": INK, "zorder": 5, "clip_on": False}
        (self.diamond,) = axis.plot([], [], "D", markerfacecolor="white", markersize=6, **style)
        (self.interval,) = axis.plot([], [], "-", color=ESTIMATE, linewidth=2.5, zorder=3)
        (self.dot,) = axis.plot([], [], "o", color=ESTIMATE, markersize=7, **style)
        place = {"transform": axis.get_yaxis_transform(), "clip_on": False}
        self.upper = axis.text(1.06, y - 0.02, "", fontsize=NORMAL, weight="bold", va="bottom", **place)
        self.lower = axis.text(1.06, y + 0.06, "", fontsize=SMALL, va="top", **place)
        self.y = y

    def moving(self) -> list[Artist]:
        """What differs between two pages."""
        return [self.interval, self.diamond, self.dot, self.upper, self.lower]

    def update(self, estimate: Estimate | None, measured: float | None) -> None:
        """Show an estimate and the value of the mask, where they are known; the mask's is the one to rely on."""
        limits = self.axis.get_xlim()
        self.dot.set_data([], [])
        self.interval.set_data([], [])
        texts = []
        known = measured is not None
        self.diamond.set_data(*((np.clip([measured], *limits), [self.y + BELOW]) if known else ([], [])))
        if known:
            texts.append(f"mask: {measured:.0f} {self.unit}")
        if estimate is not None:
            self.dot.set_data(np.clip([estimate.value], *limits), [self.y + ABOVE])
            self.interval.set_data([estimate.low, estimate.high], [self.y + ABOVE] * 2)
            texts.append(f"code: {estimate_text(estimate, self.unit)}")
        upper, lower = [*texts, "", ""][:2]
        self.upper.set_text(upper)
        self.lower.set_text(lower)


def estimate_text(estimate: Estimate, unit: str) -> str:
    """An estimate with the ends of its interval where it has one; a line may lead to less than nothing."""
    value = f"{estimate.value:.0f} {unit}" if estimate.value > 0 else "below 0"
    if not math.isfinite(estimate.low):
        return value
    return f"{value}  ({estimate.low:.0f} to {estimate.high:.0f})"


def style_axis(axis: Axes, names: Sequence[str], unit: str, quantiles: Sequence[np.ndarray | None]) -> None:
    """Limits that hold the cohort's distributions, from 0 on, and as few lines as possible."""
    largest = max((float(np.max(values)) for values in quantiles if values is not None), default=250.0)
    axis.set_xlim(0, ROOM * largest)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_yticks(range(len(names)), [attribute_name(name) for name in names])
    axis.tick_params(axis="y", labelsize=NORMAL, length=0)
    axis.tick_params(axis="x", labelsize=SMALL)
    axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel(unit, fontsize=SMALL, labelpad=1)
    axis.grid(axis="x", color="0.93", zorder=0)
    axis.set_axisbelow(True)
    axis.spines[["left", "right", "top"]].set_visible(False)


def legend_handles(level: float) -> list[Artist]:
    """What the legend shows of markers and distributions."""
    dot = Line2D([], [], color=ESTIMATE, linewidth=2.5, marker="o", markersize=7, markeredgecolor=INK)
    dot.set_label(f"from the code, {level:.0%} interval")
    diamond = Line2D([], [], linestyle="none", marker="D", color="white", markeredgecolor=INK, label="from the mask")
    names = ("95% of the training cohort", "its middle half, and median")
    bands = [Rectangle((0, 0), 1, 1, facecolor=gray, label=name) for (_, gray), name in zip(BANDS, names, strict=True)]
    return [dot, diamond, *bands]


def mask_sentence(item: Mapping[str, Any]) -> str:
    """What the masks tell beyond the attributes that are drawn, and where they are from."""
    known = [
        f"{name} {item[name]:.{1 if name == 'LVCO' else 0}f} {UNITS[name]}"
        for name in FROM_MASKS
        if item.get(name) is not None
    ]
    kind = item.get("mask")
    source = "the predicted mask (look at it)" if kind == PREDICTED else f"the {kind} mask" if kind else "the mask"
    return f"From {source}:  " + ",  ".join(known) if known else ""


def range_sentence(result: Result) -> str:
    """Whether the scan is of the kind that the model knows, and by which measures."""
    novelty = result.novelty
    if novelty is None:
        return "No calibration: volumes are not estimated, and the range is not checked (run calibrate)."
    unusual = f"more unusual than {whole_percentile(novelty.percentile)}% of known scans"
    if novelty.out_of_range:
        return f"SCAN OUT OF RANGE, do not rely on the estimates: {unusual}\n({causes(novelty)})"
    return f"Scan in range: {unusual}"


def caution_lines(cautions: Sequence[str]) -> str:
    """What a page cautions of, in lines that fit on it."""
    return textwrap.fill("  ".join(cautions), ACROSS)


def causes(novelty: Novelty, count: int = 3) -> str:
    """The indicators of the highest percentiles."""
    highest = sorted(novelty.percentiles.items(), key=lambda pair: -pair[1])[:count]
    listed = (f"{INDICATORS.get(name, name)} {whole_percentile(value)}" for name, value in highest)
    return "highest percentiles: " + ", ".join(listed)


def whole_percentile(value: float) -> int:
    """A percentile as it is told, rounded down: no scan is at percentile 100."""
    return min(math.floor(value), 99)


def range_notes(novelty: Novelty) -> list[str]:
    """A warning where a scan is out of range."""
    if not novelty.out_of_range:
        return []
    unusual = whole_percentile(novelty.percentile)
    return [
        f"This scan is out of the range that the model knows, more unusual than {unusual} % of known scans "
        f"({causes(novelty)}): do not rely on what is shown of it."
    ]


def extent_notes(view: View, image: torch.Tensor) -> list[str]:
    """What to know of a scan that has fewer slices than the view."""
    inside = view.inside(image)
    if inside.all():
        return []
    counts = ", ".join(f"{int(found.sum())} at {phase}" for phase, found in zip(view.phases, inside, strict=True))
    return [f"Of {inside.shape[-1]} slices, the scan has {counts}; the others lie beyond it and are black."]
