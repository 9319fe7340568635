"""The next round's ticket: which weights survive, and what they start from. An arm names one function in MASKS and one
in STARTS.

Masks that are taken from another run must all come from the same training of it. If that run's mask of the previous
round is no longer the one that was taken, it has been trained again.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lth import prune, pruning, rng
from lth.experiment.scores import SCORES, scored
from lth.experiment.trainer import Note, Trainer, blame_model
from lth.models.building import State, load_state
from lth.pruning import Masks, Weights
from lth.records.files import Damaged
from lth.records.store import Store, Ticket
from lth.records.tables import Run
from lth.rng import derive_seed
from lth.settings.arms import ARMS, Arm
from lth.settings.config import ConfigError
from lth.training.train import TrialError


@dataclass(frozen=True)
class Round:
    """A finished round of a run, from which the next ticket is made: its training started from `ticket` and ended with
    the weights `final`; pruning looks at the weights `drawn`, those at --draw_at."""

    trainer: Trainer
    run: Run
    ticket: Ticket
    final: State
    drawn: State

    @property
    def arm(self) -> Arm:
        return ARMS[self.run.arm]

    @property
    def store(self) -> Store:
        return self.trainer.store(self.run)

    @property
    def next(self) -> int:
        return self.ticket.round + 1

    def seed(self, purpose: str) -> int:
        """The seed of random draws for the next ticket."""
        return derive_seed(self.run.seed, purpose, self.next)

    def generator(self, purpose: str) -> torch.Generator:
        """A generator with that seed."""
        return torch.Generator().manual_seed(self.seed(purpose))

    def original(self) -> State:
        """The initial weights, or with --rewind those at that point."""
        return self.store.weights(self.store.original)

    def start_ticket(self, number: int) -> tuple[Masks, State]:
        """The masks and weights of the run named by --ticket for round `number` here. TrialError if they cannot be
        used."""
        assert self.trainer.problem.start_tickets is not None
        try:
            return self.trainer.problem.start_tickets(self.run.seed, number)
        except ConfigError as error:
            raise TrialError(str(error)) from None


class Pruned(NamedTuple):
    """The masks of the next round. at_random: how many survivors were drawn from weights with equal scores."""

    masks: Masks
    at_random: int = 0


def iterative(last: Round) -> Pruned:
    """Prune the survivors with the lowest scores at the end of the round, or as the user's rule does."""
    if last.trainer.problem.rule is not None:
        return _by_rule(last, last.trainer.problem.rule)
    # Arms that draw fresh weights in every round have initial weights per round.
    initial = last.ticket.start if last.arm.start == "fresh" else last.store.weights("initial")
    return _keep_highest(last, last.ticket.masks, last.drawn, initial)


def one_shot(last: Round, name: str) -> Pruned:
    """Prune the dense network in one step to the size that iterative pruning has reached by then. `name`: the weights
    in the store that are scored."""
    store = last.store
    return _keep_highest(last, store.ticket(0).masks, store.weights(name), store.weights("initial"), last.next)


def masks_of_arm(last: Round) -> Pruned:
    """The masks of another arm of the trial for the same round, shuffled if the arm is `shuffled`. TrialError if there
    are none, or if the other arm's masks of the previous round are not the ones that were taken then."""
    arm, number, other = last.arm, last.ticket.round, last.run.of_arm(last.arm.mask_of)

    def masks_of(number: int) -> Masks:
        masks = last.trainer.store(other).masks(number)
        generator = torch.Generator().manual_seed(derive_seed(last.run.seed, "mask", number))
        return pruning.shuffled(masks, generator) if arm.shuffled else masks

    with suppress(FileNotFoundError, Damaged):  # the previous round's masks are not needed
        if number and _differ(masks_of(number), last.ticket.masks):
            raise TrialError(
                f"{other.arm} has been trained again: its mask of round {number} is not the one that was taken from it "
                "here; --overwrite trains both again"
            )
    try:
        return Pruned(masks_of(last.next))
    except FileNotFoundError:
        raise TrialError(f"round {last.next} has no ticket of {other.arm} to take its mask from") from None
    except Damaged as error:
        raise TrialError(f"{error}; --overwrite trains {other.arm} and {last.run.arm} again") from None


def masks_of_ticket(last: Round) -> Pruned:
    """The masks of the run named by --ticket for the same round. TrialError if they cannot be used, or if its masks of
    the previous round are not the ones that were taken then."""
    before, after = (last.start_ticket(number)[0] for number in (last.ticket.round, last.next))
    if _differ(before, last.ticket.masks):
        raise TrialError(f"--ticket has changed: its masks differ from those of round {last.ticket.round} here")
    return Pruned(after)


def sign(last: Round, masks: Masks, shuffled: bool = False) -> State:
    """Each prunable weight replaced by the standard deviation of its layer's original weights, with the weight's sign
    (Zhou et al. 2019, arXiv:1905.01067, Section 4). If `shuffled`, the signs of each layer's survivors are shuffled."""
    weights, generator = last.original(), last.generator("shuffled_signs")
    start = dict(weights)
    for name, mask in masks.items():
        signs = _signs(weights[name])
        if shuffled:
            survivors = signs[mask]
            signs[mask] = survivors[torch.randperm(len(survivors), generator=generator)]
        start[name] = signs * weights[name].std(correction=0)
    return start


def kaiming_signs(last: Round, masks: Masks) -> State:
    """Each prunable weight replaced by the standard deviation of Kaiming initialisation for the inputs that its layer's
    mask keeps, with the sign of the initial weight (Ramanujan et al. 2020, arXiv:1911.13299, Sections 3.3 and 4.4:
    signed constants, scaled)."""
    weights = last.store.weights("initial")

    def constant(name: str) -> float:
        inputs = int(masks[name].sum()) / len(masks[name])  # kept per unit, on average
        return math.sqrt(2 / max(inputs, 1))

    return weights | {name: _signs(weights[name]) * constant(name) for name in masks}


MASKS: dict[str, Callable[[Round], Pruned]] = {
    "iterative": iterative,
    "one_shot": lambda last: one_shot(last, last.store.drawn),
    "before_training": lambda last: one_shot(last, last.store.original),
    "unpruned": lambda last: Pruned(last.store.ticket(0).masks),  # for arms that prune during training
    "of_arm": masks_of_arm,
    "of_ticket": masks_of_ticket,
}
STARTS: dict[str, Callable[[Round, Masks], State]] = {
    "original": lambda last, masks: last.original(),
    "fresh": lambda last, masks: last.trainer.problem.fresh(last.seed("weights")),
    "trained": lambda last, masks: last.final,
    "of_ticket": lambda last, masks: last.start_ticket(last.next)[1],
    "sign": sign,
    "shuffled_signs": partial(sign, shuffled=True),
    "kaiming_signs": kaiming_signs,
}


def _signs(weight: Tensor) -> Tensor:
    return torch.where(weight < 0, -1.0, 1.0).to(weight.dtype)


def _differ(first: Masks, second: Masks) -> bool:
    return any(not torch.equal(first[name], mask) for name, mask in second.items())


def _by_rule(last: Round, rule: prune.Rule) -> Pruned:
    model = last.trainer.problem.make()
    masks = prune.apply_rule(rule, model, last.drawn, last.ticket.masks, last.seed("rule"))
    if pruning.survivors(masks) == pruning.survivors(last.ticket.masks):
        hint = "it must prune the network that it is given, in which weights with masks of torch.nn.utils.prune are "
        hint += "called weight_orig; fetch_layers names them"
        last.trainer.tell(Note(f"{last.run}: prune_rule pruned nothing before round {last.next} ({hint})"))
    return Pruned(masks)


def _keep_highest(last: Round, masks: Masks, weights: State, initial: State, rounds: int = 1) -> Pruned:
    """Keep the survivors of `masks` with the highest scores, as many as `rounds` rounds of pruning leave. Ties are
    broken at random."""
    quotas, score = last.trainer.quotas(last.arm, masks, rounds), _score_function(last, weights, initial)
    return Pruned(*pruning.keep_highest_in_steps(score, masks, quotas, last.arm.steps, last.generator("ties")))


def _score_function(last: Round, weights: State, initial: State) -> Callable[[Masks], Weights]:
    """The arm's scores of the weights, as a function of the current masks."""
    arm, generator = last.arm, last.generator("mask")
    if arm.scores in SCORES:
        return _sensitivity(last, weights)
    if arm.scores == "random":
        return lambda masks: pruning.random_scores(masks, generator)
    method = last.trainer.config.prune_method if arm.scores == "criterion" else arm.scores
    return lambda masks: pruning.score(method, {name: initial[name] for name in masks}, weights)


def _sensitivity(last: Round, weights: State) -> Callable[[Masks], Weights]:
    """The scores of an arm that prunes before training (lth.experiment.scores)."""
    trainer, config, method = last.trainer, last.trainer.config, last.arm.scores
    failed = f"{last.run.arch_type} failed in the scores of {method} before round {last.next}"
    exhausted = f"is exhausted by the scores of {method} at batch size {config.batch_size}: lower --batch_size"
    blame = partial(blame_model, failed, f"the memory of {trainer.device} {exhausted}", own_errors=True)
    with blame():
        feed = trainer.feed([last.run])
        order = feed.epoch([(last.run.seed, "scores")], 0)  # equal in all rounds and arms
        batches = [feed.fetch(batch) for batch in order[: config.score_batches]]
        model = load_state(trainer.problem.make(), weights).to(trainer.device)
        parameters = dict(model.named_parameters())

    def score(masks: Masks) -> Weights:
        with blame(), rng.seeded(last.seed("mask")):  # a model may draw random numbers
            with torch.no_grad():
                for name, mask in masks.items():
                    parameters[name].mul_(mask.to(trainer.device))
            return scored(method, model, masks, batches, trainer.problem.criterion)

    return score
