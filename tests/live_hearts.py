"""Hearts of disks that answer requests, for the tests of the live page."""

from __future__ import annotations

import torch

from scripts.calibration.novelty import Novelty
from scripts.counterfactual import Counterfactuals
from scripts.live_hearts import LiveHearts
from tests.report_page.examples import DIMENSIONS, SPACING, VIEW, Disks, some_codes, some_population


class Coded(Disks):
    """An autoencoder of disks whose codes stand in the first pixels of their images."""

    latent_dim = DIMENSIONS

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What stands there."""
        codes = image[:, 0, 0, :DIMENSIONS]
        return codes, torch.zeros_like(codes)

    def scan(self, code: torch.Tensor) -> torch.Tensor:
        """An image (C, H, W) that has this code (D,)."""
        image = self.decode(code[None])[0]
        image[0, 0, :DIMENSIONS] = code
        return image


class Known:
    """A calibration to which the third subject's scan is out of range."""

    def __init__(self, codes: torch.Tensor) -> None:
        self.unknown = codes[2]

    def cautions(self) -> list[str]:
        """One."""
        return ["The range is known from 3 scans only."]

    def novelty(self, codes, log_variances, image, reconstruction) -> Novelty:
        """Of the code, if it is that of the image."""
        assert torch.equal(image[0, 0, :DIMENSIONS], codes)
        assert not torch.equal(reconstruction[0, 0, :DIMENSIONS], codes)
        out = torch.equal(codes, self.unknown)
        return Novelty({"kl": 99.9 if out else 40.0}, 1.0, 99.9 if out else 40.0, out)


def live_hearts(network: torch.nn.Module | None = None, view=VIEW) -> LiveHearts:
    """Three subjects."""
    tool, codes = Counterfactuals(network or Coded(), view, SPACING, some_population()), some_codes(3, seed=1) / 4
    return LiveHearts(tool, Known(codes), [{"image": Coded().scan(code)} for code in codes], lambda item: item)
