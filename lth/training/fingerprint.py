"""Fingerprints: what networks, functions and values are, the same in every process and on every machine.

A function counts by its source and by all that it reaches: what it closes over, the globals that it reads, the
functions and classes that these use. What cannot change a number does not count: comments and the like, where a file
is, the device. Python, installed packages and this program have versions, and count by their names.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import re
import types
from collections import deque
from collections.abc import Callable, Container, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth import layers, rng
from lth.data.prints import of_arrays
from lth.training import memory, source

Seen = dict[int, Any]  # what has been described already, by its id; held, so that no id is given twice
SHOWN = ("__repr__", "__str__", "extra_repr")  # methods that only print
ORDERED = {f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "hash")}
GENERATED = {"__init__", "__repr__", "__setattr__", "__delattr__", "__replace__", *ORDERED}  # by dataclasses
OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def of(*things: Any) -> str:
    """The fingerprint of functions, objects or values: 16 hexadecimal digits."""
    seen: Seen = {}
    return _digest([_described(thing, seen) for thing in things])


def of_model(make: Callable[[], nn.Module]) -> str:
    """That of the networks that `make` builds, of their code and of what made them. What differs from one to the next,
    as the weights that they draw, does not count."""
    with memory.filled(), rng.seeded(0):  # memory that no one has written to is other memory in each process
        one = make()
        rng.seed(1)
        other = make()
    pairs = zip(_tensors(one), _tensors(other), strict=False)
    fixed = {name for (name, x), (_, y) in pairs if x.shape == y.shape and torch.equal(x, y)}
    common = _common(_network(one, {}, fixed), _network(other, {}, fixed))
    return _digest([common, _described(inspect.unwrap(make), {})])


def of_network(net: nn.Module, without: Container[str] = ()) -> str:
    """That of a network as it is, without the values of its parameters and buffers and its attributes `without`."""
    return _digest(_network(net, {}, without=without))


def of_loss(criterion: Callable[..., Tensor]) -> str:
    """That of a loss: a function, or a module whose buffers are its settings."""
    if not isinstance(criterion, nn.Module):
        return of(criterion)
    return _digest(_network(criterion, {}, {name for name, _ in criterion.named_buffers()}))


def _digest(description: Any) -> str:
    return hashlib.sha256(_text(description).encode()).hexdigest()[:16]


def _text(description: Any) -> str:
    if isinstance(description, dict):
        return "{" + ", ".join(f"{key!r}: {_text(description[key])}" for key in sorted(description)) + "}"
    if isinstance(description, list):
        return "[" + ", ".join(map(_text, description)) + "]"
    return repr(description)


def _common(one: Any, other: Any) -> Any:
    """What two descriptions of things that should be alike have in common."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: _common(one[key], other[key]) for key in one if key in other}
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [_common(a, b) for a, b in zip(one, other, strict=True)]
    return one if one == other else "varies"


def _described(thing: Any, seen: Seen) -> Any:
    """`thing` as texts, lists and dicts; what was described before is only named again."""
    if isinstance(thing, enum.Enum):
        return [type(thing).__qualname__, thing.name, _described(thing.value, seen)]
    if isinstance(thing, np.generic):
        thing = thing.item()
    if thing is None or isinstance(thing, (bool, int, float, complex, str, bytes)):
        return _plain(thing)
    if isinstance(thing, np.ndarray) and thing.dtype.kind in "biufc":
        return _values(torch.from_numpy(np.ascontiguousarray(thing)))
    if isinstance(thing, Tensor):
        return _shape(thing) if thing.requires_grad else _values(thing)
    if isinstance(thing, (torch.dtype, torch.Size, torch.layout, torch.memory_format, range, slice, type(...))):
        return repr(thing)
    if id(thing) in seen:
        return f"again {getattr(thing, '__qualname__', type(thing).__qualname__)}"
    seen[id(thing)] = thing
    if isinstance(thing, nn.Module):
        return _network(thing, seen)
    if isinstance(thing, type):
        return _class(thing, seen)
    if isinstance(thing, types.FunctionType):
        return _function(thing, seen)
    if isinstance(thing, types.MethodType):
        return [_described(thing.__func__, seen), _described(thing.__self__, seen)]
    if isinstance(thing, functools.partial):
        return [_described(part, seen) for part in (thing.func, thing.args, thing.keywords)]
    if isinstance(thing, Mapping):
        return {_text(_described(key, seen)): _described(value, seen) for key, value in thing.items()}
    if isinstance(thing, (list, tuple, deque)):
        return [_described(item, seen) for item in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted((_described(item, seen) for item in thing), key=_text)
    return _object(thing, seen)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, str) and re.fullmatch(r"(cuda|cpu|mps)(:\d+)?", value):
        return "device"
    return f"{type(value).__name__} {value!r}"


def _shape(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _values(tensor: Tensor) -> list[str]:
    """A tensor's shape and values; floating-point ones by digits of their sums, since processors round differently."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or not tensor.numel():
        return [_shape(tensor)]
    x = tensor.detach().cpu()
    if not x.is_floating_point() and not x.is_complex():
        return [_shape(tensor), of_arrays([x])]
    x = torch.nan_to_num(torch.view_as_real(x) if x.is_complex() else x, 1e4, 2e4, -2e4).reshape(-1)
    most = float(x.abs().max())
    sums = [float(x[::step].sum(dtype=torch.float64)) / (most * len(x)) if most else 0.0 for step in (1, 2, 3, 7)]
    return [_shape(tensor), f"{most:.5g}", *(f"{part:.5f}" for part in sums)]


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, tied ones under each of their names."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _network(model: nn.Module, seen: Seen, values: Container[str] = (), without: Container[str] = ()) -> dict[str, Any]:
    """Modules with their classes, settings and hooks; parameters and buffers with their shapes and ties, and those
    named in `values` with these."""
    told: dict[str, Any] = {}
    paths: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if path.partition(".")[0] in without:
            continue
        if id(module) in paths:
            told[f"module {path}"] = f"again {paths[id(module)]}"
            continue
        paths[id(module)] = path
        seen[id(module)] = module
        told[f"module {path}"] = {
            "number": str(len(paths)),
            "class": _described(type(module), seen),
            "hooks": [_described(list(vars(module).get(name, {}).values()), seen) for name in layers.HOOKS],
            **_settings(module, seen, () if path else without),
        }
    for name, tensor in _tensors(model):
        if name.partition(".")[0] not in without:
            shape = f"{_shape(tensor)}, learns: {tensor.requires_grad}"
            told[f"tensor {name}"] = f"again {paths[id(tensor)]}" if id(tensor) in paths else shape
            paths.setdefault(id(tensor), name)
            if name in values:
                told[f"values {name}"] = _values(tensor)
    return told


def _settings(module: nn.Module, seen: Seen, without: Container[str]) -> dict[str, Any]:
    """The attributes of a module that decide what it does. Of an installed class, only public ones that are not at
    the constructor's default: newer versions have more of them."""
    kind: Any = type(module)
    told: dict[str, Any] = {}
    foreign = source.installed(kind)
    usual = _defaults(kind) if foreign else {}
    state = OF_EVERY_MODULE if foreign else OF_EVERY_MODULE | source.changed_by_calls(kind)
    for name, value in sorted(vars(module).items()):
        if name in state or name in without or (foreign and name.startswith("_")):
            continue
        if name not in usual or usual[name] != _described(value, {}):
            told[f"setting {name}"] = _described(value, seen)
    return told


@functools.lru_cache(maxsize=256)
def _defaults(kind: Any) -> dict[str, Any]:
    """Those of the constructor of an installed class, described."""
    return {name: _described(part.default, {}) for name, part in inspect.signature(kind).parameters.items()}


def _class(kind: type, seen: Seen) -> Any:
    if source.installed(kind):
        return f"{kind.__module__.partition('.')[0]} {kind.__qualname__}"
    if issubclass(kind, enum.Enum):
        return {member.name: _described(member.value, seen) for member in kind}
    told: dict[str, Any] = {"bases": [_described(base, seen) for base in kind.__bases__]}
    state = source.changed_by_calls(kind)
    for name, value in sorted(vars(kind).items()):
        functions = _functions_of(value)
        special = name.startswith("__") and not functions
        generated = name in GENERATED and any(part.__code__.co_filename.startswith("<") for part in functions)
        slot = isinstance(value, types.MemberDescriptorType)
        if not (special or generated or slot or name in SHOWN or name in state or name == "_abc_impl"):
            told[name] = _described(functions or value, seen)
    return told


def _functions_of(value: Any) -> list[types.FunctionType]:
    """The functions behind an entry of a class: a method, a static one, a property's three."""
    found = [value, *(getattr(value, name, None) for name in ("__func__", "func", "fget", "fset", "fdel"))]
    return [part for part in found if isinstance(part, types.FunctionType)]


def _function(function: types.FunctionType, seen: Seen) -> Any:
    wrapped = vars(function).get("__wrapped__")
    if source.installed(function) and not function.__module__.startswith("lth."):
        name = f"{(function.__module__ or '').partition('.')[0]} {function.__qualname__}"
        return name if wrapped is None else [name, _described(wrapped, seen)]
    if source.installed(function):  # of this program, as the rules that it makes
        told, changed, readable = {"name": function.__qualname__}, set[str](), True
    else:
        nodes = source.definitions(function)
        readable, changed = bool(nodes), source.changed(nodes)
        told = {"code": source.text(nodes) if nodes else source.bytecode(function.__code__)}
    for name, value in sorted(source.reached(function).items()):
        state = name in changed or (not readable and isinstance(value, (list, dict, set)))
        told[f"uses {name}"] = type(value).__qualname__ if state else _described(value, seen)
    return told


def _object(thing: Any, seen: Seen) -> Any:
    """An object of a class: its attributes, but for those that calling it changes. One of an installed class may hold
    anything, the name of a log for one, and counts by its class."""
    kind = type(thing)
    if isinstance(thing, PurePath):
        return f"path {thing.name}"
    if isinstance(name := getattr(thing, "__name__", None), str):  # a built-in function or the like
        return [f"{kind.__qualname__} {name}", _described(getattr(thing, "__wrapped__", None), seen)]
    told = _described(kind, seen)
    if isinstance(thing, torch.optim.Optimizer):
        groups = [{key: value for key, value in group.items() if key != "params"} for group in thing.param_groups]
        return [told, _described(groups, seen)]
    if source.installed(kind) and not isinstance(thing, types.SimpleNamespace):
        return told
    entries = [item for base in kind.__mro__ for item in vars(base).items()]
    slots = [name for name, value in entries if isinstance(value, types.MemberDescriptorType)]
    held = {**{name: getattr(thing, name, None) for name in slots}, **getattr(thing, "__dict__", {})}
    state = source.changed_by_calls(kind)
    return [told, {name: _described(value, seen) for name, value in sorted(held.items()) if name not in state}]
