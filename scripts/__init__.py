"""Code that the bundle's configs name."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OLDEST_MONAI = (1, 5)


def bundle_root() -> str:
    """The bundle that this code belongs to: the folder above it, or ``bundle`` beside it in a checkout."""
    above = Path(__file__).absolute().parent.parent
    return str(above if (above / "configs").is_dir() else above / "bundle")


def check_monai(found: str) -> None:
    """Raise ImportError for a MONAI that this code was never tested with: it might run, and give something else."""
    release = re.match(r"(\d+)\.(\d+)", found)
    if release and tuple(map(int, release.groups())) < OLDEST_MONAI:
        raise ImportError(f"this bundle needs MONAI 1.5 or newer, not {found}: pip install 'monai>=1.5,<2'.")


with suppress(PackageNotFoundError):  # MONAI's sources on the path, which have no number
    check_monai(version("monai"))
