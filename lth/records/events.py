"""What an experiment reports while it runs; the terminal and TensorBoard show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lth.records.tables import Run
from lth.training.train import Evaluation


@dataclass(frozen=True)
class Evaluated:
    """An evaluation within a round of `steps` iterations, `epoch` of them per epoch."""

    run: Run
    round: int
    evaluation: Evaluation
    steps: int
    epoch: int


@dataclass(frozen=True)
class Moved:
    """The iteration, of `steps`, that a round is at: sent when its training begins, then now and then. `again` names a
    further training of the same ticket."""

    run: Run
    round: int
    iteration: int
    steps: int
    again: str = ""


@dataclass(frozen=True)
class RoundDone:
    """A finished round: its line of rounds.csv, its seconds (0 if shared), layers left without weights, and how many
    survivors were drawn from weights with equal scores."""

    run: Run
    row: dict[str, Any]
    seconds: float
    empty: tuple[str, ...]
    at_random: int = 0


@dataclass(frozen=True)
class Note:
    """A sentence for the user; `failed` says that a trial ended by it. A `warning` is shown with --quiet too."""

    text: str
    failed: bool = False
    warning: bool = False


@dataclass(frozen=True)
class Connected:
    """The error barriers, in points, between two trainings of a round's ticket (--connectivity), and on the test images
    between the ends of the round before and of this one; None for round 0."""

    run: Run
    round: int
    train: float
    test: float
    stable: bool
    from_last: float | None = None


def as_dict(event: Event) -> dict[str, Any] | None:
    """An evaluation or a finished round as a plain dict, for callbacks: its `event` ("evaluation" or "round"), the run
    it belongs to, and its numbers; None for other events."""
    if not isinstance(event, (Evaluated, RoundDone)):
        return None
    whose = {name: getattr(event.run, name) for name in ("arch_type", "dataset", "settings", "arm", "seed")}
    if isinstance(event, Evaluated):
        return {"event": "evaluation", **whose, "round": event.round, **vars(event.evaluation)}
    return {"event": "round", **whose, **event.row, "seconds": event.seconds}


Callback = Callable[[dict[str, Any]], object]  # gets what `as_dict` gives
Event = Evaluated | Moved | RoundDone | Connected | Note
