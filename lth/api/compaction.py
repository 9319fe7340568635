"""A smaller dense network that computes the same as one with pruned weights: units and channels without a use go; and
what the forms of a ticket take on disk and in time."""

from __future__ import annotations

import contextlib
import math
import operator
from collections import Counter
from collections.abc import Mapping

import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from lth import pruning
from lth.api import export
from lth.models import building, probe, prunable
from lth.pruning import Masks
from lth.settings.checks import first_line

WEIGHTED = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Identity, nn.Dropout, nn.Dropout2d)
OF_POINTS = (torch.relu, F.relu, "relu")  # as functions and methods
ADDITIONS = (operator.add, operator.iadd, torch.add)
FLATTENING = (torch.flatten, "flatten")
KNOWN = "Linear, Conv2d, batch norm, ReLU, pooling, flatten and residual additions"


def compact(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `model`, in evaluation mode on the CPU, without the units and channels that a pruned network has no use
    for. Its logits are equal but for rounding.

    A unit or channel goes if none of its outgoing weights is left, or if its value is the same for all inputs, as it is
    without incoming weights; that value is then added to the biases of the next layer. A constant channel other than 0
    stays before a padded convolution, which sees it end at the border. What is added to a residual stream keeps all its
    channels. At least one unit of a layer stays.

    `example` are examples (B, ...) as the model takes them. ValueError for a model with anything but KNOWN.
    """
    made = building.copy_of(model).cpu().eval()
    try:
        traced = fx.symbolic_trace(made)
        with torch.no_grad():
            ShapeProp(traced).propagate(example.to(next(made.parameters()).dtype))
    except Exception as error:  # whatever tracing stumbles over in a model's own code
        raise ValueError(f"model cannot be made smaller: {first_line(error)}") from error
    nodes = list(traced.graph.nodes)
    modules = {node: made.get_submodule(node.target) for node in nodes if node.op == "call_module"}
    _check(nodes, modules)
    constant: dict[fx.Node, Tensor] = {}
    for node in nodes:
        constant[node] = _constant(node, modules.get(node), constant)
    needed = {node: torch.zeros(len(values), dtype=torch.bool) for node, values in constant.items()}
    for node in reversed(nodes):
        _ask(node, modules.get(node), constant, needed)
    left: dict[fx.Node, Tensor] = {}
    for node in nodes:
        left[node] = _cut(node, modules.get(node), constant, needed, left)
    return made


def _check(nodes: list[fx.Node], modules: dict[fx.Node, nn.Module]) -> None:
    """ValueError if there is anything that `compact` does not know."""
    layers = [module for module in modules.values() if isinstance(module, (*WEIGHTED, *NORMS))]
    uses = Counter(id(parameter) for layer in layers for parameter in layer.parameters())
    for node in nodes:
        shape = node.meta["tensor_meta"].shape if "tensor_meta" in node.meta else ()
        if module := modules.get(node):
            name = f"{node.target} ({type(module).__name__})"
            plain = not prunable.hooked(module) and "forward" not in vars(module)
            once = all(uses[id(parameter)] == 1 for parameter in module.parameters())
            usual = getattr(module, "groups", 1) == 1 and getattr(module, "track_running_stats", True)
            flat = len(shape) == 2 or not isinstance(module, (nn.Linear, nn.Flatten))
            known = type(module) in (*WEIGHTED, *NORMS, *POOLS, *POINTWISE, nn.Flatten)
            fits = known and plain and once and usual and flat
        else:
            name = str(getattr(node.target, "__name__", node.target))
            functions = (*OF_POINTS, *ADDITIONS, *(FLATTENING if len(shape) == 2 else ()))
            fits = node.op in ("placeholder", "output") or node.target in functions
        if not fits:
            raise ValueError(
                f"model cannot be made smaller: it has {name}, and only {KNOWN} are known, each layer used once, "
                "without groups and hooks"
            )
    if sum(node.op == "placeholder" for node in nodes) != 1:
        raise ValueError("model cannot be made smaller: it must take one tensor")


def _positions(node: fx.Node, values: Tensor) -> int:
    """How many places of a channel a flattening turns into units."""
    return node.meta["tensor_meta"].shape[1] // len(values)


def _constant(node: fx.Node, module: nn.Module | None, constant: dict[fx.Node, Tensor]) -> Tensor:
    """The value of each channel or unit of what a node computes, NaN where it depends on the input or on the place."""
    if node.op == "placeholder" or node.target in ADDITIONS:
        return torch.full((node.meta["tensor_meta"].shape[1],), torch.nan, dtype=torch.double)
    values = constant[node.all_input_nodes[0]]
    if isinstance(module, WEIGHTED):
        weight, bias, usable = *_parameters(module), _usable(module, values)
        fixed = ~(_uses(module) & ~usable).any(1)
        return (bias + (weight * values.where(usable, 0)).sum(1)).where(fixed, torch.nan)
    if isinstance(module, NORMS):
        parts = (module.running_mean, module.running_var, module.weight, module.bias)
        mean, variance, scale, shift = (None if part is None else part.detach().double() for part in parts)
        normal = F.batch_norm(values[None], mean, variance, scale, shift, eps=module.eps)[0]
        return normal if scale is None or shift is None else normal.where(scale != 0, shift)
    if isinstance(module, nn.AvgPool2d) and module.padding not in (0, (0, 0)):
        return values.where(values == 0, torch.nan)
    if isinstance(module, POINTWISE):
        return module(values)
    if node.target in OF_POINTS:
        return values.relu()
    if isinstance(module, nn.Flatten) or node.target in FLATTENING:
        return values.repeat_interleave(_positions(node, values))
    return values


def _parameters(layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """The weights (out, in) by which constant inputs are multiplied, and the biases, or zeros."""
    weight = layer.weight.detach().double()
    return weight.flatten(2).sum(2) if weight.ndim > 2 else weight, (
        torch.zeros(len(weight), dtype=torch.double) if layer.bias is None else layer.bias.detach().double()
    )


def _uses(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """Which outputs have a weight left on which inputs (out, in)."""
    there = layer.weight.detach() != 0
    return there.flatten(2).any(2) if there.ndim > 2 else there


def _usable(layer: nn.Linear | nn.Conv2d, values: Tensor) -> Tensor:
    """Which inputs with these constants add one constant to each output, at all places."""
    padded = isinstance(layer, nn.Conv2d) and layer.padding not in ("valid", (0, 0))
    return (values == 0) if padded else ~values.isnan()


def _ask(
    node: fx.Node, module: nn.Module | None, constant: dict[fx.Node, Tensor], needed: dict[fx.Node, Tensor]
) -> None:
    """Add to `needed` what a node needs of its inputs for what is needed of it."""
    for source in node.all_input_nodes:
        values = constant[source]
        if isinstance(module, WEIGHTED):
            if not needed[node].any():
                needed[node][0] = True
            needed[source] |= _uses(module)[needed[node]].any(0) & ~_usable(module, values)
        elif isinstance(module, nn.Flatten) or node.target in FLATTENING:
            needed[source] |= needed[node].view(len(values), -1).any(1)
        elif node.op == "output" or node.target in ADDITIONS:
            needed[source].fill_(True)
        else:
            needed[source] |= needed[node]


def _cut(
    node: fx.Node,
    module: nn.Module | None,
    constant: dict[fx.Node, Tensor],
    needed: dict[fx.Node, Tensor],
    left: dict[fx.Node, Tensor],
) -> Tensor:
    """Make a layer (changed in place) as small as it can be; which of a node's channels or units are still there."""
    if node.op == "placeholder" or node.target in ADDITIONS:
        return torch.ones_like(needed[node])
    source = node.all_input_nodes[0]
    if isinstance(module, WEIGHTED):
        rows, columns = needed[node], left[source]
        weight, bias = _parameters(module)
        added = (weight * constant[source].nan_to_num(0).where(~columns, 0)).sum(1)
        if module.bias is not None or added[rows].any():
            module.bias = nn.Parameter((bias + added)[rows].to(module.weight.dtype))
        module.weight = nn.Parameter(module.weight.detach()[rows][:, columns].clone())
        names = ("in_features", "out_features") if isinstance(module, nn.Linear) else ("in_channels", "out_channels")
        for name, kept in zip(names, (columns, rows), strict=True):
            setattr(module, name, int(kept.sum()))
        return rows
    if isinstance(module, NORMS):
        for name in ("weight", "bias", "running_mean", "running_var"):
            if (value := getattr(module, name)) is not None:
                kept = value.detach()[left[source]].clone()
                setattr(module, name, nn.Parameter(kept) if isinstance(value, nn.Parameter) else kept)
        module.num_features = int(left[source].sum())
    if isinstance(module, nn.Flatten) or node.target in FLATTENING:
        return left[source].repeat_interleave(_positions(node, left[source]))
    return left[source]


BATCHES = (1, 100)  # images per call that is timed
TURNS, SECONDS = 5, 0.05  # measurements of each form, and how long one takes at least


def sizes(model: nn.Module, masks: Masks, example: Tensor) -> pd.DataFrame:
    """The table of `SavedTicket.sizes`. `model` has zeros where it is pruned; `example` are examples (B, ...)."""
    model = building.copy_of(model).cpu().eval()
    state, kept = building.state_of(model), pruning.survivors(masks)
    rest = {name: value for name, value in state.items() if name not in masks}
    pruned = {name: (state[name], mask) for name, mask in masks.items() if not mask.all()}
    rest |= {name: state[name] for name in masks.keys() - pruned.keys()}
    csr, packed = dict(rest), dict(rest)
    for name, (weight, mask) in pruned.items():
        matrix = mask.flatten(1)
        csr[f"{name}/rows"] = F.pad(matrix.sum(1).cumsum(0), (1, 0)).int()
        csr |= {f"{name}/columns": matrix.nonzero()[:, 1].int(), f"{name}/values": weight[mask]}
        packed |= {f"{name}/mask": pruning.pack(mask), f"{name}/values": weight[mask]}
    sparse = export.sparse(model, masks)
    products = probe.cost(model, example[:1], ())
    saved = sum(mask.numel() - kept[name] for name, (_, mask) in pruned.items() if _is_sparse(sparse, name))
    rows, models = {"dense": _row(state, products.rest)}, {"dense": model, "csr": sparse}
    with contextlib.suppress(ValueError):  # of a kind of network that cannot be made smaller
        models["compact"] = small = compact(model, example)
        rows["compact"] = _row(building.state_of(small), probe.cost(small, example[:1], ()).rest)
    rows["csr"] = _row(csr, products.rest - saved)
    rows["packed"] = _row(packed, math.nan)  # computes nothing until it is unpacked
    for name, times in _milliseconds(models, example).items():
        rows[name] |= times
    return pd.DataFrame(rows.values(), index=pd.Index(rows, name="form"))


def _is_sparse(sparse: nn.Module, name: str) -> bool:
    return isinstance(sparse.get_submodule(name.rpartition(".")[0]), export.SparseLinear)


def _row(tensors: Mapping[str, Tensor], products: float) -> dict[str, float]:
    numbers = sum(value.numel() for value in tensors.values() if value.is_floating_point())
    return {"numbers": numbers, "bytes": len(safetensors.torch.save(dict(tensors))), "multiply_adds": products}


@torch.inference_mode()
def _milliseconds(models: Mapping[str, nn.Module], example: Tensor) -> dict[str, dict[str, float]]:
    """How long a call of each takes, by the images in it, with as many threads as PyTorch has now: the lowest of
    several measurements in turns, which other work on the machine disturbs least."""
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for batch in BATCHES:
        images = example[:1].expand(batch, *example.shape[1:]).contiguous()
        threads = torch.get_num_threads()
        timers = {
            name: Timer("model(images)", globals={"model": model, "images": images}, num_threads=threads)
            for name, model in models.items()
        }
        turns = [{name: timer.blocked_autorange(min_run_time=SECONDS).median for name, timer in timers.items()}
                 for _ in range(TURNS)]  # fmt: skip
        for name in models:
            found[name][f"ms_{batch}"] = 1000 * min(turn[name] for turn in turns)
    return found
