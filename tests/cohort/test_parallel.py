from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.cohort.parallel import parallel_map
from tests.conftest import ROOT


def square(number):
    return number**2


@pytest.mark.parametrize("workers", [None, 1, 2])
def test_results_come_in_order(workers):
    assert list(parallel_map(square, list(range(20)), workers, "test", "number")) == [i**2 for i in range(20)]


def test_nothing_to_do():
    assert list(parallel_map(square, [], 2, "test", "number")) == []


KILLED = """
import os, pathlib, sys, time
from scripts.cohort.parallel import parallel_map

def work(item):
    pathlib.Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)

list(parallel_map(work, [1, 2, 3, 4], 2, "test", "item"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes under /proc")
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
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
