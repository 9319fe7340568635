"""Whether a model can be trained and pruned on some images, asked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

from lth import pruning, rng
from lth.data.images import of_arrays
from lth.models import building, prunable
from lth.models.building import State
from lth.settings.checks import first_line
from lth.settings.config import ConfigError


def check_fit(
    model: nn.Module,
    image_shape: tuple[int, ...],
    classes: int,
    name: str = "model",
    embeddings: bool = False,
    batch_size: int = 2,
) -> None:
    """ConfigError unless `model` maps images of that shape (C, H, W) to one logit a class, alone too where it trains
    in batches of one, and has weights to prune."""
    shape = " x ".join(map(str, image_shape))
    if torch_prune.is_pruned(model):
        raise ConfigError(f"{name} must come without masks of torch.nn.utils.prune: take them off with prune.remove")
    if what := unfit(model, embeddings):
        raise ConfigError(f"{name} {what}")
    for called, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_complex():
            raise ConfigError(f"{name} {has_complex(called)}")
    for called, parameter in model.named_parameters():
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ConfigError(
                f"{name} must come without register_post_accumulate_grad_hook, which {called} has: no gradients are "
                "stored; register_hook gets and changes each"
            )
    mode, known = model.training, {called for called, _ in model.named_parameters()}
    for training in (False, True):
        count = min(2, batch_size) if training else 2
        when = f", in training{' one at a time' if count == 1 else ''}" if training else ""
        try:
            with rng.preserved(torch.device("cpu")), torch.set_grad_enabled(training):
                model.train(training)
                logits = model(torch.zeros(count, *image_shape, dtype=torch.float32))
        except (Exception, SystemExit) as error:
            why = reason(model, error)
            raise ConfigError(
                f"{name} does not take images of {shape} (channels x height x width){when}: {why}"
            ) from error
        finally:
            model.train(mode)
        if not isinstance(logits, Tensor) or logits.shape != (count, classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            images = f"{count} image{'s' * (count > 1)}"
            raise ConfigError(f"{name} must give logits of shape ({count}, {classes}) for {images}{when}, not {got}")
    if late := [called for called, _ in model.named_parameters() if called not in known]:
        raise ConfigError(
            f"{name} must make all its parameters in its constructor, but {late[0]} comes with the images"
        )
    if not logits.requires_grad:
        raise ConfigError(f"{name} must give logits that depend on parameters that require gradients")


def check_seeded(build: Callable[[int], nn.Module], name: str = "model") -> None:
    """ConfigError unless `build` gives equal parameters and buffers whenever it is called with one seed."""
    one, other = (building.state_of(build(0)) for _ in range(2))
    if differ := [key for key in one if key not in other or of_arrays([one[key]]) != of_arrays([other[key]])]:
        raise ConfigError(
            f"{name} must draw by the functions of torch, np.random or random, which the seed decides, and fill its "
            f"tensors: built twice from one seed, it differs in {', '.join(differ[:3])}"
        )


def reason(model: nn.Module, error: BaseException) -> str:
    """Why a model fails with its examples: its parameters are no float32, or what the error says."""
    for called, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32 and "type" in str(error):
            return f"{called} is {parameter.dtype}, but examples are float32: call .float() on the model"
    return first_line(error)


def has_complex(called: str) -> str:
    """The sentence about a model with a tensor of complex numbers, without the model's name."""
    return f"must have plain tensors, but {called} has complex numbers: torch.view_as_complex makes them of plain ones"


def unfit(model: nn.Module, embeddings: bool = False) -> str:
    """What keeps a model from being copied, trained and pruned (its embeddings too if asked), as the rest of a sentence
    that begins with its name; nothing if it can be."""
    if torch.get_default_device().type != "cpu":
        return f"must come without torch.set_default_device, which is {torch.get_default_device()}: leave it at the CPU"
    parameters = dict(model.named_parameters())
    tensors = {**parameters, **dict(model.named_buffers())}
    if any(map(nn.parameter.is_lazy, tensors.values())):
        return "must know its shapes: it has lazy layers, call it on a batch first"
    for called, tensor in tensors.items():
        if tensor.layout != torch.strided:
            return f"must have plain tensors, but {called} is {tensor.layout}: to_dense() makes a plain one"
        if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
            return (
                f"must have plain tensors, but {called} shares memory between its elements, as after expand(): clone() "
                "makes a plain one"
            )
    places: dict[int, str] = {}
    for called, parameter in parameters.items():
        place = parameter.data_ptr()  # 0 without values
        if place and (first := places.setdefault(place, called)) != called:
            return f"must have tied weights as one Parameter, but {first} and {called} are two in the same memory"
    if not any(parameter.requires_grad for parameter in parameters.values()):
        return "must have parameters that require gradients, or there is nothing to train"
    if not pruning.prunable(model, embeddings):
        return (
            "must have weights to prune: of Linear, convolution, attention, recurrent or bilinear layers, or matrices "
            "of its own"
            + (" (see prune_embeddings)" if pruning.prunable(model, True) else "")
            + "".join(f"; {sentence}" for sentence in prunable.left_out(model))
        )
    return ""


def alike(initial: Callable[[int], State], weights: Iterable[str]) -> list[str]:
    """Those of these weights that come out the same for two seeds, and so in every trial and in reinit."""
    one, other = initial(1), initial(2)
    return [name for name in weights if torch.equal(one[name], other[name])]
