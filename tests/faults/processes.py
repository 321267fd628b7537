"""Commands of the bundle as processes that can be hindered and killed.

Each is forked from a server that has imported everything: a command starts in a tenth of a second, and not in ten.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

CONFIGS = ROOT / "bundle" / "configs"
PRELOADED = ["monai.bundle", "monai.engines", "nibabel", "matplotlib.figure", "lpips", "scripts.evaluation.report"]
PRELOADED += ["scripts.cohort.prepare", "scripts.handlers", "scripts.inference.batch", "tests.faults.processes"]
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


class Run:
    """A command that runs, with its children, in a process group of its own.

    Args:
        command: what to run.
        log: file of what it prints.
        hindrance: is called in its process before it begins; can be pickled.
    """

    def __init__(self, command: Command, log: Path, hindrance: Callable[[], Any] | None = None) -> None:
        self.log = log
        self.process = SERVER.Process(target=serve, args=(command, log, hindrance))
        self.process.start()

    def wait(self, limit: float = 120) -> int:
        """The exit status; a command that has not ended by then is killed, and the test fails."""
        self.process.join(limit)
        ended = self.process.exitcode is not None
        self.kill()
        assert ended, f"no end after {limit} s:\n{self.text()[-3000:]}"
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL to all of the group."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended, or has not yet a group of its own
            self.process.kill()
        self.process.join()

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text() if self.log.exists() else ""


def run(command: Command, log: Path, hindrance: Callable[[], Any] | None = None) -> tuple[int, str]:
    """Run a command to its end: its exit status, and what it printed."""
    running = Run(command, log, hindrance)
    status = running.wait()
    return status, running.text()


def succeed(command: Command, log: Path) -> str:
    """Run a command that has to succeed, and give what it printed."""
    status, text = run(command, log)
    assert status == 0, text[-3000:]
    return text


def serve(command: Command, log: Path, hindrance: Callable[[], Any] | None) -> None:
    """Be the process of a command."""
    os.setsid()
    os.chdir(ROOT)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that Python has started
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    if hindrance:
        hindrance()
    from monai.bundle import run as run_bundle

    run_bundle(command.run_id, config_file=[str(CONFIGS / name) for name in command.configs], **command.keys)


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
