"""How a subject identifier is known: by the forms that cohorts use, and by the names of cohorts at hand.

No rule knows every identifier: a person's name or a hospital's number has no form of its own. Such names are found
where the cohort that lists them is given.
"""

from __future__ import annotations

import csv
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

SUBJECT_COLUMNS = {
    *("subject", "subjects", "subject_id", "subject_name", "participant", "participants", "participant_id"),
    *("patient", "patients", "patient_id", "patient_name", "patientid", "patientname", "eid", "external code"),
}
PATTERNS = {
    "a numbered subject": r"(?<![a-z])(?:patient|subject|subj|participant|volunteer|case)[\s_#–-]*\d{2,}",
    "a BIDS subject": r"(?<![a-z0-9])sub-[a-z]*\d[a-z0-9]*",
    "a UK Biobank participant": r"(?<![\d.])[1-6]\d{6}(?!\d|\.\d)",
    "an M&Ms subject": r"(?<![a-z0-9])(?-i:[A-Z]\d[A-Z]\d[A-Z]\d)(?![a-z0-9])",
    "a DICOM identifier": r"(?<![\d.])[12]\.\d+(?:\.\d+){4,}",
    "a phantom": r"phantom\d{3,}",
}
COMPILED = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in PATTERNS.items()}
HASH = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{128}|[0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})(?![0-9a-f])")
# Classes and transfer syntaxes of the DICOM standard, and the number that stands for any participant.
PUBLIC = re.compile(r"1\.2\.840\.10008\.[\d.]+|1234567")
# The synthetic cohort's subjects are nobody: prose may name them as examples. Elsewhere they betray a leak.
SYNTHETIC = re.compile(r"phantom\d{3,}")
SYNTHETIC_PLACES = ("docs/README.md",)
SHORTEST, SHORTEST_NUMBER = 4, 5  # of a name to look for: shorter ones stand everywhere
TABLES = (
    *("cohort.csv", "info.csv", "import.csv", "codes.csv", "attributes.csv", "excluded.csv", "pseudonyms.csv"),
    *("subjects.csv", "datalist*.json"),
)
SECTIONS = ("training", "validation", "test", "testing")


class Names:
    """Subject names to look for.

    Args:
        names: of any cohort; those too short to tell from other words are counted in ``too_short`` and not looked for.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        names = set(names)
        parted = {name: parts(name) for name in names}
        self.known = {words for words in parted.values() if is_telling(words)}
        self.too_short = sum(not is_telling(words) for words in parted.values())
        self.lengths = sorted({len(words) for words in self.known})

    def find(self, text: str) -> Iterator[str]:
        """Names in a text, in whatever case and with whatever between their parts."""
        words = parts(text)
        for length in self.lengths:
            for start in range(len(words) - length + 1):
                if words[start : start + length] in self.known:
                    yield "_".join(words[start : start + length])


def parts(text: str) -> tuple[str, ...]:
    """Letters and digits of a text, without what stands between them."""
    return tuple(re.findall(r"[^\W_]+", normalized(text).lower()))


def normalized(text: str) -> str:
    """A text with one way to write each letter, and without characters that nobody sees."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", text) if unicodedata.category(letter) != "Cf")


def is_telling(words: Sequence[str]) -> bool:
    """Whether a name is long enough to be looked for."""
    joined = "".join(words)
    return len(joined) >= (SHORTEST_NUMBER if joined.isdecimal() else SHORTEST)


def identifiers(text: str, names: Names, place: str) -> Iterator[str]:
    """What in a text is a subject identifier, in words.

    Args:
        text: a line, a key, a file name.
        names: of the cohorts at hand.
        place: the file that it stands in, since some may name phantoms.
    """
    text = HASH.sub(" ", normalized(text))
    if place in SYNTHETIC_PLACES:
        text = SYNTHETIC.sub(" ", text)
    found = list(dict.fromkeys(names.find(text)))
    yield from (f"'{name}', a subject of the given cohort" for name in found)
    for kind, pattern in COMPILED.items():
        matches = dict.fromkeys(match.group() for match in pattern.finditer(text))
        yield from (f"'{m}', {kind}" for m in matches if not PUBLIC.fullmatch(m) and "_".join(parts(m)) not in found)


def read_names(cohort: str | os.PathLike) -> set[str]:
    """Names of the subjects of a cohort.

    Args:
        cohort: a table or datalist, or a folder of them or of scans, in it or one folder below.

    Raises:
        FileNotFoundError, ValueError: when it does not exist, or names nobody.
    """
    path = Path(cohort)
    if not path.exists():
        raise FileNotFoundError(f"--cohort '{path}' does not exist.")
    tables = [file for name in TABLES for depth in ("", "*/") for file in path.glob(depth + name)]
    files = [path] if path.is_file() else tables
    names = set(chain.from_iterable(names_of_file(file) for file in files))
    names |= {scan.parent.name for depth in ("*/", "*/*/") for scan in path.glob(f"{depth}*.nii*")}
    if not names:
        raise ValueError(
            f"--cohort '{path}' names no subject: expected {', '.join(TABLES)}, or one folder of scans per subject."
        )
    return names


def names_of_file(path: Path) -> set[str]:
    """Names in a table's column of subjects, or in a datalist."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        items = [item for section in SECTIONS for item in content.get(section, [])]
        return {str(item["subject"]) for item in items if "subject" in item}
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    return {str(row[key]) for row in rows for key in row if str(key).lower() in SUBJECT_COLUMNS and row[key]}


def is_datalist(content: Any) -> bool:
    """Whether a JSON object lists scans by section, as a datalist does."""
    if not isinstance(content, dict):
        return False
    items = [item for name in SECTIONS if isinstance(content.get(name), list) for item in content[name]]
    return any(isinstance(item, dict) and any(k == "subject" or k.startswith("image") for k in item) for item in items)
