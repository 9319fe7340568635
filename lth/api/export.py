"""Tickets in other forms: ONNX and torch.export files, Linear layers that hold only the surviving weights, a smaller
dense network with the same logits; and the disk space and time that each form needs."""

from __future__ import annotations

import contextlib
import io
import math
import operator
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from lth import pruning
from lth.models import building, prunable
from lth.models.probe import cost
from lth.pruning import Masks
from lth.records.files import write
from lth.settings.checks import error_message

# The modules and functions that `compact` handles.
WEIGHTED = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Identity, nn.Dropout, nn.Dropout2d)
RELU = (torch.relu, F.relu, "relu")  # as functions and methods
ADDITIONS = (operator.add, operator.iadd, torch.add)
FLATTENING = (torch.flatten, "flatten")
KNOWN = "Linear, Conv2d, batch norm, ReLU, pooling, flatten and residual additions"

BATCHES = (1, 100)  # images per call that `sizes` times
TURNS, SECONDS = 5, 0.05  # measurements of each form, and how long one takes at least


class SparseLinear(nn.Module):
    """A Linear layer that holds its weight (out, in) in CSR form, so that pruned weights cost neither memory nor time.

    For inference on a CPU: x (..., in) -> (..., out). The weight does not learn.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PyTorch warns that CSR tensors are in beta
            self.register_buffer("weight", layer.weight.detach().to_sparse_csr())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """The outputs (..., out) of inputs (..., in)."""
        y = (self.weight @ x.reshape(-1, self.in_features).t()).t()
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], self.out_features)


def sparse(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of `model`, in evaluation mode, whose pruned Linear layers are `SparseLinear`. Others stay as they are:
    PyTorch has no sparse convolutions, hooks of a layer would be lost, and nn.TransformerEncoderLayer with batch_first
    takes dense weights. Pruned weights must be 0."""
    model = building.copy_model(model).cpu().eval()
    for name, mask in masks.items():
        path = name.rpartition(".")[0]
        layer = model.get_submodule(path)
        if prunable.is_plain_linear(layer) and not prunable.hooked(layer) and not bool(mask.all()):
            if not path:
                return SparseLinear(layer).eval()
            parent_path, _, child = path.rpartition(".")
            parent = model.get_submodule(parent_path)
            if not (isinstance(parent, nn.TransformerEncoderLayer) and parent.self_attn.batch_first):
                setattr(parent, child, SparseLinear(layer))
    return model


class FromPixels(nn.Module):
    """`model` for images (B, C, H, W) with pixels from 0 to 1, normalised as a run's config.json says."""

    shift: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, normalisation: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.by_norm = model, normalisation["by_norm"]
        self.register_buffer("shift", torch.tensor(normalisation["shift"])[:, None, None])
        self.register_buffer("scale", 255 * torch.tensor(normalisation["scale"])[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """The logits of the model."""
        x = images * self.scale + self.shift
        return self.model(F.normalize(x.flatten(1)).view_as(x) if self.by_norm else x)


def export(model: nn.Module, file: Path, example: Tensor, normalisation: Mapping[str, Any]) -> Path:
    """Write `model`, in evaluation mode and for any batch size, to an .onnx file (in PyTorch's default opset) or a .pt2
    file (torch.export). Its input is like `example` (B, ...), two or more examples: images with pixels from 0 to 1,
    which it normalises, or, without a `normalisation`, examples as in training; the metadata `input` says which.

    ValueError for another ending or a model that cannot be exported, lth.records.files.RecordError if the file cannot
    be written, ImportError if the ONNX packages are not installed.
    """
    if file.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"file must end in .onnx or .pt2, not {str(file)!r}")
    model, input_note = building.copy_model(model), "examples as in the training data: nothing is normalised here"
    if normalisation:
        model = FromPixels(model, normalisation)
        input_note = "images (batch, channels, height, width) with pixels from 0 to 1, which are normalised here"
    try:
        batch = torch.export.Dim("batch")
        program = torch.export.export(model.cpu().eval(), (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # a model's own code may make tracing fail in any way
        raise ValueError(f"model cannot be exported: {error_message(error)}") from error
    if file.suffix == ".onnx":
        write(file, _onnx(program, input_note))
    else:
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={"input": input_note})
        write(file, content.getvalue())
    return file


def _onnx(program: torch.export.ExportedProgram, input_note: str) -> bytes:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            onnx_program = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
    except ImportError:
        raise ImportError("an .onnx file needs the packages onnx and onnxscript: pip install onnx onnxscript") from None
    assert onnx_program is not None
    onnx_program.model.metadata_props["input"] = input_note
    return onnx_program.model_proto.SerializeToString()


@dataclass
class _Step:
    """A step of the traced network, with one value per channel or unit of its result."""

    node: fx.Node
    module: nn.Module | None
    inputs: Sequence[_Step]
    shape: Sequence[int]  # of the result; () for the output node
    constant: Tensor = field(init=False)  # its value, NaN where that depends on the input or on the position
    needed: Tensor = field(init=False)  # whether later steps use it
    left: Tensor = field(init=False)  # whether it is in the smaller network

    @property
    def keeps_all(self) -> bool:
        """Whether all channels stay: the network's input, and sums of a residual stream."""
        return self.node.op == "placeholder" or self.node.target in ADDITIONS

    @property
    def flattens(self) -> bool:
        """Whether the positions of each channel become units."""
        return isinstance(self.module, nn.Flatten) or self.node.target in FLATTENING

    def per_unit(self, values: Tensor) -> Tensor:
        """Values per channel of the input as values per channel or unit of the result."""
        return values.repeat_interleave(self.shape[1] // len(values)) if self.flattens else values


def compact(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `model`, in evaluation mode on the CPU, without the units and channels that a pruned network does not
    need. Its logits are the same up to rounding.

    A unit or channel is removed if it has no outgoing weights left, or if its value is the same for all inputs, as it
    is without incoming weights; that value is then added to the biases of the next layer. A constant channel other than
    0 stays before a padded convolution, which sees it end at the border. The terms of a residual sum keep all their
    channels. At least one unit of a layer stays.

    `example` are examples (B, ...) as the model takes them. ValueError for a model with anything but KNOWN.
    """
    model = building.copy_model(model).cpu().eval()
    try:
        traced = fx.symbolic_trace(model)
        with torch.no_grad():
            ShapeProp(traced).propagate(example.to(next(model.parameters()).dtype))
    except Exception as error:  # a model's own code may make tracing fail in any way
        raise ValueError(f"model cannot be made smaller: {error_message(error)}") from error
    by_node: dict[fx.Node, _Step] = {}
    for node in traced.graph.nodes:
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        shape = node.meta["tensor_meta"].shape if "tensor_meta" in node.meta else ()
        by_node[node] = _Step(node, module, [by_node[source] for source in node.all_input_nodes], shape)
    steps = list(by_node.values())
    _check(steps)
    for step in steps:
        step.constant = _constant(step)
        step.needed = torch.zeros(len(step.constant), dtype=torch.bool)
    for step in reversed(steps):
        _mark_needed(step)
    for step in steps:
        step.left = _shrink(step)
    return model


def _check(steps: Sequence[_Step]) -> None:
    """ValueError if there is anything that `compact` does not handle."""
    uses = Counter(id(parameter) for step in steps if step.module for parameter in step.module.parameters())
    for step in steps:
        module, target = step.module, step.node.target
        name, flat = str(getattr(target, "__name__", target)), len(step.shape) == 2
        known = (*RELU, *ADDITIONS, *FLATTENING) if flat else (*RELU, *ADDITIONS)
        fits = step.node.op == "output" or (step.node.op == "placeholder" and len(step.shape) > 1) or target in known
        if module is not None:
            name = f"{target} ({type(module).__name__})"
            fits = (
                type(module) in (*WEIGHTED, *NORMS, *POOLS, *POINTWISE, nn.Flatten)
                and not prunable.hooked(module)
                and "forward" not in vars(module)
                and all(uses[id(parameter)] == 1 for parameter in module.parameters())
                and getattr(module, "groups", 1) == 1
                and getattr(module, "track_running_stats", True)
                and (flat or not isinstance(module, (nn.Linear, nn.Flatten)))
            )
        if not fits:
            raise ValueError(
                f"model cannot be made smaller: it has {name}, and only {KNOWN} are known, each layer used once, "
                "without groups and hooks"
            )


def _constant(step: _Step) -> Tensor:
    """The values of `step.constant`."""
    if step.keeps_all:
        return torch.full((step.shape[1],), torch.nan, dtype=torch.double)
    module, values = step.module, step.inputs[0].constant
    if isinstance(module, WEIGHTED):
        weight, uses, bias = _weights(module)
        usable = _usable(module, values)
        return (bias + (weight * values.where(usable, 0)).sum(1)).where(~(uses & ~usable).any(1), torch.nan)
    if isinstance(module, NORMS):
        parts = (module.running_mean, module.running_var, module.weight, module.bias)
        mean, variance, scale, shift = (None if part is None else part.detach().double() for part in parts)
        normal = F.batch_norm(values[None], mean, variance, scale, shift, eps=module.eps)[0]
        return normal if scale is None or shift is None else normal.where(scale != 0, shift)
    if isinstance(module, nn.AvgPool2d) and module.padding not in (0, (0, 0)):
        return values.where(values == 0, torch.nan)
    if isinstance(module, POINTWISE):
        return module(values)
    return values.relu() if step.node.target in RELU else step.per_unit(values)


def _weights(layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor, Tensor]:
    """For each output and input, (out, in), the sum of the weights and whether any is left; and the biases, or 0."""
    weight = layer.weight.detach().double()
    weight = weight.view(*weight.shape[:2], -1)
    bias = torch.zeros_like(weight[:, 0, 0]) if layer.bias is None else layer.bias.detach().double()
    return weight.sum(2), (weight != 0).any(2), bias


def _usable(layer: nn.Linear | nn.Conv2d, values: Tensor) -> Tensor:
    """Which inputs with these constants add a constant to each output, the same at all positions."""
    padded = isinstance(layer, nn.Conv2d) and layer.padding not in ("valid", (0, 0))
    return (values == 0) if padded else ~values.isnan()


def _mark_needed(step: _Step) -> None:
    """Mark the channels and units of its inputs that a step needs for the needed part of its result."""
    for source in step.inputs:
        if isinstance(step.module, WEIGHTED):
            if not step.needed.any():
                step.needed[0] = True
            _, uses, _ = _weights(step.module)
            source.needed |= uses[step.needed].any(0) & ~_usable(step.module, source.constant)
        elif step.flattens:
            source.needed |= step.needed.view(len(source.constant), -1).any(1)
        elif step.keeps_all or step.node.op == "output":
            source.needed.fill_(True)
        else:
            source.needed |= step.needed


def _shrink(step: _Step) -> Tensor:
    """Remove what is not needed from a layer (changed in place). Returns which channels or units of its result are
    left."""
    if step.keeps_all:
        return torch.ones_like(step.needed)
    module, columns = step.module, step.inputs[0].left
    if isinstance(module, WEIGHTED):
        rows, (weight, _, bias) = step.needed, _weights(module)
        added = (weight * step.inputs[0].constant.nan_to_num(0).where(~columns, 0)).sum(1)
        if module.bias is not None or added[rows].any():
            module.bias = nn.Parameter((bias + added)[rows].to(module.weight.dtype))
        module.weight = nn.Parameter(module.weight.detach()[rows][:, columns].clone())
        names = ("in_features", "out_features") if isinstance(module, nn.Linear) else ("in_channels", "out_channels")
        for name, left in zip(names, (columns, rows), strict=True):
            setattr(module, name, int(left.sum()))
        return rows
    if isinstance(module, NORMS):
        for name in ("weight", "bias", "running_mean", "running_var"):
            if (value := getattr(module, name)) is not None:
                part = value.detach()[columns].clone()
                setattr(module, name, nn.Parameter(part) if isinstance(value, nn.Parameter) else part)
        module.num_features = int(columns.sum())
    return step.per_unit(columns)


def sizes(model: nn.Module, masks: Masks, example: Tensor) -> pd.DataFrame:
    """The table of `SavedTicket.sizes`. `model` has zeros where it is pruned; `example` are examples (B, ...)."""
    from torch.utils.benchmark import Timer  # here, since it logs a warning where CUDA is installed without a GPU

    model = building.copy_model(model).cpu().eval()
    state, survivors = building.state_of(model), pruning.survivors(masks)
    pruned = {name: mask for name, mask in masks.items() if not mask.all()}
    csr = {name: value for name, value in state.items() if name not in pruned}
    packed = dict(csr)
    for name, mask in pruned.items():
        values, matrix = {f"{name}/values": state[name][mask]}, mask.flatten(1)
        rows = F.pad(matrix.sum(1).cumsum(0), (1, 0)).int()
        csr |= {f"{name}/rows": rows, f"{name}/columns": matrix.nonzero()[:, 1].int(), **values}
        packed |= {f"{name}/mask": pruning.pack(mask), **values}
    models = {"dense": model, "csr": sparse(model, masks)}
    layers = {name: models["csr"].get_submodule(name.rpartition(".")[0]) for name in pruned}
    sparse_layers = [name for name in pruned if isinstance(layers[name], SparseLinear)]
    saved = sum(pruned[name].numel() - survivors[name] for name in sparse_layers)
    products = cost(model, example[:1], ()).rest
    table = {"dense": _row(state, products)}
    with contextlib.suppress(ValueError):  # this kind of network cannot be made smaller
        models["compact"] = small = compact(model, example)
        table["compact"] = _row(building.state_of(small), cost(small, example[:1], ()).rest)
    table["csr"] = _row(csr, products - saved)
    table["packed"] = _row(packed, math.nan)  # computes nothing until it is unpacked
    for size in BATCHES:
        images = example[:1].expand(size, *example.shape[1:]).contiguous()
        for name, network in TURNS * [*models.items()]:  # in turns, so that other work disturbs all forms alike
            variables = {"model": network, "images": images}
            timer = Timer("model(images)", globals=variables, num_threads=torch.get_num_threads())
            with torch.inference_mode():
                time = 1000 * timer.blocked_autorange(min_run_time=SECONDS).median
            table[name][f"ms_{size}"] = min(time, table[name].get(f"ms_{size}", math.inf))
    return pd.DataFrame(table.values(), index=pd.Index(table, name="form"))


def _row(tensors: Mapping[str, Tensor], products: float) -> dict[str, float]:
    numbers = sum(value.numel() for value in tensors.values() if value.is_floating_point())
    return {"numbers": numbers, "bytes": len(safetensors.torch.save(dict(tensors))), "multiply_adds": products}
