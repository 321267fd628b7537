"""One subject's row of the cohort: where its phases lie, whether it can be used, and its attributes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scripts.cohort.attributes import areas, basal_slices, base_is_first, derived, volumes
from scripts.cohort.layout import (
    MASK_TRUST,
    PHASES,
    PREDICTED,
    PhaseFiles,
    SubjectError,
    frame_time,
    open_scan,
    phase_files,
    printable,
    read_pair,
)
from scripts.cohort.quality import QualityRules, check_mask, heart_slices
from scripts.parallel import Failed, Workers, parallel_map

HEART_RATES = (20, 250)  # 1/min; outside, the header's frame time is not that of one heartbeat


def examine_all(
    folders: Sequence[Path],
    rules: QualityRules,
    workers: Workers | int | None,
    masks_dir: str | os.PathLike | None = None,
) -> Iterator[dict[str, Any] | Failed]:
    """Examine subjects in parallel, with a progress bar; returns their rows in the order of ``folders``.

    A subject whose examination failed twice, which tells nothing about the subject, has a ``Failed`` instead.
    """
    task = partial(examine_subject, rules=rules, masks_dir=masks_dir)
    return parallel_map(task, folders, workers, "examine", "subject")


def explained(rows: Iterable[Mapping[str, Any]], unsegmented: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of the examination in which a subject without a mask has the reason why none could be predicted."""
    return [
        {**row, "reason": unsegmented.get(row["subject"], row["reason"]) if row["status"] == "excluded" else ""}
        for row in rows
    ]


def examine_subject(folder: Path, rules: QualityRules, masks_dir: str | os.PathLike | None = None) -> dict[str, Any]:
    """Examine one subject; a problem of its files becomes the row's reason.

    Args:
        folder: a subject's folder in the UKBB format.
        rules: thresholds of the quality control.
        masks_dir: where predicted masks lie, for scans that came without one.

    Returns:
        ``subject``, ``status`` (``included`` or ``excluded``), ``reason``, ``warnings`` and, as far as the examination
        came, files (relative to the dataset, or to ``masks_dir``), the less trusted kind of mask, slices, voxel size
        (mm), volumes (mL), derived values and areas (cm²); of a cine, heart rate (1/min) and cardiac output (L/min).

    Raises:
        OSError: for a file that is there and cannot be read now, as when a share fails: another attempt may succeed.
    """
    row: dict[str, Any] = {"subject": printable(folder.name), "status": "excluded", "reason": "", "warnings": []}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            measure(folder, rules, row, masks_dir)
            row["status"] = "included"
        except SubjectError as error:
            raise_failing_disk(error)
            row["reason"] = str(error) + (" (in a predicted mask)" if row.get("mask") == PREDICTED else "")
    row["warnings"] = list(dict.fromkeys(str(warning.message) for warning in caught))[:1]
    return row


def raise_failing_disk(error: SubjectError) -> None:
    """Raise the error of the file system that is behind a subject's; a broken file has none, as it has no number."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno is not None:
        raise OSError(str(error)) from error


def measure(folder: Path, rules: QualityRules, row: dict[str, Any], masks_dir: str | os.PathLike | None = None) -> None:
    """Read both phases of a subject, measure them into ``row``, and check them.

    Raises:
        SubjectError: with the reason why the subject cannot be used; what was measured before stays in the row.
    """
    if printable(folder.name) != folder.name:
        raise SubjectError(f"the folder's name {folder.name!a} has control characters or is not UTF-8; rename it")
    files = phase_files(folder, masks_dir)
    row["mask"] = max((phase.mask_kind for phase in files.values()), key=MASK_TRUST.index)
    masks, affines, spacing = {}, {}, {}
    for phase in PHASES:
        row |= {f"{kind}_{phase}": f"{folder.name}/{getattr(files[phase], kind).name}" for kind in ("image", "mask")}
        row[f"frame_{phase}"] = files[phase].frame
        masks[phase], affines[phase] = read_phase(files[phase], phase)
        spacing[phase] = tuple(float(size) for size in np.linalg.norm(affines[phase][:3, :3], axis=0))
        row[f"slices_{phase}"] = int(heart_slices(masks[phase], rules.min_pixels).sum())
    row |= dict(zip(("spacing_x", "spacing_y", "spacing_z"), spacing["ED"], strict=True))
    row |= volumes(masks, spacing["ED"])
    for phase in PHASES:
        try:
            check_mask(masks[phase], rules)
        except SubjectError as error:
            raise SubjectError(f"{phase}: {error}") from error
    row |= derived(row)
    row |= cardiac_output(row["LVSV"], files["ED"])
    check_phases(spacing, row)
    row["handedness"] = handedness(affines["ED"], base_is_first(masks))
    slices = basal_slices(masks, rules.min_pixels)
    row |= {f"basal_slice_{phase}": slices[phase] for phase in PHASES} | areas(masks, slices, spacing["ED"])


def cardiac_output(stroke_volume: float, files: PhaseFiles) -> dict[str, float]:
    """Heart rate (1/min) and LV cardiac output (L/min) of a cine that covers one heartbeat; nothing without times.

    Warns when the header's frame time gives a heart rate that no heart has.
    """
    if files.frame is None:
        return {}
    beat = frame_time(files.image) * open_scan(files.image).shape[-1]
    if not np.isfinite(beat):
        return {}
    rate = 60 / beat
    if not HEART_RATES[0] <= rate <= HEART_RATES[1]:
        warnings.warn(
            f"{files.image.name}: the header's frame time would mean {rate:.3g} heartbeats "
            "per minute; heart rate and cardiac output are left out.",
            stacklevel=2,
        )
        return {}
    return {"HR": rate, "LVCO": stroke_volume * rate / 1000}


def read_phase(files: PhaseFiles, phase: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the mask of a phase and check that its scan can be used with it; returns mask and affine (mm)."""
    image, mask, affine = read_pair(files.image, files.mask, files.frame)
    low, high = np.percentile(image, (1, 99))
    if low == high:
        raise SubjectError(f"{phase}: the scan is constant ({low:g}), there is nothing to see")
    return mask, affine


def handedness(affine: np.ndarray, base_first: bool) -> int:
    """+1 or -1: which way around the scan's axes see the heart, by its affine and the position of the base.

    The sign itself means little, since some cohorts come without directions; but a subject whose sign is not that of
    the others is a mirror image of them, and a crop, which only rotates, leaves it one.
    """
    return int(np.sign(np.linalg.det(affine[:3, :3]))) * (1 if base_first else -1)


def check_phases(spacing: Mapping[str, tuple[float, ...]], volume: Mapping[str, float]) -> None:
    """The two phases are of one scan, and the LV is larger at ED than at ES."""
    if not np.allclose(spacing["ED"], spacing["ES"], rtol=1e-3):
        raise SubjectError(f"ED and ES differ in voxel size: {spacing['ED']} and {spacing['ES']} mm")
    if volume["LVESV"] > volume["LVEDV"]:
        raise SubjectError(
            f"LVESV ({volume['LVESV']:.1f} mL) exceeds LVEDV ({volume['LVEDV']:.1f} mL): ED and ES look exchanged"
        )
