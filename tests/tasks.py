"""What tests let workers do; a module of its own, since a worker imports the module of what it does."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from scripts.storage import StorageError


def square(number):
    return number**2


def first_time(number, folder):
    """Whether this is the first attempt at a number, over all processes."""
    try:
        Path(folder, str(number)).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def square_at_second_attempt(number, folder):
    if first_time(number, folder):
        raise KeyError(number)
    return square(number)


def no_square_of_7(number, folder):
    first_time(f"{number} {time.monotonic_ns()}", folder)
    if number == 7:
        raise KeyError("seven")
    return square(number)


def nowhere_to_write_7(number):
    if number == 7:
        raise StorageError(errno.ENOSPC, "no room for 7")
    return square(number)


def die_once_at_7(number, folder):
    if number == 7 and first_time(number, folder):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    return square(number)


def die_at_7(number):
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(number)


def die_slowly_at_7(number):
    time.sleep(0.3 if number == 7 else 0.02)
    return die_at_7(number)


def threads(_):
    return os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]


def here(_):
    return os.getcwd()
