"""What a forward pass costs in multiply-adds, and what a mask saves of it (Blalock et al. 2020, arXiv:2003.03033)."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lth.models import prunable as layers
from lth.models.probe import Trace


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one example's forward pass.

    uses: how often each weight of a parameter is multiplied by an activation (1 in a Linear layer, once a position of
        its output in a convolution), by the parameter's name.
    kinds: what kind of layer each is of (lth/models/prunable.py).
    rest: the multiply-adds that pruning leaves alone.
    """

    uses: Mapping[str, float]
    kinds: Mapping[str, str]
    rest: float

    def total(self, weights: Mapping[str, int]) -> float:
        """Multiply-adds where each parameter has that many weights left."""
        return self.rest + sum(self.of(name, count) for name, count in weights.items())

    def of(self, name: str, count: int) -> float:
        """Multiply-adds of so many weights of a parameter: none of a bias, which a rule may have pruned."""
        return self.uses.get(name, 0.0) * count

    def kind(self, name: str) -> str:
        """What kind of layer a parameter is of."""
        return self.kinds.get(name, layers.OTHER)


def cost(model: nn.Module, example: Tensor, names: Collection[str]) -> Cost:
    """The cost of `model` for `example` (1, ...), as PyTorch's flop counter counts it, by the parameters `names`.

    A product belongs to the parameter whose memory one of its factors lies in, or that a factor was computed from
    without the example, as under spectral norm: whichever module multiplies, and however often. ValueError where the
    logits depend on a parameter that is in no such product.
    """
    parameters = dict(model.named_parameters())
    trace, training = Trace(model, example), model.training
    # Without gradients attention's products would be hidden, and with oneDNN those of recurrent layers; attention's own
    # count only as plain products.
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), trace:
            logits = model.eval()(example)
    model.train(training)
    named = layers.names(model)
    kinds = {named[id(part.parameter)]: part.kind for part in layers.parts(model)}
    uses = {name: trace.products[name] / parameters[name].numel() for name in names}
    silent = [name for name, often in uses.items() if not often and kinds[name] != layers.EMBEDDING]
    reached = _reached(logits) if silent else set()
    if unknown := [name for name in silent if id(parameters[name]) in reached]:
        raise ValueError(f"what is multiplied by {unknown[0]} is not known")
    return Cost(uses, kinds, trace.total - sum(trace.products[name] for name in uses))


def _reached(logits: Tensor) -> set[int]:
    """The ids of the parameters that they depend on."""
    seen, found, ahead = set(), set(), [logits.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.add(id(getattr(node, "variable", None)))
            ahead += [before for before, _ in node.next_functions]
    return found
