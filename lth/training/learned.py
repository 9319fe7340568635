"""Networks that are found and not trained: their weights stay, and a score of each decides whether it is kept.

A step changes the scores, straight through the mask: where a mask is not differentiable, its gradient is taken for that
of what it is made of. Biases and the parameters of normalisation stay as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth.models.building import State
from lth.pruning import Masks
from lth.training.network import Network, copies


@dataclass(frozen=True)
class Learned:
    """How masks follow from scores (T, n) of T trials: the highest `ranked` are kept, and in training weights are
    multiplied by `factors` of the scores and of how many are kept; scores start around `centre` of the density. Where
    training samples, the scores are ranked with logistic noise added, which stays as it was drawn: one sample
    of exactly as many weights, since a score with logistic noise is above 0 with the probability sigmoid(score)."""

    ranked: Callable[[Tensor], Tensor]
    factors: Callable[[Tensor, int], Tensor]
    centre: Callable[[float], float] = lambda density: 0.0
    samples: bool = False


def highest(ranked: Tensor, kept: int) -> Tensor:
    """1 for exactly the `kept` highest values of each row of (T, n), else 0."""
    ranked = ranked.detach()
    if ranked.device.type == "cpu":  # five times as quick as topk
        least = np.partition(ranked.numpy(), -kept)[:, -kept, None]
        found = ranked >= torch.from_numpy(least)
        if int(found.sum()) == kept * len(ranked):  # no ties
            return found.to(ranked.dtype)
    return torch.zeros_like(ranked).scatter_(1, ranked.topk(kept, sorted=False).indices, 1)


def straight_through(mask: Tensor, source: Tensor) -> Tensor:
    """`mask`, with the gradient of `source`."""
    return mask + (source - source.detach())


def edge_popup(scores: Tensor, kept: int) -> Tensor:
    """The weights of the largest |score| (Ramanujan et al. 2020, arXiv:1911.13299, Section 3)."""
    return straight_through(highest(scores.abs(), kept), scores.abs())


def supermask(scores: Tensor, kept: int) -> Tensor:
    """Each weight with the probability sigmoid(score) (Zhou et al. 2019, arXiv:1905.01067, Section 5). The scores are
    shifted first, in place, by a Newton step towards `kept` expected weights."""
    with torch.no_grad():
        chance = scores.sigmoid()
        slope = (chance * (1 - chance)).sum(1, keepdim=True).clamp_min(1)  # so that all may be certain
        scores -= (chance.sum(1, keepdim=True) - kept) / slope
    chance = scores.sigmoid()
    return straight_through((torch.rand_like(chance) < chance).to(chance.dtype), chance)


LEARNED = {
    "edge_popup": Learned(torch.abs, edge_popup),
    "supermask": Learned(lambda scores: scores, supermask, lambda density: math.log(density / (1 - density)), True),
}


def first_scores(how: Learned, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Scores (n,), Kaiming-uniform around their centre as in PyTorch's layers, and their noise, 0 but for samples, with
    which they keep `mask`; drawn from `seed`."""
    generator, kept, flat = torch.Generator().manual_seed(seed), int(mask.sum()), mask.flatten()
    drawn = (2 * torch.rand(mask.numel(), generator=generator) - 1) / math.sqrt(mask[0].numel())
    noise = torch.rand(mask.numel(), generator=generator).logit(1e-7) if how.samples else torch.zeros_like(drawn)
    high = highest(how.ranked(drawn + noise)[None], kept)[0].bool()
    placed = [
        torch.empty_like(drawn).masked_scatter_(flat, x[high]).masked_scatter_(~flat, x[~high]) for x in (drawn, noise)
    ]
    return placed[0] + how.centre(kept / mask.numel()), placed[1]


class LearnedMasks(Network):
    """T trials of `model` with fixed weights `states`, whose masks are learned as `how` says and begin as `masks`,
    which have equal counts in all trials and decide how many weights each layer keeps: those that keep all or none are
    not learned. The scores are drawn from a seed per trial."""

    def __init__(
        self,
        model: nn.Module,
        states: Sequence[State],
        masks: Sequence[Masks],
        device: torch.device,
        *options: Any,
        how: Learned,
        seeds: Sequence[int],
        **more: Any,
    ) -> None:
        kept = {name: int(mask.sum()) for name, mask in masks[0].items()}
        self.kept = {name: count for name, count in kept.items() if 0 < count < masks[0][name].numel()}
        whole = [{name: torch.ones_like(m) if name in self.kept else m for name, m in each.items()} for each in masks]
        super().__init__(model, states, whole, device, *options, **more)
        self.how, self.first, self.changing, self.learning = how, masks, True, list(self.kept)
        self.fixed = {name: self.tensors.pop(name).detach() for name in self.learning}
        self.scores, self.noise = dict[str, Tensor](), dict[str, Tensor]()
        for name in self.learning:
            drawn = [first_scores(how, each[name], seed) for each, seed in zip(masks, seeds, strict=True)]
            scores, noise = (self._together(parts).to(device) for parts in zip(*drawn, strict=True))
            self.scores[name], self.noise[name] = scores.requires_grad_(True), noise
        self.leaves = [*self.scores.values()]

    def alone(self) -> Callable[[Tensor], Tensor]:
        """See Network; the other tensors are the model's own."""
        return self._bind(self.weights())

    def stacked(self) -> State:
        """See Network."""
        return self.tensors | self.weights()

    def weights(self) -> State:
        """The weights that a pass multiplies by: in evaluation, the weights with the highest scores."""
        found = {}
        for name, fixed in self.fixed.items():
            scores, noise = (each[name].view(self.trials, -1) for each in (self.scores, self.noise))
            training = self.model.training
            factors = self.how.factors(scores, self.kept[name]) if training else self._highest(name, scores, noise)
            found[name] = fixed * factors.view(fixed.shape)
        return found

    def _highest(self, name: str, scores: Tensor, noise: Tensor) -> Tensor:
        return highest(self.how.ranked(scores + noise), self.kept[name])

    @torch.no_grad()
    def masks_of(self, trial: int) -> Masks:
        """The masks of one trial in evaluation."""
        found = dict(self.first[trial])
        for name in self.learning:
            scores, noise = (self.part(each[name], trial)[None] for each in (self.scores, self.noise))
            found[name] = self._highest(name, scores, noise).view(found[name].shape).bool().cpu()
        return found

    def state(self, trial: int) -> State:
        """See Network: with weights that are 0 where they are not kept."""
        masks, fixed = self.masks_of(trial), {name: self.part(tensor, trial) for name, tensor in self.fixed.items()}
        return super().state(trial) | {name: tensor * masks[name] for name, tensor in copies(fixed).items()}

    def inner(self, trial: int) -> State:
        """See Network: the scores."""
        return copies({f"score/{name}": self.part(scores, trial) for name, scores in self.scores.items()})

    def restore_inner(self, parts: Sequence[State]) -> None:
        """See Network."""
        for name, scores in self.scores.items():
            self.restore(scores, [part[f"score/{name}"] for part in parts])
