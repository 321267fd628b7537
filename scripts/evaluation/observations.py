"""What instruments see in images that a model has decoded, with and without a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from monai.networks.utils import eval_mode
from torch.nn.functional import max_pool2d

from scripts.counterfactual import Counterfactuals
from scripts.evaluation.images import dice
from scripts.evaluation.instruments import Instrument, Segmentation, as_scanned
from scripts.perceptual import PerceptualDistance
from scripts.views import STRUCTURES

MARGIN = 2  # pixels around the heart that its own change may touch
SCANNED, MEASURED, IDLE = "scanned", "measured", "idle"  # values of a scan, of what was decoded, and of that once more
REVERSED, COMPOSED = "reversed", "composed"  # values after a request and its opposite, and after two halves of one
OUTSIDE, AGREEMENT, LEFT = "outside", "agreement", "left"

Observations = dict[
    tuple[str, str], torch.Tensor
]  # (what, by which instrument, if any) -> numbers of subjects (B, ...)


class Asked(NamedTuple):
    """One request to a batch of subjects, and what the model makes of it.

    Args:
        name: of the attribute.
        change: that it was asked for, in mL.
        codes, changed: of the subjects, (B, D).
        image: decoded of the changed codes, (B, C, H, W).
    """

    name: str
    change: float
    codes: torch.Tensor
    changed: torch.Tensor
    image: torch.Tensor


class Observer:
    """Decodes what a model makes of requests, and looks at it.

    Args:
        model: answers requests.
        instruments: name to instrument.
        segmentation: finds the heart, whose surroundings a request should leave as they are.
        lpips: distance of images.
        kind: of the counterfactuals.
    """

    def __init__(
        self,
        model: Counterfactuals,
        instruments: Mapping[str, Instrument],
        segmentation: Segmentation,
        lpips: PerceptualDistance,
        kind: str,
    ) -> None:
        self.model, self.instruments, self.segmentation = model, dict(instruments), segmentation
        self.lpips, self.kind, self.view = lpips, kind, model.view

    @property
    def widths(self) -> dict[str, dict[tuple[str, str], tuple[int, ...]]]:
        """The shapes (...) of one subject's numbers, of ``answered`` and of ``round_trips``."""
        count, instruments = len(self.model.names), self.instruments
        agreement = {(AGREEMENT, ""): (len(STRUCTURES),)} if self.view.mapped else {}
        measured = {what: {(what, name): (count,) for name in instruments} for what in (MEASURED, REVERSED, COMPOSED)}
        return {
            "answered": measured[MEASURED] | {(LEFT, ""): (count,)} | agreement,
            "round_trips": measured[REVERSED] | measured[COMPOSED] | {(OUTSIDE, ""): ()},
        }

    def undisturbed(self, scans: torch.Tensor, codes: torch.Tensor) -> Observations:
        """Of scans (B, C, H, W) and their codes: what is measured in scans, in reconstructions, and in reconstructions
        of these; how far scans and reconstructions are apart outside the heart; how image and maps agree."""
        image = self.decode(codes)
        again = self.decode(self.encode(image))
        found = self.measured(SCANNED, scans) | self.measured(MEASURED, image) | self.measured(IDLE, again)
        return found | {(OUTSIDE, ""): self.outside(image, scans)} | self.agreement(image)

    def ask(self, name: str, change: float, codes: torch.Tensor) -> Asked:
        """Ask hearts of codes (B, D) for a change of an attribute in mL."""
        changed = self.model.change(codes, name, change, self.kind)
        return Asked(name, change, codes, changed, self.decode(changed))

    def answered(self, asked: Asked) -> Observations:
        """What is measured in the decoded image, how its maps agree with it, and what is left of the request."""
        left = self.model.residuals(asked.codes, asked.changed, asked.name, asked.change, self.kind)
        return self.measured(MEASURED, asked.image) | {(LEFT, ""): left} | self.agreement(asked.image)

    def round_trips(self, asked: Asked) -> Observations:
        """What is measured after the opposite request to the decoded image, and after two halves of the request, of
        which the second one is made to the image of the first; and what has changed outside the heart."""
        back = self.ask(asked.name, -asked.change, self.encode(asked.image))
        half = self.ask(asked.name, asked.change / 2, asked.codes)
        twice = self.ask(asked.name, asked.change / 2, self.encode(half.image))
        found = self.measured(REVERSED, back.image) | self.measured(COMPOSED, twice.image)
        return found | {(OUTSIDE, ""): self.outside(asked.image, self.decode(asked.codes))}

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Mean codes (B, D)."""
        with eval_mode(self.model.network):
            return self.model.network.encode(image)[0]

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W)."""
        return self.model.decode(codes)

    def measured(self, what: str, image: torch.Tensor) -> Observations:
        """The attributes (B, A) by every instrument."""
        return {(what, name): instrument(image) for name, instrument in self.instruments.items()}

    def agreement(self, image: torch.Tensor) -> Observations:
        """Dice (B, 3) of the segmented images and the decoded maps, mean over phases; nothing without maps."""
        if not self.view.mapped:
            return {}
        found = dice(self.segmentation.segment(image), image, self.view)
        values = [[found[f"Dice_{name}_{phase}"] for phase in self.view.phases] for name in STRUCTURES]
        return {(AGREEMENT, ""): torch.from_numpy(np.array(values)).nanmean(1).T}

    def outside(self, image: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """LPIPS (B,) of two images (B, C, H, W) in which the heart of both is that of the second one.

        Of a whole heart, it is taken of the slices that pictures show.
        """
        heart = self.heart(image) | self.heart(other)
        one, two = (as_scanned(part, self.view) for part in (image, other))
        pair = (self.pictured(part) for part in (torch.where(heart, two, one), two))
        return self.lpips(*pair)

    def pictured(self, images: torch.Tensor) -> torch.Tensor:
        """The images (B, n, H, W) of all phases that pictures show, of all (B, images, H, W)."""
        return self.view.slice_images(images)[:, :, list(self.view.pictured)].flatten(1, 2)

    def heart(self, image: torch.Tensor) -> torch.Tensor:
        """Where each image shows the heart, and ``MARGIN`` around it: (B, images, H, W)."""
        maps = self.segmentation.view.slice_maps(self.segmentation.segment(image))
        shares = maps.sum(-3).flatten(1, 2)
        return max_pool2d(shares, 2 * MARGIN + 1, stride=1, padding=MARGIN) > 0.5
