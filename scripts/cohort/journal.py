"""The journal of an examination, ``examined.jsonl``: an interrupted run goes on, and only what changed is examined."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.cohort.examine import examine_all
from scripts.cohort.layout import MASKS
from scripts.cohort.privacy import summarized
from scripts.cohort.quality import QualityRules
from scripts.parallel import Failed, Workers
from scripts.storage import explained, file_state

EXAMINATION = 3  # raise it when rows are made in another way, so that no row of an older journal is reused


def examine_changed(
    folders: list[Path], rules: QualityRules, target: Path, workers: Workers | int | None
) -> list[dict[str, Any]]:
    """Examine the subjects whose files changed since the last run; the others come from the journal.

    The journal gets a line as soon as a subject is done, so that an interrupted run goes on where it stopped. One whose
    examination itself failed gets none, and is examined again by the next run. Warnings are counted and not listed: the
    journal has those of each subject.
    """
    journal, masks_dir = target / "examined.jsonl", target / MASKS
    keys = [fingerprint(folder, rules, masks_dir) for folder in folders]
    known = read_journal(journal, set(keys))
    changed = [folder for folder, key in zip(folders, keys, strict=True) if key not in known]
    waiting = [key for key in keys if key not in known]
    with open(journal, "a") as file:
        for folder, key, row in zip(changed, waiting, examine_all(changed, rules, workers, masks_dir), strict=True):
            if isinstance(row, Failed):
                known[key] = {"subject": folder.name, "status": "excluded", "reason": row.reason, "warnings": []}
                continue
            known[key] = compact(row)
            # The newline comes first, so that a line torn by a kill cannot spoil the one after it.
            with explained(journal):
                file.write("\n" + json.dumps({"key": key, "row": row}))
                file.flush()
    rows = [known[key] for key in keys]
    for count, text in summarized((row["subject"], text) for row in rows for text in row["warnings"]):
        print(f"  warning about {count} subjects: {text} (whose: see 'warnings' in {journal})")
    return rows


def fingerprint(folder: Path, rules: QualityRules, masks_dir: Path) -> str:
    """What a subject's row depends on, as a hash: its files' names, sizes and times, the rules, how it is examined."""
    found = [*sorted(folder.glob("*sa*.nii.gz")), *sorted((masks_dir / folder.name).glob("*sa*.nii.gz"))]
    files = [(path.name, *file_state(path)) for path in found]
    content = json.dumps([EXAMINATION, folder.name, files, asdict(rules)])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def compact(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose keys are shared with those of all other rows, since many are held at a time."""
    return {sys.intern(key): value for key, value in row.items()}


def read_journal(path: Path, keys: Collection[str]) -> dict[str, dict[str, Any]]:
    """Read the rows of some subjects, by their fingerprint; a line torn by a kill is dropped."""
    known: dict[str, dict[str, Any]] = {}
    if path.exists():
        with open(path, errors="replace") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    if entry["key"] in keys:
                        known[entry["key"]] = compact(entry["row"])
                except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
                    continue
    return known
