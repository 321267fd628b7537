"""From short-axis scans to the slices that the segmentation network sees, as MONAI dictionary transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable, Transform
from torch.nn.functional import interpolate, one_hot

from scripts.cohort.layout import LABELS, PHASES, PREDICTED, SubjectError, read_image, read_mask

CLASSES = 1 + len(LABELS)  # background first, as 0 is its label
# Of all slices of a volume that the network sees at a time: 64 of 512 x 512, when a scan at 1.8 mm has about 20 of
# 220 x 220. The network takes 180 bytes of memory for each, 3 GiB for these.
MAX_PIXELS = 2**24


def with_given_masks(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The subjects whose masks were not predicted: no network may learn from its own masks, or be judged by them.

    Raises:
        ValueError: when there are none.
    """
    given = [item for item in items if item.get("mask") != PREDICTED]
    if len(given) < len(items):
        print(f"{len(items) - len(given)} of {len(items)} subjects have predicted masks and are left out.")
    if not given:
        raise ValueError(
            "no subject has a mask that was not predicted: there is nothing to learn from or to compare with."
        )
    return given


def phase_items(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each phase of each subject as an item of its own: ``image`` and ``label`` (paths), ``frame``, ``modified``."""
    return [
        {
            "image": item[f"image_{phase}"],
            "label": item[f"mask_{phase}"],
            "frame": item[f"frame_{phase}"],
            "modified": item["modified"],  # so that no cache outlives the files
        }
        for item in items
        for phase in PHASES
    ]


class LoadPhase(Transform):
    """Read an item of ``phase_items``: ``image`` and ``label`` (1, X, Y, Z), and the ``voxel`` size in mm."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image, affine = read_image(data["image"], data["frame"])
        label = read_mask(data["label"], data["frame"])
        voxel = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        return {"image": torch.from_numpy(image[None]), "label": torch.from_numpy(label[None]), "voxel": voxel}


class VolumeToSlicesd(MapTransform):
    """Turn a scan and its mask (1, X, Y, Z) into slices (Z, 1, H, W) of one pixel size.

    Args:
        keys: the scan and the mask. A pixel of the mask gets the label that covers most of it.
        spacing: pixel size in mm.
    """

    def __init__(self, keys: Sequence[str], spacing: float) -> None:
        super().__init__(keys)
        self.spacing = spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image, mask = (torch.as_tensor(item[key]).as_subclass(torch.Tensor) for key in self.keys)
        cover = one_hot(mask[0].long(), CLASSES).movedim(-1, 0).float()
        item[self.keys[0]] = to_slices(image, item["voxel"], self.spacing)
        item[self.keys[1]] = to_slices(cover, item["voxel"], self.spacing).argmax(1, keepdim=True).to(torch.uint8)
        return item


class RandSlicesd(MapTransform, Randomizable):
    """Pick slices of a volume (Z, 1, H, W) at random, each as an item of its own with (1, H, W).

    Args:
        keys: the scan and the mask, of which the same slices are taken.
        count: slices per volume; of a volume that has fewer, some are taken more than once.
    """

    def __init__(self, keys: Sequence[str], count: int) -> None:
        super().__init__(keys)
        self.count = count

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        available = len(data[self.keys[0]])
        chosen = self.R.choice(available, self.count, replace=available < self.count)
        return [{key: data[key][index] for key in self.keys} for index in chosen]


def to_slices(volume: torch.Tensor, voxel: Sequence[float], spacing: float | None) -> torch.Tensor:
    """A volume (C, X, Y, Z) as slices (Z, C, H, W) of the same extent.

    Args:
        volume: scan, or one channel per class.
        voxel: its voxel size in mm.
        spacing: pixel size of the slices in mm; None keeps that of the scan.

    Raises:
        SubjectError: for a volume that would have too many pixels of this size.
    """
    slices = volume.movedim(-1, 0)
    if spacing is None:
        return slices
    shape = zip(slices.shape[-2:], voxel[:2], strict=True)
    size = [max(round(float(n * size / spacing)), 1) for n, size in shape]
    check_pixels(len(slices), size)
    return resized(slices, size)


def check_pixels(count: int, size: Sequence[int]) -> None:
    """Raise SubjectError where so many slices of a size are more than the network has to see of any scan of a heart."""
    height, width = size
    if count * height * width > MAX_PIXELS:
        raise SubjectError(
            f"the segmentation network would see {count} slices of {height} x {width} pixels; expected at most "
            f"{MAX_PIXELS} pixels in all, as the scan of a heart has: look at its shape and voxel size"
        )


def resized(slices: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Slices (Z, C, H, W) at another in-plane size, low-pass where that is smaller."""
    return interpolate(slices, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)
