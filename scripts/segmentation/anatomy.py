"""What a heart's mask looks like: structures are whole, and the RV ends at base and apex as in masks of experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import KeepLargestConnectedComponent
from scipy import ndimage

from scripts.cohort.attributes import base_is_first
from scripts.cohort.layout import LABELS, PHASES, read_mask

# Pixels that share an edge, in a slice or between neighbor slices: a piece of a structure that does not overlap with
# the structure in the slice beside it is another piece.
LARGEST_LEFT = KeepLargestConnectedComponent(
    [LABELS["LV"], LABELS["Myo"]], is_onehot=False, independent=True, connectivity=1
)
IN_PLANE = ndimage.generate_binary_structure(2, 1)[..., None]
# Of the RV's largest area. In none of the 200 masks of ACDC, a slice nearer to the apex than the largest one grows by
# more than 0.09 of it; a dip of an RV that has not tapered yet may be a part that the network missed.
GROWTH = 0.1
TAPERED = 0.5


def mended(mask: np.ndarray) -> np.ndarray:
    """A predicted label mask (X, Y, Z) without what cannot be a part of the heart.

    Through all slices, the largest piece of LV and of myocardium is kept, and the piece of RV that borders on the
    myocardium most: elsewhere in the body, larger cavities look like one. Of these, the largest piece in each slice is
    kept. Pixels without a label that the heart encloses get the label nearest to them.
    """
    connected = np.asarray(LARGEST_LEFT(mask[None])[0], dtype=np.uint8).copy()
    connected[(connected == LABELS["RV"]) & ~septal_piece(connected)] = 0
    return np.stack([mended_slice(connected[..., z]) for z in range(mask.shape[2])], axis=-1)


def septal_piece(mask: np.ndarray) -> np.ndarray:
    """The piece of RV with the longest border on the myocardium, (X, Y, Z) binary; the largest one if none has any."""
    right = mask == LABELS["RV"]
    pieces, count = ndimage.label(right)
    if count < 2:
        return right
    border = right & ndimage.binary_dilation(mask == LABELS["Myo"], IN_PLANE)
    lengths = np.bincount(pieces[border if border.any() else right], minlength=count + 1)[1:]
    return pieces == 1 + np.argmax(lengths)


def mended_slice(section: np.ndarray) -> np.ndarray:
    """One slice (X, Y) with the largest piece of each structure, and without holes."""
    kept = np.zeros_like(section)
    for label in np.unique(section[section > 0]):
        kept[largest_piece(section == label)] = label
    holes = ndimage.binary_fill_holes(kept > 0) & (kept == 0)
    if holes.any():
        nearest = ndimage.distance_transform_edt(kept == 0, return_distances=False, return_indices=True)
        kept[holes] = kept[tuple(nearest)][holes]
    return kept


def with_trimmed_rv(mask: np.ndarray, first: bool, least: float) -> np.ndarray:
    """A label mask (X, Y, Z) without the slices of RV, at base and apex, that experts would not have outlined.

    At the base they outline the RV whole or not at all; a network that is not sure outlines a part of it, and that
    decides which slice is the basal one. Towards the apex the RV tapers; where it then grows again, a network has taken
    for it what lies beside the apex, and the RV ends before.

    Args:
        mask: a predicted mask.
        first: whether the base is the first slice, see ``base_is_first``.
        least: area of the RV's most basal slice by that of the slice after it; below it, the RV is left out there.
    """
    slices, areas = rv_areas(mask, first)
    kept = slices[int(base_ratio(areas) < least) : regrowth(areas)]
    mask = mask.copy()
    mask[(mask == LABELS["RV"]) & ~np.isin(np.arange(mask.shape[-1]), kept)] = 0
    return mask


def base_ratio(areas: np.ndarray) -> float:
    """Area of the RV in its most basal slice by that in the next; infinite where there are no two slices of RV.

    Args:
        areas: as of ``rv_areas``.
    """
    return float(areas[0] / areas[1]) if len(areas) > 1 else math.inf


def regrowth(areas: np.ndarray) -> int:
    """The slice, of those that show the RV, at which it grows by more than ``GROWTH`` of its largest area after it has
    fallen below ``TAPERED`` of it; their number where it only tapers.

    Args:
        areas: as of ``rv_areas``.
    """
    shares = areas / areas.max(initial=1)
    grows = (np.diff(shares) > GROWTH) & (shares[:-1] < TAPERED)
    grows[: np.argmax(shares) if len(shares) else 0] = False
    return int(np.argmax(grows)) + 1 if grows.any() else len(areas)


def rv_areas(mask: np.ndarray, first: bool) -> tuple[np.ndarray, np.ndarray]:
    """Slices that show the RV, and its pixels in each, from base to apex.

    Args:
        mask: label mask (X, Y, Z).
        first: whether the base is the first slice.
    """
    areas = np.count_nonzero(mask == LABELS["RV"], axis=(0, 1))
    slices = np.flatnonzero(areas)[:: 1 if first else -1]
    return slices, areas[slices]


def usual_base_ratio(items: Sequence[Mapping[str, Any]], percentile: float) -> float:
    """The ratio that nearly all masks of a cohort exceed; 0 where none has two slices of RV.

    Args:
        items: subjects of a datalist with full paths.
        percentile: part of the masks that may have a smaller one, in percent.
    """
    ratios = [ratio for item in items for ratio in base_ratios(item) if math.isfinite(ratio)]
    return float(np.percentile(ratios, percentile, method="lower")) if ratios else 0.0


def base_ratios(item: Mapping[str, Any]) -> list[float]:
    """That of each phase of a subject."""
    masks = {phase: read_mask(item[f"mask_{phase}"], item[f"frame_{phase}"]) for phase in PHASES}
    first = base_is_first(masks)
    return [base_ratio(rv_areas(mask, first)[1]) for mask in masks.values()]


def largest_piece(region: np.ndarray) -> np.ndarray:
    """The largest connected piece of a binary image, as a binary image; nothing where there is nothing."""
    pieces, count = ndimage.label(region)
    if count < 2:
        return region
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
