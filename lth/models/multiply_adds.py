"""What a forward pass costs in multiply-adds, and what a mask saves of it (Blalock et al. 2020, arXiv:2003.03033)."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from lth.models import prunable as layers


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
    products, training = _Products(model, example), model.training
    # Without gradients attention's products would be hidden, and with oneDNN those of recurrent layers; attention's own
    # count only as plain products.
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), products:
            logits = model.eval()(example)
    model.train(training)
    named = layers.names(model)
    kinds = {named[id(part.parameter)]: part.kind for part in layers.parts(model)}
    uses = {name: products.of[name] / parameters[name].numel() for name in names}
    silent = [name for name, often in uses.items() if not often and kinds[name] != layers.EMBEDDING]
    reached = _reached(logits) if silent else set()
    if unknown := [name for name in silent if id(parameters[name]) in reached]:
        raise ValueError(f"what is multiplied by {unknown[0]} is not known")
    return Cost(uses, kinds, products.total - sum(products.of[name] for name in uses))


def _trilinear(x: Sequence[int], weight: Sequence[int], *rest: object, **more: object) -> int:
    """The operations of a bilinear layer for inputs of these shapes: a multiply-add per weight and example."""
    return 2 * math.prod(x[:-1]) * math.prod(weight)


COUNTS = {**flop_registry, torch.ops.aten._trilinear: shape_wrapper(_trilinear)}


class _Products(TorchDispatchMode):
    """Counts multiply-adds: in `total`, and `of` each parameter by its name."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.total, self.of = 0.0, Counter[str]()
        self.made_of = {_memory(value): name for name, value in model.named_parameters()}
        self.live = {_memory(example)}  # what depends on the example
        self.held = list[Tensor]()  # so that no memory is used again

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the operation `func`, and count it."""
        kwargs, operation = kwargs or {}, func.overloadpacket
        count = COUNTS.get(operation)
        if count is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if count is not None:
            often = count(*args, **kwargs, out_val=result) / 2
            self.total += often
            factors = args[1:3] if "add" in operation.__name__ else args[:2]
            names = {self.made_of[_memory(factor)] for factor in factors if _memory(factor) in self.made_of}
            if len(names) == 1:
                self.of[names.pop()] += often
        given, made = ([x for x in tree_leaves(of) if isinstance(x, Tensor)] for of in ((args, kwargs), result))
        self.held += made
        if any(_memory(x) in self.live for x in given):
            self.live |= {_memory(x) for x in made} - {0}
        else:
            for x in made:
                for source in given:
                    if (name := self.made_of.get(_memory(source))) and source.numel() == x.numel():
                        self.made_of.setdefault(_memory(x), name)
        return result


def _memory(tensor: Tensor) -> int:
    """Where the values of a tensor lie; 0 for one without any."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


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
