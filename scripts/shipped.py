"""Weights of an unpacked archive: the very files that were packaged, or a message that says where to get them.

The archive lists them in ``checksums.sha256`` beside them, which is written as ``sha256sum`` writes it, and those that
it is too small for in ``large_files.yml``, which ``monai.bundle download_large_files`` reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

CHECKSUMS, LARGE_FILES = "checksums.sha256", "large_files.yml"
LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](\S+)\s*")


def require_shipped(path: str | os.PathLike) -> None:
    """Check weights before they are used; those that no archive lists are not checked.

    Raises:
        FileNotFoundError: when they are listed and not there, saying where to get them.
        ValueError: when they are not those listed, or the list cannot be read.
    """
    file = Path(path)
    listed = known_checksums(file.with_name(CHECKSUMS)).get(file.name)
    if listed is None:
        return
    fetch = download_hint(file) or "unpack the archive again"
    if not file.is_file():
        raise FileNotFoundError(f"'{path}' belongs to the bundle and is missing: {fetch}.")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != listed:
        raise ValueError(
            f"'{path}' has the SHA-256 {found[:12]}..., {CHECKSUMS} lists {listed[:12]}...: it is damaged, or "
            f"replaced. Remove it, and {fetch}. "
            "Weights of your own belong in another folder: name them by --ckpt_path."
        )


def known_checksums(file: Path) -> dict[str, str]:
    """Name -> SHA-256 of a list of checksums; empty where there is none.

    Raises:
        ValueError: for a line that is no checksum.
    """
    known = {}
    for line in file.read_text("utf-8-sig", errors="replace").splitlines() if file.is_file() else ():
        match = LINE.fullmatch(line)
        if not match:
            raise ValueError(f"'{file}' has a line that is no checksum ({line!r}): unpack the archive again.")
        known[match[2]] = match[1].lower()
    return known


def download_hint(path: Path) -> str | None:
    """How to fetch a weight of an unpacked archive; None for one that ``large_files.yml`` does not list."""
    root = path.absolute().parent.parent
    try:
        entries = json.loads((root / LARGE_FILES).read_text())["large_files"]
        url = next((entry["url"] for entry in entries if root / entry["path"] == path.absolute()), None)
    except (OSError, ValueError, KeyError, TypeError):  # written by hand, which is no reason not to name the weight
        return None
    command = f"python -m monai.bundle download_large_files --bundle_path '{root}'"
    return url and f"fetch it by {command} (it needs PyYAML), or from {url}"
