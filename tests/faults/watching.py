"""How a command writes: an audit hook that notes files which an interruption could leave half-written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Logs, to which lines are added, and whose readers pass over a torn last one; and the cache, whose entries have
# checksums in the place of a flush.
APPENDED = ("examined.jsonl", "events.out.tfevents.")
CACHE = "cache"


def watch_writes(folder: Path, found: Path) -> None:
    """Note in a file what is opened for writing in a folder under its final name, or renamed without a flush."""
    flushed: set[tuple[int, int]] = set()
    flush = os.fsync

    def fsync(file: int) -> None:
        flush(file)
        status = os.fstat(file)
        flushed.add((status.st_dev, status.st_ino))

    def note(text: str) -> None:
        with open(found, "a") as file:
            file.write(text + "\n")

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)) and writes(arguments[1], arguments[2]):
            path = Path(os.fsdecode(arguments[0])).absolute()
            file = folder in path.parents and not path.is_dir()  # a folder is opened for a file without a name
            if file and not path.name.startswith((".part-", *APPENDED)):
                note(f"opened {path}")
        elif event == "os.rename" and folder in Path(os.fsdecode(arguments[1])).absolute().parents:
            source = Path(os.fsdecode(arguments[0])).absolute()
            status = source.stat()
            safe = (status.st_dev, status.st_ino) in flushed or CACHE in source.parts
            note(f"renamed {arguments[1]}" if safe else f"not flushed {arguments[1]}")

    os.fsync = fsync
    sys.addaudithook(hook)


def writes(mode: str | None, flags: int) -> bool:
    """Whether an opened file is written to."""
    if mode is not None:
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR))
