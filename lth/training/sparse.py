"""Which Linear layers are trained sparsely (lth.training.sparse_linear): from where on it pays, and where it may be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lth import rng
from lth.models import building
from lth.models.prunable import has_gradient_hooks, is_plain_linear
from lth.pruning import Masks
from lth.settings.config import Config
from lth.training import kernels
from lth.training.sparse_linear import Places

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
    shares = BELOW_AMX if config.precision == "fast" and kernels.amx() else BELOW
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
    most = shares["more"]
    small, beside = next((int(size), share) for size, share in shares.items() if size != "more")
    large = {name for name, mask in plain.items() if mask.numel() > small and _share(mask) <= most}
    few = {name for name, mask in plain.items() if large and mask.numel() <= small and _share(mask) <= beside}
    sparse = [name for name, mask in plain.items() if name in large | few and mask.any()]
    used = _used_elsewhere(model, sparse, example) if sparse else set()
    return [name for name in sparse if name not in used]


def _share(mask: Tensor) -> float:
    return int(mask.sum()) / mask.numel()


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
            copy = building.copy_of(model)
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
    """Whether this PyTorch has quick sparse products, with the results of dense ones. It has on x86 processors."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return False  # what stands in for FBGEMM's products there is slow
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(5, 7, generator=generator), torch.randn(7, 3, generator=generator)
    mask = weight > 0
    places, exact, wide = Places(mask), (weight * mask).double(), x.double()  # float32 may compute in bfloat16
    try:
        values = places.survivors(weight)
        pairs = [
            (places.product(values, x), exact @ wide),
            (places.transposed_product(values, x[:5]), exact.t() @ wide[:5]),
            (places.gradient(x[:5], x), (wide[:5] @ wide.t())[mask]),
        ]
        return all(torch.allclose(found.double(), expected, atol=1e-5) for found, expected in pairs)
    except (AttributeError, TypeError, RuntimeError, NotImplementedError):
        return False
