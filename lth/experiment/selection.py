"""Which weights an arm keeps when it prunes: how many of which layers, by which scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lth import pruning, rng
from lth.pruning import Masks, Quota, Weights
from lth.settings.arms import Arm
from lth.settings.config import Config
from lth.training.models import State, load_state
from lth.training.problem import Problem
from lth.training.scores import SCORES, Batches, scored


@dataclass(frozen=True)
class Candidates:
    """What is pruned: the survivors `masks` of a network with `weights`, as far as so many `rounds` prune. What scores
    may look at beside: the initial weights, training batches (on the device to work on), random numbers."""

    masks: Masks
    weights: State
    rounds: int
    initial: State
    batches: Callable[[], Batches]
    generator: torch.Generator


def select(arm: Arm, config: Config, problem: Problem, candidates: Candidates) -> Masks:
    """The candidates that survive the pruning of an arm that finds its own masks."""
    score = _scorer(arm, config, problem, candidates)
    quotas = _quotas(arm, config, problem, candidates)
    return pruning.keep_highest_in_steps(score, candidates.masks, quotas, arm.steps)


def _quotas(arm: Arm, config: Config, problem: Problem, candidates: Candidates) -> list[Quota]:
    percents = pruning.percents(problem.make(), config.rates(), config.prune_embeddings)
    scope = "layer" if arm.compared == "layer" else config.prune_scope
    quotas = pruning.quotas(candidates.masks, percents, scope, candidates.rounds)
    if arm.compared == "all":
        return pruning.together(quotas, percents)
    if arm.compared == "layer" and config.random_rates == "erk":
        return pruning.erdos_renyi(candidates.masks, pruning.together(quotas, percents))
    return quotas


def _scorer(arm: Arm, config: Config, problem: Problem, candidates: Candidates) -> Callable[[Masks], Weights]:
    """The scores of weights, given which of them are still there."""
    if arm.scores == "random":
        return lambda masks: pruning.random_scores(masks, candidates.generator)
    if arm.scores not in SCORES:
        method = config.prune_method if arm.scores == "criterion" else arm.scores
        initial = candidates.initial
        return lambda masks: pruning.score(method, {name: initial[name] for name in masks}, candidates.weights)
    batches = candidates.batches()
    model = load_state(problem.make(), candidates.weights).to(batches[0][0].device)
    weights = dict(model.named_parameters())

    def score(masks: Masks) -> dict[str, Tensor]:
        with torch.no_grad():
            for name, mask in masks.items():
                weights[name].mul_(mask.to(weights[name].device))
        with rng.seeded(candidates.generator.initial_seed()):  # for models that draw random numbers
            return scored(arm.scores, model, masks, batches, problem.criterion)

    return score
