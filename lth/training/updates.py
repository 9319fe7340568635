"""Masks that change during a training: dynamic sparse training, and gradual pruning. An arm names its function here.

An update comes between two steps. What it removes is 0 from then on; what it adds starts at 0 with moments of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    exclusive, that is a multiple of `every`. `kind` is a name in UPDATES, `fraction` that of the first survivors that
    is replaced."""

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


@dataclass(frozen=True)
class Moment:
    """One trial at an update, on the CPU: its masks, its weights and, for rigl, the gradients of all that learn.
    `fraction` and `progress` are those of `Updates`, `goals` those of gmp."""

    masks: Masks
    weights: Weights
    gradients: Weights
    fraction: float
    progress: float
    goals: Goals
    generator: torch.Generator


def at_random(moment: Moment) -> Masks:
    """The smallest survivors of each layer replaced by as many weights at random: SET (Mocanu et al. 2018,
    arXiv:1707.04780, Algorithm 1), which there happens after every epoch with a constant fraction of 0.3, removes that
    of the positive and of the negative weights, and draws the values of new weights."""
    return _replaced(moment, pruning.random_scores(moment.masks, moment.generator))


def by_gradient(moment: Moment) -> Masks:
    """The smallest survivors of each layer replaced by the weights with the largest gradients: RigL (Evci et al. 2020,
    arXiv:1911.11134, Algorithm 1), with the fraction 0.3, every 100 steps, for three quarters of the training; there
    an update takes the place of a step."""
    found = {name: moment.gradients.get(name, torch.zeros(mask.shape)) for name, mask in moment.masks.items()}
    return _replaced(moment, {name: gradient.abs() for name, gradient in found.items()})


def gradually(moment: Moment) -> Masks:
    """The smallest survivors removed, so that as many as wanted remain in the end: the cubic schedule of Zhu & Gupta
    2017 (arXiv:1710.01878, Equation 1), who have an update every 100 to 1000 steps and compare within layers."""
    left = (1 - moment.progress) ** 3
    quotas = [Quota(end.layers, end.keep + round((begin.keep - end.keep) * left)) for begin, end in moment.goals]
    return pruning.keep_highest(_sizes(moment), moment.masks, quotas, moment.generator)


UPDATES: dict[str, Callable[[Moment], Masks]] = {"set": at_random, "rigl": by_gradient, "gmp": gradually}
BY_GRADIENT = ("rigl",)


def _replaced(moment: Moment, growth: Weights) -> Masks:
    """As many survivors in each layer as before. What was just removed may come back, and is then as it was."""
    counts = pruning.survivors(moment.masks)
    removed = {name: int(moment.fraction * count) for name, count in counts.items()}
    fewer = [Quota([name], count - removed[name]) for name, count in counts.items()]
    kept = pruning.keep_highest(_sizes(moment), moment.masks, fewer, moment.generator)
    added = [Quota([name], count) for name, count in removed.items()]
    grown = pruning.keep_highest(growth, {name: ~mask for name, mask in kept.items()}, added, moment.generator)
    return {name: mask | grown[name] for name, mask in kept.items()}


def _sizes(moment: Moment) -> Weights:
    return {name: moment.weights[name].abs() for name in moment.masks}


def update(
    updates: Updates,
    iteration: int,
    network: Network,
    optimizer: Optimizer,
    gradients: Mapping[str, torch.Tensor],
    goals: Sequence[Goals],
    seeds: Sequence[int],
) -> None:
    """Change the masks of all trials of a network, each by draws of its own seed, which leave all other draws alone."""
    found = []
    for trial, seed in enumerate(seeds):
        masks, generator = network.masks_of(trial), torch.Generator().manual_seed(seed)
        weights, theirs = (
            {name: network.part(tensors[name], trial).cpu() for name in masks if name in tensors}
            for tensors in (network.tensors, gradients)
        )
        when = updates.annealed(iteration), updates.progress(iteration)
        moment = Moment(masks, weights, theirs, *when, goals[trial] if goals else (), generator)
        found.append(UPDATES[updates.kind](moment))
    before = [mask.clone() for mask in network.masks]
    network.change_masks(found)
    optimizer.masks_changed(before)
