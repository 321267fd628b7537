"""A reader of images, which learns on scans where the heart is, and teaches the decoder to draw it there.

A decoder whose maps do what a code asks for may still draw walls that are too soft, or apical slices that look like
more heart than their maps say. Few pixels are concerned, so that the reconstruction error hardly notices; what a
segmentation reads in the images does. Neither the paper nor Soft-IntroVAE has this term. The instruments of an
evaluation are other networks, trained by themselves, and never see this one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers import GaussianFilter
from monai.networks.nets import UNet
from torch import nn

from scripts.losses import segmentation_loss
from scripts.views import STRUCTURES, View

BLUR = (0.3, 1.3)  # pixels: half of the scans are read blurred, as decoded images are


class HeartReader(nn.Module):
    """Occupancy maps as a small U-Net reads them in the images of a view, each slice for itself.

    Args:
        view: of the channels, with occupancy maps.
        channels: of the U-Net, whose levels each halve the image.
        learning_rate: of its Adam.

    Raises:
        ValueError: for a view without maps, naming the key.
    """

    def __init__(self, view: View, channels: Sequence[int], learning_rate: float) -> None:
        super().__init__()
        if not view.mapped:
            raise ValueError("reading_weight needs occupancy maps: --anatomy masks, or set it to 0.")
        self.view = view
        strides = [2] * (len(channels) - 1)
        self.network = UNet(2, 1, 1 + len(STRUCTURES), channels, strides, num_res_units=1, norm="instance")
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate)

    def read(self, values: torch.Tensor) -> torch.Tensor:
        """All channels (B, C, H, W) with the maps that the images show in the place of their own."""
        images = values[:, : self.view.images].to(next(self.network.parameters()).dtype)
        shares = self.network(images.flatten(0, 1)[:, None]).softmax(1)[:, 1:]
        return torch.cat([images, shares.unflatten(0, images.shape[:2]).flatten(1, 2)], dim=1)

    def forward(self, decoded: torch.Tensor) -> torch.Tensor:
        """How far decoded images are from showing their own maps, soft Dice loss and cross-entropy, (B,).

        The maps get no gradient: they say what is to be drawn.

        Args:
            decoded: all channels, (B, C, H, W).
        """
        return segmentation_loss(self.read(decoded), decoded.detach(), self.view)

    def scan_error(self, scans: torch.Tensor, blur: GaussianFilter | None = None) -> torch.Tensor:
        """The error that the reader itself is to make small, (B,).

        Args:
            scans: all channels, (B, C, H, W).
            blur: what is done to the images first.
        """
        images = scans[:, : self.view.images]
        seen = torch.cat([blur(images) if blur else images, scans[:, self.view.images :]], dim=1)
        return segmentation_loss(self.read(seen), scans, self.view)

    @staticmethod
    def draw_blur(device: torch.device) -> GaussianFilter | None:
        """A blur at random for a batch; None for half of them."""
        sharp, where = torch.rand(2).tolist()
        return None if sharp < 0.5 else GaussianFilter(2, BLUR[0] + where * (BLUR[1] - BLUR[0])).to(device)
