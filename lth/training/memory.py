"""Memory on a CPU: what one training step frees serves the next."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # parameters of mallopt(3)
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}  # no block outside of the heap, and the heap never shrinks
USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}  # the most that glibc's own rules arrive at


@contextmanager
def kept() -> Iterator[None]:
    """Keep the memory that this process frees within the context, and return it to the system on exit.

    glibc returns large blocks to the system as soon as they are freed, so that each step takes them again page by page:
    30% of the time of conv2. Nothing changes without glibc, or where MALLOC_* or GLIBC_TUNABLES are set.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    library = ctypes.CDLL(None) if sys.platform == "linux" and not chosen else None
    if library is None or not hasattr(library, "mallopt"):
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
