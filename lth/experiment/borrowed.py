"""Masks that a run takes from another one, round by round: from an arm of its trial, or from the run of --ticket.

All must come from one training of that run: where the last mask taken is no longer what it has, it was trained anew.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch

from lth import pruning
from lth.pruning import Masks
from lth.records import tickets
from lth.records.tables import Run
from lth.records.tickets import Ticket
from lth.rng import derive_seed
from lth.settings.arms import ARMS
from lth.settings.config import ConfigError
from lth.training.train import TrialError


def of_arm(run: Run, ticket: Ticket, identity: Callable[[Run], str]) -> Masks:
    """The masks of the round after `ticket` that the run's other arm has found, shuffled if the run's arm says so.
    TrialError if there are none, or if those of `ticket` are not the ones that the other arm has."""
    arm, number = ARMS[run.arm], ticket.round + 1
    other = run.of_arm(arm.mask_of)

    def found(number: int) -> Masks:
        masks = tickets.read_masks(other, number, identity(other))
        generator = torch.Generator().manual_seed(derive_seed(run.seed, "mask", number))
        return pruning.shuffled(masks, generator) if arm.shuffled else masks

    with suppress(FileNotFoundError, tickets.Damaged):  # the last one is not needed
        if ticket.round and _differ(found(ticket.round), ticket.masks):
            raise TrialError(
                f"{other.arm} has been trained anew: its mask of round {ticket.round} is not the one that was taken "
                "from it here; --overwrite trains both again"
            )
    try:
        return found(number)
    except FileNotFoundError:
        raise TrialError(f"round {number} has no ticket of {other.arm} to take its mask from") from None
    except tickets.Damaged as error:
        raise TrialError(f"{error}; --overwrite trains {other.arm} and {run.arm} again") from None


def of_ticket(ticket: Ticket, given: Callable[[int], Masks]) -> Masks:
    """The masks of the round after `ticket` of the run that --ticket names, where `given` has them by round. TrialError
    if one cannot be used, or those of `ticket` are not the ones that it has."""
    try:
        before, after = (given(number) for number in (ticket.round, ticket.round + 1))
    except ConfigError as error:
        raise TrialError(str(error)) from None
    if _differ(before, ticket.masks):
        raise TrialError(f"--ticket has changed: its masks are not those that round {ticket.round} here had")
    return after


def _differ(one: Masks, other: Masks) -> bool:
    return any(not torch.equal(one[name], mask) for name, mask in other.items())
