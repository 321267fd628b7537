"""How subjects stay unnamed in what leaves the place of their scans: pseudonyms, and messages without names.

Checkpoints, logs, figures, pages and the tables of an evaluation are copied, mailed and collected. None of them names a
subject; who it is stands in files that stay beside the scans, such as ``cohort.csv`` and ``pseudonyms.csv``.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.storage import csv_writer, output_folder, read_csv

PSEUDONYMS = "pseudonyms.csv"
COLUMNS = ("subject", "pseudonym")
NUMBER = re.compile(r"\d+(\.\d+)?")


def pseudonyms_of(items: Sequence[Mapping[str, Any]], output_dir: str | os.PathLike) -> dict[str, int]:
    """Give subjects numbers that stand for them, and keep those that they have.

    The numbers count from 1 in an order that is drawn by the operating system. They tell nothing: a hash could be
    compared with those of all identifiers there are, seven digits in the UK Biobank, and the subjects' own order tells
    who is who to anybody who has a list of them. Only ``output_dir/pseudonyms.csv`` leads back, which its owner alone
    may read: it stays where the scans are.

    Args:
        items: subjects of a datalist; those that have no number yet get the next ones.
        output_dir: of the run, whose numbers they are. Two runs give a subject two numbers.

    Returns:
        subject to number.

    Raises:
        ValueError: when the table is broken.
    """
    path = output_folder(output_dir) / PSEUDONYMS
    known = read_pseudonyms(output_dir)
    new = sorted({item["subject"] for item in items} - known.keys())
    if new:
        secrets.SystemRandom().shuffle(new)
        known |= {subject: number for number, subject in enumerate(new, start=max(known.values(), default=0) + 1)}
        with csv_writer(path, COLUMNS, private=True) as writer:
            writer.writerows({"subject": subject, "pseudonym": number} for subject, number in known.items())
    return known


def read_pseudonyms(output_dir: str | os.PathLike) -> dict[str, int]:
    """The numbers of a run's subjects; none before its first evaluation.

    Raises:
        ValueError: when the table is broken, naming it.
    """
    path = Path(output_dir) / PSEUDONYMS
    rows = read_csv(path) if path.exists() else []
    try:
        known = {row["subject"]: int(row["pseudonym"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"'{path}' needs the columns subject and pseudonym, a number: mend or remove it.") from error
    if len(set(known.values())) < len(rows):
        raise ValueError(f"'{path}' names a subject or a pseudonym more than once: mend or remove it.")
    return known


def without_name(text: str, subject: str) -> str:
    """A text about a subject with ``<subject>`` in the place of its name, as in paths of its files.

    Errors of the system write it with the escapes of ``repr``.
    """
    written = "|".join(re.escape(name) for name in dict.fromkeys((subject, repr(subject)[1:-1])))
    return re.sub(rf"(?<![^\W_])(?:{written})(?![^\W_])", "<subject>", text)


def summarized(texts: Iterable[tuple[str, str]]) -> list[tuple[int, str]]:
    """What is to be told of many subjects, without their names.

    Args:
        texts: subject and text about it.

    Returns:
        how many texts differ in numbers and names only, and the first of them, which says so where they differ; the
        most frequent kind first.
    """
    kinds: dict[str, list[str]] = {}
    for subject, text in texts:
        told = without_name(text, subject)
        kinds.setdefault(NUMBER.sub("#", told), []).append(told)
    mark = " (one of them; numbers of others differ)"
    examples = [kind[0] + (mark if len(set(kind)) > 1 else "") for kind in kinds.values()]
    counted = zip(map(len, kinds.values()), examples, strict=True)
    return sorted(counted, key=lambda kind: -kind[0])
