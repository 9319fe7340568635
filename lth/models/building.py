"""Models: finding them under archs/, building them, giving them initial weights."""

import copy
import importlib.util
import inspect
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lth import rng
from lth.models import prunable as layers
from lth.settings import names
from lth.settings.checks import ConfigError, Problem, error_message, error_with_type

State = dict[str, Tensor]  # parameters and buffers by name
Build = Callable[[], nn.Module]


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
    for folder in names.archs_folders(dataset, data, image):
        files = [file for file in names.model_files(folder) if names.spelling(file, arch_type)]
        models = [model for file in files for model in _matching(file, arch_type)]
        if len(models) > 1:
            places = " and ".join(f"{_short_path(Path(inspect.getfile(model)))} ({model.__name__})" for model in models)
            raise ConfigError(Problem("arch_type", f"{arch_type} is ambiguous, it matches {places}: rename one"))
        if models:
            return _builder(models[0], classes, Path(inspect.getfile(models[0])))
    raise ConfigError(
        *(names.name_problems(arch_type, dataset, data=data) or [names.no_such_model(arch_type, dataset, data=data)])
    )


def deterministic(make: Build) -> Build:
    """`make`, whose constructor draws the same every time: what it keeps in attributes, which no ticket and no
    checkpoint holds, is then the same in all trainings and evaluations."""

    def build() -> nn.Module:
        with rng.seeded(0):
            return make()

    return build


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
    same of He et al. (fan in), of the layers that prunable.draw names; `own` leaves what the constructor drew. A
    model's `_initialize_weights()` goes first. ConfigError if that fails."""
    if draws_itself(model):
        try:
            model._initialize_weights()  # type: ignore[operator]
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{type(model).__name__} cannot draw its initial weights: its _initialize_weights() fails with "
                f"{error_with_type(error)}"
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


def copy_model(model: nn.Module) -> nn.Module:
    """A copy, also of a model that holds what it has computed, as torch.nn.utils.weight_norm and masks do: that without
    its history, with which PyTorch copies none."""
    tensors = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in tensors if value.grad_fn is not None})


def unwrapped_name(name: str) -> str:
    """The name of a parameter without what DataParallel and torch.compile put before it."""
    return re.sub(r"(^|(?<=\.))(module|_orig_mod)\.", "", name)


def match_names(tensors: Mapping[str, Tensor], names: Iterable[str]) -> State:
    """`tensors` under the `names` that differ from theirs only in what `plain` takes away."""
    originals = {unwrapped_name(name): name for name in names}
    return {originals.get(unwrapped_name(name), name): tensor for name, tensor in tensors.items()}


def load_state(model: nn.Module, state: State) -> nn.Module:
    """Copy `state` into `model` (changed in place). ValueError if names (see `match_names`) or shapes differ."""
    own = dict([*model.named_parameters(), *model.named_buffers()])
    state = match_names(state, own)
    if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
        wrong = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
        raise ValueError(f"model must have the parameters and shapes of the ticket; {', '.join(wrong[:3])} differ")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    return model


def _matching(file: Path, arch_type: str) -> list[Callable[..., Any]]:
    """The models in the file that `arch_type` means."""
    module = _load(file)
    models = [thing for name, thing in vars(module).items() if not name.startswith("_") and _is_model(thing, module)]
    models = list(dict.fromkeys(models))  # one under two names is one
    same_case = [model for model in models if model.__name__ == arch_type]
    named = same_case or [model for model in models if model.__name__.lower() == arch_type.lower()]
    if named or file.stem.lower() != arch_type.lower():
        return named
    if len(models) > 1:
        models = [model for model in models if _gives_module(model)]
    if len(models) != 1:
        have = ", ".join(model.__name__ for model in models) or "none"
        message = f"must define one model to be found by its file's name; it defines {have}"
        raise ConfigError(f"{_short_path(file)} {message}")
    return models


def _load(file: Path) -> ModuleType:
    for archs in reversed(names.ARCHS):  # so that a model file can say `from archs.families import ...`
        if str(archs.parent) not in sys.path:
            sys.path.insert(0, str(archs.parent))
    spec = importlib.util.spec_from_file_location(f"archs.{file.parent.name}.{file.stem}", file)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        with rng.seeded(0):  # it is loaded again in every process: what it draws must be the same
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{_short_path(file)} cannot be loaded: {error_with_type(error)}") from error
    return module


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
    except (Exception, SystemExit):
        return True


def _arguments(model: Callable[..., Any], classes: int | None) -> dict[str, int]:
    return {"num_classes": classes or 10} if "num_classes" in inspect.signature(model).parameters else {}


def _builder(model: Callable[..., Any], classes: int | None, file: Path) -> Build:
    last: list[weakref.ref[nn.Module]] = []
    name = f"{_short_path(file)}: {model.__name__}"

    def make() -> nn.Module:
        try:
            network = model(**_arguments(model, classes))
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{name} cannot be built: {error_message(error)}") from error
        if not isinstance(network, nn.Module):
            raise ConfigError(f"{name} must return a torch.nn.Module, not {type(network)}")
        if last and last.pop()() is network:
            raise ConfigError(f"{name} must make a new network at each call")
        last.append(weakref.ref(network))
        return network

    make.__wrapped__ = model  # type: ignore[attr-defined]  # inspect.unwrap then finds it
    return make


def _short_path(file: Path) -> str:
    return f"archs/{file.parent.name}/{file.name}"
