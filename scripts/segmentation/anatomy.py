"""What a heart's mask looks like: structures are whole, and the RV begins and ends as in masks of experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


class RVLimits(NamedTuple):
    """What the RV is like in nearly all masks of experts; by default, anything.

    Args:
        base_ratio: that it has at least, see ``base_ratio``.
        apical_growth: that it has in any slice at most, see ``apical_growth``.
    """

    base_ratio: float = 0.0
    apical_growth: float = math.inf


def within(mask: np.ndarray, limits: RVLimits) -> np.ndarray:
    """A label mask (X, Y, Z) without the slices of RV that experts would not have outlined.

    At the base they outline the RV whole or not at all; a network that is not sure outlines a part of it, and that
    decides which slice is the basal one. From its largest slice the RV tapers towards the apex; where it grows again,
    a network has taken for it what lies beside the apex, and the RV ends before.
    """
    slices, areas = rv_areas(mask)
    growing = np.flatnonzero(apical_growth(areas) > limits.apical_growth)
    outside = slices[growing[0] :] if len(growing) else slices[:0]
    if base_ratio(areas) < limits.base_ratio:
        outside = [slices[0], *outside]
    mask = mask.copy()
    for z in outside:
        mask[..., z][mask[..., z] == LABELS["RV"]] = 0
    return mask


def base_ratio(areas: np.ndarray) -> float:
    """Area of the RV in its most basal slice by that in the next; infinite where there are no two slices of RV.

    Args:
        areas: as of ``rv_areas``.
    """
    return float(areas[0] / areas[1]) if len(areas) > 1 else math.inf


def apical_growth(areas: np.ndarray) -> np.ndarray:
    """What each slice of RV has more than the one before it, in parts of the largest area; 0 where the RV tapers, and
    up to its largest slice.

    Args:
        areas: as of ``rv_areas``.
    """
    growth = np.diff(areas, prepend=areas[:1]).clip(0) / areas.max(initial=1)
    growth[: areas.argmax() + 1 if len(areas) else 0] = 0
    return growth


def rv_areas(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slices that show the RV, and its pixels in each, from base to apex."""
    areas = np.count_nonzero(mask == LABELS["RV"], axis=(0, 1))
    slices = np.flatnonzero(areas)
    ordered = slices if base_is_first({"": mask}) else slices[::-1]
    return ordered, areas[ordered]


def usual_limits(items: Sequence[Mapping[str, Any]], base_percentile: float, apex_percentile: float) -> RVLimits:
    """The limits that nearly all masks of a cohort keep.

    Args:
        items: subjects of a datalist with full paths.
        base_percentile, apex_percentile: part of the masks that may be outside of each limit, in percent.
    """
    masks = (read_mask(item[f"mask_{phase}"], item[f"frame_{phase}"]) for item in items for phase in PHASES)
    areas = [rv_areas(mask)[1] for mask in masks]
    ratios = [base_ratio(each) for each in areas]
    growths = [apical_growth(each).max(initial=0) for each in areas]
    return RVLimits(
        base_ratio=float(np.percentile(ratios, base_percentile, method="lower")),
        apical_growth=float(np.percentile(growths, 100 - apex_percentile, method="higher")),
    )


def largest_piece(region: np.ndarray) -> np.ndarray:
    """The largest connected piece of a binary image, as a binary image; nothing where there is nothing."""
    pieces, count = ndimage.label(region)
    if count < 2:
        return region
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
