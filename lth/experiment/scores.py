"""Scores for pruning before training: pure functions of a network and training batches.

A score function takes a model, the masks of the weights to score, batches of images and labels, and the loss. It may
change the model, which is a copy with pruned weights at 0. It returns a score per weight; the lowest are pruned. A new
score is one function in SCORES.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lth.models import building, prunable
from lth.pruning import Masks
from lth.settings.checks import error_message, error_with_type
from lth.training.network import Criterion

Batches = Sequence[tuple[Tensor, Tensor]]
Score = Callable[[nn.Module, Masks, Batches, Criterion], dict[str, Tensor]]
# GraSP's authors divide the logits by it (github.com/alecwangcq/GraSP), for a nearly uniform softmax.
TEMPERATURE = 200.0

# Messages of PyTorch's allocators that raise other errors than torch.OutOfMemoryError.
OUT_OF_MEMORY = re.compile("DefaultCPUAllocator|_ALLOC_FAILED|out of memory|bad_alloc|not enough memory", re.IGNORECASE)


def snip(model: nn.Module, masks: Masks, batches: Batches, criterion: Criterion) -> dict[str, Tensor]:
    """|w dL/dw|: how much the loss would change if the weight were scaled down (Lee et al. 2019, arXiv:1810.02340,
    Section 4)."""
    weights = _weights(model, masks)
    gradients = _gradients(model, weights, batches, criterion)
    return {name: (weight.detach() * gradients[name]).abs() for name, weight in weights.items()}


def grasp(model: nn.Module, masks: Masks, batches: Batches, criterion: Criterion) -> dict[str, Tensor]:
    """w Hg: what the weight adds to the squared norm of the gradient g, with the Hessian H (Wang et al. 2020,
    arXiv:2002.07376, Section 4). Pruned weights do not count in g.

    The paper's score is -w Hg, the change of that norm when the weight is removed. It has been read both ways which
    end is pruned; here the weights with the highest -w Hg are, whose removal raises the norm or lowers it least, as in
    the authors' program.
    """
    weights = _weights(model, masks)

    def scaled(logits: Tensor, labels: Tensor) -> Tensor:
        return criterion(logits / TEMPERATURE, labels)

    gradients = _gradients(model, weights, batches, scaled)
    masked = {name: gradient * masks[name].to(gradient.device) for name, gradient in gradients.items()}
    products = _gradients(model, weights, batches, scaled, direction=masked)
    return {name: weight.detach() * products[name] for name, weight in weights.items()}


def synflow(model: nn.Module, masks: Masks, batches: Batches, criterion: Criterion) -> dict[str, Tensor]:
    """w dR/dw, where R is the sum of the outputs for an input of ones when every parameter is replaced by its magnitude
    (Tanaka et al. 2020, arXiv:2006.05467, Section 5). Only the shape of the images in `batches` matters."""
    weights = _weights(model, masks)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.abs_()
    example = torch.ones_like(_as_precise(batches[0][0][:1], weights))
    flows = torch.autograd.grad(model.eval()(example).sum(), list(weights.values()), materialize_grads=True)
    return {name: weight.detach() * flow for (name, weight), flow in zip(weights.items(), flows, strict=True)}


SCORES: dict[str, Score] = {"snip": snip, "grasp": grasp, "synflow": synflow}


def scored(method: str, model: nn.Module, masks: Masks, batches: Batches, criterion: Criterion) -> dict[str, Tensor]:
    """The scores of the weights under `masks` by `method`, a name in SCORES; `model` is not changed.

    They are computed in double precision, in training mode without the dropout of PyTorch's layers. If that fails, it
    is tried with operations that can be differentiated twice, which fast attention and recurrent layers cannot always;
    and then in the model's own precision, since its code may make float32 tensors. A warning reports either. If all
    fail, the first error is raised; torch.OutOfMemoryError at once, since a lack of memory must not decide a mask.
    """
    double = next(model.parameters()).device.type != "mps"  # which has no float64
    first_error: Exception | None = None
    for in_double, twice in dict.fromkeys(((double, False), (double, True), (False, True))):
        try:
            scores = _try(method, model, masks, batches, criterion, in_double, twice)
        except Exception as error:
            if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or OUT_OF_MEMORY.search(str(error)):
                raise torch.OutOfMemoryError(error_message(error)) from None
            first_error = first_error or error.with_traceback(None)  # whose frames hold all tensors
            continue
        if first_error is not None:
            how = "with slower products" if in_double == double else "in the model's own precision, not in double,"
            reason = f"{type(model).__name__} is scored by {method} {how} because of {error_with_type(first_error)}"
            warnings.warn(reason, stacklevel=2)
        return scores
    assert first_error is not None
    raise first_error


def _try(
    method: str, model: nn.Module, masks: Masks, batches: Batches, criterion: Criterion, in_double: bool, twice: bool
) -> dict[str, Tensor]:
    """The scores, optionally in double precision and with operations that can be differentiated `twice`."""
    model = building.copy_model(model).train()
    prunable.without_dropout(model)
    with _twice_differentiable() if twice else nullcontext():
        scores = SCORES[method](model.double() if in_double else model, masks, batches, criterion)
    if not all(score.isfinite().all() for score in scores.values()):  # a NaN would be neither kept nor pruned
        raise FloatingPointError("scores that are not finite")
    return scores


@contextmanager
def _twice_differentiable() -> Iterator[None]:
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


def _as_precise(images: Tensor, weights: Mapping[str, nn.Parameter]) -> Tensor:
    """Images in double precision if the weights are."""
    double = next(iter(weights.values())).dtype == torch.float64
    return images.double() if double and images.is_floating_point() else images


def _gradients(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Batches,
    criterion: Criterion,
    direction: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The gradient of the mean loss over the batches; with a `direction`, its derivative in that direction, which is
    the product of the Hessian and the direction."""
    tensors = list(weights.values())
    total = [torch.zeros_like(weight) for weight in tensors]
    for images, labels in batches:
        loss = criterion(model(_as_precise(images, weights)), labels) / len(batches)
        gradients = torch.autograd.grad(loss, tensors, create_graph=direction is not None, materialize_grads=True)
        if direction is not None:
            products = ((gradient * direction[name]).sum() for name, gradient in zip(weights, gradients, strict=True))
            gradients = torch.autograd.grad(sum(products, loss.new_zeros(())), tensors, materialize_grads=True)
        torch._foreach_add_(total, [gradient.detach().to_dense() for gradient in gradients])
    return dict(zip(weights, total, strict=True))
