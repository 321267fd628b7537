"""Commands of the bundle as processes that begin at once, and that can be hindered and killed.

Each is forked from a server that has imported everything: a command starts in a tenth of a second, and not in ten.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from tests.conftest import ROOT

CONFIGS = ROOT / "bundle" / "configs"
PRELOADED = ["monai.bundle", "monai.engines", "nibabel", "matplotlib.figure", "lpips", "scripts.evaluation.report"]
PRELOADED += ["scripts.cohort.prepare", "scripts.handlers", "scripts.inference.batch", "tests.processes"]
LONG = 120  # s for a command of a test
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(PRELOADED)


@dataclass(frozen=True)
class Command:
    """``python -m monai.bundle run``.

    Args:
        run_id: what to run.
        configs: names of configs of the bundle.
        keys: that override theirs.
    """

    run_id: str
    configs: tuple[str, ...]
    keys: Mapping[str, Any] = field(default_factory=dict)

    def into(self, output: Path, **keys: Any) -> Command:
        """The same with another output folder, and further keys."""
        return Command(self.run_id, self.configs, {**self.keys, "output_dir": str(output), **keys})

    def begin(self) -> None:
        """Be it."""
        from monai.bundle import run as run_bundle

        os.chdir(ROOT)
        run_bundle(self.run_id, config_file=[str(CONFIGS / name) for name in self.configs], **self.keys)


@dataclass(frozen=True)
class Line:
    """``python -m monai.bundle`` as a shell starts it: no code of this checkout is imported yet, the folder decides.

    But for what packages read while they are imported, such as OMP_NUM_THREADS, and for the seed of hashes, which the
    lines of one server share: what has to be the same in any process is run in new ones. What our code does that is
    deprecated, or of no defined result, ends it.

    Args:
        arguments: what follows.
        folder: where.
        environment: all of its variables.
    """

    arguments: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]

    def begin(self) -> None:
        """Be it."""
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        for name in [name for name in sys.modules if name.partition(".")[0] in ("scripts", "tests")]:
            del sys.modules[name]
        own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[:] = [os.getcwd(), *own, *filter(installed, sys.path)]
        sys.argv = ["monai.bundle", *self.arguments]
        numpy.random.seed()  # noqa: NPY002 - or each would have the numbers of the server
        # as in pyproject.toml, for the tests themselves
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, RuntimeWarning, SyntaxWarning):
            warnings.filterwarnings("error", category=category, module=r"scripts\b")
        try:
            runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        finally:
            atexit._run_exitfuncs()  # which processes of multiprocessing do since Python 3.13 only


def installed(path: str) -> bool:
    """Whether a folder for imports is of Python or its packages: others were added by the tests."""
    return any(Path(path).is_relative_to(prefix) for prefix in (sys.prefix, sys.base_prefix))


class Run:
    """A command that runs, with its children, in a process group of its own.

    Args:
        command: what to run.
        log: file of what it prints.
        hindrance: is called in its process before it begins; can be pickled.
    """

    def __init__(self, command: Command | Line, log: Path, hindrance: Callable[[], Any] | None = None) -> None:
        self.log = log
        self.process = SERVER.Process(target=serve, args=(command, log, hindrance))
        self.process.start()

    def wait(self, seconds: float = LONG) -> int:
        """The exit status; a command that has not ended by then is killed, and the test fails."""
        status = self.end(seconds)
        assert status is not None, f"no end after {seconds} s:\n{self.text()[-3000:]}"
        return status

    def end(self, seconds: float) -> int | None:
        """The exit status; None for a command that has not ended by then and is killed."""
        self.process.join(seconds)
        status = self.process.exitcode
        self.kill()
        return status

    def kill(self) -> None:
        """SIGKILL to all of the group."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended, or has not yet a group of its own
            self.process.kill()
        self.process.join()

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def run(
    command: Command | Line, log: Path, hindrance: Callable[[], Any] | None = None, seconds: float = LONG
) -> tuple[int, str]:
    """Run a command to its end: its exit status, and what it printed."""
    running = Run(command, log, hindrance)
    status = running.wait(seconds)
    return status, running.text()


def succeed(command: Command, log: Path) -> str:
    """Run a command that has to succeed, and give what it printed."""
    status, text = run(command, log)
    assert status == 0, text[-3000:]
    return text


def serve(command: Command | Line, log: Path, hindrance: Callable[[], Any] | None) -> None:
    """Be the process of a command."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # that of a process which Python has started
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    if hindrance:
        hindrance()
    command.begin()


def limit(kind: int, value: int) -> None:
    """Lower a resource limit of this process and its children; a hindrance as ``partial(limit, ...)``."""
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def when(condition: Callable[[], bool], action: Callable[[], Any], interval: float = 0.005) -> None:
    """Do something in a thread of this process as soon as a condition holds."""

    def watch() -> None:
        while not condition():
            wake.wait(interval)
        action()

    wake = threading.Event()
    threading.Thread(target=watch, daemon=True).start()
