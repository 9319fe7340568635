"""Linear layers whose products leave out what is pruned: on a CPU, the sparser a ticket, the faster it trains.

The survivors of such a layer are a 1-D parameter, and its products cost what the survivors do. They need the examples
of a batch side by side in memory, so that activations are (features, batch) within. `limits` and `choose` say which
layers are trained so: from where on it pays, and where it changes nothing that the model does.
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves

from lth import rng
from lth.models import building
from lth.models.prunable import has_gradient_hooks, hooked, is_plain_linear
from lth.pruning import Masks
from lth.settings.config import Config
from lth.training import hardware

# A layer is trained sparsely if at most this share of its weights survives: see the tables of benchmarks/README.md.
BELOW = ((256, 0.27), (math.inf, 0.17))  # for batches up to so many examples
BELOW_AMX = ((100, 0.135), (256, 0.036), (math.inf, 0.0))  # where `fast` means products with bfloat16 tiles
# A layer of so few weights gains only beside a sparse larger one, since autograd then treats both as one: a step of
# fc1, all others at 21% (at 6.9%), took 0.67 (0.60) of the dense one's time with its last layer, 1000 weights, dense at
# 48% (28%), and 0.55 (0.46) with that sparse too; 1.1 with that one sparse alone.
SMALL, BESIDE = 4096, 0.6
TENSOR: Any = Tensor
HARMLESS = {TENSOR.device.__get__, TENSOR.dtype.__get__}  # of a sparse weight they are the same
UNAVAILABLE = "this PyTorch has no quick sparse products: sparse rounds take as long as dense ones"


def limits(config: Config) -> dict[str, float]:
    """The shares of survivors up to which products are sparse with these settings on a CPU, for layers of up to so many
    weights (beside larger ones that are sparse) and for larger ones, as {"4096": 0.6, "more": 0.27}. Empty: none is.

    A function of the settings and of the kind of processor, so that the same command gives the same bits. --precision
    bf16 asks for bfloat16, which these products do not have, and stacked trials have a mask each: they train densely.
    """
    if config.sparse == "off" or config.precision == "bf16" or (config.stack or 1) > 1 or not available():
        return {}
    shares = BELOW_AMX if config.precision == "fast" and hardware.has_amx() else BELOW
    share = next(share for most, share in shares if config.batch_size <= most)
    return {str(SMALL): BESIDE, "more": share}


def choose(model: nn.Module, masks: Sequence[Masks], shares: Mapping[str, float], example: Tensor) -> list[str]:
    """The names of the weights of `model` that are trained sparsely with the masks of these trials.

    They belong to plain Linear layers that are sparse enough by `shares` (see `limits`) and whose weight nothing but
    the layer itself uses when the model is called with `example`, two or more examples (B, ...). Empty on a GPU and for
    stacked trials. The values of weights and examples play no part, nor does the precision, so that whoever evaluates a
    ticket finds the layers that its training found.
    """
    if not shares or len(masks) > 1 or example.device.type != "cpu" or not available():
        return []
    plain = {name: masks[0][name] for name in _plain_linear(model) if name in masks[0]}
    survivors = {name: int(mask.sum()) / mask.numel() for name, mask in plain.items()}
    most = shares["more"]
    small, beside = next((int(size), share) for size, share in shares.items() if size != "more")
    large = {name for name, mask in plain.items() if mask.numel() > small and survivors[name] <= most}
    few = {name for name, mask in plain.items() if large and mask.numel() <= small and survivors[name] <= beside}
    sparse = [name for name in plain if name in large | few and survivors[name]]
    used = _used_elsewhere(model, sparse, example) if sparse else set()
    return [name for name in sparse if name not in used]


def _plain_linear(model: nn.Module) -> list[str]:
    """The names of the weights of PyTorch's own Linear layers: float32, trainable, in one layer only, and in layers
    without hooks on gradients, which would see the gradients of the survivors alone."""
    times = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return [
        f"{path}.weight".lstrip(".")
        for path, layer in model.named_modules()
        if is_plain_linear(layer) and layer._parameters.get("weight") is not None
        if layer.weight.requires_grad and layer.weight.dtype == torch.float32 and times[id(layer.weight)] == 1
        if not any(map(has_gradient_hooks, layer.parameters(recurse=False)))
    ]


class _Watched(nn.Parameter):
    """A weight that remembers whether any function has read or changed it."""

    used = False

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, and mark the watched weights among its arguments."""
        if func not in HARMLESS:
            for part in tree_leaves((args, kwargs)):
                if isinstance(part, _Watched):
                    part.used = True
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _used_elsewhere(model: nn.Module, names: Sequence[str], example: Tensor) -> set[str]:
    """Which of the weights the model uses outside their layers' own products, in training or in evaluation, as for a
    penalty or to clip them; all of them where it cannot be called with `example`."""
    with rng.seeded(0), torch.no_grad():
        try:
            copy = building.copy_model(model)
            layers: dict[str, Any] = {name: copy.get_submodule(name.rpartition(".")[0]) for name in names}
            weights = {name: layer.weight for name, layer in layers.items()}
            for layer in layers.values():
                layer.weight.__class__ = _Watched
                layer.forward = partial(_unwatched, layer)
            for training in (True, False):
                copy.train(training)(example.clone())
            return {name for name in names if weights[name].used or layers[name].weight is not weights[name]}
        except Exception:  # whatever a model's own code raises
            return set(names)


def _unwatched(layer: nn.Linear, x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return nn.functional.linear(x, layer.weight, layer.bias)


@cache
def available() -> bool:
    """Whether this PyTorch has quick sparse products. It has on x86 processors."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return False  # what stands in for FBGEMM's products there is slow
    places = Places(torch.eye(5, 7) > 0)
    try:
        places.product(torch.ones(5), torch.ones(7, 3))
        places.gradient(torch.ones(5, 3), torch.ones(7, 3))
    except (AttributeError, TypeError, RuntimeError):
        return False
    return True


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

    def mask(self) -> Tensor:
        """Where the survivors are, as a mask (out, in)."""
        return self.full(torch.ones(self.count, dtype=torch.bool))

    def product(self, values: Tensor, x: Tensor) -> Tensor:
        """The weight times x (in, batch), (out, batch)."""
        return sparse_product(*self.rows, values, x)

    def transposed_product(self, values: Tensor, x: Tensor) -> Tensor:
        """The transposed weight times x (out, batch), (in, batch)."""
        return sparse_product(*self.columns, values.index_select(0, self.order), x)

    def gradient(self, above: Tensor, x: Tensor) -> Tensor:
        """The products (n,) of above (out, batch) with x (in, batch) at the survivors: their gradient."""
        found = self._gradient.values().zero_()
        torch.sparse.sampled_addmm(self._gradient, above, x.t(), out=self._gradient)  # in place: no copy of the places
        return found.clone()


def sparse_product(offsets: Tensor, columns: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """A sparse matrix (rows, inner) times x (inner, n), (rows, n). Row r has the `values` from offsets[r] to
    offsets[r + 1], in these `columns`; offsets (rows + 1,) and columns are int32. FBGEMM's sums of rows, made for
    embeddings, take less than half the time of MKL's sparse products."""
    bags: Any = torch._embedding_bag_forward_only  # no bookkeeping for a gradient, even of a parameter's values
    return bags(x, columns, offsets, False, 0, False, values, True)[0]


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
    if not layers[0].training and not torch.is_grad_enabled() and hardware.uses_amx():
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
    layers: dict[str, Any] = {name: model.get_submodule(name.rpartition(".")[0]) for name in masks}
    for name, layer in layers.items():
        layer.__class__, layer.places = SparseLinear, Places(masks[name])
        layer.values = nn.Parameter(layer.places.survivors(layer._parameters.pop("weight").detach()))
    for module in [*model.modules()]:
        inside = any(type(child) is SparseLinear for child in module.children())
        if type(module) is nn.Sequential and inside and "forward" not in vars(module):
            module.__class__ = SparseSequence
    return layers


def become_dense(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Undo `become_sparse` for the layers of these weights, in place, and return the weights by their names."""
    layers: dict[str, Any] = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    for layer in layers.values():
        weight = layer.places.full(layer._parameters.pop("values").detach())
        layer.__class__ = nn.Linear
        layer.weight = nn.Parameter(weight)
        del layer.places
    return {name: layer.weight for name, layer in layers.items()}
