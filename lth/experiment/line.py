"""The straight line between two networks, and the errors along it (Frankle et al. 2020, arXiv:1912.05671)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from lth import layers, rng
from lth.data.images import Feed
from lth.rng import derive_seed
from lth.training.models import State
from lth.training.network import Network

POINTS = 30  # on the line, its ends among them
STABLE = 2.0  # points of error that the barrier of a stable network stays below
STATISTICS = 10_000  # training images that running statistics are taken from anew


class Errors(NamedTuple):
    """Percent of the images that a network gets wrong."""

    train: float
    test: float


def between(one: State, other: State, share: float) -> State:
    """The weights and buffers at that share of the straight line from `one` to `other`; whole numbers are those of
    `one`."""
    return {
        name: torch.lerp(tensor, other[name], share) if tensor.is_floating_point() else tensor
        for name, tensor in one.items()
    }


def along(one: State, other: State, errors: Callable[[State], Errors]) -> Iterator[tuple[float, Errors]]:
    """The errors at POINTS points from `one` to `other`, evenly apart, with the share of the way."""
    for number in range(POINTS):
        share = number / (POINTS - 1)
        yield share, errors(between(one, other, share))


def measure(network: Network, feed: Feed, seed: int) -> Errors:
    """The errors of a network of one trial on its training images and the test images.

    The running statistics of batch and instance norm, and the vectors of spectral norm, are taken anew from training
    batches that `seed` decides: the mean of two networks' is not that of the network between them. It decides too what
    the model draws.
    """
    batches = feed.epoch([(seed, "statistics")], 0)[: math.ceil(STATISTICS / feed.batch_size)]
    with rng.seeded(derive_seed(seed, "line")):
        _renew_statistics(network, (feed.fetch(batch) for batch in batches))
        network.model.eval()
        return Errors(*(_error(network, chunks) for chunks in (feed.training(), feed.test())))


@torch.no_grad()
def _renew_statistics(network: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    modules = list(network.model.modules())
    norms = [m for m in modules if isinstance(m, _NormBase) and m.track_running_stats]
    hooks = [hook for m in modules for hook in m._forward_pre_hooks.values()]
    if not norms and not any(isinstance(each, (_SpectralNorm, SpectralNorm)) for each in [*modules, *hooks]):
        return
    network.model.train()
    for norm in norms:  # one that the model keeps in evaluation mode sees no batch, and keeps its statistics
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.zero_()
        norm.momentum = None  # a plain mean over the batches, the first of which leaves nothing of what was there
    layers.without_dropout(network.model)
    for number, (images, labels) in enumerate(batches, 1):
        for norm in norms:
            if isinstance(norm, _InstanceNorm):  # which takes no momentum for 0
                norm.momentum = 1 / number
        network.losses(images, labels)  # of the whole batch at once, as in training


def _error(network: Network, chunks: Iterable[tuple[Tensor, Tensor]]) -> float:
    wrong, seen = torch.zeros((), device=network.device), 0
    for images, labels in chunks:
        wrong += (network.logits(images, shared=True)[0].argmax(-1) != labels).sum()
        seen += len(labels)
    return 100 * wrong.item() / seen
