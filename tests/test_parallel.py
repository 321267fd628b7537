from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from scripts.parallel import Failed, Workers, parallel_map
from scripts.storage import StorageError
from tests.conftest import ROOT
from tests.tasks import (
    die_at_7,
    die_once_at_7,
    no_square_of_7,
    nowhere_to_write_7,
    square,
    square_at_second_attempt,
    threads,
)

NUMBERS = list(range(20))


def mapped(function, items, workers=2):
    return list(parallel_map(function, items, workers, "test", "number"))


def without_7(results):
    """Check all results but that of 7, and return this one."""
    assert results[:7] + results[8:] == [square(number) for number in NUMBERS if number != 7]
    return results[7]


@pytest.mark.parametrize("workers", [None, 1, 2])
def test_results_come_in_order(workers):
    assert mapped(square, NUMBERS, workers) == [square(number) for number in NUMBERS]


def test_nothing_to_do():
    assert mapped(square, []) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_fails_once_is_tried_once_more(workers, tmp_path):
    results = mapped(partial(square_at_second_attempt, folder=tmp_path), NUMBERS, workers)
    assert results == [square(number) for number in NUMBERS]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_fails_twice_is_told_and_the_others_go_on(workers, tmp_path):
    failed = without_7(mapped(partial(no_square_of_7, folder=tmp_path), NUMBERS, workers))
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("unexpected KeyError: 'seven' (tasks.py, line ")
    assert len(list(tmp_path.glob("7 *"))) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_no_fault_of_an_item_and_stops_all(workers):
    with pytest.raises(StorageError, match="no room for 7"):
        mapped(nowhere_to_write_7, NUMBERS, workers)


def test_a_dead_process_takes_nothing_with_it(tmp_path):
    assert without_7(mapped(partial(die_once_at_7, folder=tmp_path), NUMBERS)) == 49


def test_what_kills_every_process_is_told_and_no_other_is_taken_for_it():
    assert "its process died each time" in without_7(mapped(die_at_7, NUMBERS)).reason


def test_few_items_are_under_way_at_a_time():
    taken = []

    class Items(list):
        def __iter__(self):
            for item in super().__iter__():
                taken.append(item)
                yield item

    results = parallel_map(square, Items(range(1000)), 2, "test", "number")
    assert next(results) == 0
    assert len(taken) <= 16
    results.close()


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    assert set(mapped(threads, NUMBERS, 2)) == {("4", "4")}


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_a_number_of_workers_that_is_none(number):
    with pytest.raises(ValueError, match="expected a whole number of at least 1"):
        Workers(number)


KILLED = """
import os, pathlib, sys, time
from scripts.parallel import parallel_map

def work(item):
    pathlib.Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)

list(parallel_map(work, [1, 2, 3, 4], 2, "test", "item"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes under /proc")
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    code = KILLED.replace("sys.argv[1]", repr(str(tmp_path)))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    deadline = time.time() + 10
    while time.time() < deadline and any(running(worker) for worker in workers):
        time.sleep(0.2)
    assert not any(running(worker) for worker in workers)


def running(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_processes_that_cannot_be_started_are_told(monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("scripts.parallel.get_reusable_executor", full)
    with pytest.raises(StorageError, match=r"2 worker processes cannot be started .* make room in /dev/shm"):
        list(parallel_map(abs, [-1, -2, -3], 2, "map", "number"))
