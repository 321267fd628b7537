"""Weights that are too large for the archive: it names where they are downloaded, and by which hash they are known.

``large_files.yml`` is written as JSON, which is YAML too: ``monai.bundle download_large_files`` reads the latter, and
this module needs no package for the former.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from scripts.packaging.contents import LARGE_FILES, WEIGHTS
from scripts.packaging.findings import Finding

LARGEST = 25_000_000  # bytes in the archive; the model zoo takes files up to 25 MB


def large_files(contents: Mapping[str, bytes]) -> list[str]:
    """Names of the files that are too large."""
    return sorted(name for name, data in contents.items() if len(data) > LARGEST)


def parse_urls(given: Sequence[str]) -> dict[str, str]:
    """``models/model.pt=https://...`` to name -> URL; raises ValueError for another form."""
    pairs = [each.partition("=") for each in given]
    for name, separator, url in pairs:
        known = separator and name in WEIGHTS and urlsplit(url).scheme in ("http", "https")
        if not known or any(sign in url for sign in "@?#"):
            raise ValueError(
                f"--url '{name}{separator}{url}': expected one of {', '.join(WEIGHTS)}, '=' and an address of http or "
                "https without a user's name, and without '?' and '#', behind which a secret may stand."
            )
    return {name: url for name, _, url in pairs}


def check_large(contents: Mapping[str, bytes], urls: Mapping[str, str]) -> Iterator[Finding]:
    """Findings on files that are too large and cannot be downloaded from anywhere."""
    for name in large_files(contents):
        size = f"has {len(contents[name]) / 1e6:.1f} MB, and the archive takes {LARGEST / 1e6:.0f} MB per file"
        if name not in WEIGHTS:
            yield Finding(name, f"{size}: make it smaller, or take it out.")
        elif name not in urls:
            yield Finding(name, f"{size}: upload it, and give its address by --url {name}=https://...")


def list_large(contents: Mapping[str, bytes], urls: Mapping[str, str]) -> dict[str, bytes]:
    """The contents without the large files, which ``large_files.yml`` lists instead."""
    large = large_files(contents)
    entries = [
        {
            "path": name,
            "url": urls[name],
            "hash_val": hashlib.sha256(contents[name]).hexdigest(),
            "hash_type": "sha256",
        }
        for name in large
    ]
    text = json.dumps({"large_files": entries}, indent=4) + "\n"
    return {name: data for name, data in contents.items() if name not in large} | {LARGE_FILES: text.encode()}
