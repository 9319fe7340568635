"""Which Linear layers are trained sparsely (lth.training.sparse_linear): from where on it pays, and where it may be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn

from lth import chance
from lth.data.feed import Feed
from lth.layers import has_gradient_hooks, is_plain_linear
from lth.pruning import Masks
from lth.settings.config import Config
from lth.training import kernels, models
from lth.training.sparse_linear import Places, SparseLinear, become_sparse

# A layer is trained sparsely where at most this share of its weights survives. Measured by benchmarks/sparsity.py
# --layers (AMD EPYC without AMX, one thread, PyTorch 2.15, --precision fast): time of a layer's forward, backward and
# Adam with sparse products, of that with dense ones.
#
#   survivors           33%   26%   21%   17%  13.5%  8.6%  5.5%  3.6%    1%
#   784-300, batch 8   1.08  0.88  0.78  0.75   0.69  0.52  0.43  0.38
#   784-300, batch 60  1.11  0.90  0.77  0.64   0.57  0.43  0.34  0.28  0.21
#   300-100, batch 60  0.88  0.74  0.72  0.62   0.58  0.55  0.50  0.47  0.40
#   100-10, batch 60   0.84  0.84  0.76  0.81   0.77  0.81  0.80  0.78  0.78
#   784-300, batch 256 1.23  0.96        0.77               0.32
#   784-300, 1000            1.36        0.92               0.41
#   1024-1024, 60            0.78        0.53               0.19
#   1024-4096, 60            0.79        0.56               0.19
BELOW = ((256, 0.27), (math.inf, 0.17))  # for batches up to so many examples
# A layer of so few weights gains only beside a sparse larger one, since autograd then treats both as one: a step of
# fc1, all others at 21% (at 6.9%), took 0.67 (0.60) of the dense one's time with its last layer, 1000 weights, dense at
# 48% (28%), and 0.55 (0.46) with that sparse too; 1.1 with that one sparse alone.
SMALL, BESIDE = 4096, 0.6
AMX_FACTOR = 0.5  # of the share, where `fast` means bfloat16 tiles, about twice as quick. An estimate, not measured.
# With how many examples a model is tried. In a batch of two, batch norm divides differences that may be as small as
# rounding by themselves: of 8 layers each with batch norm, the logits of most draws differ without being others.
EXAMPLES = (2, 64)
CPU = torch.device("cpu")
DRAWS = 3  # random states in which a model that draws is tried
SAME = 0.01  # the most by which values differ that are about the same
UNAVAILABLE = "this PyTorch has no quick sparse products: sparse rounds take as long as dense ones"


def limits(config: Config) -> dict[str, float]:
    """The shares of survivors up to which products are sparse with these settings on a CPU, for layers of up to so many
    weights (beside larger ones that are sparse) and for larger ones, as {"4096": 0.6, "more": 0.27}. Empty: none is.

    A function of the settings and of the kind of processor, so that the same command gives the same bits. --precision
    bf16 asks for bfloat16, which these products do not have, and stacked trials have a mask each: they train densely.
    """
    if config.sparse == "off" or config.precision == "bf16" or (config.stack or 1) > 1 or not available():
        return {}
    share = next(share for most, share in BELOW if config.batch_size <= most)
    factor = AMX_FACTOR if config.precision == "fast" and kernels.amx() else 1.0
    return {str(SMALL): BESIDE * factor, "more": share * factor}


def choose(model: nn.Module, masks: Sequence[Masks], shares: Mapping[str, float], feed: Feed) -> list[str]:
    """The names of the weights of `model` that are to be trained sparsely with the masks of these trials, on `feed`, by
    the rule that `limits` gives.

    They belong to plain Linear layers that are sparse enough and whose weight the model uses in no other way: a trial
    of a copy of it shows that. None on a GPU, and none in a stack of trials.
    """
    if not shares or len(masks) > 1 or feed.device.type != "cpu" or not available():
        return []
    plain = {name: masks[0][name] for name in _plain_linear(model) if name in masks[0]}
    most = shares["more"]
    small, beside = next((int(size), share) for size, share in shares.items() if size != "more")
    large = {name for name, mask in plain.items() if mask.numel() > small and _share(mask) <= most}
    few = {name for name, mask in plain.items() if large and mask.numel() <= small and _share(mask) <= beside}
    sparse = {name: mask for name, mask in plain.items() if name in large | few and mask.any()}
    unfit = _unfit(model, sparse, feed) if sparse else set()
    return [name for name in sparse if name not in unfit]


def _share(mask: Tensor) -> float:
    return int(mask.sum()) / mask.numel()


def _plain_linear(model: nn.Module) -> list[str]:
    """The names of the weights of PyTorch's own Linear layers: float32, learning, no other layer's too, and
    without hooks on their gradients, which the survivors alone would not have."""
    times = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return [
        f"{path}.weight".lstrip(".")
        for path, layer in model.named_modules()
        if is_plain_linear(layer) and layer._parameters.get("weight") is not None
        if layer.weight.requires_grad and layer.weight.dtype == torch.float32 and times[id(layer.weight)] == 1
        if not any(map(has_gradient_hooks, layer.parameters(recurse=False)))
    ]


def _unfit(model: nn.Module, masks: Masks, feed: Feed) -> set[str]:
    """Which of the weights the model reads by itself, as for a penalty or a norm; all where it computes something else
    with sparse layers, or not at all."""
    for count in EXAMPLES:
        try:
            return _read(model, masks, partial(feed.example, count))
        except AssertionError:
            continue
        except Exception:  # whatever a model's own code raises
            break
    return set(masks)


def _read(model: nn.Module, masks: Masks, example: Callable[[], Tensor]) -> set[str]:
    """Which of the weights the model reads by itself. AssertionError where it computes something else with sparse
    layers."""
    dense, sparse = models.copy_of(model), models.copy_of(model)
    with chance.seeded(0), torch.no_grad():
        for name, mask in masks.items():
            dense.get_parameter(name).mul_(mask)
        layers = become_sparse(sparse, masks)
        _compare(dense, sparse, example)
        if _fill(dense, sparse, layers):
            _compare(dense, sparse, example)
    return {name for name, layer in layers.items() if layer.was_read}


def _compare(dense: nn.Module, sparse: nn.Module, example: Callable[[], Tensor]) -> None:
    """AssertionError unless both compute the same, in both modes and whatever they draw."""
    for training in (True, False):
        for seed in range(DRAWS):
            chance.seed(seed)
            before = chance.state(CPU)
            expected = dense.train(training)(example())
            after = chance.state(CPU)
            chance.seed(seed)
            found = sparse.train(training)(example())
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, equal_nan=True)
            if all(torch.equal(before[name], after[name]) for name in before):
                break  # it draws nothing


def _fill(dense: nn.Module, sparse: nn.Module, layers: Mapping[str, SparseLinear]) -> bool:
    """Give the parameters of both that are about the same everywhere other values, the same in both: a layer or a scale
    that starts at 0 hides what comes before it. Whether there are any."""
    random, filled = torch.Generator().manual_seed(0), False
    for name, parameter in dense.named_parameters():
        layer = layers.get(name)
        kept = parameter if layer is None else layer.places.survivors(parameter)
        if not parameter.is_floating_point() or not kept.numel() or kept.max() - kept.min() > SAME:
            continue
        noise = torch.rand(kept.shape, generator=random).sub_(0.5).to(kept.dtype)
        size = math.sqrt(parameter.numel() / len(parameter)) if parameter.ndim > 1 else 1.0
        kept = kept + noise / size
        if layer is None:
            parameter.copy_(kept)
            sparse.get_parameter(name).copy_(kept)
        else:
            parameter.copy_(layer.places.full(kept))
            layer.values.copy_(kept)
        filled = True
    return filled


@cache
def available() -> bool:
    """Whether this PyTorch has quick sparse products, with the results of dense ones. It has on x86 processors."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return False  # what stands in for FBGEMM's products there is slow
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(5, 7, generator=generator), torch.randn(7, 3, generator=generator)
    mask = weight > 0
    places = Places(mask)
    try:
        values = places.survivors(weight)
        right = [
            torch.allclose(places.product(values, x), (weight * mask) @ x, atol=1e-5),
            torch.allclose(places.transposed_product(values, x[:5]), (weight * mask).t() @ x[:5], atol=1e-5),
            torch.allclose(places.gradient(x[:5], x), (x[:5] @ x.t())[mask], atol=1e-5),
        ]
    except (AttributeError, TypeError, RuntimeError, NotImplementedError):
        return False
    return all(right)
