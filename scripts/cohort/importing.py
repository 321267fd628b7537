"""What all importers share: many subjects at once, their table ``info.csv``, and the reasons why some were skipped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from scripts.cohort.layout import SubjectError
from scripts.parallel import Failed, Workers, parallel_map
from scripts.storage import output_folder, write_csv

Row = dict[str, str]


def import_subjects(
    convert: Callable[[Path, Path], Row],
    folders: Sequence[Path],
    dataset_dir: str | os.PathLike,
    columns: Sequence[str],
    workers: Workers | int | None,
    kind: str,
) -> None:
    """Convert subjects in parallel, gather their rows in ``info.csv``, and name those that were skipped.

    Args:
        convert: from a subject's foreign folder and its target to its row of ``info.csv``; can be pickled. It raises
            SubjectError for a subject that cannot be used, and warns of what the user should look at.
        folders: the subjects' foreign folders, whose names become the subjects' names.
        dataset_dir: target, made when missing.
        columns: of ``info.csv``.
        workers: who converts; None takes one process per core.
        kind: of the subjects, for the messages.

    Raises:
        ValueError: when no subject could be imported.
    """
    target = output_folder(dataset_dir, "dataset_dir")
    task = partial(import_or_explain, convert=convert, target=target)
    results = [
        (None, result.reason) if isinstance(result, Failed) else result
        for result in parallel_map(task, folders, workers, f"import {kind}", "subject")
    ]
    rows = [row for row, _ in results if row is not None]
    write_csv(target / "info.csv", rows, columns)
    print(f"Imported {len(rows)} of {len(folders)} {kind} subjects to {target}.")
    for folder, (row, message) in zip(folders, results, strict=True):
        if message:
            print(f"  {'skipped' if row is None else 'warning:'} {folder.name}: {message}")
    if not rows:
        raise ValueError(f"none of the {len(folders)} {kind} subjects could be imported; the reasons are listed above.")


def import_or_explain(folder: Path, convert: Callable[[Path, Path], Row], target: Path) -> tuple[Row | None, str]:
    """Convert one subject; returns its row and its first warning, or no row and the reason why it was skipped."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            row = convert(folder, target / folder.name)
        except SubjectError as error:
            return None, str(error)
    return row, str(caught[0].message) if caught else ""
