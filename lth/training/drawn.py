"""What a model's constructor draws: whether a seed decides it, and whether it is where tickets hold it."""

from __future__ import annotations

import cmath
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth.settings.config import ConfigError
from lth.training import memory, models, source

NUMBERS = (int, float, complex, np.number)
FEW = 4  # numbers of a list that may be counts and times, and not draws
RELATIVE, ABSOLUTE = 1e-3, 1e-6  # by how much numbers may differ that are the same but for rounding


def check_drawn(build: Callable[[int], nn.Module], name: str) -> None:
    """ConfigError unless networks that `build` gives for one seed have the same weights, buffers, and arrays and lists
    of numbers among their attributes. Rounding, and memory that no one has written to, make no difference."""
    with memory.filled():
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
    with memory.filled():
        one, other = _own_attributes(build(0)), _own_attributes(build(1))
        differ = [name for name in one if one[name] != other.get(name)]
        again = _own_attributes(build(0)) if differ else {}  # counts, times and the like differ whatever the seed
    return _named([name for name in differ if one[name] == again.get(name)])


def _own_attributes(model: nn.Module) -> dict[str, str]:
    """Those of modules of the user's own classes; PyTorch's keep there what they compute from their weights. What else
    is a function or a part of weights is left out too: tickets hold that."""
    held = {_storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    others = {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not source.installed(type(module)) and not _of_weights(value, held)
    }
    return {name: text for name, text in models.attributes(model).items() if name in others}


def _of_weights(value: Any, held: set[int | None]) -> bool:
    """Whether it is a tensor, or a list of them, computed from parameters or within the memory `held` by these or
    buffers."""
    parts = [*_flat(value)]
    return bool(parts) and all(
        isinstance(part, Tensor) and (part.grad_fn is not None or _storage(part) in held) for part in parts
    )


def _storage(tensor: Tensor) -> int | None:
    """Where a tensor's memory begins, if it has some."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except RuntimeError:  # one without values, or of no plain layout
        return None


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
    """Whether it is an array of two or more numbers, or a list of arrays and numbers: but for a few numbers alone."""
    parts = [*_flat(value)]
    arrays = [_is_array(part) for part in parts]
    numbers = all(array or isinstance(part, NUMBERS) for array, part in zip(arrays, parts, strict=True))
    return numbers and (any(arrays) or len(parts) > FEW)


def _is_array(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.layout == torch.strided and not value.is_nested and value.numel() > 1
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.size > 1


def _flat(value: Any) -> Iterator[Any]:
    """What a list holds, also in lists within it; anything else is itself."""
    if type(value) in (list, tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and _equal(one, other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if one.shape != other.shape or one.dtype.kind not in "fc":
            return np.array_equal(one, other)
        return np.allclose(one, other, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, (float, complex)) and isinstance(other, (float, complex)):
        return (one != one and other != other) or cmath.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return bool(one == other)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether tensors of one shape and type are the same; those that cannot be compared, as on `meta`, count so."""
    try:
        if torch.equal(one, other):
            return True
        if one.is_complex():
            one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
        return one.is_floating_point() and torch.allclose(
            one.double(), other.double(), rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True
        )
    except RuntimeError:
        return True


def _named(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
