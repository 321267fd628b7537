"""Instruments that measure attributes of images, made or scanned, and have never seen a made one.

What a generator says of its own images proves nothing. So two networks learn from the training subjects' scans alone,
in the crops of the model, and are told nothing of it: one segments single slices, whose areas give the volumes of a
stack; the other one reads the attributes from all images at once.

Decoded images are smoother than scans, differently lit, and show hearts of other sizes. Instruments that have only seen
sharp scans would measure that and not the heart; in training, scans are therefore blurred, noised, lit and zoomed at
random.

A slice of atria and one of thin-walled ventricles look alike, and a whole slice more or less is 20 mL. So the
segmentation is told which slice of the view it sees: in made images, too, the base is where the view has it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from monai.networks.utils import eval_mode
from monai.transforms import Transform
from monai.utils.enums import CommonKeys as Keys
from torch import nn
from torch.nn.functional import one_hot

from scripts.views import STRUCTURES, View

MAPS = "maps"
CLASSES = 1 + len(STRUCTURES)  # background first


class Instrument(Protocol):
    """Measures attributes of images."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """All channels (B, C, H, W) of a view to attributes (B, A), in mL; NaN for those that it cannot measure."""
        ...


def labeled_view(view: View) -> View:
    """The same slices with occupancy maps, which the segmentation learns from."""
    return replace(view, anatomy="masks")


class MapsApartd(Transform):
    """Take ``image`` (C, H, W) apart into images alone and their occupancy ``maps``: what is done to a scan's
    intensities must not be done to them.

    Args:
        view: of the channels, with maps.
    """

    def __init__(self, view: View) -> None:
        self.images = view.images

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        channels = data[Keys.IMAGE]
        return {**data, Keys.IMAGE: channels[: self.images], MAPS: channels[self.images :]}


class PrepareSlices:
    """Single slices of a batch of subjects, each for itself, to train a segmentation with; for MONAI's engines.

    Args:
        view: of the images.
        count: slices per subject, drawn at random: neighbors are alike, so that more steps teach more than more slices.
    """

    def __init__(self, view: View, count: int) -> None:
        self.view, self.count = view, count

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Slices (B * count, 2, H, W), see ``placed_slices``, and the shares (B * count, 4, H, W) of each pixel that
        background, LV, Myo and RV take."""
        parts = (batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs) for key in (Keys.IMAGE, MAPS))
        image, maps = next(parts), next(parts).unflatten(1, (-1, len(STRUCTURES)))
        drawn = torch.rand(image.shape[:2]).argsort(1)[:, : self.count].to(image.device)
        rows = torch.arange(len(image), device=image.device)[:, None]
        slices, maps = placed_slices(image, self.view)[rows, drawn].flatten(0, 1), maps[rows, drawn].flatten(0, 1)
        return slices, torch.cat([1 - maps.sum(1, keepdim=True), maps], dim=1)


def placed_slices(images: torch.Tensor, view: View) -> torch.Tensor:
    """Every slice of images (B, P * S, H, W) with its place, 0 at the view's first slice and 1 at its last, as a second
    channel: (B, P * S, 2, H, W)."""
    count = len(view.slice_names)
    places = torch.arange(view.images, device=images.device) % count / max(count - 1, 1)
    return torch.stack([images, places.to(images)[:, None, None].expand_as(images)], dim=2)


class Segmentation:
    """Segments every slice of an image by itself, and measures the volumes of a stack.

    Volumes are those of labels: the sum of shares has a larger error, to which every pixel of the background adds.

    Args:
        network: slices with their places (N, 2, H, W) to logits (N, 4, H, W) of background, LV, Myo and RV.
        view: of the images; its occupancy maps, if it has any, are not looked at.
        spacing: pixel size in mm.
        names: of the attributes to measure.
    """

    def __init__(self, network: nn.Module, view: View, spacing: float, names: Sequence[str]) -> None:
        self.network, self.view, self.spacing, self.names = network, labeled_view(view), spacing, tuple(names)
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def segment(self, image: torch.Tensor) -> torch.Tensor:
        """All channels (B, C, H, W) of the view to the same images with occupancy maps of their own.

        Those of the last batch are kept, since volumes, outlines and overlaps are asked of the same one.
        """
        if self._last is None or self._last[0] is not image:
            self._last = image, self._segment(image)
        return self._last[1]

    def _segment(self, image: torch.Tensor) -> torch.Tensor:
        images = as_scanned(image, self.view)
        with eval_mode(self.network):
            labels = self.network(placed_slices(images, self.view).flatten(0, 1)).argmax(1)
        maps = one_hot(labels, CLASSES).movedim(-1, 1)[:, 1:].to(images).unflatten(0, images.shape[:2])
        return torch.cat([images, maps.flatten(1, 2)], dim=1)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Volumes, as of ``Instrument``."""
        return map_attributes(self.segment(image), self.view, self.spacing, self.names)


class ImageRegressor:
    """Reads attributes from all images at once, without looking at occupancy maps.

    Args:
        network: images (B, images, H, W) to attributes (B, A).
        view: of the images.
    """

    def __init__(self, network: nn.Module, view: View) -> None:
        self.network, self.view = network, view

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Attributes, as of ``Instrument``."""
        with eval_mode(self.network):
            return self.network(as_scanned(image, self.view))


class SelfReport:
    """What the maps that a model decodes beside its images say: no proof of what the images show.

    Args:
        view: of the channels, a stack with maps.
        spacing: pixel size in mm.
        names: of the attributes to measure.
    """

    def __init__(self, view: View, spacing: float, names: Sequence[str]) -> None:
        self.view, self.spacing, self.names = view, spacing, tuple(names)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Volumes, as of ``Instrument``."""
        return map_attributes(image, self.view, self.spacing, self.names)


def as_scanned(image: torch.Tensor, view: View) -> torch.Tensor:
    """The images among all channels, in the gray range of scans: a decoder is not bound to it."""
    return image[:, : view.images].clamp(0, 1)


def map_attributes(image: torch.Tensor, view: View, spacing: float, names: Sequence[str]) -> torch.Tensor:
    """Attributes (B, A) of the occupancy maps among all channels (B, C, H, W); NaN for those that are no volumes."""
    volumes = view.volumes(image, spacing)
    unknown = image.new_full((len(image),), torch.nan)
    return torch.stack([volumes.get(name, unknown) for name in names], dim=1)


def instruments(
    segmentation: Instrument, regressor: Instrument, view: View, spacing: float, names: Sequence[str]
) -> dict[str, Instrument]:
    """Name to instrument, as many as a view allows: volumes take a stack, and the self-report decoded maps."""
    found: dict[str, Instrument] = {"segmentation": segmentation} if view.is_stack else {}
    found |= {"regressor": regressor}
    return found | ({"self-report": SelfReport(view, spacing, names)} if view.is_stack and view.mapped else {})


def by_name(instrument: Instrument, names: Sequence[str]) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """An instrument that gives name -> values (B,), for those who do not know the order of its attributes."""
    return lambda image: dict(zip(names, instrument(image).unbind(1), strict=True))
