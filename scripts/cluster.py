"""A Dask cluster as the pool of ``parallel_map``: found or asked for, and given this bundle's code."""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import cache, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.parallel import DIED, Failed, Pool, Workers, attempt

MISSING = (
    "the keys 'scheduler' and 'cluster' need {}, which is not installed: run pip install '.[cluster]' in the checkout, "
    "or pip install 'dask[distributed]' dask-jobqueue."
)

try:
    import dask
    import distributed
except ImportError as error:
    raise ModuleNotFoundError(MISSING.format("dask[distributed]")) from error

JOBS = 10  # workers that a queue is asked for where nobody says how many
PATIENCE = 10.0  # s until a scheduler counts as unreachable
NOTICE = 30.0  # s without any worker after which the user is told
RECOUNT = 1.0  # s between two looks at how many workers there are
BUNDLE = Path(__file__).absolute().parents[1]  # what has to be on a worker's path

IN_WORK = threading.Lock()


class DaskPool(Pool):
    """The workers of a Dask cluster, which may come and go: what a lost worker had in work goes to another one.

    Args:
        workers: name the cluster.

    Raises:
        As ``connect``.
    """

    def __init__(self, workers: Workers) -> None:
        self.client = connect(workers)
        self.call = shipped(str(BUNDLE))
        self.counted, self.count = 0.0, 0
        self.submitted: weakref.WeakSet[distributed.Future] = weakref.WeakSet()

    @property
    def width(self) -> int:
        """One in work and one in waiting for each worker."""
        if time.monotonic() - self.counted > RECOUNT:
            self.counted, self.count = time.monotonic(), len(self.client.nthreads())
        return 2 * max(self.count, 1)

    def submit(self, function: Callable[[Any], Any], item: Any) -> distributed.Future:
        task = pickle.dumps(partial(serve, os.getcwd(), function, item))
        future = self.client.submit(self.call, task, pure=False)
        self.submitted.add(future)
        return future

    def again(self, function: Callable[[Any], Any], item: Any, first: Failed) -> Any:
        """The second attempt. An item whose workers died has it when nothing else is in work.

        Dask blames all items that a dying worker had, of which one was only waiting for its turn there.
        """
        if first is DIED:
            for future in tuple(self.submitted):
                self.result(future)
        return super().again(function, item, first)

    def result(self, future: distributed.Future) -> Any:
        try:
            while True:
                try:
                    return future.result(timeout=NOTICE)
                except distributed.TimeoutError:
                    if not self.client.nthreads():
                        tqdm.write(f"  the scheduler {self.client.scheduler.address} has no worker: waiting for one")
        except distributed.KilledWorker:  # after as many deaths as Dask's setting ``allowed-failures`` permits
            return DIED
        except CancelledError as error:
            raise ConnectionError(
                f"the connection to the Dask scheduler was lost ({error}); the same command goes on where this one "
                "stopped."
            ) from error


def shipped(root: str) -> Callable[[bytes], Any]:
    """A function that unpickles and calls on a worker that does not know this bundle, whose folder it can read.

    Nothing in it may refer to the bundle, and it is made in another function: so Dask ships its code and not its name.
    """

    def call(task: bytes) -> Any:
        import importlib
        import os
        import pickle
        import sys

        if not os.path.isdir(os.path.join(root, "scripts")):
            raise FileNotFoundError(f"a worker of the cluster cannot read '{root}': it needs the same file system.")
        if root not in sys.path:
            sys.path.insert(0, root)
        found = importlib.import_module("scripts").__path__[0]
        if not os.path.samefile(found, os.path.join(root, "scripts")):
            raise ImportError(f"a worker of the cluster has loaded '{found}' and not '{root}/scripts': restart it.")
        return pickle.loads(task)()

    return call


def serve(folder: str, function: Callable[[Any], Any], item: Any) -> Any:
    """Apply the function on a worker as it would be in the main process: in its folder, and one at a time.

    The working directory and what is caught of warnings belong to a process, not to one of a worker's threads.
    """
    with IN_WORK:
        before = os.getcwd()
        os.chdir(folder)
        try:
            return attempt(function, item)
        finally:
            os.chdir(before)


@cache  # so that the stages of one run share their workers, for which a queue may let one wait
def connect(workers: Workers) -> distributed.Client:
    """A client of the cluster that is named.

    Raises:
        ConnectionError: when the scheduler does not answer.
        FileNotFoundError: when its file does not exist.
        ValueError: for a file that names no scheduler, or a profile that does not exist or lacks something.
    """
    if workers.cluster:
        cluster = start(workers.cluster)
        cluster.scale(workers.number or JOBS)
        return distributed.Client(cluster, set_as_default=False)
    address = str(workers.scheduler)
    if address.endswith(".json"):
        address = read_address(Path(address))
    try:
        client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"scheduler '{workers.scheduler}' cannot be reached ({error}). Start one with 'dask scheduler' and name "
            "its address, such as tcp://host:8786, with --scheduler; without the key, this machine does the work."
        ) from error
    if any(threads > 1 for threads in client.nthreads().values()):
        print("  the scheduler's workers have several threads, of which one works: start them with --nthreads 1")
    return client


def read_address(path: Path) -> str:
    """The address in a scheduler file, as ``dask scheduler --scheduler-file`` writes it."""
    if not path.is_file():
        raise FileNotFoundError(
            f"scheduler '{path}' does not exist: 'dask scheduler --scheduler-file {path}' writes it."
        )
    try:
        return json.loads(path.read_text())["address"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"scheduler '{path}' is not the file of a Dask scheduler ({error!r}).") from error


def queueing_systems() -> dict[str, type]:
    """The clusters of dask-jobqueue by the names of their queueing systems, such as ``slurm``."""
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue  # only here, since it takes the handler of Ctrl-C for itself
    except ImportError as error:
        raise ModuleNotFoundError(MISSING.format("dask-jobqueue")) from error
    finally:
        signal.signal(signal.SIGINT, interrupt)
    kinds = [kind for kind in dir(dask_jobqueue) if kind.endswith("Cluster") and kind != "JobQueueCluster"]
    return {kind.removesuffix("Cluster").lower(): getattr(dask_jobqueue, kind) for kind in kinds}


def start(name: str) -> distributed.SpecCluster:
    """The queue of a profile, ``<system>`` or ``<system>:<profile>``, without workers yet."""
    system, _, profile = name.partition(":")
    known = queueing_systems()
    if system not in known:
        raise ValueError(f"cluster '{name}' names none of the queueing systems {', '.join(sorted(known))}.")
    profiles = dask.config.get("jobqueue", {})
    if (profile or system) not in profiles:
        raise ValueError(
            f"cluster '{name}' names a profile that Dask's configuration does not have under 'jobqueue'; it has "
            f"{', '.join(sorted(profiles))}. Write it into ~/.config/dask/jobqueue.yaml."
        )
    try:
        return known[system](config_name=profile or system)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"cluster '{name}' cannot be used ({' '.join(str(error).split())}). Set what is missing under "
            f"'jobqueue: {profile or system}:' in ~/.config/dask/jobqueue.yaml."
        ) from error
