"""Memory of a training on a CPU: what a step frees serves the next one."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # parameters of mallopt(3)
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}  # no block apart from the heap, and the heap never shrinks
USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}  # what glibc's own rules arrive at, at most


@contextmanager
def kept() -> Iterator[None]:
    """Within it, this process keeps the memory that it frees; then it gives all of that back.

    glibc returns large blocks to the system as soon as they are freed, so that every step takes them anew, page by
    page, if they lie at the end of its heap: of two workers that trained conv2 it cost one 30% of its time, the other
    nothing. Nothing changes where there is no glibc, or where its user has told it what to do.
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if told or sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        yield
        return
    for parameter, value in KEEPING.items():
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)
