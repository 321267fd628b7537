"""One inference from beginning to end: run, tables, summary, and an exit code that tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from monai.engines import SupervisedEvaluator

from scripts.calibration.calibration import Calibration
from scripts.cohort.privacy import summarized
from scripts.inference.answers import NOTABLE
from scripts.inference.items import Subjects
from scripts.inference.records import Records
from scripts.inference.spread import spread
from scripts.inference.writers import SubjectWriter
from scripts.parallel import Workers
from scripts.storage import read_csv

INCOMPLETE = 3  # exit code when some subjects have no result


def infer(
    evaluator: SupervisedEvaluator,
    writer: SubjectWriter,
    subjects: Subjects,
    remaining: int,
    workers: Workers | None = None,
) -> None:
    """Encode the remaining subjects and gather the tables of all, even when the run is interrupted.

    Args:
        evaluator: runs over the remaining subjects, with ``writer`` among its handlers.
        writer: keeps their results.
        subjects: all subjects that were asked for.
        remaining: how many have no result yet.
        workers: where these are of a cluster, they encode, and not ``evaluator``.

    Raises:
        SystemExit: with code 3, after everything is written, when a subject has no result.
    """
    try:
        if remaining and workers is not None and workers.remote:
            spread(writer, workers)
        elif remaining:
            evaluator.run()
    except BaseException:
        with suppress(OSError):  # such as of a full disk, of which the first error tells more
            finish(writer, subjects)
        raise
    if finish(writer, subjects):
        raise SystemExit(INCOMPLETE)


def finish(writer: SubjectWriter, subjects: Subjects) -> int:
    """Write the tables and print the summary; returns how many subjects have no result."""
    failed = [{"subject": failure.subject, "reason": failure.reason} for failure in writer.failures]
    excluded = [*subjects.excluded, *failed]
    results = writer.records.gather(subjects.items, excluded)
    print_summary(results, writer.written, excluded, writer.records)
    print_cautions(table_paths(writer.records)[-1], writer.calibration)
    lost = len(subjects.items) - results - len(failed)
    if lost > 0:
        print(f"{lost} subjects have neither a result nor a reason: is another inference at work in this folder?")
    return len(excluded) + max(lost, 0)


def print_cautions(table: Path, calibration: Calibration | None) -> None:
    """Print what is wrong with single results, and what holds for all of this model: not all look at pages.

    Args:
        table: of the results, with a column ``out_of_range``, and of counterfactuals a column ``missed``.
        calibration: of the model.
    """
    rows = read_csv(table)
    flagged = Counter(row.get("out_of_range") for row in rows)
    known = flagged["True"] + flagged["False"]
    if known:
        meaning = f", of which estimates mean little (see {table})" if flagged["True"] else ""
        print(f"Out of range: {flagged['True']} of {known} scans{meaning}")
    missed = [left for row in rows if (left := float(row.get("missed") or 0)) > NOTABLE]
    if missed:
        share = f"{len(missed)} of {len(rows)} requests, by more than {NOTABLE:g} and up to {max(missed):.0f} mL"
        print(f"Not fulfilled: {share} (column 'missed' of {table})")
    for caution in calibration.cautions() if calibration is not None else ():
        print(f"Caution: {caution}")


def table_paths(records: Records) -> list[Path]:
    """The tables of the results."""
    return [records.folder / f"{table}.csv" for table in records.tables]


def print_summary(results: int, new: int, excluded: Sequence[Mapping[str, Any]], records: Records) -> None:
    """Print how many subjects have a result, how many do not, why, and where everything is; names stand there alone."""
    earlier = f" ({results - new} of them from earlier runs)" if results > new else ""
    first, *others = table_paths(records)
    beside = f", {', '.join(path.name for path in others)} beside it" if others else ""
    print(f"Results of {results} subjects{earlier}: {first}{beside}")
    if not excluded:
        return
    print(f"No result for {len(excluded)} subjects: {records.folder / 'excluded.csv'}")
    for count, reason in summarized((row["subject"], row["reason"]) for row in excluded):
        print(f"  {count}: {reason}")
