"""One way to work through many subjects."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tqdm import tqdm


def parallel_map(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int | None, title: str, unit: str
) -> Iterator[Any]:
    """Map over items in worker processes behind a progress bar; yields the results in the order of the items.

    Args:
        function: can be pickled; it reports a subject's problem in its result, since an exception ends the map.
        items: what to map over.
        workers: processes; up to 1 stays in this one.
        title, unit: of the progress bar.
    """
    progress = {"total": len(items), "desc": title, "unit": unit, "disable": not items}
    if not workers or workers <= 1 or len(items) <= 1:
        yield from tqdm(map(function, items), **progress)
        return
    with ProcessPoolExecutor(workers, initializer=end_with, initargs=(os.getpid(),)) as pool:
        yield from tqdm(pool.map(function, items, chunksize=2), **progress)


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
