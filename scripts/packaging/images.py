"""Images: only those that are declared to show no patient, and nothing but pixels in them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

from scripts.packaging.contents import DECLARED
from scripts.packaging.findings import Finding

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = {*("IHDR", "PLTE", "IDAT", "IEND", "tRNS", "gAMA", "cHRM", "sRGB", "sBIT", "bKGD", "pHYs")}


def check_image(name: str, data: bytes, declared: dict[str, str]) -> Iterator[Finding]:
    """Findings in a PNG file.

    Args:
        name: of the file within the bundle.
        data: its content.
        declared: name -> SHA-256 of the images that show synthetic hearts only.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    if declared.get(name) != sha256:
        yield Finding(
            name,
            f"is not declared to be synthetic, or has changed since: if it shows no patient, put the line '{sha256}  "
            f"{name.rsplit('/', 1)[-1]}' into {DECLARED}; otherwise take it out.",
        )
    try:
        kinds = list(chunks(data))
    except (ValueError, struct.error) as error:
        yield Finding(name, f"is not a whole PNG file ({error}): draw it anew.")
        return
    for kind in dict.fromkeys(kinds):
        if kind not in PIXELS:
            yield Finding(name, f"has a chunk '{kind}' beside its pixels, which may name a subject: save it without.")


def chunks(data: bytes) -> Iterator[str]:
    """Types of the chunks of a PNG file, in order."""
    if not data.startswith(SIGNATURE):
        raise ValueError("it does not begin as one")
    position, kind = len(SIGNATURE), ""
    while kind != "IEND":
        length, code = struct.unpack_from(">I4s", data, position)
        kind = code.decode("latin-1")
        position += 12 + length
        yield kind
    if position != len(data):
        raise ValueError(f"it has {len(data) - position} bytes behind its end")


def read_declared(contents: dict[str, bytes]) -> dict[str, str]:
    """Name -> SHA-256 of the declared images, from a file as sha256sum writes it."""
    lines = contents.get(DECLARED, b"").decode("utf-8", "replace").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    return {f"docs/figures/{pair[1].lstrip('*')}": pair[0] for pair in pairs if len(pair) == 2}
