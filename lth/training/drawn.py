"""What a model's constructor draws: whether a seed decides it, and whether it is where tickets hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth.settings.config import ConfigError
from lth.training import models, source


def check_drawn(build: Callable[[int], nn.Module], name: str) -> None:
    """ConfigError unless networks that `build` gives for one seed have the same weights, buffers, and arrays and lists
    of numbers among their attributes. Rounding, and memory that no one has written to, make no difference."""
    with _filled():
        one, other = (_values(build(0)) for _ in range(2))
    if differ := [key for key in one if key not in other or not _same(one[key], other[key])]:
        raise ConfigError(
            f"{name} must draw by the functions of torch, np.random or random, which the seed decides, and not by a "
            f"generator that nothing seeds: built twice from one seed, it differs in {_named(differ)}"
        )


def kept_in_attributes(model: nn.Module, build: Callable[[int], nn.Module]) -> str:
    """The plain attributes, in words, of models like `model` whose values the seed of `build` decides; nothing if there
    are none."""
    if not _own_attributes(model):
        return ""
    one, other = _own_attributes(build(0)), _own_attributes(build(1))
    differ = [name for name in one if one[name] != other.get(name)]
    again = _own_attributes(build(0)) if differ else {}  # counts, times and the like differ whatever the seed
    return _named([name for name in differ if one[name] == again.get(name)])


def _own_attributes(model: nn.Module) -> dict[str, str]:
    """Those of modules of the user's own classes; PyTorch's keep there what they compute from their weights."""
    foreign = {path for path, module in model.named_modules() if source.installed(type(module))}
    return {name: text for name, text in models.attributes(model).items() if name.rpartition(".")[0] not in foreign}


def _values(model: nn.Module) -> dict[str, Any]:
    """The state of a model, and what of its attributes may have been drawn as a whole."""
    usual = vars(nn.Module()).keys()
    held = {
        f"{path}.{name}".lstrip("."): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in usual and _of_numbers(value)
    }
    return held | models.state_of(model)


def _of_numbers(value: Any) -> bool:
    """Whether it is an array or a list of two or more numbers: a single one may be a count or a time."""
    if isinstance(value, Tensor):
        return value.layout == torch.strided and value.numel() > 1
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc" and value.size > 1
    return type(value) in (list, tuple) and len(value) > 1 and all(map(_numeric, value))


def _numeric(value: Any) -> bool:
    return isinstance(value, (int, float, complex, np.number)) or _of_numbers(value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if torch.equal(one, other):
            return True
        return one.is_floating_point() and torch.allclose(one.double(), other.double(), rtol=1e-3, equal_nan=True)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and np.allclose(one, other, rtol=1e-3, equal_nan=True)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _named(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@contextmanager
def _filled() -> Iterator[None]:
    """Within it, PyTorch fills what is empty: memory as it happens to be was not drawn."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")  # torch.use_deterministic_algorithms would load a compiler
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
