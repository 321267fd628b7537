"""Which subjects an inference is asked for, where their files lie, and who of them cannot be used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scripts.cohort.datalist import FILE_KEYS, check_files, locate, section_items
from scripts.cohort.examine import explained
from scripts.cohort.journal import examine_changed
from scripts.cohort.layout import MASKS, find_subjects
from scripts.cohort.quality import QualityRules
from scripts.parallel import Workers
from scripts.segmentation.missing import segment_missing
from scripts.storage import file_state, output_folder

RESERVED = ("codes.csv", "attributes.csv", "whatif.csv", "excluded.csv", "examined.jsonl", "inference_settings.json")


class Subjects(NamedTuple):
    """The subjects of an inference.

    Args:
        items: those to encode, as items of a datalist with full paths, and with the ``state`` of their files.
        excluded: ``subject`` and ``reason`` of those that cannot be used.
    """

    items: list[dict[str, Any]]
    excluded: list[dict[str, str]]


def find_items(
    dataset_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    datalist: str | os.PathLike | None = None,
    section: str | None = None,
    rules: Mapping[str, int] | None = None,
    workers: Workers | int | None = None,
    segmentation: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    subject: str | int | None = None,
) -> Subjects:
    """The subjects to encode: those of a datalist, or all of a UKBB-format tree that pass the quality control.

    What the examination finds is kept in ``output_dir/examined.jsonl``, so that no subject is examined twice.

    Args:
        dataset_dir: UKBB-format tree.
        output_dir: folder of the results.
        datalist: a file written by ``run prepare``, instead of an examination.
        section: section of the datalist; None for all.
        rules: thresholds of the quality control, see ``QualityRules``.
        workers: who examines; None takes one process per core.
        segmentation: weights of a segmentation network for subjects without masks, see ``load_segmenter``; their
            predicted masks go to ``output_dir/masks``.
        device: of that network.
        subject: name of the only one to encode; None for all.

    Raises:
        FileNotFoundError, ValueError: when there is no subject at all, none of this name, or a section is named without
            a datalist.
    """
    if datalist:
        return from_datalist(datalist, section, dataset_dir, subject)
    if section:
        raise ValueError(f"section '{section}' is one of a datalist: name that with --datalist too.")
    target = output_folder(output_dir)
    folders = {folder.name: folder for folder in find_subjects(dataset_dir, target)}
    folders = chosen(folders, subject, f"dataset_dir '{dataset_dir}'")
    unsegmented = segment_missing(folders, target / MASKS, segmentation, device, workers) if segmentation else {}
    rows = examine_changed(folders, QualityRules.of(rules), target, workers)
    return located(explained(rows, unsegmented), dataset_dir, target / MASKS)


def from_datalist(
    datalist: str | os.PathLike, section: str | None, dataset_dir: str | os.PathLike, subject: str | int | None = None
) -> Subjects:
    """The subjects of a datalist, or the one of a name; those whose files have vanished are excluded.

    Raises:
        FileNotFoundError: when the datalist, or every file that it names, is missing.
        ValueError: when the datalist is broken, the section is empty, or the subject is not in it.
    """
    rows = {row["subject"]: row for row in section_items(datalist, section)}
    rows = chosen(rows, subject, f"datalist '{datalist}'" + (f", section {section}" if section else ""))
    masks_dir = Path(datalist).parent / MASKS
    subjects = located(rows, dataset_dir, masks_dir)
    if not subjects.items:
        check_files(rows, datalist, dataset_dir, masks_dir)
    return subjects


def chosen(subjects: Mapping[str, Any], subject: str | int | None, place: str) -> list[Any]:
    """What there is of all subjects, or of the one of a name.

    Raises:
        ValueError: when there is none of this name.
    """
    if subject is None:
        return list(subjects.values())
    name = str(subject)  # a command line makes numbers of names
    if name not in subjects:
        # Without the nearest name, which is that of somebody whom the user has not named: it would stay in the log.
        raise ValueError(f"subject '{name}' is not among the {len(subjects)} of {place}; look for its name there")
    return [subjects[name]]


def located(rows: Iterable[Mapping[str, Any]], dataset_dir: str | os.PathLike, masks_dir: Path) -> Subjects:
    """Tell apart the rows of an examination or datalist that can be used, and locate the files of these."""
    subjects = Subjects([], [])
    for row in rows:
        reason = row["reason"] if row.get("status") == "excluded" else ""
        if row["subject"] in RESERVED:
            reason = f"'{row['subject']}' is the name of a file of results; rename the subject's folder"
        try:
            item = {} if reason else locate(row, dataset_dir, masks_dir)
        except OSError as error:  # vanished since the examination
            reason = str(error)
        if reason:
            subjects.excluded.append({"subject": row["subject"], "reason": reason})
        else:
            subjects.items.append(item | {"state": state(row, item)})
    return subjects


def state(row: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """What a subject's result depends on, as a hash: what is known of it, and its files' sizes and times."""
    content = json.dumps([row, [file_state(item[key]) for key in FILE_KEYS]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
