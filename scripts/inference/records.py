"""One record per subject, which makes an inference incremental, and the tables that are gathered from them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from scripts.storage import csv_writer, output_folder, read_object, write_csv, write_json

RECORD = "result.json"
SETTINGS = "inference_settings.json"
TABLES = ("codes", "attributes")
IMAGES = ("reconstruction", "before", "after", "difference", "segmentation")
OUTPUTS = (RECORD, "page.png", *(f"{name}_*.nii.gz" for name in IMAGES))
SEAL = "sha256"  # of a record's rows: one that has been cut off or changed since is none
VERSION = 3  # raise it when results are made in another way, so that those of an older version are redone


class Records:
    """The results in a folder: ``<subject>/result.json`` each, written when all else of the subject is.

    Args:
        output_dir: folder of the results.
        settings: what results of one folder must have in common: the checkpoint, and the settings of the network.
        redo: what else a result depends on, such as the calibration and which files are written; where this is
            another than a record's, the subject is done again.
        tables: names of the tables that are gathered; every record has a row of each.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        settings: Mapping[str, Any],
        redo: Mapping[str, Any],
        tables: Sequence[str] = TABLES,
    ) -> None:
        self.folder, self.tables = Path(output_dir), tuple(tables)
        self.settings = json.loads(json.dumps(settings))  # as JSON gives them back: tuples become lists
        self.run = digest([VERSION, settings, redo])

    def claim(self, overwrite: bool = False) -> None:
        """Make the folder one of these settings.

        Args:
            overwrite: remove the results of other settings that lie there.

        Raises:
            ValueError: when it holds results of others, naming the differences.
            PermissionError, NotADirectoryError: when it cannot be written to.
        """
        output_folder(self.folder)
        present = list(self.folder.glob(f"*/{RECORD}"))
        for path in present if overwrite else ():
            if self.content(path).get("run") != self.run:  # those of this run stay, should it have been interrupted
                with suppress(OSError):  # of a subject whose folder is closed, its own turn tells
                    self.discard(path.parent.name)
        if present and not overwrite and (self.folder / SETTINGS).exists():
            remedy = "name another --output_dir, or redo all results of this one with --overwrite True"
            self.refuse_other_settings(read_object(self.folder / SETTINGS, "inference settings", remedy))
        write_json(self.folder / SETTINGS, self.settings)

    def refuse_other_settings(self, known: Mapping[str, Any]) -> None:
        """Raise ValueError naming the settings that are not those of the results that are here."""
        other = [key for key in self.settings if self.settings[key] != known.get(key)]
        if other:
            listed = "; ".join(f"{key} is {shown(self.settings[key])}, was {shown(known.get(key))}" for key in other)
            raise ValueError(
                f"output_dir '{self.folder}' holds results of another run: {listed}. Name another --output_dir, or "
                "redo all of them with --overwrite True."
            )

    def remaining(self, items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The subjects that have no result yet, or one that no longer holds."""
        return [item for item in items if self.read(item) is None]

    def read(self, item: Mapping[str, Any]) -> dict[str, Any] | None:
        """A subject's record; None where there is none of this state of its files and of this run's settings."""
        record = self.content(self.folder / item["subject"] / RECORD)
        return record if (record.get("state"), record.get("run")) == (item["state"], self.run) else None

    @staticmethod
    def content(path: Path) -> dict[str, Any]:
        """What a record says; nothing where there is none that is as ``write`` has left it."""
        try:
            record = read_object(path, "record", "its subject is done again")
            rows = {key: value for key, value in record.items() if key not in ("state", "run", SEAL)}
            return record if record.get(SEAL) == digest(rows) else {}
        except (OSError, ValueError, RecursionError):
            return {}

    def begin(self, item: Mapping[str, Any]) -> Path:
        """A subject's folder, made, and without what is about to be replaced."""
        self.discard(item["subject"])
        folder = self.folder / item["subject"]
        folder.mkdir(exist_ok=True)
        for part in folder.glob(".part-*"):  # of a killed run, which has left no record to discard
            part.unlink()
        return folder

    def write(self, item: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Note that a subject is done, with its row of each table."""
        write_json(
            self.folder / item["subject"] / RECORD,
            {"state": item["state"], "run": self.run, SEAL: digest(rows), **rows},
        )

    def discard(self, subject: str) -> None:
        """Remove what an inference has written of a subject, and its folder where nothing else lies in it.

        A folder without a record may be the user's own, such as that of the scans.
        """
        folder = self.folder / subject
        if not (folder / RECORD).exists():
            return
        for path in [path for pattern in OUTPUTS for path in folder.glob(pattern)]:
            path.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def gather(self, items: Sequence[Mapping[str, Any]], excluded: Sequence[Mapping[str, str]]) -> int:
        """Write all tables, such as ``codes.csv``, and ``excluded.csv``; returns the number of results.

        Only one record at a time is in memory. Files of subjects that are excluded now are left as they are: what
        excludes them may pass, such as a share that is not mounted.
        """
        write_csv(self.folder / "excluded.csv", excluded, ("subject", "reason"))
        records = self.records(items)
        first = next(records, None)
        columns = first or {table: ["subject"] for table in self.tables}
        results = 0
        with ExitStack() as stack:
            paths = {table: self.folder / f"{table}.csv" for table in self.tables}
            writers = {name: stack.enter_context(csv_writer(path, list(columns[name]))) for name, path in paths.items()}
            for record in chain([first] if first else [], records):
                results += 1
                for table, writer in writers.items():
                    writer.writerow(record[table])
        return results

    def records(self, items: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The records of all subjects that have one."""
        return (record for record in map(self.read, items) if record is not None)


def digest(content: Any) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def shown(value: Any) -> str:
    """A setting, short enough for a message: hashes are cut."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)
