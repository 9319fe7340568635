"""Masks that change during a training: dynamic sparse training (set, rigl) and gradual magnitude pruning (gmp).

An update comes between two steps. What it removes is 0 from then on; what it adds starts at 0 with moments of 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lth import pruning
from lth.pruning import Masks, Quota, Weights
from lth.training.network import Network
from lth.training.optimizers import Optimizer

Goals = Sequence[tuple[Quota, Quota]]  # how many weights some layers keep together, at the beginning and in the end


@dataclass(frozen=True)
class Updates:
    """When the masks of a round change: before the step that follows each iteration between `start` and `end`, both
    exclusive, that is a multiple of `every`. `kind` is set, rigl or gmp, `fraction` that of the first survivors that is
    replaced."""

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
        """The iteration of the last update; one that is not after `start` says that there is none."""
        return (self.end - 1) // self.every * self.every

    def annealed(self, iteration: int) -> float:
        """The share of the survivors that is replaced, which falls to 0 at `end` as half a cosine (Evci et al. 2020,
        Section 3)."""
        return self.fraction / 2 * (1 + math.cos(math.pi * iteration / self.end))

    def progress(self, iteration: int) -> float:
        """The part of the updates that is done with that of an iteration: 1 with the last one."""
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
    """Change the masks of all trials of a dense network, each by draws of its own seed, which leave all other draws
    alone, and return them.

    `gradients` belong to all that learn, for rigl; `goals` to each trial, for gmp.
    """
    found = []
    for trial, seed in enumerate(seeds):
        masks, generator = network.masks_of(trial), torch.Generator().manual_seed(seed)
        sizes = {name: network.part(network.tensors[name], trial).cpu().abs() for name in masks}
        if updates.kind == "gmp":
            quotas = cubic(goals[trial], updates.progress(iteration))
            found.append(pruning.keep_highest(sizes, masks, quotas, generator))
            continue
        growth = pruning.random_scores(masks, generator) if updates.kind == "set" else {}
        if updates.kind == "rigl":
            learning = {name: gradients.get(name, torch.zeros_like(network.tensors[name])) for name in masks}
            growth = {name: network.part(gradient, trial).cpu().abs() for name, gradient in learning.items()}
        found.append(replaced(masks, sizes, growth, updates.annealed(iteration), generator))
    before = [mask.clone() for mask in network.masks]
    network.change_masks(found)
    optimizer.masks_changed(before)
    return found


def replaced(masks: Masks, sizes: Weights, growth: Weights, fraction: float, generator: torch.Generator) -> Masks:
    """That fraction of the survivors of each layer, the smallest, replaced by as many weights of the highest `growth`.
    What was just removed may come back, and is then as it was.

    At random it is SET (Mocanu et al. 2018, arXiv:1707.04780, Algorithm 1), which there happens after every epoch with
    a constant fraction of 0.3, removes that of the positive and of the negative weights, and draws the values of new
    weights. By the size of gradients it is RigL (Evci et al. 2020, arXiv:1911.11134, Algorithm 1), with the fraction
    0.3, every 100 steps, for three quarters of the training; there an update takes the place of a step.
    """
    counts = pruning.survivors(masks)
    removed = {name: int(fraction * count) for name, count in counts.items()}
    fewer = [Quota([name], count - removed[name]) for name, count in counts.items()]
    kept = pruning.keep_highest(sizes, masks, fewer, generator)
    added = [Quota([name], count) for name, count in removed.items()]
    grown = pruning.keep_highest(growth, {name: ~mask for name, mask in kept.items()}, added, generator)
    return {name: mask | grown[name] for name, mask in kept.items()}


def cubic(goals: Goals, progress: float) -> list[Quota]:
    """How many weights remain at an update, so that as many as wanted do in the end: the schedule of Zhu & Gupta 2017
    (arXiv:1710.01878, Equation 1), who have an update every 100 to 1000 steps and compare within layers."""
    left = (1 - progress) ** 3
    return [Quota(end.layers, end.keep + round((begin.keep - end.keep) * left)) for begin, end in goals]
