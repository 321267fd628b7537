"""An archive that depends on nothing but its contents: the same files give the same bytes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from scripts.storage import atomic_path

TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that the format knows
UNIX = 3


def write_archive(path: str | os.PathLike, root: str, contents: Mapping[str, bytes]) -> None:
    """Write a zip file: names in order, one time, one set of permissions.

    Nothing is compressed. Builds of zlib compress to different bytes, and most of an archive is weights, which hardly
    get smaller.

    Args:
        path: target.
        root: the folder within the archive.
        contents: name -> bytes.
    """
    with atomic_path(path) as part, ZipFile(part, "w", ZIP_STORED) as archive:
        for name in sorted(contents):
            entry = ZipInfo(f"{root}/{name}", TIME)
            entry.create_system, entry.external_attr = UNIX, (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, contents[name])


def write_checksum(path: str | os.PathLike) -> str:
    """Write the file that ``sha256sum -c`` reads beside another one, and return the SHA-256."""
    sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    with atomic_path(f"{path}.sha256") as part:
        part.write_bytes(f"{sha256}  {Path(path).name}\n".encode())
    return sha256
