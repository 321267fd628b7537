"""SIGKILL at random moments: the next run ends with the results of an undisturbed one."""

from __future__ import annotations

import random
import time
from functools import partial

import pytest

from tests.faults.watching import watch_writes
from tests.faults.world import STEPS, check_whole, contents, copy, differences
from tests.processes import Run, run, succeed

KILLS = {"prepare": 12, "train": 14, "evaluate": 12, "infer": 12}  # 50


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_random_moments_and_run_again_equals_undisturbed(step, undisturbed, tmp_path):
    moments = random.Random(step)
    output, log = tmp_path / "output", tmp_path / "log"
    command = undisturbed.commands[step].into(output)
    copy(undisturbed.before[step], output)
    killed = 0
    while killed < KILLS[step]:
        running = Run(command, log)
        time.sleep(moments.uniform(0, undisturbed.seconds[step]))
        killed += (unfinished := running.process.exitcode is None)
        running.kill()
        check_whole(output)
        if not unfinished:
            copy(undisturbed.before[step], output)
    succeed(command, log)
    assert differences(output, undisturbed.after[step]) == []


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_every_output_is_flushed_beside_its_place_and_the_same_each_time(step, undisturbed, tmp_path):
    output, found = tmp_path / "output", tmp_path / "found"
    copy(undisturbed.before[step], output)
    status, text = run(undisturbed.commands[step].into(output), tmp_path / "log", partial(watch_writes, output, found))
    assert status == 0, text[-3000:]
    lines = found.read_text().splitlines()
    assert [line for line in lines if line.startswith("renamed")], "nothing was seen"
    assert [line for line in lines if not line.startswith("renamed")] == []
    assert contents(output) == contents(undisturbed.after[step])  # to the last bit, unlike what was interrupted
