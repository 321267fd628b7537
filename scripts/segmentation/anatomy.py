"""What a heart's mask looks like: structures are whole, and the RV ends at the base as in masks of experts."""

from __future__ import annotations

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


def without_partial_base(mask: np.ndarray, least: float) -> np.ndarray:
    """A label mask (X, Y, Z) whose RV does not end at the base in a slice that shows a part of it only.

    Experts outline the RV at the base whole or not at all; a network that is not sure outlines a part. That decides
    which slice is the basal one.

    Args:
        mask: a predicted mask.
        least: area of the RV's most basal slice by that of the slice after it; below it, the RV is left out there.
    """
    if base_ratio(mask) >= least:
        return mask
    mask = mask.copy()
    section = mask[..., rv_slices(mask)[0]]
    section[section == LABELS["RV"]] = 0
    return mask


def base_ratio(mask: np.ndarray) -> float:
    """Area of the RV in its most basal slice by that in the next; infinite where there are no two slices of RV."""
    slices = rv_slices(mask)
    if len(slices) < 2:
        return float("inf")
    first, second = (np.count_nonzero(mask[..., z] == LABELS["RV"]) for z in slices[:2])
    return first / second


def rv_slices(mask: np.ndarray) -> np.ndarray:
    """Slices that show the RV, from base to apex."""
    slices = np.flatnonzero((mask == LABELS["RV"]).any(axis=(0, 1)))
    return slices if not len(slices) or base_is_first({"": mask}) else slices[::-1]


def usual_base_ratio(items: Sequence[Mapping[str, Any]], percentile: float) -> float:
    """The ratio that nearly all masks of a cohort exceed.

    Args:
        items: subjects of a datalist with full paths.
        percentile: part of the masks that may have a smaller one, in percent.
    """
    masks = (read_mask(item[f"mask_{phase}"], item[f"frame_{phase}"]) for item in items for phase in PHASES)
    return float(np.percentile([base_ratio(mask) for mask in masks], percentile, method="lower"))


def largest_piece(region: np.ndarray) -> np.ndarray:
    """The largest connected piece of a binary image, as a binary image; nothing where there is nothing."""
    pieces, count = ndimage.label(region)
    if count < 2:
        return region
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
