"""Scores of weights before training: pure functions of a network and training batches, for the arms that prune so.

A score function gets a model whose pruned weights are 0, the names of the weights to score, batches of images and
labels, and the loss; it gives a score a weight, of which the lowest are pruned, and leaves the model as it was. Sums
are taken in double precision. A new score is one function in SCORES.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lth.training.network import Criterion

Batches = Sequence[tuple[Tensor, Tensor]]
Score = Callable[[nn.Module, Sequence[str], Batches, Criterion], dict[str, Tensor]]
TEMPERATURE = (
    200.0  # by which GraSP's authors divide the logits (github.com/alecwangcq/GraSP), for a nearly even softmax
)


def snip(model: nn.Module, names: Sequence[str], batches: Batches, criterion: Criterion) -> dict[str, Tensor]:
    """|w dL/dw|: by how much the loss would change if the weight were scaled down (Lee et al. 2019, arXiv:1810.02340,
    Section 4)."""
    trained, weights = _copy(model, names)
    slopes = _gradients(trained, weights, batches, criterion)
    return {
        name: (weight.detach() * slope).abs() for (name, weight), slope in zip(weights.items(), slopes, strict=True)
    }


def grasp(model: nn.Module, names: Sequence[str], batches: Batches, criterion: Criterion) -> dict[str, Tensor]:
    """w Hg: what the weight adds to the squared norm of the gradient g, H being the Hessian (Wang et al. 2020,
    arXiv:2002.07376, Section 4).

    The paper's score is -w Hg, the change of that norm when the weight goes. Which end of it is pruned has been read
    both ways; here the highest -w Hg go, whose removal raises the norm or lowers it least, as in the authors' program.
    """
    trained, weights = _copy(model, names)

    def cooled(logits: Tensor, labels: Tensor) -> Tensor:
        return criterion(logits / TEMPERATURE, labels)

    slopes = _gradients(trained, weights, batches, cooled)
    products = _gradients(trained, weights, batches, cooled, along=slopes)
    return {name: weight.detach() * hg for (name, weight), hg in zip(weights.items(), products, strict=True)}


def synflow(model: nn.Module, names: Sequence[str], batches: Batches, criterion: Criterion) -> dict[str, Tensor]:
    """w dR/dw, where R is the sum of the outputs for an input of ones when every parameter is its own magnitude: data
    play no part, of `batches` only the shape of an example (Tanaka et al. 2020, arXiv:2006.05467, Section 5)."""
    linear, weights = _copy(model, names)
    with torch.no_grad():
        for tensor in [*linear.parameters(), *linear.buffers()]:
            tensor.abs_()
    example = torch.ones_like(_exact(batches[0][0][:1]))
    flows = torch.autograd.grad(linear.eval()(example).sum(), list(weights.values()), materialize_grads=True)
    return {name: weight.detach() * flow for (name, weight), flow in zip(weights.items(), flows, strict=True)}


SCORES: dict[str, Score] = {"snip": snip, "grasp": grasp, "synflow": synflow}


def _copy(model: nn.Module, names: Sequence[str]) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A copy of the model in double precision, in training but for dropout, and its weights of these names."""
    made = copy.deepcopy(model).train()
    for module in made.modules():
        if isinstance(module, _DropoutNd):
            module.eval()
    exact = next(made.parameters()).device.type != "mps"  # which has no float64
    made = made.double() if exact else made
    parameters = dict(made.named_parameters())
    for name in names:
        parameters[name].requires_grad_()
    return made, {name: parameters[name] for name in names}


def _exact(images: Tensor) -> Tensor:
    return images.double() if images.is_floating_point() and images.device.type != "mps" else images


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
        loss = criterion(model(_exact(images)), labels) / len(batches)
        slopes = torch.autograd.grad(
            loss, list(weights.values()), create_graph=along is not None, materialize_grads=True
        )
        if along is not None:
            slope = sum(((one * other).sum() for one, other in zip(slopes, along, strict=True)), loss.new_zeros(()))
            slopes = torch.autograd.grad(slope, list(weights.values()), materialize_grads=True)
        torch._foreach_add_(found, [each.detach() for each in slopes])
    return found
