"""Hearts of disks that answer requests, for the tests of the live page."""

from __future__ import annotations

import torch

from scripts.counterfactual import Counterfactuals
from scripts.live_hearts import LiveHearts
from tests.report_page.examples import DIMENSIONS, SPACING, VIEW, Disks, some_codes, some_population


class Coded(Disks):
    """An autoencoder of disks whose images are their codes."""

    latent_dim = DIMENSIONS

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The image as its code."""
        return image, torch.zeros_like(image)


def live_hearts(network: torch.nn.Module | None = None, view=VIEW) -> LiveHearts:
    """Three subjects."""
    tool = Counterfactuals(network or Coded(), view, SPACING, some_population())
    return LiveHearts(tool, [{"image": code / 4} for code in some_codes(3, seed=1)], lambda item: item)
