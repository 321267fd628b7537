"""``run prepare``: from a UKBB-format tree to cohort.csv and datalist.json."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.cohort.attributes import AREAS, CARDIAC_OUTPUT, DERIVED, UNITS, VOLUMES
from scripts.cohort.datalist import FILE_KEYS, PHASE_KEYS, write_datalist
from scripts.cohort.examine import explained
from scripts.cohort.journal import examine_changed
from scripts.cohort.layout import MASKS, PHASES, find_subjects
from scripts.cohort.privacy import summarized
from scripts.cohort.quality import QualityRules
from scripts.cohort.split import SECTIONS, split_by_column, split_subjects
from scripts.parallel import Workers
from scripts.segmentation.missing import segment_missing
from scripts.storage import output_folder, read_csv, repeated_lines, write_csv

COLUMNS = (
    *("subject", "status", "reason", "mask"),
    *(f"{kind}_{phase}" for kind in ("slices", "basal_slice") for phase in PHASES),
    *("spacing_x", "spacing_y", "spacing_z", "handedness"),
    *VOLUMES,
    *DERIVED,
    *CARDIAC_OUTPUT,
    *AREAS,
)
RESERVED = {*COLUMNS, *FILE_KEYS, *PHASE_KEYS, "warnings"}


def prepare(
    dataset_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    user_table: str | os.PathLike | None = None,
    split: Sequence[float] = (0.7, 0.15, 0.15),
    split_column: str | None = None,
    seed: int = 0,
    rules: Mapping[str, int] | None = None,
    workers: Workers | int | None = None,
    segmentation: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Examine every subject and write ``cohort.csv`` (all of them) and ``datalist.json`` (those that can be used).

    Args:
        dataset_dir: UKBB-format tree.
        output_dir: target folder.
        user_table: CSV with a ``subject`` column, whose other columns are joined; None takes ``dataset_dir/info.csv``
            where it exists.
        split: shares of training, validation and test.
        split_column: column of the user table that holds the section instead.
        seed: of the split.
        rules: thresholds of the quality control, see ``QualityRules``.
        workers: who examines; None takes one process per core.
        segmentation: weights of a segmentation network for subjects without masks, see ``load_segmenter``; their
            predicted masks go to ``output_dir/masks``.
        device: of that network.

    Raises:
        FileNotFoundError: when there is no subject, or no such user table, or when subjects vanish meanwhile.
        ValueError: when no subject can be used, or the user table does not fit.
    """
    target = output_folder(output_dir)
    folders = find_subjects(dataset_dir, target)
    table = read_user_table(dataset_dir, user_table)
    unsegmented = segment_missing(folders, target / MASKS, segmentation, device, workers) if segmentation else {}
    rows = examine_changed(folders, QualityRules.of(rules), target, workers)
    refuse_vanished(folders, rows, dataset_dir)
    rows = [row | table.get(row["subject"], {}) for row in explained(rows, unsegmented)]
    scanned = {row["subject"] for row in rows}
    unmatched = [line for line, subject in enumerate(table, start=2) if subject not in scanned]
    if unmatched:
        print(f"  warning: {len(unmatched)} subjects of the user table have no scan, the first in line {unmatched[0]}.")
    extra = list(dict.fromkeys(column for columns in table.values() for column in columns))
    write_csv(target / "cohort.csv", [only(row, (*COLUMNS, *extra)) for row in rows], (*COLUMNS, *extra))
    included = [row for row in rows if row["status"] == "included"]
    if included:
        names = [row["subject"] for row in included]
        sections = split_by_column(included, split_column) if split_column else split_subjects(names, split, seed)
        write_datalist(target / "datalist.json", included, sections)
        counts = Counter(sections.values())
        print(f"Split: {', '.join(f'{counts[section]} {section}' for section in SECTIONS)}.")
    print_summary(rows, target)
    if not included:
        raise ValueError(
            f"none of the {len(rows)} subjects in '{dataset_dir}' can be used; see {target / 'cohort.csv'}."
        )


def refuse_vanished(folders: Sequence[Path], rows: Sequence[Mapping[str, Any]], dataset_dir: str | os.PathLike) -> None:
    """Raise for a dataset that was lost meanwhile: a datalist of what is left of it would have another split.

    Raises:
        FileNotFoundError: naming the dataset, before cohort.csv and datalist.json are written.
    """
    excluded = [folder for folder, row in zip(folders, rows, strict=True) if row["status"] != "included"]
    gone = sum(not os.path.isdir(folder) for folder in excluded)
    if gone:
        raise FileNotFoundError(
            f"{gone} of {len(folders)} folders of dataset_dir '{dataset_dir}' have vanished while they were examined: "
            "mount it again. The same command then goes on; cohort.csv and datalist.json are those of before."
        )


def only(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """The row's values of the given columns; six significant digits are below the precision of any scan."""
    values = {column: row[column] for column in columns if column in row}
    return {column: f"{value:.6g}" if isinstance(value, float) else value for column, value in values.items()}


def read_user_table(dataset_dir: str | os.PathLike, path: str | os.PathLike | None) -> dict[str, dict[str, str]]:
    """Read the user's columns by subject; a column that prepare itself writes gets the prefix ``user_``.

    Raises:
        FileNotFoundError: when a named table does not exist.
        ValueError: when it lacks ``subject`` or names one twice.
    """
    if path is None:
        path = Path(dataset_dir) / "info.csv"
        if not path.exists():
            return {}
    elif not Path(path).is_file():
        raise FileNotFoundError(f"user_table '{path}' does not exist.")
    rows = read_csv(path)
    if rows and "subject" not in rows[0]:
        raise ValueError(  # what stands there may be the first subject, where there is no header
            f"user_table '{path}' needs a header line with a column 'subject', separated by commas; none of the "
            f"{len(rows[0])} columns of its first line is called so."
        )
    lines = repeated_lines(rows, "subject")
    if lines:
        raise ValueError(
            f"user_table '{path}' names a subject more than once, in lines {', '.join(map(str, lines))}; keep one row "
            "per subject."
        )
    renamed = {column: f"user_{column}" if column in RESERVED else column for column in (rows[0] if rows else ())}
    return {row.pop("subject"): {renamed[column]: value for column, value in row.items()} for row in map(dict, rows)}


def print_summary(rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Print how many subjects were found, included and excluded, why, and the attributes' mean and SD.

    Logs are mailed and collected: whom it is about is told by ``cohort.csv`` alone.
    """
    included = [row for row in rows if row["status"] == "included"]
    print(f"Found {len(rows)} subjects: {len(included)} included, {len(rows) - len(included)} excluded.")
    reasons = summarized((row["subject"], row["reason"]) for row in rows if row["status"] == "excluded")
    for count, reason in reasons:
        print(f"  excluded {count}: {reason}")
    if reasons:
        print(f"  whose reason is which: see 'reason' in {target / 'cohort.csv'}")
    mirrored = mirror_images(included)
    if mirrored:
        print(
            f"  warning: {len(mirrored)} subjects are mirror images of the others by their affines; see 'handedness' "
            "in cohort.csv, and flip one in-plane axis if that is so."
        )
    for name in (*VOLUMES, *DERIVED):
        values = np.array([row[name] for row in included])
        if values.size > 1:
            print(f"  {name:>7} {values.mean():6.1f} ± {values.std(ddof=1):.1f} {UNITS[name]}")
    print(f"Written: {target / 'cohort.csv'}" + (f", {target / 'datalist.json'}" if included else ""))


def mirror_images(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Subjects whose handedness is that of the fewer."""
    signs = Counter(row["handedness"] for row in rows)
    rare = signs.most_common()[-1][0] if len(signs) > 1 else None
    return [row["subject"] for row in rows if row["handedness"] == rare]
