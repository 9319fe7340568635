"""Fingerprints of models, pruning rules, optimisers and losses: the same for the same code and settings.

A model file counts by its text and the text of the user's own files that it imports; what is given from Python by the
source of its functions and classes and the values that these use. Comments and docstrings do not count, nor do the
values of weights. Code of Python, of installed packages and of this program counts by its name.
"""

import ast
import contextlib
import copy
import enum
import functools
import importlib.util
import inspect
import io
import itertools
import re
import sys
import tokenize
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lth import rng
from lth.data.images import fingerprint_arrays, fingerprint_texts
from lth.models import prunable

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), range, slice, enum.Enum, torch.dtype)


def fingerprint_objects(*things: Any) -> str:
    """The fingerprint of functions, classes, objects or values: 16 hexadecimal digits."""
    return fingerprint_texts([_describe(things, {})])


def fingerprint_model(make: Callable[[], nn.Module]) -> str:
    """The fingerprint of the model that `make`, from lth.models.building.find, builds: its file, layers and shapes."""
    model: Any = inspect.unwrap(make)
    with rng.seeded(0):
        outline = _outline(make())
    texts: dict[str, str] = {}
    _collect_files(sys.modules[model.__module__].__spec__, texts)
    return fingerprint_texts([model.__qualname__, *outline, *sorted(texts.values())])


def fingerprint_network(net: nn.Module, without: Collection[str] = ()) -> str:
    """The fingerprint of a network given from Python, without its attributes `without`."""
    if any(hasattr(net, name) for name in without):
        net = copy.copy(net)
        net._modules = {name: child for name, child in net._modules.items() if name not in without}
        for name in vars(net).keys() & without:
            del vars(net)[name]
    return fingerprint_objects(net)


def strip_comments(text: str) -> str:
    """Python code without comments, docstrings and empty lines: read by tokens, which no version of Python changes."""
    lines, previous = text.split("\n"), tokenize.NEWLINE
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type != tokenize.NL]
    for token in tokens:
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    tokens = [token for token in tokens if token.type != tokenize.COMMENT]
    for token, following in itertools.pairwise(tokens):
        starts = previous in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if token.type == tokenize.STRING and starts and following.type == tokenize.NEWLINE:
            lines[token.start[0] - 1 : token.end[0]] = [""] * (token.end[0] - token.start[0] + 1)
        previous = token.type
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _collect_files(spec: ModuleSpec | None, texts: dict[str, str]) -> None:
    """Add the code of a module's file to `texts`, and that of the user's own files that it imports, wherever in it."""
    if not (spec and spec.origin) or spec.origin in texts or not _is_own(spec.name, spec.origin):
        return
    with tokenize.open(spec.origin) as file:
        text = file.read()
    texts[spec.origin] = strip_comments(text)
    for node in ast.walk(ast.parse(text)):
        imported = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), spec.parent)
            imported = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in imported:
            with contextlib.suppress(ImportError, AttributeError, ValueError):  # no module, or one that is not there
                _collect_files(importlib.util.find_spec(name), texts)


def _is_own(name: str, file: str | None = None) -> bool:
    """Whether a module is the user's own, as the models that come with the program are, which may be edited."""
    top = name.partition(".")[0]
    file = file or getattr(sys.modules.get(name), "__file__", None) or ""
    installed = top == "lth" or top in sys.stdlib_module_names
    installed = installed or bool(re.search("(site|dist)-packages", str(Path(file).absolute())))
    return top in ("archs", "__main__") or (file.endswith(".py") and not installed)


def _outline(net: nn.Module) -> list[str]:
    """The network's repr, and a line per parameter and buffer, which names what it is tied to."""
    lines, first_names = [re.sub(" at 0x[0-9a-fA-F]+", "", repr(net))], dict[int, str]()
    for name, tensor in [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]:
        first_name = first_names.setdefault(id(tensor), name)
        lines.append(f"{name}: {first_name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}")
    return lines


def _describe(thing: Any, seen: dict[int, Any]) -> str:
    """A thing and all that it is made of; `seen` has what has been described, so that no id is given twice."""
    if isinstance(thing, str) and re.fullmatch(r"(cuda|cpu|mps)(:\d+)?", thing):
        return "device"
    if isinstance(thing, PLAIN):
        return repr(thing)
    if id(thing) in seen:
        return f"again {getattr(thing, '__qualname__', type(thing).__qualname__)}"
    seen[id(thing)] = thing
    return f"{type(thing).__qualname__}({', '.join(_describe(part, seen) for part in _parts(thing))})"


def _parts(thing: Any) -> Iterable[Any]:
    """What a function, a class, a container, a tensor, a network or another object is made of."""
    if hasattr(thing, "__array__"):  # of NumPy or PyTorch
        plain = not getattr(thing, "requires_grad", False) and getattr(thing, "layout", None) in (None, torch.strided)
        return [fingerprint_arrays([torch.as_tensor(thing)]) if plain else f"{thing.dtype} {tuple(thing.shape)}"]
    if isinstance(thing, Mapping):
        return [part for pair in thing.items() for part in pair]
    if isinstance(thing, (list, tuple)):
        return thing
    if isinstance(thing, (set, frozenset)):
        return sorted(map(repr, thing))
    if isinstance(thing, functools.partial):
        return thing.func, thing.args, thing.keywords
    if isinstance(thing, types.MethodType):
        return thing.__func__, thing.__self__
    if isinstance(thing, types.FunctionType):
        return _source(thing), _used_values(thing), getattr(thing, "__wrapped__", None)
    if isinstance(thing, type):
        used = [thing.__bases__, *map(_used_values, vars(thing).values())] if _is_own(thing.__module__) else []
        return _source(thing), used
    if isinstance(thing, nn.Module):
        parts: list[Any] = [_outline(thing)]
        for module in thing.modules():
            public = {name: x for name, x in vars(module).items() if name[0] != "_" and name != "training"}
            parts += [type(module), [list(getattr(module, name).values()) for name in prunable.HOOKS], public]
        return parts
    attributes = vars(thing) if hasattr(thing, "__dict__") and _is_own(type(thing).__module__) else {}
    return getattr(thing, "__qualname__", ""), type(thing), attributes


def _source(thing: Any) -> str:
    """The code of the user's own functions and classes, if it can be had; else their name."""
    module, text = thing.__module__ or "", ""
    with contextlib.suppress(OSError, TypeError):
        text = inspect.getsource(thing) if _is_own(module) else ""
    with contextlib.suppress(tokenize.TokenError, SyntaxError):  # of a lambda, whose lines are a part of a statement
        text = strip_comments(text)
    return text or f"{module.partition('.')[0]} {thing.__qualname__}"


def _used_values(function: Any) -> list[Any]:
    """The values that a function uses beyond its arguments: its defaults, what it closes over, and, of the user's own
    functions, plain global values, functions and classes."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    if not isinstance(function, types.FunctionType):
        return []
    defaults = [function.__defaults__, function.__kwdefaults__]
    try:
        outside = inspect.getclosurevars(function)
    except ValueError:  # a variable without a value yet
        return defaults
    kinds = (*PLAIN, tuple, types.FunctionType, type) if _is_own(function.__module__ or "") else ()
    constants = {name: value for name, value in sorted(outside.globals.items()) if isinstance(value, kinds)}
    return [*defaults, outside.nonlocals, constants]
