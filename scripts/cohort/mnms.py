"""Importer of M&Ms (Campello et al., IEEE TMI 2021, doi 10.1109/TMI.2021.3090082) to the UKBB format.

What it relies on, as nnU-Net's and CineMA's converters of the distributed archive ``OpenDataset`` do:

- ``<code>_sa.nii.gz`` is the cine, ``<code>_sa_gt.nii.gz`` its masks on the same grid; only the frames ED and ES are
  segmented. Labels are 1 LV cavity, 2 myocardium, 3 RV cavity, as in the UKBB format.
- The table's columns ED and ES count frames from 0. Its release 211230 has an index column before ``External code``;
  earlier ones (201014, 211006) have not. Columns are therefore found by name, and all but these three may be missing.
- Unlabeled subjects may come with mask files too, which hold no label.

M&Ms-2 (``dataset_information.csv``, one file per phase) has another layout and is not supported.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from scripts.cohort.importing import import_subjects
from scripts.cohort.layout import PHASES, SubjectError, open_scan, read_mask, read_stored, spacing_affine, write_volume
from scripts.parallel import Workers
from scripts.storage import read_csv, repeated_lines

FOLDERS = {
    "Training/Labeled": "training",
    "Training/Unlabeled": "training",
    "Validation": "validation",
    "Testing": "test",
}
CODE = "External code"
COLUMNS = {
    "diagnosis": "Pathology",
    "centre": "Centre",
    "sex": "Sex",
    "age": "Age",
    "height": "Height",
    "weight": "Weight",
}
INFO_COLUMNS = ("subject", "section", "vendor", *COLUMNS)
EXPECTED = (
    "expected the unpacked OpenDataset: 211230_M&Ms_Dataset_information_diagnosis_opendataset.csv beside folders "
    f"{', '.join(f'{folder}/<code>' for folder in FOLDERS)} (M&Ms-2 is not supported)"
)


def import_mnms(
    source_dir: str | os.PathLike | None, dataset_dir: str | os.PathLike, workers: Workers | int | None = None
) -> None:
    """Convert M&Ms subjects to the UKBB format and gather their part of the table in ``info.csv``.

    ED and ES are taken out of the cine: voxels are copied as they are, the affine gets the header's spacing. Masks are
    written where a subject has any. The folder becomes the column ``section``, for ``prepare --split_column section``.
    A subject that cannot be read is skipped, with the reason in ``import.csv``.

    Args:
        source_dir: the folder with the table and the folders ``Training``, ``Validation`` and ``Testing``.
        dataset_dir: target, made when missing.
        workers: who converts; None takes one process per core.

    Raises:
        FileNotFoundError: when ``source_dir`` holds no table or no subject.
        ValueError: when the table lacks a column or names a subject twice, or no subject could be imported.
    """
    if source_dir is None:
        raise FileNotFoundError(f"name the folder of M&Ms with --source_dir; {EXPECTED}.")
    path = find_table(Path(source_dir))
    table = read_table(path)
    sections = find_sections(Path(source_dir))
    convert = partial(import_subject, table=table, sections=sections)
    import_subjects(convert, list(sections), dataset_dir, INFO_COLUMNS, workers, "M&Ms")
    found = {folder.name for folder in sections}
    absent = [line for line, code in enumerate(table, start=2) if code not in found]
    if absent:
        print(
            f"  warning: {len(absent)} subjects of '{path.name}' have no folder, the first in line {absent[0]}; "
            "unpack the missing archives and import again if you need them."
        )


def find_table(source: Path) -> Path:
    """The newest table in the folder: their names start with the date, as in ``211230``."""
    tables = sorted(source.glob("*M&Ms*.csv"))
    if not tables:
        raise FileNotFoundError(f"source_dir '{source}' holds no table '*M&Ms*.csv'; {EXPECTED}.")
    return tables[-1]


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """Read the table's rows by subject; some releases lack columns other than code, ED and ES.

    Raises:
        ValueError: for a table without these, without rows, or with two rows for one subject.
    """
    rows = [{key: (value or "").strip() for key, value in row.items()} for row in read_csv(path)]
    if not rows or not {CODE, *PHASES} <= set(rows[0]):
        raise ValueError(
            f"'{path}' needs rows with the columns {CODE}, {', '.join(PHASES)}, separated by commas; it has "
            f"{', '.join(rows[0]) if rows else 'no row'}. Take the file as it is distributed."
        )
    lines = repeated_lines(rows, CODE)
    if lines:
        raise ValueError(
            f"'{path}' has more than one row for a subject, in lines {', '.join(map(str, lines))}; keep one of them."
        )
    return {row[CODE]: row for row in rows}


def find_sections(source: Path) -> dict[Path, str]:
    """List the subjects' folders and the section that each belongs to.

    Raises:
        FileNotFoundError: when there is none.
    """
    sections = {
        path: section
        for folder, section in FOLDERS.items()
        for path in sorted((source / folder).glob("[!.]*"))
        if path.is_dir()
    }
    if not sections:
        raise FileNotFoundError(f"source_dir '{source}' holds no subject; {EXPECTED}.")
    return sections


def import_subject(
    folder: Path, target: Path, table: Mapping[str, Mapping[str, str]], sections: Mapping[Path, str]
) -> dict[str, str]:
    """Convert one subject; returns its row of ``info.csv`` (age in years, height in cm, weight in kg).

    Everything is read before anything is written, so that a broken subject leaves nothing behind.
    """
    if folder.name not in table:
        raise SubjectError(f"the table has no row for it, so that its frames ED and ES are unknown; add {CODE}, ED, ES")
    row = table[folder.name]
    scan = folder / f"{folder.name}_sa.nii.gz"
    frames = find_frames(scan, row)
    volumes = {f"sa_{phase}.nii.gz": read_stored(scan, frame) for phase, frame in frames.items()}
    affine = volumes["sa_ED.nii.gz"][1]
    for phase, mask in read_masks(scan, frames, affine).items():
        volumes[f"label_sa_{phase}.nii.gz"] = mask, affine
    target.mkdir(exist_ok=True)
    for name, volume in volumes.items():
        write_volume(target / name, *volume)
    info = {column: row.get(source, "") for column, source in COLUMNS.items()}
    vendor = row.get("VendorName") or row.get("Vendor", "")
    return {"subject": folder.name, "section": sections[folder], "vendor": vendor, **info}


def find_frames(scan: Path, row: Mapping[str, str]) -> dict[str, int]:
    """The frames ED and ES by the table, which count from 0, as far as the cine has them.

    Raises:
        SubjectError: when the cine is missing or no cine, or a frame is no number or beyond its end.
    """
    if not scan.exists():
        raise SubjectError(f"{scan.name} is missing")
    shape = open_scan(scan).shape
    if len(shape) != 4:
        raise SubjectError(f"{scan.name} has shape {shape}; expected a cine of 4 axes")
    for phase in PHASES:
        if not row[phase].isdecimal() or int(row[phase]) >= shape[3]:
            raise SubjectError(
                f"the table gives frame {phase} as '{row[phase]}'; {scan.name} has frames 0 to {shape[3] - 1}"
            )
    if row["ED"] == row["ES"]:
        raise SubjectError(f"the table gives frame {row['ED']} both as ED and as ES")
    return {phase: int(row[phase]) for phase in PHASES}


def read_masks(scan: Path, frames: Mapping[str, int], affine: np.ndarray) -> dict[str, np.ndarray]:
    """Read the masks of both phases; returns none of them for a subject that nobody segmented.

    Warns when the masks' header places them elsewhere than the scan: they are taken voxel by voxel.

    Raises:
        SubjectError: for masks of another shape, with labels other than 1 to 3, or with one of the frames empty.
    """
    path = scan.with_name(scan.name.replace("_sa.", "_sa_gt."))
    if not path.exists():
        return {}
    image, shape = open_scan(path), open_scan(scan).shape
    if image.shape != shape:
        raise SubjectError(f"{path.name} has shape {image.shape}, but {scan.name} has {shape}")
    masks = {phase: read_mask(path, frame) for phase, frame in frames.items()}
    empty = [phase for phase, mask in masks.items() if not mask.any()]
    if empty:
        segmented = np.flatnonzero(read_mask(path).any(axis=(0, 1, 2))).tolist()
        if not segmented:
            return {}
        raise SubjectError(
            f"{path.name} is empty in frame {frames[empty[0]]}, which the table calls {empty[0]}; segmented are "
            f"frames {segmented}: correct the table"
        )
    if not np.allclose(spacing_affine(image, path), affine, atol=0.1):
        warnings.warn(f"{path.name} lies elsewhere than its scan by its header; the scan's is used.", stacklevel=2)
    return masks
