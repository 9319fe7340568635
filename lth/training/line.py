"""The straight line between two networks, and the errors along it (Frankle et al. 2020, arXiv:1912.05671)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lth import chance, layers
from lth.data.feed import Feed
from lth.settings.config import derive_seed
from lth.training.models import State
from lth.training.network import Network

POINTS = 30  # on the line, its ends among them
STABLE = 2.0  # points of error that the barrier of a stable network stays below
STATISTICS = 10_000  # training images that batch norm's statistics are taken from anew


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


def along(
    one: State, other: State, errors: Callable[[State], Errors], points: int = POINTS
) -> Iterator[tuple[float, Errors]]:
    """The errors at `points` points from `one` to `other`, evenly apart, with the share of the way."""
    for number in range(points):
        share = number / (points - 1)
        yield share, errors(between(one, other, share))


def measure(network: Network, feed: Feed, seed: int) -> Errors:
    """The errors of a network of one trial on its training images and the test images.

    The running statistics of batch norm are taken anew from training batches that `seed` decides: the mean of two
    networks' statistics is not that of the network between them. It decides too what the model draws.
    """
    batches = feed.epoch([(seed, "statistics")], 0)[: math.ceil(STATISTICS / feed.batch_size)]
    with chance.seeded(derive_seed(seed, "line")):
        _renew_statistics(network, (feed.fetch(batch) for batch in batches))
        network.model.eval()
        return Errors(*(_error(network, chunks) for chunks in (feed.training(), feed.test())))


@torch.no_grad()
def _renew_statistics(network: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    norms = [m for m in network.model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    network.model.train()
    for norm in norms:  # one that the model keeps in evaluation mode sees no batch, and keeps its statistics
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.zero_()
        norm.momentum = None  # a plain mean over the batches, the first of which leaves nothing of what was there
    layers.without_dropout(network.model)
    for images, labels in batches:
        network.losses(images, labels)  # of the whole batch at once, as in training


def _error(network: Network, chunks: Iterable[tuple[Tensor, Tensor]]) -> float:
    wrong, seen = torch.zeros((), device=network.device), 0
    for images, labels in chunks:
        wrong += (network.logits(images, shared=True)[0].argmax(-1) != labels).sum()
        seen += len(labels)
    return 100 * wrong.item() / seen
