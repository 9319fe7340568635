"""Seeds, and the random number generators that models, pruning rules and loaders draw from.

PyTorch's generators, of the CPU and of the training's device, are seeded, saved in checkpoints and restored. Python's
and NumPy's are seeded with them at the start of each round, but are not saved.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def derive_seed(*parts: object) -> int:
    """A seed for one purpose: equal parts always give the same seed, different parts unrelated ones."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7], "big")


def seed(number: int) -> None:
    """Seed the generators of PyTorch (on all devices), NumPy and Python."""
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def cpu_states() -> tuple[Any, Any, Any]:
    """The states of the generators of PyTorch (CPU), NumPy and Python."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


@contextmanager
def preserved(device: torch.device | None = None) -> Iterator[None]:
    """Restore the generators on exit: of the CPU, and of `device` if it is a GPU or, without one, of all GPUs in
    use."""
    if device is None:
        gpus: list[Any] = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    else:
        gpus = [device] if device.type == "cuda" else []
    before = cpu_states()
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            _restore_cpu(before)


@contextmanager
def seeded(number: int) -> Iterator[None]:
    """Seed all generators inside the `with` block and restore them on exit."""
    with preserved():
        seed(number)
        yield


class Generators:
    """The CPU's generators with states of their own, which start from a seed and advance from one `active` block to the
    next. Code outside of these blocks is not affected."""

    def __init__(self, number: int) -> None:
        torch_state = torch.Generator().manual_seed(number).get_state()
        self._state = torch_state, np.random.RandomState(number % 2**32).get_state(), random.Random(number).getstate()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the `with` block, draws come from these states."""
        outside = cpu_states()
        _restore_cpu(self._state)
        try:
            yield
        finally:
            self._state = cpu_states()
            _restore_cpu(outside)


def state(device: torch.device) -> dict[str, Tensor]:
    """The states of PyTorch's generators of the CPU and of `device`, for a checkpoint."""
    on_gpu = {"random_cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"random": torch.get_rng_state(), **on_gpu}


def restore(saved: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what `state` returned."""
    torch.set_rng_state(saved["random"])
    if "random_cuda" in saved and device.type == "cuda":
        torch.cuda.set_rng_state(saved["random_cuda"], device)


def _restore_cpu(states: tuple[Any, Any, Any]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
