"""Subjects and paths in texts: configs, settings, documentation and code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.packaging.findings import Finding
from scripts.packaging.identifiers import SUBJECT_COLUMNS, Names, identifiers, is_datalist

ROOTS = (
    r"home|Users|root|mnt|media|data|srv|scratch|work|workspace|tmp|var|opt|nfs|gpfs|lustre|cluster|vol|Volumes|project"
    r"|projects|export|storage|private"
)
# Not behind what makes it the end of a longer path, a URL's or that of "$@output_dir + '/data'".
PATHS = re.compile(
    rf"(?<![\w.:/>)}}*~-])(?<!\+ ['\"])/(?:{ROOTS})/[\w.-]+"
    rf"|(?<![A-Za-z])[A-Za-z]:\\{{1,2}}\w[\w\\.-]*|file:/{{2,3}}[\w/.-]+"
)
EMBEDDED = re.compile(r"data:image/[\w+.-]+;base64,[\w+/]{16}")
WHOLE_PATH = re.compile(r"/[\w.-]+.*|[A-Za-z]:[\\/].*|\\\\.*|~[/\\].*")
RELATIVE = "write it relative to the bundle, or leave it to the command line."
REMOVE = "take it out."


def check_text(name: str, data: bytes, names: Names, own_paths: Sequence[str] = ()) -> Iterator[Finding]:
    """Findings in a text file, by line, and in JSON by key.

    Args:
        name: of the file within the bundle.
        data: its content.
        names: of the cohorts at hand.
        own_paths: of the machine that packages.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        yield Finding(name, f"is not encoded in UTF-8 ({error}): save it so.")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{name}, line {number}"
        yield from (Finding(place, f"names {found}: {REMOVE}") for found in identifiers(line, names, name))
        paths = [match.group() for match in PATHS.finditer(line)] + [path for path in own_paths if path in line]
        yield from (Finding(place, f"has the path '{path}' of one machine: {RELATIVE}") for path in paths)
        if EMBEDDED.search(line):
            yield Finding(place, f"holds an image, which may show a patient: {REMOVE}")
    if name.endswith(".json"):
        yield from check_json(name, text, names)


def check_json(name: str, text: str, names: Names) -> Iterator[Finding]:
    """Findings in the structure of a JSON file, and in what its lines show in escapes only."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        yield Finding(name, f"is not JSON ({error}): mend it.")
        return
    for key, value in nodes(content):
        place = f"{name}, key '{'#'.join(key)}'"
        if is_datalist(value):
            yield Finding(place if key else name, f"lists subjects by section, as a datalist does: {REMOVE}")
        if key and key[-1].lower() in SUBJECT_COLUMNS and names_somebody(key[-1], value):
            yield Finding(place, f"names a subject: {REMOVE}")
        words = [*key[-1:], *([value] if isinstance(value, str) else [])]
        escaped = [word for word in words if word not in text]
        found = [subject for word in escaped for subject in identifiers(word, names, name)]
        yield from (Finding(place, f"names {subject}: {REMOVE}") for subject in found)
        if isinstance(value, str) and WHOLE_PATH.fullmatch(value):
            yield Finding(place, f"is the path '{value}' of one machine: {RELATIVE}")


def nodes(content: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value in JSON, with the keys that lead to it."""
    yield key, content
    children = content.items() if isinstance(content, dict) else enumerate(content if isinstance(content, list) else ())
    for name, child in children:
        yield from nodes(child, (*key, str(name)))


def names_somebody(key: str, value: Any) -> bool:
    """Whether the value of a key such as ``subject`` is a name, not a reference, a section or a number of subjects."""
    if isinstance(value, list):
        return any(isinstance(each, str | int) and names_somebody("subject", each) for each in value)
    if isinstance(value, bool) or value is None:
        return False
    if isinstance(value, int):
        return not key.lower().endswith("s")
    return isinstance(value, str) and bool(value) and value[0] not in "$@%"


def own_paths(bundle_root: Path) -> list[str]:
    """Paths that would betray who packages: of the checkout and of the home folder, unless they say nothing."""
    known = {str(bundle_root.absolute().parent), str(Path.home())}
    return [path for path in sorted(known) if len(Path(path).parts) > 2]
