"""The source of functions: their syntax trees, what they reach, and what they change.

Comments, docstrings and annotations are no part of a tree, and it is the same from every version of Python.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import linecache
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
ADDING = {"add", "append", "appendleft", "extend", "insert", "setdefault", "update"}
CHANGING = {"clear", "discard", "pop", "popitem", "popleft", "remove", "reverse", "sort", *ADDING}  # methods that do
NO_CODE = ("annotation", "returns", "type_comment", "type_params", "type_ignores", "kind", "ctx")  # fields of a tree


def installed(thing: Any) -> bool:
    """Whether a function, class or module belongs to Python, an installed package or this program: these have versions,
    and their sources are not looked at."""
    if isinstance(thing, types.ModuleType):
        name, file = thing.__name__, getattr(thing, "__file__", None)
    else:
        name = getattr(thing, "__module__", None) or ""
        code = getattr(thing, "__code__", None)
        file = getattr(sys.modules.get(name), "__file__", None)
        if isinstance(code, types.CodeType):  # the type of functions itself has something else there
            file = code.co_filename
    top = name.partition(".")[0]
    if top in ("__main__", "archs"):  # the models that come with the program may be changed
        return False
    if top in sys.builtin_module_names or top == "lth" or (file or "").startswith("<frozen"):
        return True
    place = str(Path(file).absolute()) if file else ""
    return place.startswith(INSTALLED) or "site-packages" in place or "dist-packages" in place


def definitions(function: types.FunctionType) -> list[ast.AST]:
    """The syntax tree that a function was compiled from (all lambdas of its line, if it is one); none where
    the source cannot be read, or is no longer what was compiled."""
    code = function.__code__
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    tree, codes = _parsed(text, code.co_filename)
    if code not in codes:
        return []
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            name = getattr(node, "name", "<lambda>")
            first = min([node.lineno, *(line.lineno for line in getattr(node, "decorator_list", []))])
            if (name, first) == (code.co_name, code.co_firstlineno):
                found.append(node)
    return found


@functools.lru_cache(maxsize=64)
def _parsed(text: str, file: str) -> tuple[ast.AST, frozenset[types.CodeType]]:
    """A file's syntax tree, and the codes that it is compiled to."""
    try:
        tree = ast.parse(text)
        return tree, frozenset(_codes(compile(text, file, "exec", dont_inherit=True)))
    except (SyntaxError, ValueError):
        return ast.Module([], []), frozenset()


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code and those of the functions defined in it."""
    yield code
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _codes(part)


def text(node: Any) -> str:
    """A syntax tree as text."""
    if isinstance(node, list):
        return "[" + ", ".join(text(part) for part in node if not _idle(part)) + "]"
    if not isinstance(node, ast.AST):
        return f"{type(node).__name__} {node!r}"
    if isinstance(node, ast.JoinedStr):  # in an f-string, some versions of Python put "" where others put nothing
        node = ast.JoinedStr([part for part in node.values if getattr(part, "value", None) != ""])
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        node = ast.Assign([node.target], node.value)
    fields = [(name, value) for name, value in ast.iter_fields(node) if name not in NO_CODE]
    inner = [f"{name}={text(value)}" for name, value in fields if value is not None and value != []]
    return f"{type(node).__name__}({', '.join(inner)})"


def _idle(node: Any) -> bool:
    """Whether a statement does nothing: a docstring, an annotation alone."""
    if isinstance(node, ast.AnnAssign):
        return node.value is None
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def bytecode(code: types.CodeType) -> str:
    """What stands for a source that cannot be read; other versions of Python compile it otherwise."""
    consts = [bytecode(part) if isinstance(part, types.CodeType) else repr(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {consts}"


def reached(function: types.FunctionType) -> dict[str, Any]:
    """What a function uses beyond its arguments, by name: what it closes over, its defaults, its own attributes, the
    globals it reads, what it takes from modules that are not installed ones."""
    found = {**vars(function), "defaults": function.__defaults__, "keyword defaults": function.__kwdefaults__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    return found if installed(function) else found | dict(_globals(function))


def _globals(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    where, codes = function.__globals__, list(_codes(function.__code__))
    names = {name for code in codes for name in code.co_names}
    steps = [step for code in codes for step in dis.get_instructions(code)]
    for name in sorted({str(step.argval) for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}):
        if isinstance(where.get(name), types.ModuleType):
            yield from _taken(where[name], name, names)
        elif name in where:
            yield name, where[name]
    for name in sorted({str(step.argval) for step in steps if step.opname == "IMPORT_NAME"}):
        for known, module in sorted(sys.modules.items()):
            if known == name or known.endswith(f".{name}"):
                yield from _taken(module, name, names)


def _taken(module: types.ModuleType, name: str, names: set[str]) -> Iterator[tuple[str, Any]]:
    """What of a module, and of the modules in it, a code with these names may use."""
    if installed(module):
        return
    for key in sorted(names.intersection(vars(module))):
        value = vars(module)[key]
        if not isinstance(value, types.ModuleType):
            yield f"{name}.{key}", value
        elif value.__name__.startswith(f"{module.__name__}."):
            yield from _taken(value, f"{name}.{key}", names)


def changed(nodes: list[ast.AST]) -> set[str]:
    """The names of what a definition changes outside of its own variables."""
    found: set[str] = set()
    for node in (part for top in nodes for part in ast.walk(top)):
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            found.update(node.names)
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            found.update(_chain(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
            found.update(_chain(node.func.value))
    return found


def _chain(node: ast.AST) -> Iterator[str]:
    """The names in `self.counts[0].total`."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        if isinstance(node, ast.Attribute):
            yield node.attr
        node = node.value
    if isinstance(node, ast.Name):
        yield node.id


def changed_by_calls(kind: type) -> set[str]:
    """The attributes that calling an object of this class changes: no settings of it, but where it stands."""
    waiting, called, found = ["forward", "__call__"], set[str](), set[str]()
    while waiting:
        name = waiting.pop()
        method = inspect.getattr_static(kind, name, None)
        method = inspect.unwrap(method) if callable(method) else method
        if name in called or not isinstance(method, types.FunctionType) or installed(method):
            continue
        called.add(name)
        found |= changed(definitions(method))
        waiting += [name for code in _codes(method.__code__) for name in code.co_names]
    return found
