"""Every command that the documents print is run: in a copy of the checkout or of a packaged bundle, at a small size."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess

import pytest

from tests.conftest import ROOT, shared
from tests.documentation.conftest import SCHEMA
from tests.documentation.documents import LANGUAGES, Command, all_commands, block_commands, blocks, documents
from tests.documentation.reductions import HERE, SLOW, TEMPLATES, Unprepared, place, steps
from tests.processes import Line, Run

TIMEOUT = 480  # s for one command line
REQUIREMENT = re.compile(r'"([\w.-]+)(?:\[[\w,-]+\])?(?:[<>=!~][^"]*)?"')
EXTRA = re.compile(r"^([\w-]+) = \[", re.MULTILINE)


def parameters():
    """The commands in the order of the documents: later ones take what earlier ones wrote."""
    for command in all_commands(ROOT):
        if command.text not in TEMPLATES:
            marks = [pytest.mark.slow] if SLOW.search(command.title) else []
            yield pytest.param(command, id=command.title, marks=marks)


@pytest.mark.parametrize("command", parameters())
def test_a_documented_command_works(command, work, environment, request, tmp_path):
    if command.text.startswith("pip install "):
        check_requirements(command)
        return
    if "<copy of the schema>" in command.text:
        shared(SCHEMA)
    if "--scheduler " in command.text:
        request.getfixturevalue("cluster")
    try:
        lines = steps(command, work)
    except Unprepared as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    for line in lines:
        run(line, command, work / place(command), environment, tmp_path / "log")


def run(line: str, command: Command, folder, environment, log) -> None:
    """Run a command line as a shell does, and fail with the end of what it has printed."""
    if arguments := bundle_arguments(line):
        status, output = run_forked(Line(arguments, folder, environment), log)
    else:
        status, output = run_in_shell(line, folder, environment)
    if status != 0:
        long = f"took more than {TIMEOUT} s: add what makes it short to {HERE}"
        end = long if status is None else f"ended with exit code {status}"
        pytest.fail(
            f"{command.where} documents\n\n    {command.text}\n\nwhich was run as\n\n    {line}\n\nand {end}.\n\n"
            f"{output[-4000:]}\n\nWhere the document is right, {HERE} has to say how to run it.",
            pytrace=False,
        )


def bundle_arguments(line: str) -> tuple[str, ...]:
    """What follows 'python -m monai.bundle', if the line is that and needs no shell; otherwise nothing."""
    line = line.replace("\\\n", "")
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.commenters, words.whitespace_split = "", True
    words = tuple(words)
    plain = not any(set(word) <= set("();<>|&") for word in words) and not set("$`~*?{}!#\n") & set(line)
    return words[3:] if plain and words[:3] == ("python", "-m", "monai.bundle") else ()


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("python -m monai.bundle run", ("run",)),
        ("python -m monai.bundle run \\\n    --seeds '[0, 1]'", ("run", "--seeds", "[0, 1]")),
        ("""python -m monai.bundle run --config_file "['a','b']" """, ("run", "--config_file", "['a','b']")),
        ("python -m monai.bundle run | tail", ()),
        ("python -m monai.bundle run\npython -m monai.bundle run", ()),
        ("python -m monai.bundle run --output_dir $HOME", ()),
        ("python -m monai.bundle run --x {1,2}", ()),
        ("python -m scripts.perceptual", ()),
    ],
)
def test_what_needs_no_shell_is_known(line, arguments):
    assert bundle_arguments(line) == arguments


def run_forked(line: Line, log) -> tuple[int | None, str]:
    """The exit code, or None after too long, and what was printed."""
    running = Run(line, log)
    return running.end(TIMEOUT), running.text()


def run_in_shell(line: str, folder, environment) -> tuple[int | None, str]:
    """The same of a line that a shell has to read."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    shell = ["bash", "-c", f"set -euo pipefail\n{line}"]
    process = subprocess.Popen(shell, cwd=folder, env=environment, start_new_session=True, **pipes)
    try:
        output = process.communicate(timeout=TIMEOUT)[0]
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


def check_requirements(command: Command) -> None:
    """Nothing is installed: an extra has to be one of pyproject.toml, and a package one of its requirements."""
    text = (ROOT / "pyproject.toml").read_text()
    listed, extras = text.partition("dependencies = [")[2].partition("[project.optional-dependencies]")[::2]
    extras = extras.partition("\n[")[0]
    known = {name.lower() for name in REQUIREMENT.findall(listed + extras)}
    known |= {f".[{name}]" for name in EXTRA.findall(extras)} | {"."}
    words = [word for word in shlex.split(command.text)[2:] if not word.startswith("-")]
    unknown = [word for word in words if re.split(r"[<>=!~]|(?<=\w)\[", word)[0].lower() not in known]
    assert not unknown, f"{command.where}: '{command.text}' names {unknown}, which pyproject.toml does not list"


@pytest.mark.parametrize("document", documents(ROOT))
def test_blocks_say_what_language_they_are_in(document):
    """So that no command is overlooked."""
    for block in blocks(documents(ROOT)[document]):
        start = block.text.strip()[:80]
        assert block.language in LANGUAGES, (
            f"{document}: a block is in '{block.language}', none of {LANGUAGES}: {start}"
        )
        if not block.language:
            found = [text for _, text in block_commands(block.text) if Command(document, 1, text).is_runnable]
            assert not found, f"{document}: write ```bash before {found}"
