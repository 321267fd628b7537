"""Code that the bundle's configs name."""

from __future__ import annotations

from pathlib import Path


def bundle_root() -> str:
    """The bundle that this code belongs to: the folder above it, or ``bundle`` beside it in a checkout."""
    above = Path(__file__).absolute().parent.parent
    return str(above if (above / "configs").is_dir() else above / "bundle")
