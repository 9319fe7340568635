"""Tickets for other programs: ONNX, torch.export, and Linear layers that multiply by the surviving weights alone."""

from __future__ import annotations

import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lth.models import building, prunable
from lth.pruning import Masks
from lth.records.files import explained, write
from lth.settings.checks import first_line

SUFFIXES = (".onnx", ".pt2")


class SparseLinear(nn.Module):
    """A Linear layer that holds its weight (out, in) in CSR form, so that pruned weights cost neither memory nor time.

    For inference on a CPU: x (..., in) -> (..., out). The weight does not learn.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        with warnings.catch_warnings():  # that PyTorch calls CSR tensors a beta
            warnings.simplefilter("ignore", UserWarning)
            self.register_buffer("weight", layer.weight.detach().to_sparse_csr())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """The outputs (..., out) of inputs (..., in)."""
        columns = x.reshape(-1, self.in_features).t()
        if self.bias is None:
            found = torch.mm(self.weight, columns)
        else:
            found = torch.addmm(self.bias.expand(-1, columns.shape[1]), self.weight, columns)
        return found.t().reshape(*x.shape[:-1], self.out_features)


def sparse(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of `model`, in evaluation mode, whose pruned Linear layers are `SparseLinear`. Others stay as they are:
    PyTorch has no sparse convolutions, hooks of a layer would be lost, and nn.TransformerEncoderLayer with batch_first
    takes dense weights. Pruned weights must be 0."""
    made = building.copy_of(model).cpu().eval()
    for name, mask in masks.items():
        path = name.rpartition(".")[0]
        layer = made.get_submodule(path)
        if prunable.is_plain_linear(layer) and not prunable.hooked(layer) and not bool(mask.all()):
            if not path:
                return SparseLinear(layer).eval()
            above, _, child = path.rpartition(".")
            parent = made.get_submodule(above)
            if not (isinstance(parent, nn.TransformerEncoderLayer) and parent.self_attn.batch_first):
                setattr(parent, child, SparseLinear(layer))
    return made


class Normalise(nn.Module):
    """Images (B, C, H, W) with pixels from 0 to 1 as a run's network sees them: `normalisation` is what its config.json
    says (lth.data.Images.normalisation)."""

    shift: Tensor
    scale: Tensor

    def __init__(self, normalisation: Mapping[str, Any]) -> None:
        super().__init__()
        self.by_norm = normalisation["by_norm"]
        self.register_buffer("shift", torch.tensor(normalisation["shift"])[:, None, None])
        self.register_buffer("scale", 255 * torch.tensor(normalisation["scale"])[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """The normalised images."""
        x = images * self.scale + self.shift
        return nn.functional.normalize(x.flatten(1)).view_as(x) if self.by_norm else x


def export(model: nn.Module, file: Path, example: Tensor, normalisation: Mapping[str, Any]) -> Path:
    """Write `model`, in evaluation mode and for any batch size, as `file` says by its ending: .onnx (in the opset that
    PyTorch exports by default) or .pt2 (torch.export). Its metadata say under `input` what it takes: images with pixels
    from 0 to 1, which it normalises as `normalisation` says, or, if that is empty, examples like those in training.

    `example` are two or more examples (B, ...). ValueError for another ending or a model that cannot be exported,
    lth.records.files.RecordError if the file cannot be written, ImportError, with what to install, without ONNX.
    """
    if file.suffix not in SUFFIXES:
        raise ValueError(f"file must end in {' or '.join(SUFFIXES)}, not {str(file)!r}")
    batch, made = torch.export.Dim("batch"), building.copy_of(model)
    takes = "examples as the training data gave them: nothing is normalised here"
    if normalisation:
        made = nn.Sequential(OrderedDict(normalise=Normalise(normalisation), model=made))
        takes = "images (batch, channels, height, width) with pixels from 0 to 1, which are normalised here"
    try:
        program = torch.export.export(made.cpu().eval(), (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # whatever tracing stumbles over in a model's own code
        raise ValueError(f"model cannot be exported: {first_line(error)}") from error
    with tempfile.TemporaryDirectory(prefix="lth-") as folder:
        written = Path(folder) / file.name
        if file.suffix == ".pt2":
            torch.export.save(program, written, extra_files={"input": takes})
        else:
            _to_onnx(program, written, takes)
        with explained(file):
            content = written.read_bytes()
    write(file, content)
    return file


def _to_onnx(program: torch.export.ExportedProgram, file: Path, takes: str) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ImportError("an .onnx file needs the packages onnx and onnxscript: pip install onnx onnxscript") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
        assert made is not None
        made.model.metadata_props["input"] = takes
        made.save(file, external_data=False)
