"""One subject's row of the cohort: where its phases lie, whether it can be used, and its attributes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scripts.cohort.attributes import areas, basal_slices, derived, volumes
from scripts.cohort.datalist import load_items
from scripts.cohort.layout import PHASES, PhaseFiles, SubjectError, find_subjects, phase_files, read_image, read_mask
from scripts.cohort.parallel import parallel_map
from scripts.cohort.quality import QualityRules, check_mask, heart_slices
from scripts.storage import output_folder, write_csv


def examine_all(folders: Iterable[Path], rules: QualityRules, workers: int) -> Iterator[dict[str, Any]]:
    """Examine subjects in parallel, with a progress bar; yields their rows in the order of ``folders``."""
    yield from parallel_map(partial(examine_subject, rules=rules), list(folders), workers, "examine", "subject")


def find_items(
    dataset_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    datalist: str | os.PathLike | None = None,
    section: str | None = None,
    rules: Mapping[str, int] | None = None,
    workers: int | None = None,
) -> list[dict[str, Any]]:
    """The subjects to encode: those of a datalist, or all of a UKBB-format tree that pass the quality control.

    Subjects that do not pass are listed with their reason in ``output_dir/excluded.csv`` and do not stop the others.

    Args:
        dataset_dir: UKBB-format tree.
        output_dir: folder of ``excluded.csv``.
        datalist: a file written by ``run prepare``, instead of a new examination.
        section: section of the datalist; None for all.
        rules: thresholds of the quality control, see ``QualityRules``.
        workers: processes of the examination; None takes one per core.

    Raises:
        FileNotFoundError, ValueError: when no subject is left.
    """
    if datalist:
        return with_scan_paths(load_items(datalist, dataset_dir, section))
    rows = list(examine_all(find_subjects(dataset_dir), QualityRules(**(rules or {})), workers or os.cpu_count()))
    excluded = [row for row in rows if row["status"] == "excluded"]
    path = output_folder(output_dir) / "excluded.csv"
    write_csv(path, [{key: row[key] for key in ("subject", "reason")} for row in excluded], ("subject", "reason"))
    for row in excluded:
        print(f"  excluded {row['subject']}: {row['reason']}")
    if len(excluded) == len(rows):
        raise ValueError(f"none of the {len(rows)} subjects in dataset_dir '{dataset_dir}' can be used; see {path}.")
    return with_scan_paths([row for row in rows if row["status"] == "included"])


def with_scan_paths(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep each scan's path under ``scan_<phase>``, since loading replaces ``image_<phase>`` by its voxels."""
    return [item | {f"scan_{phase}": item[f"image_{phase}"] for phase in PHASES} for item in items]


def examine_subject(folder: Path, rules: QualityRules) -> dict[str, Any]:
    """Examine one subject; a problem becomes the row's reason and is never raised.

    Args:
        folder: a subject's folder in the UKBB format.
        rules: thresholds of the quality control.

    Returns:
        ``subject``, ``status`` (``included`` or ``excluded``), ``reason`` and, as far as known, the files, slices,
        voxel size (mm), volumes (mL), derived values and areas (cm²), and ``warnings``.
    """
    row: dict[str, Any] = {"subject": folder.name, "status": "excluded", "reason": "", "warnings": []}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            row |= measure(folder, rules)
            row["status"] = "included"
        except (SubjectError, OSError) as error:
            row["reason"] = str(error)
    row["warnings"] = list(dict.fromkeys(str(warning.message) for warning in caught))[:1]
    return row


def measure(folder: Path, rules: QualityRules) -> dict[str, Any]:
    """Read both phases of a subject, check them, and measure the attributes.

    Raises:
        SubjectError: with the reason why the subject cannot be used.
    """
    files = phase_files(folder)
    masks, spacing = {}, {}
    for phase in PHASES:
        masks[phase], spacing[phase] = read_phase(files[phase], phase)
    volume = volumes(masks, spacing["ED"])
    for phase in PHASES:
        try:
            check_mask(masks[phase], rules)
        except SubjectError as error:
            raise SubjectError(f"{phase}: {error}") from error
    check_phases(spacing, volume)
    slices = basal_slices(masks, rules.min_pixels)
    row: dict[str, Any] = dict(zip(("spacing_x", "spacing_y", "spacing_z"), spacing["ED"], strict=True))
    for phase in PHASES:
        row[f"image_{phase}"], row[f"mask_{phase}"] = str(files[phase].image), str(files[phase].mask)
        row[f"frame_{phase}"] = files[phase].frame
        row[f"slices_{phase}"] = int(heart_slices(masks[phase], rules.min_pixels).sum())
        row[f"basal_slice_{phase}"] = slices[phase]
    return row | volume | derived(volume) | areas(masks, slices, spacing["ED"])


def read_phase(files: PhaseFiles, phase: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read the mask of a phase and check that its scan can be used with it; returns mask and voxel size (mm)."""
    mask = read_mask(files.mask, files.frame)
    image, affine = read_image(files.image, files.frame)
    if image.shape != mask.shape:
        raise SubjectError(f"{phase}: scan has shape {image.shape} but its mask has {mask.shape}")
    low, high = np.percentile(image, (1, 99))
    if low == high:
        raise SubjectError(f"{phase}: the scan is constant ({low:g}), there is nothing to see")
    return mask, tuple(float(size) for size in np.linalg.norm(affine[:3, :3], axis=0))


def check_phases(spacing: dict[str, tuple[float, ...]], volume: dict[str, float]) -> None:
    """The two phases are of one scan, and the LV is larger at ED than at ES."""
    if not np.allclose(spacing["ED"], spacing["ES"], rtol=1e-3):
        raise SubjectError(f"ED and ES differ in voxel size: {spacing['ED']} and {spacing['ES']} mm")
    if volume["LVESV"] > volume["LVEDV"]:
        raise SubjectError(
            f"LVESV ({volume['LVESV']:.1f} mL) exceeds LVEDV ({volume['LVEDV']:.1f} mL): ED and ES look exchanged"
        )
