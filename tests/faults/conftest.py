"""What the tests of faults share: the results that an undisturbed run of all commands gives."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts.cohort.datalist import load_items
from scripts.cohort.privacy import pseudonyms_of
from tests.faults.world import STEPS, commands, copy, draw
from tests.processes import Command, succeed


class Undisturbed(NamedTuple):
    """Folders and times of commands that nothing has disturbed.

    Args:
        commands: by step; each works on its own scans and datalist.
        before, after: by step, the output folder as the step finds and as it leaves it.
        seconds: by step.
    """

    commands: dict[str, Command]
    before: dict[str, Path]
    after: dict[str, Path]
    seconds: dict[str, float]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Undisturbed:
    """All steps, one after the other."""
    root = tmp_path_factory.mktemp("undisturbed")
    draw(root)
    found = Undisturbed(commands(root), {}, {}, {})
    succeed(found.commands["prepare"].into(root / "warm"), root / "warm.log")  # starts the server, which takes its time
    for step in STEPS:
        found.before[step] = find_before(step, root)
        # prepare's results are where the datalist is expected
        output = root / ("prepared" if step == "prepare" else step)
        copy(found.before[step], output)
        start = time.monotonic()
        succeed(found.commands[step].into(output), root / f"{step}.log")
        found.seconds[step], found.after[step] = time.monotonic() - start, output
    return found


def find_before(step: str, root: Path) -> Path:
    """What a step finds: nothing, or a trained model, whose subjects have their numbers for an evaluation."""
    before = root / f"before_{step}"
    if step in ("evaluate", "infer"):
        copy(root / "train", before)
    before.mkdir(exist_ok=True)
    if step == "evaluate":  # they are drawn at random once, and are another's in another folder
        pseudonyms_of(load_items(root / "prepared" / "datalist.json", root / "scans"), before)
    return before
