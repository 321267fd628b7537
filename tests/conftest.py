"""Fixtures that several tests share: a phantom cohort, prepared once, and real patients where they are at hand."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scripts.cohort.phantom import FAILURES, write_cohort
from scripts.cohort.prepare import prepare
from scripts.parallel import Workers

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def shared(path: str) -> Path:
    """A file of the data that lie beside the checkout; skips the test where they do not."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs {path} in the folder 'shared' beside the checkout")
    return found


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A small phantom cohort in both file layouts: 12 sound subjects, and one that breaks each quality rule."""
    root = tmp_path_factory.mktemp("phantoms")
    write_cohort(root, subjects=12 + len(FAILURES), seed=3, cine_fraction=0.25, failing=1, frames=5)
    return root


@pytest.fixture(scope="session")
def prepared(phantoms, tmp_path_factory) -> Path:
    """cohort.csv and datalist.json of the phantom cohort."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(phantoms, folder, split=(0.5, 0.25, 0.25))
    return folder


# Idle processes of Dask look about a hundred times a second; three clusters took a fifth of the cores of all tests.
CALM = {
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}


@pytest.fixture(scope="session")
def scheduler(tmp_path_factory) -> Iterator[str]:
    """File of a Dask scheduler with two workers that were started elsewhere and know nothing of this code."""
    pytest.importorskip("distributed")
    folder = tmp_path_factory.mktemp("cluster")
    file = folder / "scheduler.json"
    environment = {**os.environ, **CALM, "PYTHONPATH": "", "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    commands = (("scheduler", "--port", "0"), ("worker", "--nworkers", "2", "--nthreads", "1"))
    processes = []
    for kind, *options in commands:
        command = [sys.executable, "-m", "dask", kind, "--scheduler-file", file, "--no-dashboard", *options]
        with open(folder / f"{kind}.log", "w") as log:
            processes.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log))
    while not file.exists():
        assert all(process.poll() is None for process in processes), (folder / "scheduler.log").read_text()
        time.sleep(0.05)
    yield str(file)
    from scripts.cluster import connect

    connect(Workers(scheduler=str(file))).close()
    connect.cache_clear()
    for process in reversed(processes):
        process.terminate()
        process.wait(30)


@pytest.fixture
def heart_mask() -> np.ndarray:
    """A small label mask."""
    return drawn_mask()


def drawn_mask() -> np.ndarray:
    """A label mask (40, 40, 8) by hand: an LV in a ring of myocardium, an RV beside it, larger towards slice 0."""
    x, y = np.meshgrid(np.arange(40), np.arange(40), indexing="ij")
    mask = np.zeros((40, 40, 8), np.uint8)
    for z in range(7):
        size = 8 - 0.6 * z
        mask[..., z][np.hypot(x - 11, y - 20) < size] = 3
        mask[..., z][np.hypot(x - 24, y - 20) < size + 2] = 2
        mask[..., z][np.hypot(x - 24, y - 20) < size] = 1
    return mask
