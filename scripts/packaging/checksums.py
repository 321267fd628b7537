"""The list of the weights' checksums in an archive, which ``scripts.shipped`` and ``sha256sum`` read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath

from scripts.packaging.contents import CHECKSUMS, SAFETENSORS, WEIGHTS


def list_checksums(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """The file that lists the checksums of the weights among the contents of an archive."""
    hashes = {name: hashlib.sha256(contents[name]).hexdigest() for name in (*WEIGHTS, SAFETENSORS) if name in contents}
    lines = [f"{value}  {PurePosixPath(name).name}\n" for name, value in sorted(hashes.items())]
    return {CHECKSUMS: "".join(lines).encode()}
