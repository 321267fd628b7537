"""What the tests of faults share: the results that an undisturbed run of all commands gives."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.processes import Command, succeed
from tests.faults.world import STEPS, commands, copy, draw


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
    last = root / "nothing"
    last.mkdir()
    for step in STEPS:
        # prepare's results are where the datalist is expected; the others build upon the training's
        output = root / ("prepared" if step == "prepare" else step)
        copy(last if step in ("evaluate", "infer") else root / "nothing", output)
        found.before[step], found.after[step], last = last if step != "train" else root / "nothing", output, output
        start = time.monotonic()
        succeed(found.commands[step].into(output), root / f"{step}.log")
        found.seconds[step] = time.monotonic() - start
    return found
