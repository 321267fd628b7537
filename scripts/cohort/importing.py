"""What all importers share: many subjects at once, their table ``info.csv``, and in ``import.csv`` who was skipped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from scripts.cohort.layout import SubjectError
from scripts.cohort.privacy import summarized
from scripts.parallel import Failed, Workers, parallel_map
from scripts.storage import output_folder, write_csv

Row = dict[str, str]
OUTCOMES = "import.csv"


def import_subjects(
    convert: Callable[[Path, Path], Row],
    folders: Sequence[Path],
    dataset_dir: str | os.PathLike,
    columns: Sequence[str],
    workers: Workers | int | None,
    kind: str,
) -> None:
    """Convert subjects in parallel, and gather their rows in ``info.csv``.

    Those that were skipped, and those that the user should look at, are counted in the log and named in ``import.csv``.

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
    names = [folder.name.removesuffix(".zip") for folder in folders]
    outcomes = [
        {"subject": name, "status": "skipped" if row is None else "warning", "message": message}
        for name, (row, message) in zip(names, results, strict=True)
        if message
    ]
    write_csv(target / OUTCOMES, outcomes, ("subject", "status", "message"))
    print_outcomes(outcomes, target / OUTCOMES)
    if not rows:
        raise ValueError(f"none of the {len(folders)} {kind} subjects could be imported; the reasons are listed above.")


def print_outcomes(outcomes: Sequence[Row], path: Path) -> None:
    """Print how many subjects were skipped, or are warned of, and why."""
    for status in ("skipped", "warning"):
        told = [(row["subject"], row["message"]) for row in outcomes if row["status"] == status]
        for count, message in summarized(told):
            print(f"  {status} {count}: {message}")
    if outcomes:
        print(f"  whose message is which: see {path}")


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
