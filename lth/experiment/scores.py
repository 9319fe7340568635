"""Scores of weights before training: pure functions of a network and training batches, for the arms that prune so.

A score function takes a copy of a model, which it may change and whose pruned weights are 0, the masks of the weights
to score, batches of images and labels, and the loss. It returns a score per weight; the lowest are pruned. A new score
is one function in SCORES.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lth.models import building, prunable
from lth.pruning import Masks
from lth.settings.checks import first_line, said
from lth.training.network import Criterion

Batches = Sequence[tuple[Tensor, Tensor]]
Score = Callable[[nn.Module, Masks, Batches, Criterion], dict[str, Tensor]]
# By which GraSP's authors divide the logits (github.com/alecwangcq/GraSP), for a nearly even softmax.
TEMPERATURE = 200.0

# Only some of PyTorch's allocators have an error of their own for short memory.
SHORT = re.compile("DefaultCPUAllocator|_ALLOC_FAILED|out of memory|bad_alloc|not enough memory", re.IGNORECASE)


def snip(model: nn.Module, masks: Masks, batches: Batches, criterion: Criterion) -> dict[str, Tensor]:
    """|w dL/dw|: by how much the loss would change if the weight were scaled down (Lee et al. 2019, arXiv:1810.02340,
    Section 4)."""
    weights = _weights(model, masks)
    slopes = _gradients(model, weights, batches, criterion)
    return {
        name: (weight.detach() * slope).abs() for (name, weight), slope in zip(weights.items(), slopes, strict=True)
    }


def grasp(model: nn.Module, masks: Masks, batches: Batches, criterion: Criterion) -> dict[str, Tensor]:
    """w Hg: what the weight adds to the squared norm of the gradient g, H being the Hessian (Wang et al. 2020,
    arXiv:2002.07376, Section 4). What is pruned has no part in g.

    The paper's score is -w Hg, the change of that norm when the weight goes. Which end of it is pruned has been read
    both ways; here the highest -w Hg go, whose removal raises the norm or lowers it least, as in the authors' program.
    """
    weights = _weights(model, masks)

    def cooled(logits: Tensor, labels: Tensor) -> Tensor:
        return criterion(logits / TEMPERATURE, labels)

    slopes = _gradients(model, weights, batches, cooled)
    kept = [slope * masks[name].to(slope.device) for name, slope in zip(weights, slopes, strict=True)]
    products = _gradients(model, weights, batches, cooled, along=kept)
    return {name: weight.detach() * hg for (name, weight), hg in zip(weights.items(), products, strict=True)}


def synflow(model: nn.Module, masks: Masks, batches: Batches, criterion: Criterion) -> dict[str, Tensor]:
    """w dR/dw, where R is the sum of the outputs for an input of ones when every parameter is its own magnitude: data
    play no part, of `batches` only the shape of an example (Tanaka et al. 2020, arXiv:2006.05467, Section 5)."""
    weights = _weights(model, masks)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.abs_()
    example = torch.ones_like(_alike(batches[0][0][:1], weights))
    flows = torch.autograd.grad(model.eval()(example).sum(), list(weights.values()), materialize_grads=True)
    return {name: weight.detach() * flow for (name, weight), flow in zip(weights.items(), flows, strict=True)}


SCORES: dict[str, Score] = {"snip": snip, "grasp": grasp, "synflow": synflow}


def scored(method: str, model: nn.Module, masks: Masks, batches: Batches, criterion: Criterion) -> dict[str, Tensor]:
    """The scores `method`, a name in SCORES, of the weights under `masks`; `model` is left as it was.

    They are computed in training mode without the dropout of PyTorch's layers, in double precision. If that fails, with
    products that can be derived twice, which those of attention and recurrent layers cannot always; and then in the
    model's own precision, since its code may make float32 tensors: a warning says so. torch.OutOfMemoryError if memory
    is short, which must decide no mask. If all fail, the first error.
    """
    double = next(model.parameters()).device.type != "mps"  # which has no float64
    first: Exception | None = None
    for exact, plain in dict.fromkeys(((double, False), (double, True), (False, True))):
        try:
            found = _tried(method, model, masks, batches, criterion, exact, plain)
        except Exception as error:
            if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or SHORT.search(str(error)):
                raise torch.OutOfMemoryError(first_line(error)) from None
            first = first or error.with_traceback(None)  # whose frames hold all tensors
            continue
        if first is not None:
            how = "with slower products" if exact == double else "in the model's own precision, not in double,"
            warnings.warn(f"{type(model).__name__} is scored by {method} {how} because of {said(first)}", stacklevel=2)
        return found
    assert first is not None
    raise first


def _tried(
    method: str, model: nn.Module, masks: Masks, batches: Batches, criterion: Criterion, exact: bool, plain: bool
) -> dict[str, Tensor]:
    """The scores in double precision, if `exact`, and with products that can be derived twice, if `plain`."""
    made = building.copy_of(model).train()
    prunable.without_dropout(made)
    with _plain_products() if plain else nullcontext():
        found = SCORES[method](made.double() if exact else made, masks, batches, criterion)
    if not all(score.isfinite().all() for score in found.values()):  # a NaN would be neither kept nor pruned
        raise FloatingPointError("scores that are not finite")
    return found


@contextmanager
def _plain_products() -> Iterator[None]:
    cudnn = torch.backends.cudnn.enabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
            torch.backends.cudnn.enabled = False
            try:
                yield
            finally:
                torch.backends.cudnn.enabled = cudnn


def _weights(model: nn.Module, masks: Masks) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters())
    for name in masks:
        parameters[name].requires_grad_()
    return {name: parameters[name] for name in masks}


def _alike(images: Tensor, weights: Mapping[str, nn.Parameter]) -> Tensor:
    """Images in double precision where the weights are."""
    double = next(iter(weights.values())).dtype == torch.float64
    return images.double() if double and images.is_floating_point() else images


def _gradients(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Batches,
    criterion: Criterion,
    along: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """The gradient of the mean loss over the batches, or its derivative in the direction `along`: the product of the
    Hessian with that."""
    found = [torch.zeros_like(weight) for weight in weights.values()]
    for images, labels in batches:
        loss = criterion(model(_alike(images, weights)), labels) / len(batches)
        slopes = torch.autograd.grad(
            loss, list(weights.values()), create_graph=along is not None, materialize_grads=True
        )
        if along is not None:
            slope = sum(((one * other).sum() for one, other in zip(slopes, along, strict=True)), loss.new_zeros(()))
            slopes = torch.autograd.grad(slope, list(weights.values()), materialize_grads=True)
        torch._foreach_add_(found, [each.detach().to_dense() for each in slopes])
    return found
