"""One subject by itself, without a datalist: for the Python interface and for viewers, which know a single scan."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.cohort.datalist import locate
from scripts.cohort.examine import examine_subject
from scripts.cohort.layout import SubjectError
from scripts.cohort.quality import QualityRules


def subject_item(folder: str | os.PathLike, rules: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The subject of a folder in the UKBB format, as an item of a datalist with full paths.

    Args:
        folder: with scans and masks of both phases.
        rules: thresholds of the quality control, see ``QualityRules``.

    Raises:
        SubjectError: with the reason why the subject cannot be used.
    """
    folder = Path(folder).absolute()
    row = examine_subject(folder, QualityRules.of(rules))
    if row["status"] != "included":
        raise SubjectError(f"{folder}: {row['reason']}")
    return locate(row, folder.parent)
