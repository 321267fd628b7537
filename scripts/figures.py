"""Pictures of hearts, for people to judge a model by: reconstructions, walks through the latent space, samples.

All are drawn for a page 1,000 pixels wide and for print without color. No picture names a subject: they have letters in
the order in which they are given, or their pseudonyms. Of a whole heart, pictures show the slices that
``View.pictured`` names; where the view has occupancy maps, the outlines of endocardium, epicardium and RV are drawn
into the images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from scripts.networks import VariationalAutoencoder
from scripts.views import View, as_view

STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # standard deviations of the codes
CHANGED = 0.1  # of the gray range: what differs more from the mean image is outlined
DIMMED = 1.4  # gray value shown as white, so that in print, too, outlines are brighter than what they surround
DIFFERENCE_LIMIT = 0.5  # of the gray range: larger differences are shown as black or white
SAMPLE_COLUMNS = 8  # images beside each other; more would be too small to judge
# Of endocardium, epicardium and RV: told apart by people who are color-blind (Okabe & Ito), and from any gray.
OUTLINES = ((0.90, 0.62, 0.0), (0.34, 0.71, 0.91), (0.80, 0.47, 0.65))
OUTLINE_NOTE = "Outlines of masks and decoded maps: orange endocardium, blue epicardium, pink RV."
NARROW_OUTLINE_NOTE = OUTLINE_NOTE.replace(": ", ":\n")
WHITE = (1.0, 1.0, 1.0)
FINER = 4  # times that an outline is finer than the image's pixels

WIDTH = 10.0  # inches of a full figure: at 1,000 pixels, 72 points are 100 pixels
DPI = 150
SMALL, NORMAL, LARGE = 8, 9, 10  # points
LARGEST_CELL = 1.8  # inches
NARROWEST = 4.6  # inches, which the longest note needs
PAD, GAP = 0.04, 0.16  # inches between images and between blocks of images


def reconstruction_figure(
    images: torch.Tensor,
    reconstructions: torch.Tensor | Mapping[str, torch.Tensor],
    view: View | Sequence[str],
    names: Sequence[str] = (),
) -> Figure:
    """Scans, and below them what each method makes of them: its reconstruction, and the difference to the scan.

    The difference is a subtraction image: gray where nothing is wrong, black where the reconstruction is too dark,
    white where it is too bright. A diverging color map would be equally light for both signs once printed in gray, and
    the absolute difference has no sign at all. Several slices stand below each other.

    Args:
        images: (subjects, C, H, W), in [0, 1].
        reconstructions: those of one method, or method -> reconstructions, each of the shape of the images.
        view: of the channels, or phases; the phases of a subject stand together. Up to 8 images in a row are legible.
        names: of the subjects, such as their pseudonyms; else letters, which are not taken for these.
    """
    view = as_view(view)
    methods = reconstructions if isinstance(reconstructions, Mapping) else {"": reconstructions}
    subjects, aspect, scans = len(images), _aspect(images, view), list(pictures(images, view))
    predictions = {method: list(pictures(values.to(images), view)) for method, values in methods.items()}
    blocks, rows = [1, *[2] * len(methods)], 1 + 2 * len(methods)
    bottom = 1.15 if view.mapped else 0.85
    figure, axes = _grid(blocks * len(scans), [len(view.phases)] * subjects, aspect, left=0.5, bottom=bottom)
    called = names or [*ascii_uppercase[:subjects], *range(len(ascii_uppercase) + 1, subjects + 1)]
    _headers(figure, axes[0], [f"subject {name}" for name in called], [*view.phases] * subjects)
    for number, scan in enumerate(scans):
        of_slice = axes[rows * number : rows * (number + 1)]
        _row(of_slice[0], scan.images, "scan", maps=scan.maps)
        _side_title(figure, of_slice[0, 0], of_slice[0, 0], scan.name)
        for method, shown, wrong in zip(predictions, of_slice[1::2], of_slice[2::2], strict=True):
            prediction = predictions[method][number]
            limits = (-DIFFERENCE_LIMIT, DIFFERENCE_LIMIT)
            _row(shown, prediction.images, "reconstruction", maps=prediction.maps)
            _row(wrong, prediction.images - scan.images, "difference", limits=limits)
            _side_title(figure, shown[0], wrong[0], method)
    # One subject's row is narrow.
    _difference_bar(figure, axes[-1, 0], f"\n{NARROW_OUTLINE_NOTE}" if view.mapped else "")
    return figure


def traversal_figure(
    network: VariationalAutoencoder,
    codes: torch.Tensor,
    attributes: Sequence[str],
    view: View | Sequence[str],
    scc: Sequence[float] | None = None,
) -> Figure:
    """Walks along each regularized dimension from the mean code, all other dimensions held.

    What differs from the mean image by more than ``CHANGED`` is outlined, so that one sees at a glance whether a
    dimension moves its own structure in its own phase, or the whole heart. Where there are maps, their outlines tell
    that better, beside those of the mean in white.

    Args:
        network: decodes the walks, in its present mode.
        codes: (subjects, D), which give the mean and the standard deviation of each dimension.
        attributes: name of the attribute of each walk; dimension k belongs to attribute k.
        view: of the channels, or phases; each phase is shown in a block of columns, several slices below each other.
        scc: Spearman correlation of each attribute with its dimension, to be printed beside its walk.
    """
    view = as_view(view)
    walks = torch.stack([traversal(network, codes, row) for row in range(len(attributes))])
    aspect, slices = _aspect(walks[0], view), len(view.pictured)
    blocks = [len(attributes)] if slices == 1 else [slices] * len(attributes)
    bottom = 0.6 if view.mapped else 0.45
    figure, axes = _grid(blocks, [len(STEPS)] * len(view.phases), aspect, left=1.0, bottom=bottom)
    _headers(figure, axes[0], view.phases, [step_name(step) for step in STEPS] * len(view.phases))
    values = [None] * len(attributes) if scc is None else scc
    for walk, rows, name, value in zip(walks, axes.reshape(-1, slices, axes.shape[1]), attributes, values, strict=True):
        label = attribute_name(name) + ("" if value is None else f"\nSCC {number(value)}")
        for row, shown in zip(rows, pictures(walk, view), strict=True):
            _walk(row, shown.by_phase())
            text = "\n".join(filter(None, (label, shown.name)))
            row[0].set_ylabel(text, fontsize=NORMAL, rotation=0, ha="right", va="center", labelpad=6)
            label = ""  # beside the first slice only
    _note(figure, axes[0, 0], walk_note(bool(view.mapped), scc is not None))
    return figure


def walk_note(maps: bool, scc: bool) -> str:
    """What walks need to be read: lines of a margin."""
    note = "SD: standard deviation of the dimension over subjects; all other dimensions are held at their mean.\n"
    if maps:
        note += f"{OUTLINE_NOTE} White: those of the mean image."
    else:
        note += f"Outlined: differs from the mean image by more than {CHANGED:g} of the gray range."
    gap = "\n" if maps else "  "
    return note + (f"{gap}SCC: Spearman correlation of dimension and attribute." if scc else "")


def samples_figure(
    samples: torch.Tensor,
    nearest: torch.Tensor,
    distances: Sequence[float],
    view: View | Sequence[str],
    measure: str = "distance",
) -> Figure:
    """Generated hearts above the training scan that each is nearest to, which shows a model that has memorized.

    Args:
        samples: (samples, C, H, W), generated from the prior.
        nearest: the training scans of the least distance, of the same shape.
        distances: of each sample to its training scan.
        view: of the channels, or phases; the phases of a sample stand together, several slices below each other.
        measure: what the distance is, and its unit where it has one.
    """
    view = as_view(view)
    count, slices = len(view.phases), len(view.pictured)
    across = min(max(SAMPLE_COLUMNS // count, 1), len(samples))
    bands = -(-len(samples) // across)
    aspect = _aspect(samples, view)
    bottom = 0.5 if view.mapped else 0.35
    figure, axes = _grid([2 * slices] * bands, [count] * across, aspect, left=0.5, bottom=bottom, row_gap=0.5)
    for band, start in enumerate(range(0, len(samples), across)):
        part = slice(start, start + across)
        titles = [f"d = {number(distance)}" for distance in distances[part]]
        rows = axes[2 * slices * band : 2 * slices * (band + 1)]
        used = len(titles) * count
        _headers(figure, rows[0, :used], titles, [*view.phases] * len(titles))
        for which, values, label in ((0, samples, "generated"), (1, nearest, "nearest\ntraining scan")):
            for row, shown in zip(rows[which * slices :], pictures(values[part], view), strict=False):
                _row(row[:used], shown.images, "\n".join(filter(None, (label, shown.name))), maps=shown.maps)
        for axis in rows[:, used:].flat:
            axis.remove()
    note = f"d: {measure} of the generated heart and the training scan below it."
    _note(figure, axes[0, 0], note + (f"\n{OUTLINE_NOTE}" if view.mapped else ""))
    return figure


class Shown(NamedTuple):
    """What pictures show of a slice.

    Args:
        name: of the slice; empty where there is no other.
        images: (B, P, H, W).
        maps: occupancy maps (B, P, 3, H, W), where there are such.
    """

    name: str
    images: torch.Tensor
    maps: torch.Tensor | None

    def by_phase(self) -> Shown:
        """The same with the phases first, (P, B, ...)."""
        return Shown(self.name, *(None if part is None else part.transpose(0, 1) for part in self[1:]))


def pictures(values: torch.Tensor, view: View) -> Iterator[Shown]:
    """The slices that pictures show of all channels (B, C, H, W), from base to apex."""
    images, maps = view.slice_images(values), view.slice_maps(values)
    for index in view.pictured:
        name = view.slice_names[index] if len(view.pictured) > 1 else ""
        yield Shown(name, images[:, :, index], None if maps is None else maps[:, :, index])


def outlines(maps: torch.Tensor, colors: Sequence[Sequence[float]] = OUTLINES) -> np.ndarray:
    """Lines of endocardium, epicardium and RV, where the share of a pixel is a half, as a transparent picture.

    Args:
        maps: of one image (3, H, W): LV, Myo and RV.
        colors: red, green and blue of each line, 0 to 1.

    Returns:
        (``FINER`` * H, ``FINER`` * W, 4): red, green, blue and opacity.
    """
    lv, myocardium, rv = maps.detach().float().cpu()
    finer = functional.interpolate(torch.stack([lv, lv + myocardium, rv])[None], scale_factor=FINER, mode="bilinear")
    outside = (finer <= 0.5).float()
    lines = ((functional.max_pool2d(outside, 5, 1, 2) - outside)[0] > 0).numpy()
    picture = np.zeros((*lines.shape[1:], 4))
    for line, color in zip(lines, colors, strict=True):
        picture[line] = (*color, 1)
    return picture


def step_name(step: float) -> str:
    """A walk's step as people write it."""
    return f"{step:+.0f} SD".replace("-", "−") if step else "mean"


def attribute_name(name: str) -> str:
    """An attribute with the phase that it is measured in: "LVEDV (ED)"; as it is where the name tells none."""
    phase = re.search(r"E[DS](?=[AV]$)", name)
    return f"{name} ({phase[0]})" if phase else name


def number(value: float) -> str:
    """Two decimals with a real minus sign, or a dash where there is no number."""
    rounded = round(float(value), 2) + 0.0  # no minus sign before a zero
    return f"{rounded:.2f}".replace("-", "−") if np.isfinite(value) else "–"


def traversal(network: VariationalAutoencoder, codes: torch.Tensor, dimension: int) -> torch.Tensor:
    """Images (steps, C, H, W) along one dimension through the mean code; of one code, in units of the prior."""
    walk = codes.mean(0).repeat(len(STEPS), 1)
    spread = codes[:, dimension].std() if len(codes) > 1 else 1.0
    walk[:, dimension] += torch.tensor(STEPS, device=codes.device) * spread
    with torch.no_grad():
        return network.decode(walk)


def _aspect(images: torch.Tensor, view: View) -> float:
    """Height by width of images (B, C, H, W), once it is sure that every channel has a name."""
    if images.shape[1] != view.channels:
        raise ValueError(f"the images have {images.shape[1]} channels, and names are given for {view.channels}.")
    return images.shape[2] / images.shape[3]


def _grid(
    rows: Sequence[int], columns: Sequence[int], aspect: float, left: float, bottom: float, row_gap: float = GAP
) -> tuple[Figure, np.ndarray]:
    """Axes (rows, columns) for images in blocks of the given sizes, with gaps between the blocks.

    Placed by hand and not by a layout engine, which would put equal spaces everywhere. Lengths are in inches; above
    the first row is room for headers.
    """
    top, right = 0.5, 0.1
    x, y = _places(columns), _places(rows)
    gaps = GAP * (len(columns) - 1) + PAD * (len(x) - 1)
    cell = min((WIDTH - left - right - gaps) / len(x), LARGEST_CELL)
    width = max(left + right + gaps + cell * len(x), NARROWEST)
    height = top + bottom + (cell * aspect + PAD) * len(y) + row_gap * (len(rows) - 1)
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = np.empty((len(y), len(x)), dtype=object)
    for i, above in enumerate(y):
        lower = height - top - (i + 1) * cell * aspect - i * PAD - above * row_gap
        for j, before in enumerate(x):
            at = left + j * (cell + PAD) + before * GAP
            axes[i, j] = figure.add_axes((at / width, lower / height, cell / width, cell * aspect / height))
    return figure, axes


def _places(blocks: Sequence[int]) -> list[int]:
    """For each row or column, the number of gaps before it."""
    return [block for block, size in enumerate(blocks) for _ in range(size)]


def _headers(figure: Figure, axes: np.ndarray, blocks: Sequence[str], columns: Sequence[str]) -> None:
    """A header over each block of a row of axes, and one over each column."""
    for axis, title in zip(axes, columns, strict=True):
        axis.set_title(title, fontsize=SMALL, pad=3)
    for name, block in zip(blocks, np.split(axes, len(blocks)), strict=True):
        first, last = block[0].get_position(), block[-1].get_position()
        y = first.y1 + 0.22 / figure.get_figheight()
        figure.text((first.x0 + last.x1) / 2, y, name, ha="center", fontsize=LARGE, weight="bold")


def _side_title(figure: Figure, upper: Axes, lower: Axes, text: str) -> None:
    """A title on the left of two rows, or one, given by their first axes."""
    middle = (upper.get_position().y1 + lower.get_position().y0) / 2
    x = upper.get_position().x0 - 0.36 / figure.get_figwidth()
    figure.text(x, middle, text, rotation=90, ha="center", va="center", fontsize=LARGE, weight="bold")


def _row(
    axes: np.ndarray, images: torch.Tensor, label: str = "", limits: tuple = (0, 1), maps: torch.Tensor | None = None
) -> None:
    """Show images (blocks, columns, H, W) in a row of axes, with the outlines of their maps and a label before all."""
    for axis, image in zip(axes, images.flatten(0, 1), strict=True):
        axis.imshow(image.detach().float().cpu().numpy(), cmap="gray", vmin=limits[0], vmax=limits[1])
        axis.set_xticks([])
        axis.set_yticks([])
    for axis, of_image in zip(axes, () if maps is None else maps.flatten(0, 1), strict=maps is not None):
        _lay_over(axis, outlines(of_image))
    axes[0].set_ylabel(label, fontsize=SMALL, labelpad=3)


def _lay_over(axis: Axes, picture: np.ndarray) -> None:
    """Lay a finer picture over the image of an axis."""
    axis.imshow(picture, extent=axis.images[0].get_extent())


def _walk(axes: np.ndarray, shown: Shown) -> None:
    """A walk in a row of axes, phase by phase, with what changes in each: images (P, steps, H, W)."""
    _row(axes, shown.images, limits=(0, DIMMED))
    middle = STEPS.index(0)
    for phase, of_phase in enumerate(np.split(axes, len(shown.images))):
        for step, axis in enumerate(of_phase):
            if shown.maps is None:
                _outline(axis, shown.images[phase, step] - shown.images[phase, middle])
            else:
                _lay_over(axis, outlines(shown.maps[phase, middle], [WHITE] * len(OUTLINES)))
                _lay_over(axis, outlines(shown.maps[phase, step]))


def _outline(axis: Axes, change: torch.Tensor) -> None:
    """Draw the border of the region that changed; smoothed a little, since single pixels of noise tell nothing."""
    amount = gaussian_filter(change.detach().abs().float().cpu().numpy(), sigma=change.shape[-1] / 64)
    if amount.max() > CHANGED:
        lines = axis.contour(amount, levels=[CHANGED], colors="yellow", linewidths=0.8)
        lines.set_path_effects([withStroke(linewidth=1.8, foreground="black")])  # to stand out from light and dark


def _difference_bar(figure: Figure, axis: Axes, note: str = "") -> None:
    """The scale of the differences, below everything, for the gray values of an axis; a note comes below."""
    width, height = figure.get_size_inches()
    bottom = axis.get_position().y0 * height - 0.27
    place = figure.add_axes((axis.get_position().x0, bottom / height, 3 / width, 0.12 / height))
    bar = figure.colorbar(axis.images[0], cax=place, orientation="horizontal", extend="both")
    ends = (-DIFFERENCE_LIMIT, 0, DIFFERENCE_LIMIT)
    bar.set_ticks(ends, labels=[f"{end:+g}".replace("-", "−") if end else "0" for end in ends])
    bar.ax.tick_params(labelsize=SMALL)
    text = "difference = reconstruction − scan, in parts of the scan's gray range\n(black: too dark, white: too bright)"
    _note(figure, axis, text + note)


def _note(figure: Figure, axis: Axes, text: str) -> None:
    """An explanation in the lower margin, from the left edge of an axis."""
    figure.text(axis.get_position().x0, 0.06 / figure.get_figheight(), text, fontsize=SMALL, va="bottom")
