"""Which subjects can be used: the quality rules of the paper (Section 2.3) and of the code that it cites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from scripts.cohort.attributes import slice_pixels
from scripts.cohort.layout import LABELS, SubjectError


@dataclass(frozen=True)
class QualityRules:
    """Thresholds of the quality control.

    Args:
        min_voxels: voxels that each of LV, RV and myocardium needs in the volume.
        min_pixels: pixels that a structure needs in a slice to count as shown there.
        min_slices: slices that must show LV and myocardium, without a gap between them.
    """

    min_voxels: int = 10
    min_pixels: int = 10
    min_slices: int = 6

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 0:
                raise ValueError(f"rules: {name} is {value!r}; expected a whole number of 0 or more.")

    @classmethod
    def of(cls, rules: Mapping[str, int] | None) -> QualityRules:
        """Rules by name, as a config gives them; those that are not named are the paper's.

        Raises:
            ValueError: for a rule that there is not, or a threshold that is no whole number.
        """
        known = asdict(cls())
        if not isinstance(rules or {}, Mapping) or not set(rules or {}) <= set(known):
            raise ValueError(f"rules are {rules!r}; expected thresholds by name, of {', '.join(known)}.")
        return cls(**(rules or {}))


def check_mask(mask: np.ndarray, rules: QualityRules) -> None:
    """Check one phase's label mask (X, Y, Z) against all rules.

    Raises:
        SubjectError: with the first rule that fails, in words.
    """
    check_structures(mask, rules)
    check_label_order(mask)
    check_slices(mask, rules)
    check_mid_cavity(mask, rules)


def check_structures(mask: np.ndarray, rules: QualityRules) -> None:
    """Each of LV, RV and myocardium is there."""
    for structure, label in LABELS.items():
        voxels = np.count_nonzero(mask == label)
        if voxels < rules.min_voxels:
            raise SubjectError(f"{structure} has {voxels} voxels; at least {rules.min_voxels} are needed")


def check_slices(mask: np.ndarray, rules: QualityRules) -> None:
    """Enough slices show LV and myocardium, and they follow one another."""
    shown = np.flatnonzero(heart_slices(mask, rules.min_pixels))
    if shown.size < rules.min_slices:
        raise SubjectError(
            f"LV and myocardium are shown in {shown.size} slices; at least {rules.min_slices} are needed"
        )
    missing = sorted(set(range(shown[0], shown[-1] + 1)) - set(shown.tolist()))
    if missing:
        raise SubjectError(f"LV or myocardium is missing in slice {missing[0]}, between slices that show them")


def heart_slices(mask: np.ndarray, min_pixels: int) -> np.ndarray:
    """Slices (Z,) of a mask that show both LV and myocardium."""
    pixels = slice_pixels(mask)
    return (pixels["LV"] >= min_pixels) & (pixels["Myo"] >= min_pixels)


def check_mid_cavity(mask: np.ndarray, rules: QualityRules) -> None:
    """The slice at the LV's mean height shows a connected LV with its myocardium, and a connected RV."""
    middle = round(float(np.nonzero(mask == LABELS["LV"])[2].mean()))
    section = mask[..., middle]
    left = (section == LABELS["LV"]) | (section == LABELS["Myo"])
    for name, structure in (("LV with myocardium", left), ("RV", section == LABELS["RV"])):
        size = largest_component(structure)
        if size < rules.min_pixels:
            raise SubjectError(
                f"{name} has a largest component of {size} pixels in the mid-cavity slice {middle}; "
                f"at least {rules.min_pixels} are needed"
            )


def largest_component(region: np.ndarray) -> int:
    """Pixels of the largest connected component of a binary image."""
    components, count = ndimage.label(region)
    return int(np.bincount(components.ravel())[1:].max()) if count else 0


def check_label_order(mask: np.ndarray) -> None:
    """The LV lies inside the ring of myocardium and the RV does not: labels that say otherwise are exchanged.

    ACDC labels the RV 1 and the LV 3, the UKBB format the other way round; volumes alone cannot tell.
    """
    lv, rv = (myocardial_border(mask, LABELS[name]) for name in ("LV", "RV"))
    if lv < rv:
        raise SubjectError(
            f"labels 1 and 3 look exchanged: {lv:.0%} of the border of label 1 (LV) touches myocardium, but "
            f"{rv:.0%} of label 3 (RV); expected 1 LV, 2 myocardium, 3 RV"
        )


def myocardial_border(mask: np.ndarray, label: int) -> float:
    """Fraction of a structure's in-plane border that touches myocardium."""
    found = ndimage.find_objects((mask == label).view(np.uint8))
    if not found:
        return 0.0
    # One pixel around the structure is all that its border needs, and a tenth of the whole image.
    around = (*(slice(max(axis.start - 1, 0), axis.stop + 1) for axis in found[0][:2]), found[0][2])
    near = mask[around]
    region = near == label
    cross = ndimage.generate_binary_structure(2, 1)[..., None]
    border = ndimage.binary_dilation(region, cross) & ~region
    return float(np.count_nonzero(near[border] == LABELS["Myo"]) / max(np.count_nonzero(border), 1))
