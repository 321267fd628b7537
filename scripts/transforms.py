"""From a subject's files to the network's input and back: MONAI dictionary transforms.

The crop follows Section 2.3 of Di Folco et al. (MICCAI 2024): the LV barycenter at the center, the line from LV to RV
horizontal with the RV on the left. Displayed, a crop has its first axis downward and its second to the right, as
the scan ``volume[:, :, z].T`` does. In a view of several slices (``scripts.views``), these share one center and one
rotation, from the LV and RV barycenters over all slices that show both, so that the heart's axis stays what it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    InvertibleTransform,
    MapTransform,
    RandAdjustContrastd,
    RandomizableTransform,
    SpatialResample,
    Transform,
)
from monai.utils.enums import CommonKeys as Keys
from scipy import ndimage
from torch.nn import functional

from scripts.cohort.attributes import base_is_first, in_plane_power
from scripts.cohort.layout import LABELS, PHASES, SubjectError, read_pair
from scripts.inference.viewers import viewed_subject
from scripts.views import LEVELS, View, as_view, checked_phases

AGAIN = "run prepare again, which excludes such subjects, with the reason in cohort.csv"
APICAL = 0.8  # of the way from the basal slice to the last that shows the LV: where the apical slice lies
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
                voxels, labels, affine = read_pair(image, mask, frame)
            except SubjectError as error:
                # Whose scan it is, prepare tells in cohort.csv, and no log. What lies behind the error has its path.
                raise SubjectError(f"{error}; {AGAIN}") from SubjectError(str(error))
            meta = {"filename_or_obj": image}
            item[f"mask_{phase}"] = MetaTensor(torch.from_numpy(labels[None]))
            item[f"image_{phase}"] = MetaTensor(torch.from_numpy(voxels[None]), affine=affine, meta=meta)
        return item


class VentricleCropd(MapTransform, InvertibleTransform):
    """Crop each phase around its LV, rotated so that the RV lies on the left, in one resampling.

    The applied operation is tracked: ``inverse`` (or ``Invertd``) puts a crop back into the scan's own grid. A stack
    whose distance is not that of the scan's slices is interpolated between them, and a list is not.

    Args:
        view: what of the heart to show; phases alone stand for the paper's view. The images ``image_<phase>``
            (1, X, Y, Z) are replaced by crops (1, height, width, slices), placed by ``mask_<phase>`` and by the slice
            ``basal_slice_<phase>`` of the datalist. With ``anatomy: masks`` there are occupancy maps
            ``maps_<phase>`` (3, height, width, slices) of the same places.
        spatial_size: height and width of the crop in pixels.
        spacing: pixel size of the crop in mm.

    Raises:
        SubjectError: when no slice that is to align the crop shows LV and RV.
    """

    def __init__(self, view: View | Sequence[str], spatial_size: Sequence[int], spacing: float) -> None:
        self.view = as_view(view)
        super().__init__([*(f"image_{p}" for p in self.view.phases), *(f"maps_{p}" for p in self.view.mapped)])
        if not isinstance(spatial_size, Sequence) or len(spatial_size) != 2 or min(spatial_size) < 1:
            raise ValueError(f"spatial_size {spatial_size} needs two positive numbers: height and width in pixels.")
        if not spacing > 0:
            raise ValueError(f"spacing {spacing} needs to be a positive number: the pixel size in mm.")
        self.spatial_size = tuple(spatial_size)
        self.spacing = float(spacing)
        self.resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=False, dtype=torch.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        masks = {phase: item[f"mask_{phase}"].numpy()[0] for phase in self.view.phases}
        for phase, mask in masks.items():
            image: MetaTensor = item[f"image_{phase}"]
            voxel = np.linalg.norm(image.affine.numpy()[:3, :3], axis=0)
            try:
                rows = rows_of(self.view, masks, phase, item[f"basal_slice_{phase}"], voxel[2])
                placement = crop_to_voxel(mask, rows, voxel, self.spatial_size, self.spacing)
            except SubjectError as error:
                raise SubjectError(f"{phase}: {error}; {AGAIN}") from error
            item[f"image_{phase}"] = self.crop(image, rows, voxel, placement)
            if phase in self.view.mapped:
                maps = MetaTensor(occupancy(mask), affine=image.affine)
                item[f"maps_{phase}"] = self.crop(maps, rows, voxel, placement)
        return item

    def crop(self, volume: MetaTensor, rows: Rows, voxel: np.ndarray, placement: np.ndarray) -> MetaTensor:
        """Resample a volume (K, X, Y, Z) to (K, height, width, slices)."""
        # A single slice is all that needs to be smoothed where all slices of the crop are it.
        smooth = low_pass(volume, slice(None) if len(self.view.slice_names) > 1 else rows.basal, voxel, self.spacing)
        affine = volume.affine.numpy() @ placement
        return self.resample(smooth, dst_affine=affine, spatial_size=(*self.spatial_size, len(self.view.slice_names)))

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            crop = item[key]
            item[key] = self.resample.inverse(crop)
            item[key][item[key].abs() < DUST] = 0
            if not self.view.is_stack:
                clear_between(item[key], crop)
        return item


class Rows(NamedTuple):
    """Where the slices of a view lie in a scan.

    Args:
        first, step: index of the first slice in the scan, and from one slice to the next; fractions lie between slices.
        basal: index of the basal slice.
        aligned: indices of the slices by whose barycenters the crop is placed.
    """

    first: float
    step: float
    basal: int
    aligned: Sequence[int]


def rows_of(view: View, masks: Mapping[str, np.ndarray], phase: str, basal: int, slice_distance: float) -> Rows:
    """Where the slices of a view lie in the scan of a phase.

    Which way the apex is, the masks tell, see ``base_is_first``. A list is spread evenly, in whole slices, over the
    slices from the basal one to the last that shows the LV, so that one resampling without interpolation does it.

    Args:
        view: the view.
        masks: phase to label mask (X, Y, Z).
        phase: of the scan.
        basal: index of its basal slice.
        slice_distance: of the scan, in mm.

    Raises:
        SubjectError: when the basal slice is not one of the scan's, or no slice shows LV and RV.
    """
    mask = masks[phase]
    if not 0 <= basal < mask.shape[2]:
        raise SubjectError(f"slice {basal} is not one of the {mask.shape[2]} slices")
    if view.slices == "basal":
        return Rows(basal, 1, basal, [basal])
    lv, rv = ((mask == LABELS[name]).any((0, 1)) for name in ("LV", "RV"))
    aligned = np.flatnonzero(lv & rv)
    if not aligned.size:
        raise SubjectError("no slice shows LV and RV, so that the crop cannot be aligned")
    apex = 1 if base_is_first(masks) else -1
    if view.is_stack:
        step = apex * view.slice_distance / slice_distance
        return Rows(basal - step, step, basal, aligned)
    last = np.flatnonzero(lv)[-1 if apex > 0 else 0]
    between = max(1, round(APICAL / 2 * (last - basal) * apex))  # from one level to the next
    levels = [LEVELS.index(name) for name in view.slices]
    step = apex * between * (levels[1] - levels[0] if len(levels) > 1 else 1)
    return Rows(basal + apex * between * levels[0], step, basal, aligned)


def crop_to_voxel(
    mask: np.ndarray, rows: Rows, voxel: np.ndarray, spatial_size: Sequence[int], spacing: float
) -> np.ndarray:
    """The affine from crop indices (row, column, slice) to the scan's voxel indices.

    Args:
        mask: label mask (X, Y, Z).
        rows: where the slices lie.
        voxel: voxel size in mm.
        spatial_size: height and width of the crop in pixels.
        spacing: pixel size of the crop in mm.
    """
    lv, rv = (barycenter(mask[..., rows.aligned], label, voxel) for label in (LABELS["LV"], LABELS["RV"]))
    right = (lv - rv) / np.linalg.norm(lv - rv)
    down = np.array([-right[1], right[0]])  # a quarter turn, never a mirror image
    placement = np.eye(4)
    placement[:2, 0] = spacing * down / voxel[:2]
    placement[:2, 1] = spacing * right / voxel[:2]
    middle = (np.asarray(spatial_size) - 1) / 2
    placement[:2, 3] = lv / voxel[:2] - placement[:2, :2] @ middle
    placement[2, 2:] = rows.step, rows.first
    return placement


def barycenter(region: np.ndarray, label: int, voxel: np.ndarray) -> np.ndarray:
    """Center of a structure in a slice (X, Y), or over slices (X, Y, Z), in mm from the first pixel: x and y."""
    pixels = np.argwhere(region == label)
    if not len(pixels):
        raise SubjectError(f"label {label} is not shown in the slice, so that the crop cannot be aligned")
    return pixels[:, :2].mean(axis=0) * voxel[:2]


def occupancy(mask: np.ndarray) -> torch.Tensor:
    """Label mask (X, Y, Z) to the share of each voxel that LV, Myo and RV take: (3, X, Y, Z), 0 or 1."""
    return torch.from_numpy(np.stack([mask == label for label in LABELS.values()]).astype(np.float32))


def clear_between(volume: MetaTensor, crop: MetaTensor) -> None:
    """Empty the slices of a scan (K, X, Y, Z) that a list of slices does not show but an interpolation would fill."""
    to_scan = np.linalg.inv(volume.affine.numpy()) @ crop.affine.numpy()
    shown = np.round(to_scan[2, 3] + to_scan[2, 2] * np.arange(crop.shape[-1])).astype(int)
    volume[..., np.setdiff1d(np.arange(volume.shape[-1]), shown)] = 0


def low_pass(image: MetaTensor, index: int | slice, voxel: np.ndarray, spacing: float) -> MetaTensor:
    """Smooth one slice, or all of a slice of slices, in plane where the crop is coarser than the scan.

    Fine detail would alias else. The width (in pixels) is that of MONAI's and scikit-image's anti-aliasing: half of the
    shrinking factor above one.
    """
    sigma = np.maximum(spacing / voxel[:2] - 1, 0) / 2
    if not sigma.any():
        return image
    smooth = image.clone()
    part = image[..., index].numpy()
    smooth[..., index] = torch.from_numpy(ndimage.gaussian_filter(part, (0, *sigma, 0)[: part.ndim]))
    return smooth


class ViewsToChannelsd(Transform):
    """Gather the crops of all phases as the channels of ``image`` (C, H, W), in the order of the view.

    Args:
        view: of ``image_<phase>`` (1, H, W, slices) and ``maps_<phase>`` (3, H, W, slices).
    """

    def __init__(self, view: View | Sequence[str]) -> None:
        self.view = as_view(view)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        keys = [f"image_{phase}" for phase in self.view.phases] + [f"maps_{phase}" for phase in self.view.mapped]
        crops = [torch.as_tensor(data[key]).as_subclass(torch.Tensor) for key in keys]
        return {**data, "image": torch.cat([crop.movedim(-1, 0).flatten(0, 1) for crop in crops]).contiguous()}


class ChannelsToViewsd(Transform):
    """Take ``pred`` (C, H, W) apart into ``pred_<phase>`` (1, H, W, slices), and maps into ``pred_maps_<phase>``.

    Where the item has its ``image`` too, so is what the reconstruction adds to it, as ``difference_<phase>``.

    Args:
        view: of the channels.
    """

    def __init__(self, view: View | Sequence[str]) -> None:
        self.view = as_view(view)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        stacks = {"pred": self.view.slice_images(data["pred"])}
        if "image" in data:
            stacks["difference"] = stacks["pred"] - self.view.slice_images(data["image"])
        item = dict(data)
        for name, stack in stacks.items():
            for phase, slices in zip(self.view.phases, stack, strict=True):
                item[f"{name}_{phase}"] = MetaTensor(slices.movedim(0, -1)[None])
        maps = self.view.slice_maps(data["pred"])
        for phase, slices in zip(self.view.mapped, () if maps is None else maps, strict=True):
            item[f"pred_maps_{phase}"] = MetaTensor(slices.movedim(0, -1))
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


class RandAdjustContrastHeartd(RandAdjustContrastd):
    """``RandAdjustContrastd`` of the images alone, with one gamma for all of them: an occupancy map has no contrast.

    Args:
        view: of the channels of the keys (C, H, W).
        kwargs: of ``RandAdjustContrastd``.
    """

    def __init__(self, view: View | Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.images = as_view(view).images

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        adjusted = super().__call__({key: item[key][: self.images] for key in self.key_iterator(item)})
        return item | {key: torch.cat([part, item[key][self.images :]]) for key, part in adjusted.items()}


@cache
def pixels(height: int, width: int) -> np.ndarray:
    """Pixels from the center of an image, row by row: (height * width, 2), x before y."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([columns - (width - 1) / 2, rows - (height - 1) / 2], axis=-1).reshape(-1, 2)
