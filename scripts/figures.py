"""Pictures of hearts, for people to judge a model by: reconstructions, walks through the latent space, samples.

All are drawn for a page 1,000 pixels wide and for print without color. No picture names a subject: they are numbered
in the order in which they are given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.ndimage import gaussian_filter

from scripts.networks import VariationalAutoencoder

STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # standard deviations of the codes
CHANGED = 0.1  # of the gray range: what differs more from the mean image is outlined
DIMMED = 1.4  # gray value shown as white, so that in print, too, outlines are brighter than what they surround
DIFFERENCE_LIMIT = 0.5  # of the gray range: larger differences are shown as black or white
SAMPLE_COLUMNS = 8  # images beside each other; more would be too small to judge

WIDTH = 10.0  # inches of a full figure: at 1,000 pixels, 72 points are 100 pixels
DPI = 150
SMALL, NORMAL, LARGE = 8, 9, 10  # points
LARGEST_CELL = 1.8  # inches
NARROWEST = 4.6  # inches, which the longest note needs
PAD, GAP = 0.04, 0.16  # inches between images and between blocks of images


def reconstruction_figure(
    images: torch.Tensor, reconstructions: torch.Tensor | Mapping[str, torch.Tensor], channels: Sequence[str]
) -> Figure:
    """Scans, and below them what each method makes of them: its reconstruction, and the difference to the scan.

    The difference is a subtraction image: gray where nothing is wrong, black where the reconstruction is too dark,
    white where it is too bright. A diverging color map would be equally light for both signs once printed in gray, and
    the absolute difference has no sign at all.

    Args:
        images: (subjects, C, H, W), in [0, 1].
        reconstructions: those of one method, or method -> reconstructions, each of the shape of the images.
        channels: name of each channel; the channels of a subject stand together. Up to 8 images in a row are legible.
    """
    methods = reconstructions if isinstance(reconstructions, Mapping) else {"": reconstructions}
    subjects, count = len(images), len(channels)
    aspect = _aspect(images, channels)
    figure, axes = _grid([1, *[2] * len(methods)], [count] * subjects, aspect, left=0.5, bottom=0.85)
    scans = images.flatten(0, 1)
    _headers(figure, axes[0], [f"subject {number}" for number in range(1, subjects + 1)], [*channels] * subjects)
    _row(axes[0], scans, "scan")
    for (method, prediction), shown, wrong in zip(methods.items(), axes[1::2], axes[2::2], strict=True):
        prediction = prediction.to(images).flatten(0, 1)
        _row(shown, prediction, "reconstruction")
        _row(wrong, prediction - scans, "difference", limits=(-DIFFERENCE_LIMIT, DIFFERENCE_LIMIT))
        middle = (shown[0].get_position().y1 + wrong[0].get_position().y0) / 2
        x = shown[0].get_position().x0 - 0.36 / figure.get_figwidth()
        figure.text(x, middle, method, rotation=90, ha="center", va="center", fontsize=LARGE, weight="bold")
    _difference_bar(figure, axes[-1, 0])
    return figure


def traversal_figure(
    network: VariationalAutoencoder,
    codes: torch.Tensor,
    attributes: Sequence[str],
    channels: Sequence[str],
    scc: Sequence[float] | None = None,
) -> Figure:
    """Walks along each regularized dimension from the mean code, all other dimensions held.

    What differs from the mean image by more than ``CHANGED`` is outlined, so that one sees at a glance whether a
    dimension moves its own structure in its own phase, or the whole heart.

    Args:
        network: decodes the walks, in its present mode.
        codes: (subjects, D), which give the mean and the standard deviation of each dimension.
        attributes: name of the attribute of each walk; dimension k belongs to attribute k.
        channels: name of each channel; each is shown in a block of columns.
        scc: Spearman correlation of each attribute with its dimension, to be printed beside its walk.
    """
    walks = torch.stack([traversal(network, codes, row) for row in range(len(attributes))])
    aspect = _aspect(walks[0], channels)
    figure, axes = _grid([len(attributes)], [len(STEPS)] * len(channels), aspect, left=1.0, bottom=0.45)
    _headers(figure, axes[0], channels, [step_name(step) for step in STEPS] * len(channels))
    for row, images in zip(axes, walks, strict=True):
        _row(row, images.transpose(0, 1).flatten(0, 1), limits=(0, DIMMED))
        changes = (images - images[STEPS.index(0)]).transpose(0, 1).flatten(0, 1)
        for axis, change in zip(row, changes, strict=True):
            _outline(axis, change)
    values = [None] * len(attributes) if scc is None else scc
    for axis, name, value in zip(axes[:, 0], attributes, values, strict=True):
        label = attribute_name(name) + ("" if value is None else f"\nSCC {number(value)}")
        axis.set_ylabel(label, fontsize=NORMAL, rotation=0, ha="right", va="center", labelpad=6)
    note = "SD: standard deviation of the dimension over subjects; all other dimensions are held at their mean.\n"
    note += f"Outlined: differs from the mean image by more than {CHANGED:g} of the gray range."
    note += "" if scc is None else "  SCC: Spearman correlation of dimension and attribute."
    _note(figure, axes[0, 0], note)
    return figure


def samples_figure(
    samples: torch.Tensor,
    nearest: torch.Tensor,
    distances: Sequence[float],
    channels: Sequence[str],
    measure: str = "distance",
) -> Figure:
    """Generated hearts above the training scan that each is nearest to, which shows a model that has memorized.

    Args:
        samples: (samples, C, H, W), generated from the prior.
        nearest: the training scans of the least distance, of the same shape.
        distances: of each sample to its training scan.
        channels: name of each channel; the channels of a sample stand together.
        measure: what the distance is, and its unit where it has one.
    """
    count = len(channels)
    across = min(max(SAMPLE_COLUMNS // count, 1), len(samples))
    bands = -(-len(samples) // across)
    aspect = _aspect(samples, channels)
    figure, axes = _grid([2] * bands, [count] * across, aspect, left=0.5, bottom=0.35, row_gap=0.5)
    for band, start in enumerate(range(0, len(samples), across)):
        part = slice(start, start + across)
        titles = [f"d = {number(distance)}" for distance in distances[part]]
        upper, lower = axes[2 * band], axes[2 * band + 1]
        used = len(titles) * count
        _headers(figure, upper[:used], titles, [*channels] * len(titles))
        _row(upper[:used], samples[part].flatten(0, 1), "generated")
        _row(lower[:used], nearest[part].flatten(0, 1), "nearest\ntraining scan")
        for axis in (*upper[used:], *lower[used:]):
            axis.remove()
    _note(figure, axes[0, 0], f"d: {measure} of the generated heart and the training scan below it.")
    return figure


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
    """Images (steps, C, H, W) along one dimension through the mean code."""
    walk = codes.mean(0).repeat(len(STEPS), 1)
    walk[:, dimension] += torch.tensor(STEPS, device=codes.device) * codes[:, dimension].std()
    with torch.no_grad():
        return network.decode(walk)


def _aspect(images: torch.Tensor, channels: Sequence[str]) -> float:
    """Height by width of images (B, C, H, W), once it is sure that every channel has a name."""
    if images.shape[1] != len(channels):
        raise ValueError(f"the images have {images.shape[1]} channels, and names are given for {len(channels)}.")
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


def _row(axes: np.ndarray, images: torch.Tensor, label: str = "", limits: tuple = (0, 1)) -> None:
    """Show images (columns, H, W) in a row of axes, with a label before the first."""
    for axis, image in zip(axes, images, strict=True):
        axis.imshow(image.detach().float().cpu().numpy(), cmap="gray", vmin=limits[0], vmax=limits[1])
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].set_ylabel(label, fontsize=SMALL, labelpad=3)


def _outline(axis: Axes, change: torch.Tensor) -> None:
    """Draw the border of the region that changed; smoothed a little, since single pixels of noise tell nothing."""
    amount = gaussian_filter(change.detach().abs().float().cpu().numpy(), sigma=change.shape[-1] / 64)
    if amount.max() > CHANGED:
        lines = axis.contour(amount, levels=[CHANGED], colors="yellow", linewidths=0.8)
        lines.set_path_effects([withStroke(linewidth=1.8, foreground="black")])  # to stand out from light and dark


def _difference_bar(figure: Figure, axis: Axes) -> None:
    """The scale of the differences, below everything, for the gray values of an axis."""
    width, height = figure.get_size_inches()
    place = figure.add_axes((axis.get_position().x0, 0.62 / height, 3 / width, 0.12 / height))
    bar = figure.colorbar(axis.images[0], cax=place, orientation="horizontal", extend="both")
    ends = (-DIFFERENCE_LIMIT, 0, DIFFERENCE_LIMIT)
    bar.set_ticks(ends, labels=[f"{end:+g}".replace("-", "−") if end else "0" for end in ends])
    bar.ax.tick_params(labelsize=SMALL)
    note = "difference = reconstruction − scan, in parts of the scan's gray range"
    _note(figure, axis, note + "\n(black: too dark, white: too bright)")


def _note(figure: Figure, axis: Axes, text: str) -> None:
    """An explanation in the lower margin, from the left edge of an axis."""
    figure.text(axis.get_position().x0, 0.06 / figure.get_figheight(), text, fontsize=SMALL, va="bottom")
