"""Memory on a CPU: what a training's step frees serves the next one, and what nobody has written to can be filled."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, PERTURB = -1, -3, -4, -6  # parameters of mallopt(3)
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}  # no block apart from the heap, and the heap never shrinks
USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}  # what glibc's own rules arrive at, at most
EMPTY: dict[str, Callable[..., Any]] = {"empty": np.empty, "empty_like": np.empty_like}


@contextmanager
def kept() -> Iterator[None]:
    """Within it, this process keeps the memory that it frees; then it gives all of that back.

    glibc returns large blocks to the system as soon as they are freed, so that every step takes them anew, page by
    page, if they lie at the end of its heap: of two workers that trained conv2 it cost one 30% of its time, the other
    nothing. Nothing changes where there is no glibc, or where its user has told it what to do.
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if told or (library := _glibc()) is None:
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


@contextmanager
def filled() -> Iterator[None]:
    """Within it, memory that PyTorch and NumPy give without writing to it holds the same in every process, instead of
    what happens to lie there: where there is glibc all of it, elsewhere that of functions such as `empty`."""
    before, library = torch.get_deterministic_debug_mode(), _glibc()
    torch.set_deterministic_debug_mode("warn")  # torch.use_deterministic_algorithms would load a compiler
    for name, function in EMPTY.items():
        setattr(np, name, _zeroed(function))
    if library is not None:
        library.mallopt(PERTURB, 255)  # malloc gives bytes of 255 ^ 255; NumPy keeps small arrays, without asking it
    try:
        yield
    finally:
        if library is not None:
            library.mallopt(PERTURB, 0)
        for name, function in EMPTY.items():
            setattr(np, name, function)
        torch.set_deterministic_debug_mode(before)


def _zeroed(function: Callable[..., Any]) -> Callable[..., Any]:
    def zeroed(*args: Any, **options: Any) -> Any:
        made = function(*args, **options)
        if isinstance(made, np.ndarray) and made.dtype.kind in "biufc":  # those of objects hold None
            made.fill(0)
        return made

    return zeroed


def _glibc() -> Any:
    """The C library, if it is glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") else None
