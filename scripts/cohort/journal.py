"""The journal of an examination, ``examined.jsonl``: an interrupted run goes on, and only what changed is examined."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.cohort.examine import examine_all
from scripts.cohort.layout import MASKS
from scripts.cohort.quality import QualityRules
from scripts.storage import file_state

EXAMINATION = 3  # raise it when rows are made in another way, so that no row of an older journal is reused


def examine_changed(folders: list[Path], rules: QualityRules, target: Path, workers: int) -> list[dict[str, Any]]:
    """Examine the subjects whose files changed since the last run; the others come from the journal.

    The journal gets a line as soon as a subject is done, so that an interrupted run goes on where it stopped.
    """
    journal, masks_dir = target / "examined.jsonl", target / MASKS
    keys = {folder: fingerprint(folder, rules, masks_dir) for folder in folders}
    known = read_journal(journal)
    changed = [folder for folder in folders if keys[folder] not in known]
    with open(journal, "a") as file:
        for folder, row in zip(changed, examine_all(changed, rules, workers, masks_dir), strict=True):
            known[keys[folder]] = row
            # The newline comes first, so that a line torn by a kill cannot spoil the one after it.
            file.write("\n" + json.dumps({"key": keys[folder], "row": row}))
            file.flush()
    return [known[keys[folder]] for folder in folders]


def fingerprint(folder: Path, rules: QualityRules, masks_dir: Path) -> str:
    """What a subject's row depends on: its files' names, sizes and times, the rules, and how it is examined."""
    found = [*sorted(folder.glob("*sa*.nii.gz")), *sorted((masks_dir / folder.name).glob("*sa*.nii.gz"))]
    files = [(path.name, *file_state(path)) for path in found]
    return json.dumps([EXAMINATION, folder.name, files, asdict(rules)])


def read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """Read the journal; a line torn by a kill is dropped."""
    known = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
                known[entry["key"]] = entry["row"]
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
    return known
