"""Cardiac attributes from label masks: volumes, areas, and what follows from them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from scipy.ndimage import center_of_mass

from scripts.cohort.layout import LABELS, PHASES, SubjectError

VOLUMES = ("LVEDV", "RVEDV", "MyoEDV", "LVESV", "RVESV", "MyoESV")  # the regularized attributes, in the paper's order
DERIVED = ("LVSV", "LVEF", "LVM", "RVSV", "RVEF")
CARDIAC_OUTPUT = ("HR", "LVCO")  # 1/min and L/min, of a cine whose header tells the time between frames
AREAS = ("LVEDA", "RVEDA", "MyoEDA", "LVESA", "RVESA", "MyoESA")
UNITS = {
    **dict.fromkeys(VOLUMES, "mL"),
    **{"LVSV": "mL", "LVEF": "%", "LVM": "g", "RVSV": "mL", "RVEF": "%", "HR": "/min", "LVCO": "L/min"},
    **dict.fromkeys(AREAS, "cm²"),
}
SIGNED = ("LVSV", "LVEF", "RVSV", "RVEF")  # below zero where a ventricle is larger at ES
MYOCARDIAL_DENSITY = 1.05  # g/mL


def slice_pixels(mask: np.ndarray) -> dict[str, np.ndarray]:
    """Pixels of every structure in every slice of a mask (X, Y, Z): structure to (Z,) counts."""
    return {name: np.count_nonzero(mask == label, axis=(0, 1)) for name, label in LABELS.items()}


def volumes(masks: Mapping[str, np.ndarray], spacing: Sequence[float]) -> dict[str, float]:
    """LV, RV and myocardial volume of each phase in mL.

    Args:
        masks: phase to label mask (X, Y, Z).
        spacing: voxel size in mm; the third is the distance between slices, gap included.
    """
    voxel_ml = float(np.prod(spacing)) / 1000
    return {
        f"{structure}{phase}V": float(np.count_nonzero(masks[phase] == label) * voxel_ml)
        for phase in PHASES
        for structure, label in LABELS.items()
    }


def derived(volume: Mapping[str, float]) -> dict[str, float]:
    """Stroke volumes (mL), ejection fractions (%) and LV mass (g, from the myocardium at ED)."""
    values = {"LVM": volume["MyoEDV"] * MYOCARDIAL_DENSITY}
    for ventricle in ("LV", "RV"):
        stroke = volume[f"{ventricle}EDV"] - volume[f"{ventricle}ESV"]
        values[f"{ventricle}SV"] = stroke
        values[f"{ventricle}EF"] = 100 * stroke / volume[f"{ventricle}EDV"]
    return {name: values[name] for name in DERIVED}


def areas(masks: Mapping[str, np.ndarray], slices: Mapping[str, int], spacing: Sequence[float]) -> dict[str, float]:
    """Area of each structure in the basal slice of each phase, in cm²."""
    pixel_cm2 = spacing[0] * spacing[1] / 100
    return {
        f"{structure}{phase}A": float(np.count_nonzero(masks[phase][..., slices[phase]] == label) * pixel_cm2)
        for phase in PHASES
        for structure, label in LABELS.items()
    }


def in_plane_power(name: str) -> int:
    """The power of an in-plane zoom by which an attribute grows, slices staying where they are.

    Raises:
        ValueError: for a name that is no attribute.
    """
    if name not in (*VOLUMES, *DERIVED, *AREAS):
        raise ValueError(f"'{name}' is not an attribute; expected one of {', '.join((*VOLUMES, *DERIVED, *AREAS))}.")
    return 0 if name.endswith("EF") else 2


def base_is_first(masks: Mapping[Hashable, np.ndarray]) -> bool:
    """Whether the slices run from base to apex.

    All phases of a heart, or frames of a cine, decide together, so that they cannot contradict each other.
    """
    return sum(base_tendency(mask) for mask in masks.values()) < 0


def base_tendency(mask: np.ndarray) -> float:
    """Below 0 where the base seems to be at the first slice, above 0 where it seems to be at the last one.

    There are two signs, since each of them fails for some hearts: the cavities are larger at the base, and the slice
    of the largest RV lies on the base's side of the middle of LV and myocardium, also where the LV is widest near its
    apex. By how far tells nothing more, so that the second counts one slice at most.
    """
    pixels = slice_pixels(mask)
    cavities, left, right = pixels["LV"] + pixels["RV"], pixels["LV"] + pixels["Myo"], pixels["RV"]
    tendency = 0.0
    if cavities.any():
        tendency += middle(cavities) - middle(cavities > 0)
    if left.any() and right.any():
        tendency += np.clip(middle(right == right.max()) - middle(left), -1, 1)
    return float(tendency)


def middle(weights: np.ndarray) -> float:
    """The slice in the middle of weights (Z,), which are not all 0."""
    return center_of_mass(weights.astype(float))[0]


def basal_slices(masks: Mapping[str, np.ndarray], min_pixels: int = 10) -> dict[str, int]:
    """Index of each phase's basal slice: the most basal one that shows LV, RV and myocardium.

    Args:
        masks: phase to label mask (X, Y, Z).
        min_pixels: pixels that make a structure count as shown.

    Raises:
        SubjectError: when no slice of a phase shows all three.
    """
    first = base_is_first(masks)
    found = {}
    for phase, mask in masks.items():
        complete = np.flatnonzero(np.all([count >= min_pixels for count in slice_pixels(mask).values()], axis=0))
        if complete.size == 0:
            raise SubjectError(f"{phase}: no slice shows LV, RV and myocardium with {min_pixels} pixels each")
        found[phase] = int(complete[0] if first else complete[-1])
    return found
