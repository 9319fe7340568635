"""What survivors start from in the next round. An arm names its function in STARTS."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lth.experiment.masks import Round
from lth.models.building import State
from lth.pruning import Masks


def original(last: Round, masks: Masks) -> State:
    """The initial weights, or those that --rewind says."""
    return last.store.weights(last.store.original)


def fresh(last: Round, masks: Masks) -> State:
    """New random weights."""
    return last.trainer.problem.fresh(last.seed("weights"))


def trained(last: Round, masks: Masks) -> State:
    """The weights at the end of the last round."""
    return last.final


def of_ticket(last: Round, masks: Masks) -> State:
    """What the run named by --ticket started this round from."""
    start_tickets = last.trainer.problem.start_tickets
    assert start_tickets is not None
    return start_tickets(last.run.seed, last.next)[1]


def sign(last: Round, masks: Masks) -> State:
    """Each prunable weight replaced by the standard deviation of its layer's original weights, with its own sign (Zhou
    et al. 2019, arXiv:1905.01067, Section 4)."""
    weights = original(last, masks)
    return weights | {name: _constants(weights[name], _signs(weights[name])) for name in masks}


def shuffled_signs(last: Round, masks: Masks) -> State:
    """The same with the signs of each layer's survivors in random order: as many of each as before."""
    weights, generator = original(last, masks), last.generator("shuffled_signs")
    start = dict(weights)
    for name, mask in masks.items():
        signs = _signs(weights[name])
        survivors = signs[mask]
        signs[mask] = survivors[torch.randperm(len(survivors), generator=generator)]
        start[name] = _constants(weights[name], signs)
    return start


def kaiming_signs(last: Round, masks: Masks) -> State:
    """Each prunable weight replaced by the standard deviation of Kaiming initial weights where as many are kept as the
    mask of its layer keeps, with the sign of the initial weight (Ramanujan et al. 2020, arXiv:1911.13299, Sections 3.3
    and 4.4: signed constants, scaled)."""
    weights = last.store.weights("initial")

    def constant(name: str) -> float:
        return math.sqrt(2 / max(int(masks[name].sum()) / len(masks[name]), 1))  # the kept inputs of a unit

    return weights | {name: _signs(weights[name]) * constant(name) for name in masks}


STARTS: dict[str, Callable[[Round, Masks], State]] = {
    "original": original,
    "fresh": fresh,
    "trained": trained,
    "of_ticket": of_ticket,
    "sign": sign,
    "shuffled_signs": shuffled_signs,
    "kaiming_signs": kaiming_signs,
}


def _signs(weight: Tensor) -> Tensor:
    return torch.where(weight < 0, -1.0, 1.0).to(weight.dtype)


def _constants(weight: Tensor, signs: Tensor) -> Tensor:
    return signs * weight.std(correction=0)
