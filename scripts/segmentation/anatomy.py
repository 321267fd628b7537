"""What a heart's mask looks like: each structure is one piece whose slices overlap, and nothing is missing inside."""

from __future__ import annotations

import numpy as np
from monai.transforms import KeepLargestConnectedComponent
from scipy import ndimage

from scripts.cohort.layout import LABELS

# Pixels that share an edge, in a slice or between neighbor slices: a piece of a structure that does not overlap with
# the structure in the slice beside it is another piece.
OVERLAPPING = KeepLargestConnectedComponent(list(LABELS.values()), is_onehot=False, independent=True, connectivity=1)


def mended(mask: np.ndarray) -> np.ndarray:
    """A predicted label mask (X, Y, Z) without what cannot be a part of the heart.

    Of each structure the largest piece through all slices is kept, and of that the largest piece in each slice. Pixels
    without a label that the heart encloses get the label nearest to them.
    """
    connected = np.asarray(OVERLAPPING(mask[None])[0], dtype=np.uint8)
    return np.stack([mended_slice(connected[..., z]) for z in range(mask.shape[2])], axis=-1)


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


def largest_piece(region: np.ndarray) -> np.ndarray:
    """The largest connected piece of a binary image, as a binary image; nothing where there is nothing."""
    pieces, count = ndimage.label(region)
    if count < 2:
        return region
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
