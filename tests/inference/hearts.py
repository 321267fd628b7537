"""A model whose truth is known, in place of a trained one: every volume of its hearts is that of a drawn shape."""

from __future__ import annotations

import math

import torch
from torch import nn

from scripts.views import View

NAMES = ("LVEDV", "RVEDV", "MyoEDV", "LVESV", "RVESV", "MyoESV")
MEAN, SPREAD = torch.tensor([140.0, 150, 110, 60, 70, 115]), torch.tensor([35.0, 35, 25, 20, 20, 25])
SPACING, DISTANCE = 2.5, 10.0


class DrawnHeart(nn.Module):
    """Encodes the volumes of a stack's masks, and draws them: an LV in a ring of myocardium, and an RV beside it.

    Dimension k follows attribute k, but every dimension moves every volume.

    Args:
        kwargs: of the network that it stands for, which it does not need.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__()
        self.view = View(slices="stack", anatomy="masks")
        self.latent_dim = 8
        self.nothing = nn.Parameter(torch.zeros(1))
        self.coupling = torch.eye(6) + 0.25

    def encode(self, image):
        volumes = self.view.volumes(image, SPACING)
        standard = (torch.stack([volumes[name] for name in NAMES], dim=1) - MEAN) / SPREAD
        own = torch.linalg.solve(self.coupling, standard.T).T
        texture = self.view.slice_images(image).mean((1, 3, 4))[:, :2]
        codes = torch.cat([own, texture], dim=1)
        return codes, codes * 0.1

    def volumes(self, codes):
        """What is drawn of codes (B, 8): (B, 6) mL, up to what pixels cut off."""
        return MEAN + SPREAD * (codes[:, :6] @ self.coupling.T)

    def decode(self, codes):
        lv, rv, muscle = self.volumes(codes).unflatten(1, (2, 3)).unbind(2)  # (B, phases)
        endocardium, epicardium = drawn(lv, 38.0), drawn(lv + muscle, 38.0)
        right = drawn(rv, 12.0) * (1 - epicardium)
        maps = torch.stack([endocardium, epicardium - endocardium, right], dim=2)
        maps = maps[:, :, None].expand(-1, -1, self.view.stack_slices, -1, -1, -1)
        images = 0.9 * maps[:, :, :, 0] + 0.3 * maps[:, :, :, 1] + 0.7 * maps[:, :, :, 2]
        return torch.cat([images.flatten(1, 2), maps.flatten(1, 3)], dim=1)

    def forward(self, image):
        return self.decode(self.encode(image)[0])


def drawn(volume, column):
    """Cylinders of a volume (B, P) in mL around a column of the crop: the share of each pixel, (B, P, 64, 64)."""
    radius = (volume.clamp(min=1) * 1000 / (12 * DISTANCE * math.pi)).sqrt() / SPACING
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    distance = torch.hypot(y - 32, x - column)
    return torch.sigmoid((radius[..., None, None] - distance) * 4)
