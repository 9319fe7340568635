"""The random numbers that models, rules and loaders may draw while they compute: PyTorch's, NumPy's, Python's."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand
from torch import Tensor


def seed(number: int) -> None:
    """Begin all of them anew."""
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


@contextmanager
def seeded(number: int) -> Iterator[None]:
    """Within it they begin anew; after it they are as before, those of GPUs too where they are in use."""
    with _kept(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        seed(number)
        yield


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Within it, draws do not disturb those that come after it."""
    with _kept([device] if device.type == "cuda" else []):
        yield


@contextmanager
def _kept(gpus: Iterable[torch.device | int]) -> Iterator[None]:
    before = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            np.random.set_state(before[0])
            random.setstate(before[1])


def noted(device: torch.device) -> Callable[[], None]:
    """A function that puts them back to where they are now; taken far quicker than `state`."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def put_back() -> None:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, device)

    return put_back


class Own:
    """Random numbers on the CPU that begin with a seed and go on from one `drawn` to the next; those outside do not
    notice."""

    def __init__(self, number: int) -> None:
        self._torch = torch.Generator().manual_seed(number).get_state()
        self._numpy = np.random.MT19937(number)
        self._python = random.Random(number).getstate()

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Within it, these are drawn."""
        outside, generator = torch.get_rng_state(), mtrand.get_bit_generator()
        numpy, python = np.random.get_state(legacy=False), random.getstate()
        torch.set_rng_state(self._torch)
        mtrand.set_bit_generator(self._numpy)  # far quicker than to copy its state in and out
        random.setstate(self._python)
        try:
            yield
        finally:
            self._torch, self._python = torch.get_rng_state(), random.getstate()
            torch.set_rng_state(outside)
            mtrand.set_bit_generator(generator)
            if numpy["has_gauss"]:  # the second of a pair of normal numbers, which the change of generators drops
                np.random.set_state(numpy)
            random.setstate(python)


def state(device: torch.device) -> dict[str, Tensor]:
    """Where they are, to be written into a checkpoint."""
    drawn: Any = np.random.get_state()
    _, keys, *rest = drawn
    others = json.dumps([[keys.tolist(), *rest], random.getstate()])
    found = {"random": torch.get_rng_state(), "random_others": torch.tensor(list(others.encode()), dtype=torch.uint8)}
    return found | ({"random_cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore(saved: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on from there; checkpoints of older versions have PyTorch's alone."""
    torch.set_rng_state(saved["random"])
    if "random_others" in saved:
        (keys, *rest), (version, internal, gauss) = json.loads(bytes(saved["random_others"].tolist()))
        np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))
        random.setstate((version, tuple(internal), gauss))
    if "random_cuda" in saved and device.type == "cuda":
        torch.cuda.set_rng_state(saved["random_cuda"], device)
