"""Linear layers whose products leave out what is pruned: on a CPU, the sparser a ticket, the faster it trains.

The survivors of such a layer are a 1-D parameter, and its products cost what the survivors do. They need the examples
of a batch side by side in memory, so that activations are (features, batch) within.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lth.models.prunable import hooked
from lth.pruning import Masks
from lth.training import kernels


class Places:
    """Where the n survivors of a weight (out, in) are, in row-major order, and products with their values (n,)."""

    def __init__(self, mask: Tensor) -> None:
        self.shape, self.count = mask.shape, int(mask.sum())
        self.flat = mask.flatten().nonzero().squeeze(1)
        rows, columns = self.flat // mask.shape[1], self.flat % mask.shape[1]
        self.rows = _offsets(rows, mask.shape[0]), columns.int()
        self.order = torch.argsort(columns, stable=True)  # column by column
        self.columns = _offsets(columns, mask.shape[1]), rows[self.order].int()
        with warnings.catch_warnings():  # "in beta state"
            warnings.simplefilter("ignore", UserWarning)
            self._gradient = torch.sparse_csr_tensor(
                *self.rows, torch.zeros(self.count), mask.shape, check_invariants=False
            )

    def survivors(self, full: Tensor) -> Tensor:
        """The values (n,) of a tensor (out, in)."""
        return full.reshape(-1).index_select(0, self.flat)

    def full(self, values: Tensor, pruned: float = 0.0) -> Tensor:
        """The tensor (out, in) of these values, `pruned` elsewhere."""
        empty = torch.full((math.prod(self.shape),), pruned, dtype=values.dtype)
        return empty.scatter(0, self.flat, values).view(self.shape)

    def product(self, values: Tensor, x: Tensor) -> Tensor:
        """The weight times x (in, batch), (out, batch)."""
        return kernels.sparse_product(*self.rows, values, x)

    def transposed_product(self, values: Tensor, x: Tensor) -> Tensor:
        """The transposed weight times x (out, batch), (in, batch)."""
        return kernels.sparse_product(*self.columns, values.index_select(0, self.order), x)

    def gradient(self, above: Tensor, x: Tensor) -> Tensor:
        """The products (n,) of above (out, batch) with x (in, batch) at the survivors: their gradient."""
        found = self._gradient.values().zero_()
        torch.sparse.sampled_addmm(self._gradient, above, x.t(), out=self._gradient)  # in place: no copy of the places
        return found.clone()


def _offsets(numbers: Tensor, count: int) -> Tensor:
    """Where each of `count` rows begins among the row numbers of all survivors, and their end: (count + 1,)."""
    return nn.functional.pad(torch.bincount(numbers, minlength=count).cumsum(0), (1, 0)).int()


class _Products(torch.autograd.Function):
    """Linear layers one after another: x (batch, in) to (batch, out). Takes x, for each layer its `Places` and whether
    ReLU follows, and the values and the bias of each layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[tuple[Places, bool]], *parameters: Tensor | None) -> Tensor:
        out = x.t().contiguous()
        kept = [out]
        for (places, rectified), values, bias in zip(layers, parameters[::2], parameters[1::2], strict=True):
            assert values is not None
            out = places.product(values, out)
            if bias is not None:
                out.add_(bias.unsqueeze(1))
            if rectified:
                out.relu_()
            kept.append(out)
        ctx.layers = layers
        ctx.save_for_backward(*kept, *parameters[::2])
        # In the order of memory that dense products have, in which dropout draws.
        return out.t().clone(memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        count, wanted, found = len(ctx.layers), ctx.needs_input_grad, list[Tensor | None]()
        kept, values = ctx.saved_tensors[: count + 1], ctx.saved_tensors[count + 1 :]
        above = above.t().contiguous()
        for number, (places, rectified) in reversed([*enumerate(ctx.layers)]):
            if rectified:
                above = torch.ops.aten.threshold_backward(above, kept[number + 1], 0)
            found += [above.sum(1) if wanted[2 * number + 3] else None, places.gradient(above, kept[number])]
            if number or wanted[0]:
                above = places.transposed_product(values[number], above)
        return (above.t() if wanted[0] else None, None, *reversed(found))


class SparseLinear(nn.Linear):
    """A Linear layer of which only the survivors are parameters: `values` (n,), see `Places`."""

    places: Places
    values: nn.Parameter

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight (out, in), 0 where pruned, as a function of `values`. RuntimeError in training: what writes to it
        would be lost."""
        if self.training:
            raise RuntimeError("a forward pass in training uses a Linear layer's weight, the first one did not: train "
                               "this model with --sparse off")  # fmt: skip
        return self.places.full(self.values)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return _run(x, [self], [(self.places, False)])


class SparseSequence(nn.Sequential):
    """A Sequential that computes sparse layers, and ReLUs behind them, as one: what autograd does about each takes as
    long as small products. Whoever takes its layers one by one, or some of them, gets the layers themselves."""

    def forward(self, x: Tensor) -> Tensor:
        """What its modules give one after another."""
        module: Any
        run: list[SparseLinear] = []
        how: list[tuple[Places, bool]] = []
        for module in self._modules.values():
            kind = type(module)
            if kind is SparseLinear and not hooked(module):
                run.append(module)
                how.append((module.places, False))
            elif run and kind is nn.ReLU and "forward" not in vars(module) and not hooked(module):
                how[-1] = run[-1].places, True
            else:
                if run:
                    x, run, how = _run(x, run, how), [], []
                x = module(x)
        return _run(x, run, how) if run else x


def _run(x: Tensor, layers: Sequence[Any], how: Sequence[tuple[Places, bool]]) -> Tensor:
    if not layers[0].training and not torch.is_grad_enabled() and kernels.tiles():
        # An evaluation's batches are large, and dense products with bfloat16 tiles quicker at any sparsity.
        for layer, (places, rectified) in zip(layers, how, strict=True):
            x = nn.functional.linear(x, places.full(layer.values), layer.bias)
            x = x.relu_() if rectified else x
        return x
    parameters = [parameter for layer in layers for parameter in (layer.values, layer.bias)]
    out = _Products.apply(x if x.ndim == 2 else x.reshape(-1, x.shape[-1]), how, *parameters)
    return out if x.ndim == 2 else out.reshape(*x.shape[:-1], out.shape[-1])


def become_sparse(model: nn.Module, masks: Masks) -> dict[str, SparseLinear]:
    """Make the Linear layers whose weights `masks` names sparse, in place, and return them by the weights' names."""
    layers = {name: _become_sparse(model.get_submodule(name.rpartition(".")[0]), mask) for name, mask in masks.items()}
    for module in [*model.modules()]:
        inside = any(type(child) is SparseLinear for child in module.children())
        if type(module) is nn.Sequential and inside and "forward" not in vars(module):
            module.__class__ = SparseSequence
    return layers


def _become_sparse(layer: Any, mask: Tensor) -> SparseLinear:
    places = Places(mask)
    values = places.survivors(layer._parameters.pop("weight").detach())
    layer.__class__ = SparseLinear
    layer.places, layer.values = places, nn.Parameter(values)
    return layer
