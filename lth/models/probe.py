"""What a forward pass does with the parameters of a model: which it uses, which it changes before they multiply, and
how many multiply-adds they take part in, of which a mask saves some (Blalock et al. 2020, arXiv:2003.03033)."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from lth import rng
from lth.models import prunable as layers
from lth.models.building import copy_model
from lth.models.prunable import CHANGED, CONV, FC, UNUSED


def _trilinear(x: Sequence[int], weight: Sequence[int], *rest: object, **more: object) -> int:
    """The operations of a bilinear layer for inputs of these shapes: a multiply-add per weight and example."""
    return 2 * math.prod(x[:-1]) * math.prod(weight)


MOVED = 1e-3  # how far a step may move a parameter, about
COUNTS = {**flop_registry, torch.ops.aten._trilinear: shape_wrapper(_trilinear)}


class Trace(TorchDispatchMode):
    """Follows the parameters of `model` through the operations of a forward pass with `example`.

    total: multiply-adds. products: those of each parameter, by its name, as it is or as something of its size that was
        computed from it without the example.
    used: the parameters that any operation read. changed: those that were multiplied in a form with fewer zeros than
        they had at first.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: PyTorch would import its compiler only to keep it out of here, which takes two seconds."""
        return False

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.total, self.products = 0.0, Counter[str]()
        self.used, self.changed = set[str](), set[str]()
        named = layers.names(model)
        self.made_of = {_memory(value): named[id(value)] for value in model.parameters()}
        self.parameters = {place: name for place, name in self.made_of.items() if place}
        self.zeros = {named[id(value)]: _zeros(value) for value in model.parameters()}
        self.filled = set[int]()  # where values lie that have fewer zeros than the parameter they are made of
        self.live = {_memory(example)}  # what depends on the example
        self.held = list[Tensor]()  # so that no memory is used again

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the operation `func`, and note what it does."""
        kwargs, operation = kwargs or {}, func.overloadpacket
        count = COUNTS.get(operation)
        if count is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if count is not None:
            multiply_adds = count(*args, **kwargs, out_val=result) / 2
            self.total += multiply_adds
            factors = args[1:3] if "add" in operation.__name__ else args[:2]
            names = {self.made_of[_memory(factor)] for factor in factors if _memory(factor) in self.made_of}
            self.changed |= {self.made_of[_memory(factor)] for factor in factors if _memory(factor) in self.filled}
            if len(names) == 1:
                self.products[names.pop()] += multiply_adds
        inputs, outputs = ([x for x in tree_leaves(of) if isinstance(x, Tensor)] for of in ((args, kwargs), result))
        self.held += outputs
        self.used |= {self.parameters[_memory(x)] for x in inputs if _memory(x) in self.parameters}
        if any(_memory(x) in self.live for x in inputs):
            self.live |= {_memory(x) for x in outputs} - {0}
        else:
            for x in outputs:
                for source in inputs:
                    if (name := self.made_of.get(_memory(source))) and source.numel() == x.numel():
                        self.made_of.setdefault(_memory(x), name)
                        if count is None and self.made_of[_memory(x)] == name:
                            (self.filled.add if _zeros(x) < self.zeros[name] else self.filled.discard)(_memory(x))
        return result


def parameters_to_leave_out(make: Callable[[], nn.Module], examples: Tensor) -> Mapping[str, str]:
    """The parameters of the model that `make` gives that pruning must leave alone, with UNUSED or CHANGED: no forward
    pass with `examples` (B, ...), in training or in evaluation, uses them, or it changes them before it multiplies so
    that zeros do not stay zeros, as weight standardisation does. None where the model fails with them."""
    try:
        with rng.seeded(0):
            unused, changed = _passes(make(), examples[:2])
            if unused:  # a branch may depend on the data
                unused &= _passes(make(), examples)[0]
    except (Exception, SystemExit):  # whatever a model's own code raises, which others report
        return {}
    return dict.fromkeys(sorted(changed), CHANGED) | dict.fromkeys(sorted(unused), UNUSED)


def changes_weight(layer: nn.Module) -> bool:
    """Whether a Linear or convolution layer with a forward pass of its own changes its weight before it multiplies, so
    that zeros do not stay zeros."""
    custom = "forward" in vars(layer) or not type(layer).__module__.startswith("torch.nn.modules.")
    if not custom or not isinstance(layer, (_ConvNd, nn.Linear)):
        return False
    try:
        if isinstance(layer, _ConvNd):
            size = [d * (k - 1) + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
            shape = [layer.in_channels, *size]
        else:
            shape = [layer.in_features]
        with rng.seeded(0):
            return "weight" in _passes(copy_model(layer).cpu(), torch.ones(2, *shape))[1]
    except Exception:  # of code of the user's own
        return False


def _passes(model: nn.Module, examples: Tensor) -> tuple[set[str], set[str]]:
    """The parameters that no pass of `model` (changed in place) uses, and the weights that it changes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # what is added to a weight may start at 0
                parameter.add_(MOVED)
        for part in layers.parts(model):
            if part.kind in (CONV, FC):
                kept = (torch.arange(part.parameter.numel()) % 3 != 0).view(part.parameter.shape)
                if len(kept) > 1:  # a row of several as a whole
                    kept[0] = False
                part.parameter.mul_(kept)
    used, changed = set[str](), set[str]()
    for training in (True, False):
        example = examples.clone()
        with torch.set_grad_enabled(training), Trace(model.train(training), example) as trace:
            model(example)
        used |= trace.used
        changed |= trace.changed
    return set(layers.names(model).values()) - used, changed


def _memory(tensor: Any) -> int:
    """Where the values of a tensor lie; 0 for one without any, or for what is no tensor."""
    plain = isinstance(tensor, Tensor) and tensor.layout is torch.strided
    return tensor.untyped_storage().data_ptr() if plain else 0


def _zeros(tensor: Tensor) -> int:
    return int((tensor == 0).sum())


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
        return self.rest + sum(self.multiply_adds(name, count) for name, count in weights.items())

    def multiply_adds(self, name: str, count: int) -> float:
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
    names_by_id = layers.names(model)
    kinds = {names_by_id[id(part.parameter)]: part.kind for part in layers.parts(model)}
    uses = {name: trace.products[name] / parameters[name].numel() for name in names}
    without_products = [name for name, count in uses.items() if not count and kinds[name] != layers.EMBEDDING]
    reached = _reached(logits) if without_products else set()
    if untraced := [name for name in without_products if id(parameters[name]) in reached]:
        raise ValueError(f"what is multiplied by {untraced[0]} is not known")
    return Cost(uses, kinds, trace.total - sum(trace.products[name] for name in uses))


def _reached(logits: Tensor) -> set[int]:
    """The ids of the parameters that they depend on."""
    seen, parameters, pending = set(), set(), [logits.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            parameters.add(id(getattr(node, "variable", None)))
            pending += [before for before, _ in node.next_functions]
    return parameters
