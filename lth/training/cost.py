"""What a forward pass costs in multiply-adds, and what a mask saves of it (Blalock et al. 2020, arXiv:2003.03033)."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lth import layers

PRODUCTS = ("addmm", "mm", "convolution", "_trilinear")  # the operations that multiply by weights
BATCHED = ("bmm", "baddbmm")  # which multiply by weights in einsum, and not in attention


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one example's forward pass.

    uses: how often each weight of a parameter is multiplied by an activation (1 in a Linear layer, once a position of
        its output in a convolution), by the parameter's name.
    kinds: what kind of layer each is of (lth/layers.py).
    rest: the multiply-adds that pruning leaves alone.
    """

    uses: Mapping[str, float]
    kinds: Mapping[str, str]
    rest: float

    def total(self, weights: Mapping[str, int]) -> float:
        """Multiply-adds where each parameter has that many weights left."""
        return self.rest + sum(self.of(name, count) for name, count in weights.items())

    def of(self, name: str, count: int) -> float:
        """Multiply-adds of so many weights of a parameter: none of a bias or another that a rule may have pruned."""
        return self.uses.get(name, 0.0) * count

    def kind(self, name: str) -> str:
        """What kind of layer a parameter is of."""
        return self.kinds.get(name, layers.OTHER)


def cost(model: nn.Module, example: Tensor, names: Collection[str]) -> Cost:
    """The cost of `model` for `example` (1, ...), as PyTorch's flop counter counts it, by the parameters `names`.

    Parameters of one module that multiply together (attention's and recurrent matrices) share its count evenly.
    ValueError where the logits depend on one of them by what that counter does not know, or where it does not know
    which module has multiplied.
    """
    logits, counter, batched = _counted(model, example)
    _check_places(counter, model)
    own, in_batches = _own(counter, PRODUCTS), _own(counter, BATCHED)
    parameters = dict(model.named_parameters())
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    named = layers.names(model)
    kinds = {named[id(part.parameter)]: part.kind for part in layers.parts(model)}
    places: dict[str, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for parameter in module._parameters.values():
            if parameter is not None:
                places.setdefault(named[id(parameter)], []).append(path)
    counted = {path for path, count in own.items() if count}
    unclear = {path for path, count in in_batches.items() if count} - counted
    owners = {name: _owners(places[name], counted, unclear) for name in names if not batched.found[name]}
    shared: dict[str, int] = {}
    for name, found in owners.items():
        for owner in found:
            shared[owner] = shared.get(owner, 0) + sizes[name]
    uses = {name: batched.found[name] / sizes[name] for name in names if batched.found[name]}
    uses |= {name: sum(own[owner] / 2 / shared[owner] for owner in found) for name, found in owners.items()}
    silent = [name for name, often in uses.items() if not often and kinds[name] != layers.EMBEDDING]
    reached = _reached(logits) if silent else set()
    if unknown := [name for name in silent if id(parameters[name]) in reached]:
        raise ValueError(f"what is multiplied by {unknown[0]} is not known")
    rest = counter.get_total_flops() / 2 - sum(uses[name] * sizes[name] for name in uses)
    return Cost(uses, kinds, rest)


def _counted(model: nn.Module, example: Tensor) -> tuple[Tensor, FlopCounterMode, _Batched]:
    """The logits for `example`, and what was multiplied for them."""
    mode, counter, batched = model.training, FlopCounterMode(display=False, custom_mapping=BILINEAR), _Batched(model)
    # Without gradients attention's products would be hidden, and with oneDNN those of recurrent layers; attention's own
    # count only as plain products.
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), counter, batched:
            logits = model.eval()(example)
    model.train(mode)
    return logits, counter, batched


def _trilinear(x: Sequence[int], weight: Sequence[int], *rest: object, **more: object) -> int:
    """The operations of a bilinear layer for inputs of these shapes: a multiply-add a weight and example."""
    return 2 * x[0] * math.prod(weight)


BILINEAR = {torch.ops.aten._trilinear: _trilinear}


def _check_places(counter: FlopCounterMode, model: nn.Module) -> None:
    """ValueError unless all that multiplies has been called as a part of the model: a slice of a Sequential is another
    module to the counter, and its layers that one's."""
    known = {f"{type(model).__name__}.{path}".rstrip(".") for path, _ in model.named_modules(remove_duplicate=False)}
    if strange := [path for path in counter.get_flop_counts() if path not in {*known, "Global"}]:
        raise ValueError(f"{min(strange)} multiplies, but is no part of the model")


class _Batched(TorchDispatchMode):
    """Counts the multiply-adds of products in batches by what lies in a parameter's memory: `found`, by its name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {value.untyped_storage().data_ptr(): name for name, value in model.named_parameters()}
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the operation `func`, and look at its factors."""
        if _called(func) in BATCHED:
            one, other = args[-2:]
            for place in {factor.untyped_storage().data_ptr() for factor in (one, other)} & self.names.keys():
                self.found[self.names[place]] += one.numel() * other.shape[-1]
        return func(*args, **(kwargs or {}))


def _called(operation: Any) -> str:
    """The name of an operation of PyTorch's: `mm` of aten.mm.default."""
    return str(operation).split(".")[1]


def _own(counter: FlopCounterMode, operations: Collection[str]) -> dict[str, int]:
    """What each module has counted of these operations, without what the modules below it have."""
    flops = {
        path.partition(".")[2]: sum(count for op, count in ops.items() if _called(op) in operations)
        for path, ops in counter.get_flop_counts().items()
        if path != "Global"
    }
    own = dict(flops)
    for path, count in flops.items():
        above = _nearest(path.rpartition(".")[0], flops) if path else None
        if above is not None:
            own[above] -= count
    return own


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


def _owners(paths: Sequence[str], counted: Collection[str], unclear: Collection[str]) -> set[str]:
    """The modules that multiply by a parameter of the modules `paths`: of a tied one, or of a module that is there
    twice, those of them that have `counted` anything, or else the next one above; none if that is `unclear`: what it
    multiplies in batches may be this."""
    direct = {path for path in paths if path in counted}
    above = _nearest(paths[0], {*counted, *unclear})
    return direct or ({above} if above is not None and above in counted else set())


def _nearest(path: str, known: Iterable[str]) -> str | None:
    """The module of `known` that `path` names or lies in."""
    while path not in known:
        if not path:
            return None
        path = path.rpartition(".")[0]
    return path
