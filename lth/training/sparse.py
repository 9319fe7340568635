"""Linear layers whose products leave out pruned weights: on a CPU, the sparser a ticket, the faster it trains.

The survivors of such a layer are a 1-D parameter, and the cost of its products is in proportion to their number. The
products need the examples of a batch side by side in memory, so activations are (features, batch) inside. `limits` and
`choose` say which layers are trained sparsely: those where it is faster and the model still does the same.
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
BELOW = ((256, 0.27), (math.inf, 0.17))  # (largest batch size, share)
BELOW_AMX = ((100, 0.135), (256, 0.036), (math.inf, 0.0))  # the same where `fast` uses bfloat16 tiles
# A layer of at most SMALL weights gains only next to a larger sparse one, since autograd then treats both as one. With
# the other layers of fc1 sparse at 21% (6.9%), a step took 0.67 (0.60) of the dense time with the last layer, 1000
# weights, dense at 48% (28%), and 0.55 (0.46) with it sparse too; 1.1 with only the last layer sparse.
SMALL, SMALL_SHARE = 4096, 0.6
TENSOR: Any = Tensor
HARMLESS = {TENSOR.device.__get__, TENSOR.dtype.__get__}  # the same for a sparse weight
UNAVAILABLE = "this PyTorch has no quick sparse products: sparse rounds take as long as dense ones"


def limits(config: Config) -> dict[str, float]:
    """The shares of survivors up to which layers are trained sparsely on a CPU: {"4096": 0.6, "more": 0.27} for layers
    of at most 4096 weights (next to larger sparse ones) and for larger ones. Empty: no layer is.

    Depends only on the settings and the kind of processor, so that the same command gives the same bits. Training is
    dense with --precision bf16, for which there are no such products, and for stacked trials, whose masks differ.
    """
    if config.sparse == "off" or config.precision == "bf16" or (config.stack or 1) > 1 or not available():
        return {}
    shares = BELOW_AMX if config.precision == "fast" and hardware.has_amx() else BELOW
    share = next(share for largest_batch, share in shares if config.batch_size <= largest_batch)
    return {str(SMALL): SMALL_SHARE, "more": share}


def choose(model: nn.Module, masks: Sequence[Masks], shares: Mapping[str, float], example: Tensor) -> list[str]:
    """The names of the weights of `model` that are trained sparsely with the masks of these trials.

    They belong to plain Linear layers that are sparse enough by `shares` (see `limits`) and whose weight only the layer
    itself uses when the model is called with `example`, two or more examples (B, ...). Empty on a GPU and for stacked
    trials. The choice does not depend on the values of weights and examples nor on the precision, so that an evaluation
    of a ticket uses the same sparse layers as its training.
    """
    if not shares or len(masks) > 1 or example.device.type != "cpu" or not available():
        return []
    plain = {name: masks[0][name] for name in _plain_linear(model) if name in masks[0]}
    survivors = {name: int(mask.sum()) / mask.numel() for name, mask in plain.items()}
    size, small_share = next((int(size), share) for size, share in shares.items() if size != "more")
    large = {name for name, mask in plain.items() if mask.numel() > size and survivors[name] <= shares["more"]}
    small = {name for name, mask in plain.items() if mask.numel() <= size and survivors[name] <= small_share}
    sparse = [name for name in plain if large and name in large | small and survivors[name]]
    used = _used_elsewhere(model, sparse, example) if sparse else set()
    return [name for name in sparse if name not in used]


def _plain_linear(model: nn.Module) -> list[str]:
    """The names of the float32, trainable, untied weights of PyTorch's own Linear layers, except layers with hooks on
    gradients, which would see the gradients of the survivors only."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return [
        f"{path}.weight".lstrip(".")
        for path, layer in model.named_modules()
        if is_plain_linear(layer) and layer._parameters.get("weight") is not None
        if layer.weight.requires_grad and layer.weight.dtype == torch.float32 and uses[id(layer.weight)] == 1
        if not any(map(has_gradient_hooks, layer.parameters(recurse=False)))
    ]


class _Watched(nn.Parameter):
    """A weight that remembers whether any function has read or changed it."""

    used = False

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, and mark the watched weights among its arguments."""
        if func not in HARMLESS:
            for argument in tree_leaves((args, kwargs)):
                if isinstance(argument, _Watched):
                    argument.used = True
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _used_elsewhere(model: nn.Module, names: Sequence[str], example: Tensor) -> set[str]:
    """The names of the weights that the model uses outside their layers' own products, in training or in evaluation,
    such as for a penalty or to clip them; all `names` if it cannot be called with `example`."""
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
    """Whether this PyTorch has quick sparse products, as on x86 processors."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return False  # what replaces FBGEMM's products there is slow
    places = Places(torch.eye(5, 7) > 0)
    try:
        places.product(torch.ones(5), torch.ones(7, 3))
        places.gradient(torch.ones(5, 3), torch.ones(7, 3))
    except (AttributeError, TypeError, RuntimeError):
        return False
    return True


class Places:
    """The positions of a weight's n survivors (out, in), in row-major order, and products with their values (n,)."""

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
        """The values (n,) of a tensor (out, in) at the survivors."""
        return full.reshape(-1).index_select(0, self.flat)

    def full(self, values: Tensor, pruned: float = 0.0) -> Tensor:
        """The tensor (out, in) with these values at the survivors and `pruned` elsewhere."""
        empty = torch.full((math.prod(self.shape),), pruned, dtype=values.dtype)
        return empty.scatter(0, self.flat, values).view(self.shape)

    def mask(self) -> Tensor:
        """The mask (out, in) of the survivors."""
        return self.full(torch.ones(self.count, dtype=torch.bool))

    def product(self, values: Tensor, x: Tensor) -> Tensor:
        """The weight times x (in, batch): (out, batch)."""
        return sparse_product(*self.rows, values, x)

    def transposed_product(self, values: Tensor, x: Tensor) -> Tensor:
        """The transposed weight times x (out, batch): (in, batch)."""
        return sparse_product(*self.columns, values.index_select(0, self.order), x)

    def gradient(self, grad_output: Tensor, x: Tensor) -> Tensor:
        """The gradient (n,) of the survivors from grad_output (out, batch) and x (in, batch)."""
        values = self._gradient.values().zero_()
        torch.sparse.sampled_addmm(self._gradient, grad_output, x.t(), out=self._gradient)  # does not copy the indices
        return values.clone()


def sparse_product(offsets: Tensor, columns: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """A sparse matrix (rows, inner) times x (inner, n): (rows, n). The matrix is in CSR format: row r has the `values`
    from offsets[r] to offsets[r + 1], in these `columns`; offsets (rows + 1,) and columns are int32. FBGEMM's sums of
    rows, made for embeddings, take less than half the time of MKL's sparse products."""
    embedding_bag: Any = torch._embedding_bag_forward_only  # no bookkeeping for gradients, even for a parameter
    return embedding_bag(x, columns, offsets, False, 0, False, values, True)[0]


def _offsets(numbers: Tensor, count: int) -> Tensor:
    """CSR offsets (count + 1,) of `count` rows, given the row numbers of all survivors."""
    return nn.functional.pad(torch.bincount(numbers, minlength=count).cumsum(0), (1, 0)).int()


class _Products(torch.autograd.Function):
    """Linear layers in sequence: x (batch, in) to (batch, out). Takes x, each layer's `Places` and whether ReLU follows
    it, and the values and the bias of each layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[tuple[Places, bool]], *parameters: Tensor | None) -> Tensor:
        out = x.t().contiguous()
        activations = [out]
        for (places, rectified), values, bias in zip(layers, parameters[::2], parameters[1::2], strict=True):
            assert values is not None
            out = places.product(values, out)
            if bias is not None:
                out.add_(bias.unsqueeze(1))
            if rectified:
                out.relu_()
            activations.append(out)
        ctx.layers = layers
        ctx.save_for_backward(*activations, *parameters[::2])
        # In the memory layout of dense products, which decides the order in which dropout draws.
        return out.t().clone(memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count, needs_grad, grads = len(ctx.layers), ctx.needs_input_grad, list[Tensor | None]()
        activations, values = ctx.saved_tensors[: count + 1], ctx.saved_tensors[count + 1 :]
        grad = grad.t().contiguous()
        for i, (places, rectified) in reversed([*enumerate(ctx.layers)]):
            if rectified:
                grad = torch.ops.aten.threshold_backward(grad, activations[i + 1], 0)
            grads += [grad.sum(1) if needs_grad[2 * i + 3] else None, places.gradient(grad, activations[i])]
            if i or needs_grad[0]:
                grad = places.transposed_product(values[i], grad)
        return (grad.t() if needs_grad[0] else None, None, *reversed(grads))


class SparseLinear(nn.Linear):
    """A Linear layer whose parameter is the survivors of its weight: `values` (n,), see `Places`."""

    places: Places
    values: nn.Parameter

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight (out, in), 0 where pruned, computed from `values`. RuntimeError in training, where changes to it
        would be lost."""
        if self.training:
            raise RuntimeError("a forward pass in training uses a Linear layer's weight, the first one did not: train "
                               "this model with --sparse off")  # fmt: skip
        return self.places.full(self.values)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return _apply(x, [self], [(self.places, False)])


class SparseSequence(nn.Sequential):
    """A Sequential that computes consecutive sparse layers, and ReLUs that follow them, as one autograd function, since
    autograd's work per layer takes as long as small products. Indexing still returns the single layers."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the modules in sequence."""
        module: Any
        layers: list[SparseLinear] = []
        specs: list[tuple[Places, bool]] = []
        for module in self._modules.values():
            kind = type(module)
            if kind is SparseLinear and not hooked(module):
                layers.append(module)
                specs.append((module.places, False))
            elif layers and kind is nn.ReLU and "forward" not in vars(module) and not hooked(module):
                specs[-1] = layers[-1].places, True
            else:
                if layers:
                    x, layers, specs = _apply(x, layers, specs), [], []
                x = module(x)
        return _apply(x, layers, specs) if layers else x


def _apply(x: Tensor, layers: Sequence[Any], specs: Sequence[tuple[Places, bool]]) -> Tensor:
    if not layers[0].training and not torch.is_grad_enabled() and hardware.uses_amx():
        # For the large batches of an evaluation, dense products with bfloat16 tiles are quicker at any sparsity.
        for layer, (places, rectified) in zip(layers, specs, strict=True):
            x = nn.functional.linear(x, places.full(layer.values), layer.bias)
            x = x.relu_() if rectified else x
        return x
    parameters = [parameter for layer in layers for parameter in (layer.values, layer.bias)]
    out = _Products.apply(x if x.ndim == 2 else x.reshape(-1, x.shape[-1]), specs, *parameters)
    return out if x.ndim == 2 else out.reshape(*x.shape[:-1], out.shape[-1])


def become_sparse(model: nn.Module, masks: Masks) -> dict[str, SparseLinear]:
    """Make the Linear layers of the weights in `masks` sparse, in place, and return them by their weights' names."""
    layers: dict[str, Any] = {name: model.get_submodule(name.rpartition(".")[0]) for name in masks}
    for name, layer in layers.items():
        layer.__class__, layer.places = SparseLinear, Places(masks[name])
        layer.values = nn.Parameter(layer.places.survivors(layer._parameters.pop("weight").detach()))
    for module in [*model.modules()]:
        has_sparse = any(type(child) is SparseLinear for child in module.children())
        if type(module) is nn.Sequential and has_sparse and "forward" not in vars(module):
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
