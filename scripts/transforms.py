"""From a subject's files to the network's input and back: MONAI dictionary transforms.

The crop follows Section 2.3 of Di Folco et al. (MICCAI 2024): the LV barycenter at the center, the line from LV to RV
horizontal with the RV on the left. Displayed, a crop has its first axis downward and its second to the right, as
the scan ``volume[:, :, z].T`` does.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    InvertibleTransform,
    MapTransform,
    RandomizableTransform,
    SpatialResample,
    Transform,
)
from monai.utils.enums import CommonKeys as Keys
from scipy import ndimage
from torch.nn import functional

from scripts.cohort.attributes import in_plane_power
from scripts.cohort.layout import LABELS, PHASES, SubjectError, read_image, read_mask
from scripts.inference.viewers import viewed_subject

VIEWS = ("basal",)
DUST = 1e-4  # a weight that only rounding gives to the slices beside a crop


class LoadSubjectd(Transform):
    """Read the scans and masks of a datalist item as MetaTensors (1, X, Y, Z) with affines in mm.

    A viewer's request names one scan as ``image``: its subject's other files are those beside it.

    Args:
        phases: ``ED``, ``ES`` or both.
    """

    def __init__(self, phases: Sequence[str] = PHASES) -> None:
        self.phases = checked_phases(phases)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = viewed_subject(data, self.phases) if Keys.IMAGE in data else dict(data)
        for phase in self.phases:
            frame, image, mask = (item[f"{kind}_{phase}"] for kind in ("frame", "image", "mask"))
            try:
                item[f"mask_{phase}"] = MetaTensor(torch.from_numpy(read_mask(mask, frame)[None]))
                voxels, affine = read_image(image, frame)
            except SubjectError as error:
                raise SubjectError(f"{Path(image).parent}: {error}; run prepare again to exclude it") from error
            meta = {"filename_or_obj": image}
            item[f"image_{phase}"] = MetaTensor(torch.from_numpy(voxels[None]), affine=affine, meta=meta)
        return item


class VentricleCropd(MapTransform, InvertibleTransform):
    """Crop each phase around its LV, rotated so that the RV lies on the left, in one resampling.

    The applied operation is tracked: ``inverse`` (or ``Invertd``) puts a crop back into the scan's own grid.

    Args:
        phases: the images ``image_<phase>`` (1, X, Y, Z) are replaced by crops (1, height, width, slices), placed by
            ``mask_<phase>`` in the slice ``basal_slice_<phase>`` of the datalist.
        spatial_size: height and width of the crop in pixels.
        spacing: pixel size of the crop in mm.
        slices: the view of the heart; ``basal`` is the paper's.

    Raises:
        SubjectError: when the slice shows no LV or RV to align with.
    """

    def __init__(
        self, phases: Sequence[str], spatial_size: Sequence[int], spacing: float, slices: str = "basal"
    ) -> None:
        if slices not in VIEWS:
            raise ValueError(f"slices '{slices}' is not a view; expected one of {', '.join(VIEWS)}.")
        self.phases = checked_phases(phases)
        super().__init__([f"image_{phase}" for phase in self.phases])
        if not isinstance(spatial_size, Sequence) or len(spatial_size) != 2 or min(spatial_size) < 1:
            raise ValueError(f"spatial_size {spatial_size} needs two positive numbers: height and width in pixels.")
        if not spacing > 0:
            raise ValueError(f"spacing {spacing} needs to be a positive number: the pixel size in mm.")
        self.spatial_size = tuple(spatial_size)
        self.spacing = float(spacing)
        self.resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=False, dtype=torch.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for phase, key in zip(self.phases, self.keys, strict=True):
            image: MetaTensor = item[key]
            affine = image.affine.numpy()
            voxel = np.linalg.norm(affine[:3, :3], axis=0)
            mask, index = item[f"mask_{phase}"].numpy()[0], item[f"basal_slice_{phase}"]
            try:
                placement = crop_to_voxel(mask, index, voxel, self.spatial_size, self.spacing)
            except SubjectError as error:
                scan = image.meta.get("filename_or_obj", phase)
                raise SubjectError(f"{scan}: {error}; run prepare again") from error
            smooth = low_pass(image, index, voxel, self.spacing)
            item[key] = self.resample(smooth, dst_affine=affine @ placement, spatial_size=(*self.spatial_size, 1))
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.resample.inverse(item[key])
            item[key][item[key].abs() < DUST] = 0
        return item


def crop_to_voxel(
    mask: np.ndarray, index: int, voxel: np.ndarray, spatial_size: Sequence[int], spacing: float
) -> np.ndarray:
    """The affine from crop indices (row, column, slice) to the scan's voxel indices.

    Args:
        mask: label mask (X, Y, Z).
        index: slice to crop.
        voxel: voxel size in mm.
        spatial_size: height and width of the crop in pixels.
        spacing: pixel size of the crop in mm.
    """
    if not 0 <= index < mask.shape[2]:
        raise SubjectError(f"slice {index} is not one of the {mask.shape[2]} slices")
    lv, rv = (barycenter(mask[..., index], label, voxel) for label in (LABELS["LV"], LABELS["RV"]))
    right = (lv - rv) / np.linalg.norm(lv - rv)
    down = np.array([-right[1], right[0]])  # a quarter turn, never a mirror image
    placement = np.eye(4)
    placement[:2, 0] = spacing * down / voxel[:2]
    placement[:2, 1] = spacing * right / voxel[:2]
    middle = (np.asarray(spatial_size) - 1) / 2
    placement[:2, 3] = lv / voxel[:2] - placement[:2, :2] @ middle
    placement[2, 3] = index
    return placement


def barycenter(section: np.ndarray, label: int, voxel: np.ndarray) -> np.ndarray:
    """Center of a structure in a slice (X, Y), in mm from its first pixel."""
    pixels = np.argwhere(section == label)
    if not len(pixels):
        raise SubjectError(f"label {label} is not shown in the slice, so that the crop cannot be aligned")
    return pixels.mean(axis=0) * voxel[:2]


def low_pass(image: MetaTensor, index: int, voxel: np.ndarray, spacing: float) -> MetaTensor:
    """Smooth one slice where the crop is coarser than the scan, so that fine detail does not alias.

    The width (in pixels) is that of MONAI's and scikit-image's anti-aliasing: half of the shrinking factor above one.
    """
    sigma = np.maximum(spacing / voxel[:2] - 1, 0) / 2
    if not sigma.any():
        return image
    smooth = image.clone()
    smooth[0, ..., index] = torch.from_numpy(ndimage.gaussian_filter(image[0, ..., index].numpy(), sigma))
    return smooth


class ViewsToChannelsd(Transform):
    """Gather the crops (1, H, W, slices) of all phases as the channels of ``image`` (phases * slices, H, W)."""

    def __init__(self, phases: Sequence[str]) -> None:
        self.phases = checked_phases(phases)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        views = [torch.as_tensor(data[f"image_{phase}"]).as_subclass(torch.Tensor) for phase in self.phases]
        return {**data, "image": torch.cat([view[0].movedim(-1, 0) for view in views]).contiguous()}


class ChannelsToViewsd(Transform):
    """Take ``pred`` (phases * slices, H, W) apart into ``pred_<phase>`` (1, H, W, slices).

    Where the item has its ``image`` too, so is what the reconstruction adds to it, as ``difference_<phase>``.
    """

    def __init__(self, phases: Sequence[str]) -> None:
        self.phases = checked_phases(phases)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        stacks = {"pred": data["pred"]}
        if "image" in data:
            stacks["difference"] = data["pred"] - data["image"]
        item = dict(data)
        for name, stack in stacks.items():
            for phase, view in zip(self.phases, stack.chunk(len(self.phases)), strict=True):
                item[f"{name}_{phase}"] = MetaTensor(view.movedim(0, -1)[None])
        return item


class StackAttributesd(Transform):
    """Gather the named attributes of an item as the vector ``attributes`` (len(names),); null becomes NaN."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        values = [float("nan") if data[name] is None else float(data[name]) for name in self.names]
        return {**data, "attributes": torch.tensor(values, dtype=torch.float32)}


class RandAffineHeartd(RandomizableTransform, MapTransform):
    """Rotate, shift and zoom the image at random in one resampling, and scale the attributes with the area.

    An in-plane zoom of f at a fixed slice distance scales every area and volume by f², and no fraction. In place of
    MONAI's ``RandAffined``, which takes six times as long for one small image, draws both axes' scales apart, and does
    not tell which ones it has drawn.

    Args:
        keys: images (C, H, W), all moved alike; what comes in from outside is 0.
        prob: that an image is moved at all.
        rotate_range: largest angle in rad, either way.
        translate_range: largest shift along each axis in pixels, either way.
        zoom_range: smallest and largest f, of which 1 / f is drawn evenly; (1, 1) never zooms.
        names: attributes in the vector ``attributes``.
    """

    def __init__(
        self,
        keys: Sequence[str],
        prob: float,
        rotate_range: float,
        translate_range: float,
        zoom_range: Sequence[float],
        names: Sequence[str],
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        MapTransform.__init__(self, keys)
        self.rotate_range, self.translate_range, self.zoom_range = rotate_range, translate_range, tuple(zoom_range)
        self.power = torch.tensor([in_plane_power(name) for name in names])

    def randomize(self, data: Any = None) -> None:
        super().randomize(data)
        if self._do_transform:
            self.angle = self.R.uniform(-self.rotate_range, self.rotate_range)
            self.shift = self.R.uniform(-self.translate_range, self.translate_range, size=2)
            smallest, largest = self.zoom_range
            self.zoom = 1 / self.R.uniform(1 / largest, 1 / smallest)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        if self._do_transform:
            for key in self.key_iterator(item):
                item[key] = self.move(torch.as_tensor(item[key]))
            item["attributes"] = item["attributes"] * self.zoom**self.power
        return item

    def move(self, image: torch.Tensor) -> torch.Tensor:
        """Resample an image (C, H, W) by what was drawn."""
        # From the new image to the old one in pixels from the center, then in halves of the image, as grids have it.
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        matrix = np.array([[cosine, -sine], [sine, cosine]], np.float32) / np.float32(self.zoom)
        height, width = image.shape[1:]
        half = np.array([width, height], np.float32) / 2
        places = (pixels(height, width) @ matrix.T + self.shift.astype(np.float32)) / half
        grid = torch.from_numpy(places.reshape(1, height, width, 2)).to(image.dtype)
        return functional.grid_sample(image[None], grid, "bilinear", "zeros", align_corners=False)[0]


@cache
def pixels(height: int, width: int) -> np.ndarray:
    """Pixels from the center of an image, row by row: (height * width, 2), x before y."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([columns - (width - 1) / 2, rows - (height - 1) / 2], axis=-1).reshape(-1, 2)


def checked_phases(phases: Sequence[str]) -> tuple[str, ...]:
    """Phases as a tuple; raises ValueError for one that is not ED or ES."""
    phases = (phases,) if isinstance(phases, str) else tuple(phases)
    if not phases or not set(phases) <= set(PHASES):
        raise ValueError(f"phases {list(phases)} are not valid; expected ['ED', 'ES'], ['ED'] or ['ES'].")
    return phases
