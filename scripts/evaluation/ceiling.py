"""The supervised ceiling: what a network that is told the attributes reads from the same images.

A representation that was learned without a task should not be blamed for what its images do not show, nor praised for
what is easy to read. So a small regressor is trained on the very crops of the training, and judged beside the codes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.networks.nets import Regressor
from torch import nn

from scripts.checkpoint import fit_weights, read, refuse_other_settings, save
from scripts.storage import output_folder, write_json

WEIGHTS, SETTINGS = "ceiling.pt", "ceiling.json"


class AttributeRegressor(nn.Module):
    """Image (B, C, H, W) to attributes (B, A) in their own units: MONAI's ``Regressor`` on standardized attributes.

    Args:
        in_channels: channels of the image.
        spatial_size: height and width of the image.
        channels: of its residual units, each of which halves the image.
        items: training subjects of a datalist, from which mean and standard deviation of each attribute are taken.
        attributes: their names.
        dropout: share of features that are dropped in training.
    """

    def __init__(
        self,
        in_channels: int,
        spatial_size: Sequence[int],
        channels: Sequence[int],
        items: Sequence[Mapping[str, Any]],
        attributes: Sequence[str],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        known = [torch.tensor([float(item[name]) for item in items if item[name] is not None]) for name in attributes]
        std = torch.stack([values.std(correction=0) for values in known])
        self.register_buffer("mean", torch.stack([values.mean() for values in known]))
        self.register_buffer("std", torch.where(std > 0, std, 1))  # what does not vary needs no scale
        self.network = Regressor(
            in_shape=(in_channels, *spatial_size),
            out_shape=(len(attributes),),
            channels=channels,
            strides=[2] * len(channels),
            norm="batch",
            dropout=dropout,
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Attributes (B, A)."""
        return self.mean + self.std * self.network(image)


class StandardizedError(nn.Module):
    """Mean squared error in standard deviations of each attribute; a missing (NaN) attribute counts for nothing.

    Args:
        network: knows the standard deviations.
    """

    def __init__(self, network: AttributeRegressor) -> None:
        super().__init__()
        self.std = network.std

    def forward(self, prediction: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
        """Error of predictions (B, A): a scalar."""
        known = ~attributes.isnan()
        # Replaced before the difference: a NaN that is only left out of the sum would still be in its gradient.
        target = torch.where(known, attributes, prediction.detach())
        error = ((prediction - target) / self.std.to(prediction)).square()
        return error.sum() / known.sum().clamp(min=1)


def fit(
    network: AttributeRegressor, trainer: SupervisedTrainer, folder: str | os.PathLike, settings: Mapping[str, Any]
) -> AttributeRegressor:
    """Train the regressor, or load it where that has been done.

    Args:
        network: is trained in place.
        trainer: trains it.
        folder: of ``ceiling.pt`` and ``ceiling.json``. It can serve several methods, since only data decide it.
        settings: what the ceiling depends on; those of one that is found must be the same.

    Raises:
        ValueError: naming settings that differ, or when there are none beside the weights.
        FloatingPointError: for weights that are not finite; they are not saved.
    """
    folder = output_folder(folder, "ceiling_dir")
    if (folder / WEIGHTS).is_file():
        _refuse_another(folder / SETTINGS, settings)
        fit_weights(network, read(folder / WEIGHTS), folder / WEIGHTS)
        return network
    print(f"Training the supervised ceiling for {trainer.state.max_epochs} epochs.", flush=True)
    trainer.run()
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise FloatingPointError("the supervised ceiling diverged: lower --ceiling_learning_rate.")
    write_json(folder / SETTINGS, settings)
    save(network.state_dict(), folder / WEIGHTS)
    return network


def _refuse_another(path: Path, settings: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise ValueError(f"'{path}' is missing, so that {WEIGHTS} beside it may be of other data: remove that.")
    try:
        refuse_other_settings(json.loads(path.read_text()), settings, path)
    except ValueError as error:
        raise ValueError(
            f"This ceiling is of other data or settings: {error} For it, name another --ceiling_dir."
        ) from error
