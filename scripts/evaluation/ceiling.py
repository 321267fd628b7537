"""The supervised ceiling: what a network that is told the attributes reads from the same images.

A representation that was learned without a task should not be blamed for what its images do not show, nor praised for
what is easy to read. So a small regressor is trained on the very crops of the training, and judged beside the codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.nets import Regressor
from torch import nn

from scripts.cohort.datalist import attribute_scale


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
        for name, values in attribute_scale(items, attributes).items():
            self.register_buffer(name, torch.tensor(values))
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
