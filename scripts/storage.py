"""Files that are either the old one or the new one, whatever interrupts the writing."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROCESSES = Path("/proc/self/ns/pid")  # containers may share a name, but number their processes each for itself
MACHINE = f"{socket.gethostname()}.{PROCESSES.stat().st_ino if PROCESSES.exists() else 0}"
PART = ".part-{process}@{machine}~{name}"  # of a half-written file
# What a file system or a limit of the process refuses: no other file of the folder would fare better.
REMEDIES = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, which have too many files open",
    errno.EROFS: "make its file system writable",
    errno.ENOENT: "bring its folder back, which was there before",
    errno.ENODEV: "mount its file system again",
    errno.ENOTCONN: "mount its file system again",
    errno.EHOSTDOWN: "mount its file system again",
    errno.ETIMEDOUT: "mount its file system again",
    errno.ESTALE: "mount its file system again",
}


class StorageError(OSError):
    """A folder takes no files, whatever they are."""


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place once the block has ended without an error.

    The temporary name keeps the suffixes, since writers such as nibabel choose the format by them. It names machine and
    process, since several of a cluster may write the same file.

    Raises:
        StorageError: where nothing can be written, naming the file and what to do.
    """
    target = Path(path)
    part = target.with_name(PART.format(process=os.getpid(), machine=MACHINE, name=target.name))
    try:
        with explained(target):
            yield part
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            part.replace(target)
    finally:
        with suppress(OSError):  # which would hide what went wrong before
            part.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what a file system refuses while ``path`` is written into a ``StorageError``."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = refusal(error, path.parent)
        if number is None:
            raise
        raise refused(path, number) from error


def refused(path: Path, number: int) -> StorageError:
    """The error that says what cannot be written, why, and what to do."""
    return StorageError(
        number,
        f"'{path}' cannot be written ({os.strerror(number)}): {REMEDIES[number]}, or name another folder. The same "
        "command then goes on where this one stopped",
    )


def refusal(error: BaseException | None, folder: Path) -> int | None:
    """The number of the first error of a file system that has led to another one, in ``REMEDIES``; None without one.

    PyTorch answers to a full disk with errors of its own kind, in whose context the first one stands.
    """
    found = None
    while error is not None:
        if isinstance(error, OSError) and error.errno in REMEDIES:
            there = error.errno == errno.ENOENT and folder.is_dir()  # then another file was looked for
            found = found if there else error.errno
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def output_folder(path: str | os.PathLike, key: str = "output_dir") -> Path:
    """Create a folder for results, make sure that it can be written to, and clear it of what killed processes left.

    Raises:
        PermissionError, NotADirectoryError: naming the folder and the config key that chose it.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # of a name of its own: others may try the same folder just now
            pass
        remove_leftovers(folder)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"{key} '{folder}' is or lies under a file; name a folder with --{key}.") from error
    except OSError as error:
        raise PermissionError(f"{key} '{folder}' cannot be written to ({error}); name another with --{key}.") from error
    return folder


def remove_leftovers(folder: Path) -> None:
    """Remove the half-written files of processes of this machine that are no more."""
    mine = re.compile(PART.format(process=r"(\d{1,9})", machine=re.escape(MACHINE), name=".*"))
    for part in folder.iterdir():
        found = mine.fullmatch(part.name)
        if found and not alive(int(found[1])):
            with suppress(OSError):  # another run of the same moment, or somebody else's
                part.unlink()


def alive(process: int) -> bool:
    """Whether there is a process of this number; where the system cannot tell, there is one."""
    try:
        return os.name != "posix" or os.kill(process, 0) is None
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True


def file_state(path: str | os.PathLike) -> tuple[int, int]:
    """Size and time of a file; -1 for one that cannot be looked at, such as a broken link."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write ``content`` as indented JSON."""
    with atomic_path(path) as part:
        dump_json(content, part)


def dump_json(content: Any, part: Path) -> None:
    """Write ``content`` as indented JSON to the temporary path that will take its place."""
    with open(part, "w") as file:
        json.dump(content, file, indent=2)  # piece by piece: the text of a large cohort's datalist fills much memory
        file.write("\n")


def read_object(path: str | os.PathLike, kind: str, remedy: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: the file.
        kind: what it is, for messages, such as "datalist".
        remedy: what to do about one that is broken, for messages.

    Raises:
        ValueError: for one that is broken or holds anything else, naming the file and what to do.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested beyond reason
        raise ValueError(f"{kind} '{path}' is not valid JSON ({error}); {remedy}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{kind} '{path}' holds a {type(content).__name__}, expected an object; {remedy}.")
    return content


def write_csv(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write ``rows`` as CSV with the given columns; a value that a row lacks stays empty."""
    with csv_writer(path, columns) as writer:
        writer.writerows(rows)


@contextmanager
def csv_writer(path: str | os.PathLike, columns: Sequence[str], private: bool = False) -> Iterator[csv.DictWriter]:
    """Yield a writer of CSV, which has written the given columns as its header; only its owner reads a private file."""
    with atomic_path(path) as part, open(part, "w", newline="", opener=_open_private if private else None) as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        yield writer


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # and not chmod afterwards: until then, others could read it


def read_csv(path: str | os.PathLike) -> list[dict[str, str]]:
    """Read a CSV file with a header line as one dictionary per row.

    Raises:
        ValueError: for another encoding than UTF-8, or a row with more cells than the header, naming the file.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not encoded in UTF-8 ({error}); save it so.") from error
    except csv.Error as error:
        raise ValueError(f"'{path}' is no table separated by commas ({error}): look for an open quote.") from error
    for number, row in enumerate(rows, start=2):
        if None in row:
            raise ValueError(f"line {number} of '{path}' has more cells than the header has columns.")
    return rows


def repeated_lines(rows: Sequence[Mapping[str, str]], column: str) -> list[int]:
    """Lines of a file that ``read_csv`` has read which have the same value in a column; none where all values differ.

    They tell the reader of the file what its message, which may be a subject's name, does not.
    """
    lines: dict[str, list[int]] = {}
    for line, row in enumerate(rows, start=2):
        lines.setdefault(row[column], []).append(line)
    return next((found for found in lines.values() if len(found) > 1), [])
