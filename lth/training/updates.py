"""Masks that change during a training: dynamic sparse training (set, rigl) and gradual magnitude pruning (gmp).

An update happens between two steps. Weights that it removes are 0 from then on; weights that it adds start at 0, with
moments of 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lth import pruning
from lth.pruning import Masks, Quota, Weights
from lth.training.network import Network
from lth.training.optimizers import Optimizer

# How many weights groups of layers keep in total: a pair per group, for the beginning and the end of the updates.
Goals = Sequence[tuple[Quota, Quota]]


@dataclass(frozen=True)
class Updates:
    """When and how the masks of a round change: at each multiple of `every` between `start` and `end`, both exclusive,
    before the step. `kind` is set, rigl or gmp; `fraction` is the initial share of survivors that is replaced."""

    kind: str
    every: int
    start: int
    end: int
    fraction: float

    def due(self, iteration: int) -> bool:
        """Whether the masks change at an iteration."""
        return self.start < iteration < self.end and iteration % self.every == 0

    @property
    def last(self) -> int:
        """The iteration of the last update; there is no update if it is not after `start`."""
        return (self.end - 1) // self.every * self.every

    def annealed(self, iteration: int) -> float:
        """The share of survivors replaced at an iteration: half a cosine, 0 at `end` (Evci et al. 2020, Section 3)."""
        return self.fraction / 2 * (1 + math.cos(math.pi * iteration / self.end))

    def progress(self, iteration: int) -> float:
        """The share of the updates done once the masks have changed at an iteration: 1 after the last one."""
        return (iteration - self.start) / (self.last - self.start)


def update(
    updates: Updates,
    iteration: int,
    network: Network,
    optimizer: Optimizer,
    gradients: Weights,
    goals: Sequence[Goals],
    seeds: Sequence[int],
) -> list[Masks]:
    """Change the masks of all trials of a dense network, and return them. Each trial draws from its own seed only.

    `gradients` has the gradients of all trained tensors (for rigl), `goals` the goals of each trial (for gmp).
    """
    new_masks = []
    for trial, seed in enumerate(seeds):
        masks, generator = network.masks_of(trial), torch.Generator().manual_seed(seed)
        sizes = {name: network.part(network.tensors[name], trial).cpu().abs() for name in masks}
        if updates.kind == "gmp":
            quotas = cubic(goals[trial], updates.progress(iteration))
            new_masks.append(pruning.keep_highest(sizes, masks, quotas, generator))
            continue
        growth = pruning.random_scores(masks, generator) if updates.kind == "set" else {}
        if updates.kind == "rigl":
            dense = {name: gradients.get(name, torch.zeros_like(network.tensors[name])) for name in masks}
            growth = {name: network.part(gradient, trial).cpu().abs() for name, gradient in dense.items()}
        new_masks.append(replaced(masks, sizes, growth, updates.annealed(iteration), generator))
    before = [mask.clone() for mask in network.masks]
    network.change_masks(new_masks)
    optimizer.masks_changed(before)
    return new_masks


def replaced(masks: Masks, sizes: Weights, growth: Weights, fraction: float, generator: torch.Generator) -> Masks:
    """The masks after a fraction of the survivors of each layer, the smallest, is replaced by as many weights with the
    highest `growth`. A weight that was just removed may be chosen again, and then keeps its value.

    With random growth this is SET (Mocanu et al. 2018, arXiv:1707.04780, Algorithm 1); the paper updates after every
    epoch, removes a constant 0.3 of the positive and of the negative weights, and draws the values of new ones. With
    the size of gradients it is RigL (Evci et al. 2020, arXiv:1911.11134, Algorithm 1); the paper starts with 0.3,
    updates every 100 steps for three quarters of the training, and an update takes the place of a step.
    """
    counts = pruning.survivors(masks)
    removed = {name: int(fraction * count) for name, count in counts.items()}
    fewer = [Quota([name], count - removed[name]) for name, count in counts.items()]
    kept = pruning.keep_highest(sizes, masks, fewer, generator)
    added = [Quota([name], count) for name, count in removed.items()]
    grown = pruning.keep_highest(growth, {name: ~mask for name, mask in kept.items()}, added, generator)
    return {name: mask | grown[name] for name, mask in kept.items()}


def cubic(goals: Goals, progress: float) -> list[Quota]:
    """How many weights remain after an update: the schedule of Zhu & Gupta 2017 (arXiv:1710.01878, Equation 1), who
    update every 100 to 1000 steps and compare weights within layers."""
    left = (1 - progress) ** 3
    return [Quota(end.layers, end.keep + round((begin.keep - end.keep) * left)) for begin, end in goals]
