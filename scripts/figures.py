"""Pictures of reconstructions and of walks through the latent space, for people to judge a model by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from scripts.networks import VariationalAutoencoder

STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # standard deviations of the codes


def reconstruction_figure(images: torch.Tensor, reconstructions: torch.Tensor, channels: Sequence[str]) -> Figure:
    """Scans above their reconstructions and the difference of the two.

    Args:
        images, reconstructions: (subjects, C, H, W), in [0, 1].
        channels: name of each channel.
    """
    pairs = [
        (image[c], pred[c], f"{number}: {name}")
        for number, (image, pred) in enumerate(zip(images, reconstructions, strict=True), start=1)
        for c, name in enumerate(channels)
    ]
    figure, axes = _grid(3, len(pairs))
    for column, (image, prediction, name) in enumerate(pairs):
        _show(axes[0, column], image, title=name)
        _show(axes[1, column], prediction)
        _show(axes[2, column], prediction - image, cmap="RdBu_r", limits=(-0.5, 0.5))
    for axis, label in zip(axes[:, 0], ("scan", "reconstruction", "difference ±0.5"), strict=True):
        axis.set_ylabel(label, fontsize=9)
    return figure


def traversal_figure(
    network: VariationalAutoencoder, codes: torch.Tensor, attributes: Sequence[str], channels: Sequence[str]
) -> Figure:
    """Walks along each regularized dimension from the mean code, all other dimensions held.

    Args:
        network: decodes the walks, in its present mode.
        codes: (subjects, D), which give the mean and the standard deviation of each dimension.
        attributes: name of the attribute of each walk; dimension k belongs to attribute k.
        channels: name of each channel; each is shown in a block of columns.
    """
    figure, axes = _grid(len(attributes), len(channels) * len(STEPS))
    for row, name in enumerate(attributes):
        images = traversal(network, codes, row)
        for column, (channel, step) in enumerate((c, s) for c in range(len(channels)) for s in range(len(STEPS))):
            title = f"{channels[channel]}  {step_name(STEPS[step])}" if row == 0 else ""
            _show(axes[row, column], images[step, channel], title=title)
        axes[row, 0].set_ylabel(name, fontsize=9)
    return figure


def step_name(step: float) -> str:
    """A walk's step as people write it."""
    return f"{step:+.0f} SD".replace("-", "−") if step else "mean"


def traversal(network: VariationalAutoencoder, codes: torch.Tensor, dimension: int) -> torch.Tensor:
    """Images (steps, C, H, W) along one dimension through the mean code."""
    walk = codes.mean(0).repeat(len(STEPS), 1)
    walk[:, dimension] += torch.tensor(STEPS, device=codes.device) * codes[:, dimension].std()
    with torch.no_grad():
        return network.decode(walk)


def _grid(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(1.25 * columns + 0.4, 1.25 * rows + 0.3), layout="constrained", dpi=110)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axis, image: torch.Tensor, title: str = "", cmap: str = "gray", limits: tuple = (0, 1)) -> None:
    axis.imshow(image.detach().float().cpu().numpy(), cmap=cmap, vmin=limits[0], vmax=limits[1])
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
