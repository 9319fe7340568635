"""Masks that are learned for fixed weights: each weight has a score, which decides whether the weight is kept.

A step changes the scores by straight-through gradients: the gradient of the mask, which is not differentiable, is used
as the gradient of the scores. Biases and normalisation parameters are fixed too.
"""

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
    """How masks follow from scores (T, n) of T trials: the highest values of ranked(scores) are kept. In training,
    weights are multiplied by factors(scores, number of weights kept). Scores start around centre(density). If
    `samples`, logistic noise, drawn once, is added to the scores before they are ranked. That draws a sample with
    exactly this many weights, since a score plus logistic noise is above 0 with the probability sigmoid(score)."""

    ranked: Callable[[Tensor], Tensor]
    factors: Callable[[Tensor, int], Tensor]
    centre: Callable[[float], float] = lambda density: 0.0
    samples: bool = False


def highest(values: Tensor, k: int) -> Tensor:
    """1 for exactly the `k` highest values of each row of (T, n), else 0."""
    values = values.detach()
    if values.device.type == "cpu":  # five times as quick as topk
        threshold = np.partition(values.numpy(), -k)[:, -k, None]
        mask = values >= torch.from_numpy(threshold)
        if int(mask.sum()) == k * len(values):  # no ties
            return mask.to(values.dtype)
    return torch.zeros_like(values).scatter_(1, values.topk(k, sorted=False).indices, 1)


def straight_through(mask: Tensor, source: Tensor) -> Tensor:
    """`mask`, with the gradient of `source`."""
    return mask + (source - source.detach())


def edge_popup(scores: Tensor, k: int) -> Tensor:
    """Keep the `k` weights with the largest |score| (Ramanujan et al. 2020, arXiv:1911.13299, Section 3)."""
    return straight_through(highest(scores.abs(), k), scores.abs())


def supermask(scores: Tensor, k: int) -> Tensor:
    """Keep each weight with the probability sigmoid(score) (Zhou et al. 2019, arXiv:1905.01067, Section 5). The scores
    are shifted first, in place, by a Newton step towards an expected number of `k` weights."""
    with torch.no_grad():
        chance = scores.sigmoid()
        slope = (chance * (1 - chance)).sum(1, keepdim=True).clamp_min(1)  # not 0 where all are certain
        scores -= (chance.sum(1, keepdim=True) - k) / slope
    chance = scores.sigmoid()
    return straight_through((torch.rand_like(chance) < chance).to(chance.dtype), chance)


LEARNED = {
    "edge_popup": Learned(torch.abs, edge_popup),
    "supermask": Learned(lambda scores: scores, supermask, lambda density: math.log(density / (1 - density)), True),
}


def first_scores(how: Learned, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Scores (n,) and their noise (0 unless `how` samples), drawn from `seed` and arranged so that they keep `mask`.
    The scores are Kaiming-uniform around their centre, as in PyTorch's layers."""
    generator, count, flat = torch.Generator().manual_seed(seed), int(mask.sum()), mask.flatten()
    drawn = (2 * torch.rand(mask.numel(), generator=generator) - 1) / math.sqrt(mask[0].numel())
    noise = torch.rand(mask.numel(), generator=generator).logit(1e-7) if how.samples else torch.zeros_like(drawn)
    high = highest(how.ranked(drawn + noise)[None], count)[0].bool()
    scores, noise = (
        torch.empty_like(drawn).masked_scatter_(flat, x[high]).masked_scatter_(~flat, x[~high]) for x in (drawn, noise)
    )
    return scores + how.centre(count / mask.numel()), noise


class LearnedMasks(Network):
    """T trials of `model` with fixed weights `states`, whose masks start as `masks` and are learned as `how` says. Each
    layer keeps as many weights as in `masks`, equally many in all trials; masks that keep all or none are not learned.
    The scores of each trial are drawn from its seed."""

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
        counts = {name: int(mask.sum()) for name, mask in masks[0].items()}
        self.counts = {name: count for name, count in counts.items() if 0 < count < masks[0][name].numel()}
        fixed = [{name: torch.ones_like(m) if name in self.counts else m for name, m in each.items()} for each in masks]
        super().__init__(model, states, fixed, device, *options, **more)
        self.how, self.initial_masks, self.changing, self.learning = how, masks, True, list(self.counts)
        self.fixed = {name: self.tensors.pop(name).detach() for name in self.learning}
        self.scores, self.noise = dict[str, Tensor](), dict[str, Tensor]()
        for name in self.learning:
            drawn = [first_scores(how, each[name], seed) for each, seed in zip(masks, seeds, strict=True)]
            scores, noise = (self._stack(parts).to(device) for parts in zip(*drawn, strict=True))
            self.scores[name], self.noise[name] = scores.requires_grad_(True), noise
        self.leaves = [*self.scores.values()]

    def single_model(self) -> Callable[[Tensor], Tensor]:
        """See Network; tensors without learned masks are the model's own."""
        return self._bind(self.weights())

    def stacked_tensors(self) -> State:
        """See Network."""
        return self.tensors | self.weights()

    def weights(self) -> State:
        """The masked weights of the forward pass; in evaluation, those with the highest scores are kept."""
        weights = {}
        for name, fixed in self.fixed.items():
            scores, noise = (each[name].view(self.trials, -1) for each in (self.scores, self.noise))
            training = self.model.training
            factors = self.how.factors(scores, self.counts[name]) if training else self._highest(name, scores, noise)
            weights[name] = fixed * factors.view(fixed.shape)
        return weights

    def _highest(self, name: str, scores: Tensor, noise: Tensor) -> Tensor:
        return highest(self.how.ranked(scores + noise), self.counts[name])

    @torch.no_grad()
    def masks_of(self, trial: int) -> Masks:
        """The masks of one trial in evaluation."""
        masks = dict(self.initial_masks[trial])
        for name in self.learning:
            scores, noise = (self.part(each[name], trial)[None] for each in (self.scores, self.noise))
            masks[name] = self._highest(name, scores, noise).view(masks[name].shape).bool().cpu()
        return masks

    def state(self, trial: int) -> State:
        """See Network; pruned weights are 0."""
        masks, fixed = self.masks_of(trial), {name: self.part(tensor, trial) for name, tensor in self.fixed.items()}
        return super().state(trial) | {name: tensor * masks[name] for name, tensor in copies(fixed).items()}

    def mask_state(self, trial: int) -> State:
        """See Network: the scores."""
        return copies({f"score/{name}": self.part(scores, trial) for name, scores in self.scores.items()})

    def restore_mask_state(self, states: Sequence[State]) -> None:
        """See Network."""
        for name, scores in self.scores.items():
            self.restore(scores, [state[f"score/{name}"] for state in states])
