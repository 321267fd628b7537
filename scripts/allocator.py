"""How the C library hands out memory, which decides how long a tensor takes to make."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt(3).
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for the next tensors, and not give it back to the system.

    By default glibc takes each tensor above 32 MB from the system anew, and the kernel clears it page by page, which
    was a third of the time of a full-size training step on two cores. Does nothing where the C library is another one.
    """
    if sys.platform.startswith("linux"):
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(MMAP_MAX, 0)
            library.mallopt(TRIM_THRESHOLD, -1)
