"""Checksums of an archive's weights, by which a damaged or exchanged file is known before it is used.

``models/checksums.sha256`` is written as ``sha256sum`` writes it, which reads it too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from scripts.packaging.contents import CHECKSUMS, SAFETENSORS, WEIGHTS
from scripts.packaging.large_files import download_hint


def list_checksums(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """The file that lists the checksums of the weights among the contents of an archive."""
    hashes = {name: hashlib.sha256(contents[name]).hexdigest() for name in (*WEIGHTS, SAFETENSORS) if name in contents}
    lines = [f"{value}  {PurePosixPath(name).name}\n" for name, value in sorted(hashes.items())]
    return {CHECKSUMS: "".join(lines).encode()}


def require_shipped(path: str | os.PathLike, bundle_root: str | os.PathLike) -> None:
    """Check a weight of an unpacked archive before it is used; what the archive does not list is not checked.

    Raises:
        FileNotFoundError: when it is listed and not there, saying where to get it.
        ValueError: when it is another file than the one listed.
    """
    listed = known_checksums(bundle_root).get(Path(path).resolve())
    if listed is None:
        return
    fetch = download_hint(path, bundle_root) or "unpack the archive again"
    if not Path(path).is_file():
        raise FileNotFoundError(f"'{path}' belongs to the bundle and is missing: {fetch}.")
    found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if found != listed:
        raise ValueError(
            f"'{path}' has the SHA-256 {found[:12]}..., {CHECKSUMS} lists {listed[:12]}...: it is damaged, or "
            f"replaced. Remove it, and {fetch}. Weights of your own stay where they are: name them by --ckpt_path."
        )


def known_checksums(bundle_root: str | os.PathLike) -> dict[Path, str]:
    """Weight of an unpacked archive -> its SHA-256; empty for a checkout, which lists none."""
    file = Path(bundle_root) / CHECKSUMS
    lines = file.read_text().splitlines() if file.is_file() else []
    return {file.with_name(name).resolve(): value for value, _, name in (line.partition("  ") for line in lines)}
