"""The journal of an examination, ``examined.jsonl``: an interrupted run goes on, and only what changed is examined."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.cohort.datalist import wrong_keys
from scripts.cohort.examine import examine_all
from scripts.cohort.layout import MASKS, printable
from scripts.cohort.privacy import summarized
from scripts.cohort.quality import QualityRules
from scripts.parallel import Failed, Workers
from scripts.storage import explained, file_state

EXAMINATION = 4  # raise it when rows are made in another way, so that no row of an older journal is reused


def examine_changed(
    folders: list[Path], rules: QualityRules, target: Path, workers: Workers | int | None
) -> list[dict[str, Any]]:
    """Examine the subjects whose files changed since the last run; the others come from the journal.

    The journal gets a line as soon as a subject is done, so that an interrupted run goes on where it stopped. One whose
    examination itself failed, or whose files are not those of before, gets none, and is examined again by the next run.
    Warnings are counted and not listed: the journal has those of each subject.
    """
    journal, masks_dir = target / "examined.jsonl", target / MASKS
    keys = [fingerprint(folder, rules, masks_dir) for folder in folders]
    names = [printable(folder.name) for folder in folders]
    known = read_journal(journal, dict(zip(keys, names, strict=True)))
    changed = [folder for folder, key in zip(folders, keys, strict=True) if key not in known]
    waiting = [key for key in keys if key not in known]
    with ExitStack() as stack:
        with explained(journal):  # and not what examining raises, which is not about the journal
            file = stack.enter_context(open(journal, "a"))
        for folder, key, row in zip(changed, waiting, examine_all(changed, rules, workers, masks_dir), strict=True):
            if isinstance(row, Failed):
                known[key] = failed_row(folder, row)
                continue
            known[key] = compact(row)
            if row["status"] != "included" and fingerprint(folder, rules, masks_dir) != key:
                continue  # its files were lost or changed meanwhile: the reason is not theirs
            with explained(journal):
                # The newline comes first, so that a line torn by a kill cannot spoil the one after it.
                file.write("\n" + json.dumps({"key": key, "row": row}))
                file.flush()
    rows = [known[key] for key in keys]
    for count, text in summarized((row["subject"], text) for row in rows for text in row["warnings"]):
        print(f"  warning about {count} subjects: {text} (whose: see 'warnings' in {journal})")
    return rows


def failed_row(folder: Path, failed: Failed) -> dict[str, Any]:
    """The row of a subject whose examination failed."""
    return {"subject": printable(folder.name), "status": "excluded", "reason": failed.reason, "warnings": []}


def fingerprint(folder: Path, rules: QualityRules, masks_dir: Path) -> str:
    """What a subject's row depends on, as a hash: its files' names, sizes and times, the rules, how it is examined."""
    found = [*sorted(folder.glob("*sa*.nii.gz")), *sorted((masks_dir / folder.name).glob("*sa*.nii.gz"))]
    files = [(path.name, *file_state(path)) for path in found]
    content = json.dumps([EXAMINATION, folder.name, files, asdict(rules)])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def compact(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose keys are shared with those of all other rows, since many are held at a time."""
    return {sys.intern(key): value for key, value in row.items()}


def is_row(row: Any, subject: str) -> bool:
    """Whether a row is one that the examination makes of a subject; its paths and name are followed unseen."""
    if not isinstance(row, dict) or row.get("subject") != subject or not isinstance(row.get("reason"), str):
        return False
    return row.get("status") == "excluded" or (row.get("status") == "included" and not wrong_keys(row))


def read_journal(path: Path, subjects: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Read the rows of some subjects; a line torn by a kill, or that no examination has written, is dropped.

    Args:
        path: the journal.
        subjects: fingerprint to the subject's name.
    """
    known: dict[str, dict[str, Any]] = {}
    if path.exists():
        with open(path, errors="replace") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    if entry["key"] in subjects and is_row(entry["row"], subjects[entry["key"]]):
                        known[entry["key"]] = compact(entry["row"])
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue
    return known
