"""Models: finding them under archs/, building them, giving them initial weights."""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import itertools
import os
import random
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth import layers, rng
from lth.data.prints import of_arrays, of_texts
from lth.settings import names
from lth.settings.checks import first_line, said
from lth.settings.config import ConfigError
from lth.training import source

State = dict[str, Tensor]  # parameters and buffers by name
Build = Callable[[], nn.Module]
Seen = dict[int, tuple[Any, str]]  # what has been told already, by its id, with its text; held, so that no id recurs
PLAIN: frozenset[type] = frozenset({bool, int, float, complex, str, bytes, type(None)})  # types whose `repr` says all
DEEPEST = 300  # things within things that are looked into; Python's own limit is 1000 calls

GENERATORS: list[tuple[type, Callable[[Any], Any]]] = [  # of random numbers, and where each of them is
    (torch.Generator, lambda generator: generator.get_state()),
    (random.Random, lambda generator: generator.getstate()),
    (np.random.Generator, lambda generator: generator.bit_generator.state),
    (np.random.BitGenerator, lambda generator: generator.state),
    (np.random.RandomState, lambda generator: generator.get_state()),
]


def find(
    arch_type: str,
    dataset: str,
    classes: int | None = None,
    data: Path | None = None,
    image: tuple[int, ...] = (),
) -> Build:
    """A function that builds the model `arch_type` for `dataset`.

    It is the public function or class defined in a file of archs/<dataset>/ (or of the folder that serves images of
    its size: of the shape `image`, (C, H, W), or as the data sets in `data` have them) whose name matches, ignoring
    case, or the only model of the file whose name matches. Called with `num_classes=` where it takes one. Raises
    ConfigError if there is none, if there are two, or if the file cannot be loaded.
    """
    for folder in names.folders(dataset, data, image):
        files = [file for file in names.files(folder) if names.mentions(file, arch_type)]
        found = [model for file in files for model in _matching(file, arch_type)]
        if len(found) > 1:
            places = " and ".join(f"{_shown(Path(inspect.getfile(model)))} ({model.__name__})" for model in found)
            raise ConfigError(f"--arch_type {arch_type} is ambiguous, it matches {places}: rename one")
        if found:
            return _builder(found[0], classes, Path(inspect.getfile(found[0])))
    raise ConfigError(
        *(names.problems(arch_type, dataset, data=data) or [names.no_model(arch_type, dataset, data=data)])
    )


def constant(make: Build) -> Build:
    """`make`, whose constructor draws the same every time: what it keeps in attributes, which no ticket and no
    checkpoint holds, is then the same in all trainings and evaluations."""

    def made() -> nn.Module:
        with rng.seeded(0):
            return make()

    return made


def build(maker: Build, init: str, seed: int) -> nn.Module:
    """A model with initial weights drawn from `seed` alone: see `initialise`."""
    with rng.seeded(seed):
        model = maker()
        if torch.initial_seed() != seed:  # the constructor has seeded, which would make all trials alike
            rng.seed(seed)
        initialise(model, init)
    return model


def initialise(model: nn.Module, init: str) -> None:
    """Draw initial weights: `glorot` is Gaussian Glorot with zero biases (Frankle & Carbin, Section 2), `kaiming` the
    same of He et al. (fan in), of the layers that lth.layers.draw names; `own` leaves what the constructor drew. A
    model's `_initialize_weights()` goes first. ConfigError if that fails."""
    if draws_itself(model):
        try:
            model._initialize_weights()  # type: ignore[operator]
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{type(model).__name__} cannot draw its initial weights: its _initialize_weights() fails with "
                f"{said(error)}"
            ) from error
    elif init != "own":
        for module in model.modules():
            layers.draw(module, init)


def draws_itself(model: nn.Module) -> bool:
    """Whether a model brings its own way of drawing initial weights."""
    return callable(getattr(model, "_initialize_weights", None))


def state_of(model: nn.Module) -> State:
    """A copy of the parameters (tied ones once) and buffers of `model`, by name, on the CPU."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors}


def copy_of(model: nn.Module) -> nn.Module:
    """A copy, also of a model that holds what it has computed, as torch.nn.utils.weight_norm and masks do: that without
    its history, with which PyTorch copies none."""
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in held if value.grad_fn is not None})


def load_state(model: nn.Module, state: State) -> nn.Module:
    """Copy `state` into `model` (changed in place). ValueError if names or shapes differ."""
    own = dict([*model.named_parameters(), *model.named_buffers()])
    if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
        wrong = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
        raise ValueError(f"model must have the parameters and shapes of the ticket; {', '.join(wrong[:3])} differ")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    return model


def attributes(model: nn.Module) -> dict[str, str]:
    """What the attributes of a model's modules hold beside parameters, buffers and modules, as text: numbers, words,
    containers, tensors and arrays, where generators are, and objects of classes of the user's own. No checkpoint holds
    them."""
    seen: Seen = {id(tensor): (tensor, "...") for tensor in [*model.parameters(), *model.buffers()]}
    usual = vars(nn.Module()).keys()
    return {
        f"{path}.{name}".lstrip("."): _told(value, seen)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in usual
    }


def _told(value: Any, seen: Seen, depth: int = 0) -> str:
    """A text that changes with the value: a fingerprint of all that it is made of, or what it is itself. Equal values
    have the same one. Of a thing within itself, the text is how deep down it began."""
    if isinstance(value, (*PLAIN, np.generic, itertools.count)):
        return repr(value)
    if id(value) in seen:
        return seen[id(value)][1]
    seen[id(value)] = value, f"within {depth}"
    text = _print(value) if isinstance(value, Tensor) else type(value).__name__
    if depth < DEEPEST and (made := _parts(value)) is not None:
        kind, parts = made
        if PLAIN.issuperset(map(type, parts)):  # many numbers: quicker so
            texts = list(map(repr, parts))
        else:
            texts = []
            for part in parts:  # no comprehension, which would halve how deep this can go down
                texts.append(_told(part, seen, depth + 1))
        text = of_texts([kind, *(sorted(texts) if kind == "set" else texts)])
    seen[id(value)] = value, text
    return text


def _parts(value: Any) -> tuple[str, list[Any]] | None:
    """What kind of thing a value is and what it is made of, if it is a container, an array, a generator of random
    numbers or an object of a class of the user's own."""
    for kind, state in GENERATORS:
        if isinstance(value, kind):
            return kind.__name__, [state(value)]
    if isinstance(value, np.ndarray):
        return f"array {value.dtype}", [value.shape, value.tolist() if value.dtype.hasobject else value.tobytes()]
    if isinstance(value, dict):
        return "dict", list(itertools.chain.from_iterable(value.items()))
    if isinstance(value, (list, tuple, deque)):
        return "list", list(value)
    if isinstance(value, (set, frozenset)):
        return "set", list(value)
    if isinstance(value, (Tensor, nn.Module, type)) or not hasattr(value, "__dict__") or source.installed(type(value)):
        return None
    return type(value).__qualname__, list(itertools.chain.from_iterable(vars(value).items()))


def _print(tensor: Tensor) -> str:
    try:
        return of_arrays([tensor])
    except (RuntimeError, TypeError):  # one without values, or of no plain layout
        return repr(tensor)


def _matching(file: Path, arch_type: str) -> list[Callable[..., Any]]:
    """The models in the file that `arch_type` means."""
    module = _load(file)
    things = vars(module).items()
    models = [thing for name, thing in things if not name.startswith("_") and _is_model(thing, module)]
    models = list(dict.fromkeys(models))  # one under two names is one
    same_case = [model for model in models if model.__name__ == arch_type]
    named = same_case or [model for model in models if model.__name__.lower() == arch_type.lower()]
    if named or file.stem.lower() != arch_type.lower():
        return named
    for name, thing in things:
        if name.lower() == arch_type.lower() and isinstance(thing, (functools.partial, nn.Module)):
            raise ConfigError(
                f"{_shown(file)} must define {name} as a class or as a function that makes a new network at each call, "
                f"not as a {type(thing).__name__}"
            )
    if len(models) > 1:
        models = [model for model in models if _gives_module(model)]
    if len(models) != 1:
        have = ", ".join(model.__name__ for model in models) or "none"
        raise ConfigError(f"{_shown(file)} must define one model to be found by its file's name; it defines {have}")
    return models


def _load(file: Path) -> ModuleType:
    for archs in reversed(names.ARCHS):  # so that a model file can say `from archs.families import ...`
        if str(archs.parent) not in sys.path:
            sys.path.insert(0, str(archs.parent))
    spec = importlib.util.spec_from_file_location(f"archs.{file.parent.name}.{file.stem}", file)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        with rng.seeded(0), _staying():  # it is loaded again in every process: what it draws must be the same
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{_shown(file)} cannot be loaded: {said(error)}") from error
    return module


@contextmanager
def _staying() -> Iterator[None]:
    """The working folder, which people's code may change, is as before after it: --root and --data count from it."""
    folder = Path.cwd()
    try:
        yield
    finally:
        os.chdir(folder)


def _is_model(thing: Any, module: ModuleType) -> bool:
    """Defined in this file, and a module class or a function, callable without arguments (but num_classes)."""
    if getattr(thing, "__module__", None) != module.__name__:
        return False
    if not (inspect.isfunction(thing) or (inspect.isclass(thing) and issubclass(thing, nn.Module))):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = (
        name
        for name, parameter in inspect.signature(thing).parameters.items()
        if parameter.default is parameter.empty and parameter.kind in (*positional, inspect.Parameter.KEYWORD_ONLY)
    )
    return all(name == "num_classes" for name in required)


def _gives_module(model: Callable[..., Any]) -> bool:
    """Whether the function or class makes a module; one that fails counts, so that the failure is seen."""
    try:
        return isinstance(model(**_arguments(model, None)), nn.Module)
    except Exception:
        return True


def _arguments(model: Callable[..., Any], classes: int | None) -> dict[str, int]:
    return {"num_classes": classes or 10} if "num_classes" in inspect.signature(model).parameters else {}


def _builder(model: Callable[..., Any], classes: int | None, file: Path) -> Build:
    last: list[weakref.ref[nn.Module]] = []

    def make() -> nn.Module:
        try:
            with _staying():
                made = model(**_arguments(model, classes))
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{_shown(file)}: {model.__name__} cannot be built: {first_line(error)}") from error
        if not isinstance(made, nn.Module):
            raise ConfigError(f"{_shown(file)}: {model.__name__} must return a torch.nn.Module, not {type(made)}")
        if last and last.pop()() is made:
            raise ConfigError(f"{_shown(file)}: {model.__name__} must make a new network at each call")
        last.append(weakref.ref(made))
        return made

    make.__wrapped__ = model  # type: ignore[attr-defined]  # inspect.unwrap then finds it
    return make


def _shown(file: Path) -> str:
    return f"archs/{file.parent.name}/{file.name}"
