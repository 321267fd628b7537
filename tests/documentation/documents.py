"""The commands that the documents print: those of their bash blocks, and whole ones within the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LANGUAGES = ("bash", "python", "yaml", "")
FENCE = re.compile(r"^([ \t]*)```([\w-]*)[^\n`]*\n(.*?)^\1```[ \t]*$", re.MULTILINE | re.DOTALL)
LOGICAL_LINE = re.compile(r"(?:[^\n]*\\\n)*[^\n]+")
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
WORDS_AND_GAPS = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"]+|\s+(?!#))*""")
RUNNABLE = re.compile(r"make( |$)|(python -m|torchrun|pip install|mkdir) ")
SERVER = re.compile(r"^#\s+(dask (?:scheduler|worker)(?: \S+)*)", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language, text and where that begins in the document."""

    language: str
    text: str
    start: int


class Command(NamedTuple):
    """A command on one line, as a reader copies it, and where it stands."""

    document: str
    line: int
    text: str

    @property
    def where(self) -> str:
        return f"{self.document}, line {self.line}"

    @property
    def is_runnable(self) -> bool:
        return RUNNABLE.match(self.text) is not None

    @property
    def configs(self) -> list[str]:
        """Names of its config files."""
        return re.findall(r"\w+(?=\.json)", self.text.partition("--config_file")[2].split(" --")[0])

    @property
    def title(self) -> str:
        """A short name: what is run, and the configs."""
        what = re.split(r"""--|\w+=|['"<]""", re.sub(r"^python -m (monai\.bundle )?(run )?", "", self.text))[0].split()
        return f"{self.document}: {' '.join([*what, *self.configs])}"


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a document."""
    found = [Block(match[2], match[3], match.start(3)) for match in FENCE.finditer(text)]
    left = FENCE.sub("", text)
    if "```" in left:
        raise ValueError(f"a fenced block is never closed: {left[left.index('```') :][:80]!r}")
    return found


def block_commands(text: str) -> Iterator[tuple[int, str]]:
    """The commands of a block on one line each, without comments, and where they begin."""
    for match in LOGICAL_LINE.finditer(text):
        joined = re.sub(r"\s*\\\n\s*", " ", match[0]).strip()
        command = "" if joined.startswith("#") else WORDS_AND_GAPS.match(joined)[0].strip()
        if command:
            yield match.start(), command


def inline_commands(text: str) -> Iterator[tuple[int, str]]:
    """The code within the text that is a whole command, and where it begins."""
    prose = FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    for match in INLINE.finditer(prose):
        command = " ".join(match[1].split())
        if RUNNABLE.match(command):
            yield match.start(), command


def commands(text: str, document: str) -> list[Command]:
    """The commands of a document in its order."""
    found = list(inline_commands(text))
    for block in blocks(text):
        if block.language == "bash":
            found += [(block.start + place, command) for place, command in block_commands(block.text)]
    return [Command(document, text.count("\n", 0, place) + 1, command) for place, command in sorted(found)]


def servers(text: str) -> list[str]:
    """What runs beside the commands: the parts of a Dask cluster, which comments of the bash blocks tell to start."""
    comments = "\n".join(block.text for block in blocks(text) if block.language == "bash")
    return [command.strip() for command in SERVER.findall(comments)]


def documents(root: Path) -> dict[str, str]:
    """Name -> text of the documents of a checkout."""
    paths = [root / "README.md", *sorted(root.glob("bundle/docs/*.md"))]
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def all_commands(root: Path) -> list[Command]:
    """The commands of all documents, those that are printed again left out."""
    found: dict[str, Command] = {}
    for name, text in documents(root).items():
        for command in commands(text, name):
            found.setdefault(command.text, command)
    return list(found.values())
