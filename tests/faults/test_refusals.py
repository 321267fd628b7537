"""Disks, limits and mounts that refuse: the command ends and says what and where, and goes on once they are mended."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from tests.faults.world import STEPS, check_whole, copy, differences, results
from tests.processes import limit, run, succeed, when

ROOM = "64m"


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, 1 MB large."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def size(files: Iterable[Path]) -> int:
    """Bytes of files, in whole pages."""
    return sum(-path.stat().st_size // 4096 * -4096 for path in files)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_is_told_and_nothing_is_lost(step, undisturbed, disk, tmp_path):
    before, after = (size(results(folders[step])) for folders in (undisturbed.before, undisturbed.after))
    # Logs of an inference's model come along.
    logs = size((undisturbed.before[step] / "tensorboard").rglob("*.tfevents.*"))
    mount("-o", f"remount,size={before + logs + (after - before) // 2}", str(disk))
    copy(undisturbed.before[step], disk / "output")
    command = undisturbed.commands[step].into(disk / "output")
    status, text = run(command, tmp_path / "log")
    assert status != 0
    assert re.search(rf"'{disk}/output.*cannot be written \(No space left on device\): make room", text), text[-3000:]
    check_whole(disk / "output")
    mount("-o", f"remount,size={ROOM}", str(disk))
    succeed(command, tmp_path / "log")
    assert differences(disk / "output", undisturbed.after[step]) == []


@pytest.mark.slow
def test_a_disk_that_turns_read_only_is_told(undisturbed, disk, tmp_path):
    mount("-o", f"remount,size={ROOM}", str(disk))
    command, last = undisturbed.commands["train"].into(disk / "output"), disk / "output" / "last.pt"
    seal = partial(when, last.exists, partial(mount, "-o", "remount,ro", str(disk)))
    status, text = run(command, tmp_path / "log", seal)
    assert status != 0
    assert "Read-only file system" in text
    assert str(disk / "output") in text
    status, text = run(command, tmp_path / "log")
    assert status != 0
    assert f"output_dir '{disk / 'output'}' cannot be written to" in text
    mount("-o", "remount,rw", str(disk))
    succeed(command, tmp_path / "log")
    assert differences(disk / "output", undisturbed.after["train"]) == []


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_told(undisturbed, tmp_path):
    command = undisturbed.commands["train"].into(tmp_path / "output")
    largest = (undisturbed.after["train"] / "last.pt").stat().st_size
    status, text = run(command, tmp_path / "log", partial(limit, resource.RLIMIT_FSIZE, largest // 2))
    assert status != 0
    assert re.search(r"last.pt' cannot be written \(File too large\): raise the limit", text), text[-3000:]
    succeed(command, tmp_path / "log")
    assert differences(tmp_path / "output", undisturbed.after["train"]) == []


@pytest.mark.slow
@pytest.mark.parametrize(("step", "first"), [("prepare", "examined.jsonl"), ("train", "last.pt")])
def test_a_folder_that_vanishes_is_told(step, first, undisturbed, tmp_path):
    output, elsewhere = tmp_path / "output", tmp_path / "elsewhere"
    command = undisturbed.commands[step].into(output)
    lose = partial(when, partial(has_content, output / first), partial(os.rename, output, elsewhere))
    status, text = run(command, tmp_path / "log", lose)
    assert status != 0
    told = rf"'{output}.* cannot be written \(No such file or directory\): bring its folder back"
    if step == "train":  # TensorBoard, which writes more often, tells it first in words of its own
        told += rf"|No such file or directory: b?'{output}/tensorboard"
    assert re.search(told, text), text[-3000:]
    copy(elsewhere, output)
    succeed(command, tmp_path / "log")
    assert differences(output, undisturbed.after[step]) == []


@pytest.mark.slow
def test_a_dataset_that_vanishes_leaves_no_datalist_of_the_rest(undisturbed, tmp_path):
    command, scans = undisturbed.commands["prepare"], tmp_path / "scans"
    copy(Path(command.keys["dataset_dir"]), scans)
    command = command.into(tmp_path / "output", dataset_dir=str(scans))
    journal = tmp_path / "output" / "examined.jsonl"
    lose = partial(when, partial(has_content, journal), partial(os.rename, scans, tmp_path / "elsewhere"))
    status, text = run(command, tmp_path / "log", lose)
    assert status != 0
    assert f"of dataset_dir '{scans}' have vanished while they were examined: mount it again" in text, text[-3000:]
    assert not (tmp_path / "output" / "cohort.csv").exists()
    os.rename(tmp_path / "elsewhere", scans)
    succeed(command, tmp_path / "log")
    assert differences(tmp_path / "output", undisturbed.after["prepare"]) == []


def has_content(path: Path) -> bool:
    """Whether a file is there and not empty."""
    return path.exists() and path.stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("step", ["prepare", "train", "evaluate"])
def test_few_open_files_are_enough(step, undisturbed, tmp_path):
    """A cohort is of any size, so that no file may stay open; those of the interpreter do."""
    copy(undisturbed.before[step], tmp_path / "output")
    few = partial(limit, resource.RLIMIT_NOFILE, 32)
    status, text = run(undisturbed.commands[step].into(tmp_path / "output"), tmp_path / "log", few)
    assert status == 0, text[-3000:]
    assert differences(tmp_path / "output", undisturbed.after[step]) == []


@pytest.mark.slow
def test_too_few_open_files_are_told_and_wait_for_nothing(undisturbed, tmp_path):
    """The worker of a loader, which hands tensors over as open files, cannot even tell that it fails."""
    copy(undisturbed.before["infer"], tmp_path / "output")
    command = undisturbed.commands["infer"].into(tmp_path / "output")
    few = partial(limit, resource.RLIMIT_NOFILE, 32)
    hasty = command.into(tmp_path / "output", num_workers=1, **{"dataloader#timeout": 5})
    status, text = run(hasty, tmp_path / "log", few)
    assert status != 0
    assert "Too many open files" in text
    assert "timed out after 5 seconds" in text
    succeed(command, tmp_path / "log")
    assert differences(tmp_path / "output", undisturbed.after["infer"]) == []


def children() -> list[int]:
    """Processes that this one has started."""
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return [int(number) for task in tasks for number in (task / "children").read_text().split()]


def kill_a_child() -> None:
    os.kill(children()[-1], signal.SIGKILL)


@pytest.mark.slow
def test_a_loader_that_is_killed_for_want_of_memory_is_told(undisturbed, tmp_path):
    command = undisturbed.commands["train"].into(tmp_path / "output", num_workers=1)
    status, text = run(command, tmp_path / "log", partial(when, children, kill_a_child))
    assert status != 0
    assert re.search(r"DataLoader worker \(pid\(?s?\)? \d+\) .*killed by signal: Killed", text), text[-3000:]
    succeed(command, tmp_path / "log")
    assert differences(tmp_path / "output", undisturbed.after["train"]) == []
