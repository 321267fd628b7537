"""One way to work through many subjects: processes of this machine, or a Dask cluster where one is named.

joblib's process pool (loky) and Dask's client stand behind one loop, and not joblib's ``Parallel``, whose two backends
cannot outlive their workers: locally, the death of one throws away what the others have done; with Dask, a task that
was given up is waited for forever (joblib 1.6, distributed 2026.8).
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import joblib
from joblib.externals.loky import ProcessPoolExecutor, get_reusable_executor
from tqdm import tqdm

from scripts.storage import StorageError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Workers:
    """Who does the work: processes of this machine, unless a scheduler or a profile of a cluster is named.

    Args:
        number: how many processes; None takes one per core. Of a profile, how many workers the queue is asked for.
        scheduler: address of a running Dask scheduler, or path of its scheduler file (``.json``).
        cluster: a queueing system that dask-jobqueue knows, such as ``slurm``, or ``slurm:<profile>``.

    Raises:
        ValueError: for a number below 1, or both a scheduler and a profile.
    """

    number: int | None = None
    scheduler: str | None = None
    cluster: str | None = None

    def __post_init__(self) -> None:
        if self.number is not None and (type(self.number) is not int or self.number < 1):
            raise ValueError(f"workers is {self.number!r}; expected a whole number of at least 1.")
        if self.scheduler and self.cluster:
            raise ValueError("scheduler and cluster are both named: leave out one of them.")

    @classmethod
    def of(cls, workers: Workers | int | None) -> Workers:
        """These workers, or so many processes of this machine."""
        return workers if isinstance(workers, Workers) else cls(workers)

    @property
    def remote(self) -> bool:
        """Whether a cluster does the work."""
        return bool(self.scheduler or self.cluster)

    @property
    def processes(self) -> int:
        """Processes of this machine."""
        return self.number or joblib.cpu_count()


class Failed(NamedTuple):
    """Stands for the result of an item that failed twice; in words, why."""

    reason: str


DIED = Failed("its process died each time, for instance for want of memory")


def parallel_map(
    function: Callable[[Any], Any], items: Sequence[Any], workers: Workers | int | None, title: str, unit: str
) -> Iterator[Any]:
    """Map over items behind a progress bar; yields the results in the order of the items.

    An item whose function raises, or whose process dies, is tried once more. Should that fail too, its result is a
    ``Failed``, and the others go on.

    Args:
        function: can be pickled.
        items: what to map over; few of them are under way at a time.
        workers: who does it; 1 process is this one, which nothing protects from dying.
        title, unit: of the progress bar.

    Raises:
        ConnectionError, FileNotFoundError, ModuleNotFoundError, ValueError: for a cluster that cannot be used.
        StorageError: from the function.
    """
    if not items:
        return
    with pool_of(Workers.of(workers), len(items)) as pool:
        yield from tqdm(in_order(pool, function, items), desc=title, unit=unit, total=len(items))


def pool_of(workers: Workers, items: int) -> AbstractContextManager[Pool]:
    """The pool that does the work."""
    if workers.remote:
        from scripts.cluster import DaskPool  # only here, since Dask is an optional dependency

        return DaskPool(workers)
    number = min(workers.processes, items)
    return ProcessPool(number, joblib.cpu_count() // workers.processes) if number > 1 else Pool()


def in_order(pool: Pool, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """The results in the order of the items, of which no more than the pool is wide are under way."""
    waiting: deque[tuple[Any, Any]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            while len(waiting) >= pool.width:
                yield result_of(pool, function, *waiting.popleft())
        while waiting:
            yield result_of(pool, function, *waiting.popleft())
    finally:
        for _, future in waiting:
            future.cancel()


def result_of(pool: Pool, function: Callable[[Any], Any], item: Any, future: Any) -> Any:
    """The result of an item, which is tried once more where it failed."""
    result = pool.result(future)
    return pool.again(function, item, result) if isinstance(result, Failed) else result


def attempt(function: Callable[[Any], Any], item: Any) -> Any:
    """Apply the function; an exception becomes a ``Failed``, since not every exception can be pickled.

    A ``StorageError`` is raised: what nobody can write is no fault of an item.
    """
    try:
        return function(item)
    except StorageError:
        raise
    except Exception as error:
        return Failed(described(error))


def described(error: Exception) -> str:
    """An error in words: one of a file speaks for itself, any other is one of the program and says where."""
    if isinstance(error, OSError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "scripts" in Path(frame.filename).parts and frame.name != "attempt"]
    place = (own or frames)[-1]
    return f"unexpected {type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"


class Pool(AbstractContextManager):
    """What does the work. Its base does it right away in this process.

    ``width`` is how many items may be under way.
    """

    width = 1

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Begin with an item; returns what ``result`` waits for."""
        return attempt(function, item)

    def result(self, future: Any) -> Any:
        """The function's result, or a ``Failed``."""
        return future

    def again(self, function: Callable[[Any], Any], item: Any, first: Failed) -> Any:
        """The second attempt at an item that failed."""
        return self.result(self.submit(function, item))


class ProcessPool(Pool):
    """Processes of this machine, started anew and not forked: a fork would inherit locks of threads that it lacks.

    Args:
        number: of processes.
        threads: of each.
    """

    def __init__(self, number: int, threads: int) -> None:
        self.number = number
        self.width = 8 * number  # enough that nobody waits for one subject that takes several times as long
        environment = dict.fromkeys(THREADS, str(max(1, threads)))
        self.options = {"initializer": begin, "initargs": (os.getpid(), os.getcwd()), "env": environment}
        self.executor = self.start()

    def start(self) -> ProcessPoolExecutor:
        """The processes of the map before, where these are still there and do as well; new ones after a death.

        Raises:
            StorageError: where the system refuses what processes need to talk to each other.
        """
        try:
            return get_reusable_executor(self.number, **self.options)
        except OSError as error:
            raise StorageError(
                error.errno,
                f"{self.number} worker processes cannot be started ({error}): make room in /dev/shm and in "
                f"'{tempfile.gettempdir()}', raise the limit on open files (ulimit -n), or set --workers 1",
            ) from error

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:  # of what was interrupted nobody awaits the rest
            self.executor.shutdown(kill_workers=True)

    def submit(self, function: Callable[[Any], Any], item: Any) -> Future:
        try:
            return self.executor.submit(attempt, function, item)
        except BrokenProcessPool:  # a process has died since the last submission, and took the whole pool with it
            self.executor = self.start()
            return self.executor.submit(attempt, function, item)

    def result(self, future: Future) -> Any:
        try:
            return future.result()
        except BrokenProcessPool:
            return DIED

    def again(self, function: Callable[[Any], Any], item: Any, first: Failed) -> Any:
        """The second attempt. Where a process died, each item that was under way gets a process of its own for it.

        So it shows which item is to blame, and the others are not taken for it.
        """
        second = first if first is DIED else self.result(self.submit(function, item))
        if second is not DIED:
            return second
        with ProcessPoolExecutor(1, **self.options) as alone:
            return self.result(alone.submit(attempt, function, item))


def begin(parent: int, folder: str) -> None:
    """Begin as a worker: in the folder of the parent, and until it dies."""
    os.chdir(folder)
    end_with(parent)


def end_with(parent: int, interval: float = 1.0) -> None:
    """End this worker when its parent has died, for instance of SIGKILL, which lets nobody tell the workers.

    Args:
        parent: process number of the parent.
        interval: seconds between two looks.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
