"""Which parameters of a network are weights to prune, what kind each is of, and how they are drawn.

Weights are the matrices and filters that multiply activations, wherever they stand: in Linear, Bilinear,
convolution and transposed convolution layers, of attention (`in_proj_weight` or the three `*_proj_weight`), of
recurrent layers and their cells (`weight_ih`, `weight_hh`, `weight_hr`); embeddings if asked. Modules that are not
PyTorch's own have their matrices under names such as `weight`, `kernel` or `w1`.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList

CONV, FC, EMBEDDING, BIAS, OTHER = "conv", "fc", "embedding", "bias", "other"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # of a module, by attribute
# Why parameters are left out of pruning: see lth/models/probe.py.
UNUSED = "no forward pass uses {}, in training or in evaluation: left out of pruning and percentages"
CHANGED = "the model changes {} before it multiplies, so that zeros do not stay zeros: not pruned"
NOTED_SHARE = 0.01  # of all parameters: what pruning leaves out is mentioned if it is more

_LAYERS = (_ConvNd, nn.Linear, nn.Bilinear)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_MATRIX = re.compile(r"(^|_)(w|weights?|kernels?|filters?)\d*(_|$)", re.IGNORECASE)
_BIAS = re.compile(r"bias(_(ih|hh)\w*)?|in_proj_bias")


@dataclass(frozen=True)
class Part:
    """A parameter of a network.

    layer: the module that it works in, whose kind is reported.
    module, name: where torch.nn.utils.prune finds it: the layer itself or, if it is parametrised, its parametrisation.
    """

    layer: nn.Module
    module: nn.Module
    name: str
    parameter: nn.Parameter
    kind: str


def parts(model: nn.Module) -> list[Part]:
    """Every parameter of `model` once, in the order of its modules; a tied one is of the kind that is pruned, if any
    of its layers says so. Masks of torch.nn.utils.prune make no difference."""
    lists = [module for module in model.modules() if isinstance(module, ParametrizationList)]
    inside = {id(module) for parametrizations in lists for module in parametrizations.modules()}
    parts_by_id: dict[int, Part] = {}
    for module in model.modules():
        if id(module) not in inside:
            for part in _parts_of(module):
                previous = parts_by_id.get(id(part.parameter))
                if previous is None or (previous.kind not in (CONV, FC) and part.kind in (CONV, FC)):
                    parts_by_id.pop(id(part.parameter), None)
                    parts_by_id[id(part.parameter)] = part
    if left_out := vars(model).get("_left_out"):
        named = names(model)
        parts_by_id = {
            key: replace(part, kind=OTHER) if named[key] in left_out else part for key, part in parts_by_id.items()
        }
    return list(parts_by_id.values())


def leave_out(model: nn.Module, names: Mapping[str, str]) -> nn.Module:
    """Keep in `model`, which is returned, the parameters that pruning leaves alone, each with UNUSED or CHANGED."""
    model._left_out = names  # type: ignore[assignment]
    return model


def left_out_notes(model: nn.Module) -> list[str]:
    """Sentences about the parameters of `leave_out` and their share of all."""
    names_by_id, reasons, sentences = names(model), vars(model).get("_left_out", {}), []
    sizes = {names_by_id[id(parameter)]: parameter.numel() for parameter in model.parameters()}
    for reason in (UNUSED, CHANGED):
        if affected := [name for name in reasons if reasons[name] == reason]:
            more = f" and {len(affected) - 4} more" if len(affected) > 4 else ""
            share = f"{100 * sum(sizes[name] for name in affected) / sum(sizes.values()):.1f}% of all parameters"
            sentences.append(reason.format(f"{', '.join(affected[:4])}{more} ({share})"))
    return sentences


def names(model: nn.Module) -> dict[int, str]:
    """The name in `model` of each parameter by its id, the first of a tied one, without `_orig` where a mask is on."""
    return {key: found[0] for key, found in all_names(model).items()}


def all_names(model: nn.Module) -> dict[int, list[str]]:
    """The same with every name of a tied parameter."""
    result: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                plain = unmasked_name(module, name)
                result.setdefault(id(parameter), []).append(f"{path}.{plain}" if path else plain)
    return result


def unpruned_note(model: nn.Module, embeddings: bool = False) -> str:
    """A sentence about the parameters that are not pruned and their share, where it exceeds 1% of all; else ""."""
    pruned = (CONV, FC, EMBEDDING) if embeddings else (CONV, FC)
    all_parts, names_by_id = parts(model), names(model)
    total = sum(part.parameter.numel() for part in all_parts)
    noted = vars(model).get("_left_out", {})
    unpruned = [part for part in all_parts if part.kind not in pruned and names_by_id[id(part.parameter)] not in noted]
    count = sum(part.parameter.numel() for part in unpruned)
    if count <= NOTED_SHARE * total:
        return ""
    groups = Counter[str]()
    for part in unpruned:
        vector = part.kind == BIAS or (part.kind == OTHER and not _is_matrix(part.parameter))
        key = "biases, normalisation and other vectors" if vector else names_by_id[id(part.parameter)]
        key += " (an embedding: see prune_embeddings)" if part.kind == EMBEDDING else ""
        groups[key] += part.parameter.numel()
    shares = [f"{key} {100 * size / total:.1f}%" for key, size in groups.most_common(4)]
    more = f", {len(groups) - 4} others" if len(groups) > 4 else ""
    return f"pruning leaves {100 * count / total:.1f}% of all {total:,} parameters alone: {', '.join(shares)}{more}"


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a Linear layer of PyTorch's whose forward pass nobody has replaced."""
    return type(module) is nn.Linear and "forward" not in vars(module)


def hooked(module: nn.Module) -> bool:
    """Whether something else is called when the module is."""
    return any(getattr(module, hooks) for hooks in HOOKS)


def has_gradient_hooks(parameter: nn.Parameter) -> bool:
    """Whether something else is called with its gradient. No copy has these hooks."""
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def without_dropout(model: nn.Module) -> None:
    """Turn off the dropout of PyTorch's layers, also of those for which it is a number: attention, recurrent ones."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.eval()
        elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            module.dropout = 0.0


def draw(module: nn.Module, init: str) -> None:
    """Draw the weights of one module of PyTorch's, `glorot` or `kaiming` (Gaussian), and set its biases to 0.

    Matrices that PyTorch stacks into one (the gates of recurrent layers; queries, keys and values of attention) are
    drawn each as a matrix of its own. Embeddings, normalisation, modules that are not PyTorch's, and values that do not
    learn (without requires_grad) keep what their constructors drew, as do parametrised weights whose parametrisation
    cannot be inverted.
    """
    if not isinstance(module, (*_LAYERS, *_RECURRENT, nn.MultiheadAttention)):
        return
    parametrizations = getattr(module, "parametrizations", {})
    for name in _weight_names(module):
        if name in module._parameters:
            value = module._parameters[name]
            if value is not None and value.requires_grad:
                _draw(module, name, value.detach(), init)
        elif name in parametrizations and any(inner.requires_grad for inner in parametrizations[name].parameters()):
            with torch.no_grad(), contextlib.suppress(ValueError, RuntimeError):  # not invertible
                value = getattr(module, name).detach().clone()
                _draw(module, name, value, init)
                setattr(module, name, value)
    for part in _parts_of(module):
        if part.kind == BIAS and part.parameter.requires_grad:
            nn.init.zeros_(part.parameter)


def _draw(module: nn.Module, name: str, value: Tensor, init: str) -> None:
    """Draw each of the matrices that the weight `name` holds, one below another."""
    stacked = 3 if name == "in_proj_weight" else 1
    if isinstance(module, _RECURRENT):
        stacked = max(1, len(value) // int(module.hidden_size))
    for matrix in value.chunk(stacked):
        if init == "glorot":
            nn.init.xavier_normal_(matrix)
        else:
            nn.init.kaiming_normal_(matrix, nonlinearity="relu")


def _parts_of(module: nn.Module) -> Iterator[Part]:
    """The parameters of one module, weights first; parametrised ones lie in their parametrisations."""
    order = {name: i for i, name in enumerate(_weight_names(module))}
    own = [(unmasked_name(module, name), p) for name, p in module._parameters.items() if p is not None]
    for name, parameter in sorted(own, key=lambda item: (order.get(item[0], len(order)), "bias" in item[0])):
        yield Part(module, module, name, parameter, _kind(module, name, parameter))
    parametrizations = getattr(module, "parametrizations", None)
    for name, listed in parametrizations.items() if isinstance(parametrizations, nn.ModuleDict) else ():
        assert isinstance(listed, ParametrizationList)
        kind = _kind(module, name, max(listed.parameters(), key=Tensor.numel))
        for inner in listed.modules():
            inner_kind = kind if kind == BIAS or (inner is listed and _keeps_zeros(listed)) else OTHER
            own = [(unmasked_name(inner, stem), p) for stem, p in inner._parameters.items() if p is not None]
            for stem, parameter in own:
                yield Part(module, inner, stem, parameter, inner_kind)


def _kind(module: nn.Module, name: str, value: Tensor) -> str:
    if isinstance(module, (*_LAYERS, *_RECURRENT, nn.MultiheadAttention)):
        weight = CONV if isinstance(module, _ConvNd) else FC
        return weight if name in _weight_names(module) else BIAS if _BIAS.fullmatch(name) else OTHER
    if isinstance(module, _EMBEDDINGS):
        return EMBEDDING if name == "weight" else OTHER
    class_name = type(module).__name__.lower()
    if not _is_matrix(value) or not _MATRIX.search(name) or "norm" in class_name or _is_of_pytorch(module):
        return OTHER
    return EMBEDDING if "embed" in class_name else CONV if value.ndim > 3 else FC


def _weight_names(module: nn.Module) -> tuple[str, ...]:
    """The names that the weights of a module of PyTorch's have in it."""
    if isinstance(module, nn.RNNBase):
        return tuple(name for name in module._flat_weights_names if name.startswith("weight"))
    if isinstance(module, nn.RNNCellBase):
        return "weight_ih", "weight_hh"
    if isinstance(module, nn.MultiheadAttention):
        return "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"
    return ("weight",)


def _is_of_pytorch(module: nn.Module) -> bool:
    """Whether it is a layer of torch.nn or made from one, and not merely a container."""
    plain = ("module", "container", "transformer")
    homes = [base.__module__ for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules.")]
    return any(home.rpartition(".")[2] not in plain for home in homes)


def _is_matrix(value: Tensor) -> bool:
    return sum(size > 1 for size in value.shape) > 1


def unmasked_name(module: nn.Module, name: str) -> str:
    """The name of a parameter as it is without a mask of torch.nn.utils.prune."""
    stem = name.removesuffix("_orig")
    return stem if f"{stem}_mask" in module._buffers else name


def _keeps_zeros(listed: ParametrizationList) -> bool:
    """Whether the zeros of the parameter are those of the weight that is made of it: so it is under spectral norm
    alone. Weight norm divides by the length of a row, which may be 0."""
    masked = "original_mask" in listed._buffers
    return masked or ("original" in listed._parameters and all(isinstance(step, _SpectralNorm) for step in listed))
