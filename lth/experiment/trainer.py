"""Tickets trained on one device: which go together, their data, plan and network, their checkpoints; and the events
that are reported meanwhile, which the terminal, TensorBoard and callbacks show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from lth import pruning
from lth.data.images import Feed
from lth.pruning import Masks, Quota
from lth.records import identity, tables
from lth.records.files import Damaged, RecordError
from lth.records.store import ENDS, Store, Ticket
from lth.records.tables import Run
from lth.rng import derive_seed
from lth.settings import checks
from lth.settings.arms import ARMS, Arm
from lth.settings.config import Config, same_command
from lth.training import hardware, sparse
from lth.training.learned import LEARNED, LearnedMasks
from lth.training.network import Network
from lth.training.problem import Problem, stack_size
from lth.training.schedule import Plan, make_plan
from lth.training.train import Evaluation, Trained, Training, TrialError
from lth.training.updates import Goals


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
class Connected:
    """The error barriers, in points, between two trainings of a round's ticket (--connectivity), and on the test images
    between the ends of the round before and of this one; None for round 0."""

    run: Run
    round: int
    train: float
    test: float
    stable: bool
    from_last: float | None = None


@dataclass(frozen=True)
class Note:
    """A sentence for the user; `failed` says that a trial ended by it. A `warning` is shown with --quiet too."""

    text: str
    failed: bool = False
    warning: bool = False


Event = Evaluated | Moved | RoundDone | Connected | Note
Callback = Callable[[dict[str, Any]], object]  # gets what `as_dict` gives


def as_dict(event: Event) -> dict[str, Any] | None:
    """An evaluation or a finished round as a plain dict, for callbacks: its `event` ("evaluation" or "round"), the run
    it belongs to, and its numbers; None for other events."""
    if not isinstance(event, (Evaluated, RoundDone)):
        return None
    whose = {name: getattr(event.run, name) for name in ("arch_type", "dataset", "settings", "arm", "seed")}
    if isinstance(event, Evaluated):
        return {"event": "evaluation", **whose, "round": event.round, **vars(event.evaluation)}
    return {"event": "round", **whose, **event.row, "seconds": event.seconds}


def one_per_trial(runs: Sequence[Run]) -> list[Run]:
    """The first of the runs of each trial."""
    return list({run.seed: run for run in reversed(runs)}.values())[::-1]


class Trainer:
    """Trains tickets of runs with one set of settings on one device.

    tell: gets an Event now and then. stop: is asked whether to stop. failed: the runs that have ended early, each with
    the reason.
    """

    def __init__(
        self,
        config: Config,
        problem: Problem,
        device: torch.device,
        tell: Callable[[Event], None],
        stop: Callable[[], bool],
    ) -> None:
        self.config, self.problem, self.device, self.tell, self.stop = config, problem, device, tell, stop
        self.failed: dict[Run, str] = {}
        self._feeds: dict[tuple[int, ...], Feed] = {}

    def ticket(self, run: Run, number: int, again: str = "") -> Ticket:
        """What round `number` starts from; the dense network that is trained `again`, the point that tickets are
        rewound to."""
        with self.alone(run):
            store = self.store(run)
            ticket = store.ticket(number)
            return replace(ticket, start=store.weights(store.original)) if again and not number else ticket

    def train(self, stack: Sequence[Run], started: Sequence[Ticket], again: str = "") -> list[Trained]:
        """Train the tickets of a stack of runs together, from their checkpoints where there are any; only the first of
        them if the memory is too small for all.

        `again` names a further training of the same tickets, with checkpoints of its own: `first` has the round's order
        of the data, any other name another order.
        """
        try:
            return self._train(stack, started, again)
        except torch.OutOfMemoryError:  # of a single run it is a TrialError
            self.stack_size = len(stack) // 2
        exhausted = f"the memory of {self.device} is too small for {len(stack)} stacked trials"
        self.tell(Note(f"{exhausted}: training at most {self.stack_size} together"))
        return self.train(stack[: self.stack_size], started[: self.stack_size], again)

    def _train(self, stack: Sequence[Run], started: Sequence[Ticket], again: str) -> list[Trained]:
        number, name = started[0].round, again or "checkpoint"
        plan = self.plan(stack[0], number, again)
        saved = [each for run in stack if (each := self.store(run).checkpoint(number, name)) is not None]
        if saved and saved[0].complete(plan.steps):
            return saved  # stopped between the round's end and its line in the journal
        feed = self.feed(stack)
        order = ["order", number] if again in ("", ENDS[0]) else ["order", number, again]

        def report(trial: int, evaluation: Evaluation) -> None:
            if not again:
                self.tell(Evaluated(stack[trial], number, evaluation, plan.steps, feed.epoch_steps))

        def moved(iteration: int) -> None:
            for run in stack:
                self.tell(Moved(run, number, iteration, plan.steps, again))

        def checkpoint(states: list[Trained]) -> None:
            for run, state in zip(stack, states, strict=True):
                if state.failure is None:
                    self.store(run).write_checkpoint(number, state, name)

        exhausted = f"the memory of {self.device} is exhausted at batch size {self.config.batch_size}"
        short = "" if len(stack) > 1 else f"{exhausted}: lower --batch_size"
        with blame_model(f"{stack[0].arch_type} failed in round {number}", short):
            network, arm, goals = self._network(stack, started, plan, feed), ARMS[stack[0].arm], list[Goals]()
            if plan.updates:
                quotas = ([self.quotas(arm, each.masks, rounds) for rounds in (0, number)] for each in started)
                goals = [list(zip(*ends, strict=True)) for ends in quotas]
            training = Training(
                network,
                self.problem.optimizer(network),
                feed,
                plan,
                [[run.seed, *order] for run in stack],
                derive_seed(stack[0].seed, "dropout", number),
                saved,
                goals,
            )
            return training.run(report, checkpoint, self.config.checkpoint_every, self.stop, moved)

    def _network(self, stack: Sequence[Run], started: Sequence[Ticket], plan: Plan, feed: Feed) -> Network:
        """The network of the tickets of a stack of runs."""
        model, masks = self.problem.make(), [ticket.masks for ticket in started]
        states, options = [ticket.start for ticket in started], (self.device, self.problem.criterion, self.bf16)
        more: dict[str, Any] = {"channels_last": len(stack) == 1 and self.channels_last(feed)}
        if plan.learn:
            seeds = [derive_seed(run.seed, "learn", started[0].round) for run in stack]
            return LearnedMasks(model, states, masks, *options, how=LEARNED[plan.learn], seeds=seeds, **more)
        limits: Mapping[str, float] = {}
        if not (self.problem.whole or plan.updates):  # which look at all weights
            # The limits that the run began with, since others give other numbers.
            limits = tables.config_of(stack[0]).get("sparse_up_to", sparse.limits(self.config))
        more |= {"sparse": sparse.choose(model, masks, limits, feed.example()), "changing": plan.updates is not None}
        return Network(model, states, masks, *options, **more)

    def quotas(self, arm: Arm, masks: Masks, rounds: int) -> list[Quota]:
        """How many of the survivors of `masks` which layers keep together after so many rounds of that arm."""
        config = self.config
        percents = pruning.percents(self.problem.make(), config.rates(), config.prune_embeddings)
        scope = config.random_rates if arm.compared == "layer" else config.prune_scope
        quotas = pruning.quotas(masks, percents, scope, rounds)
        if arm.compared == "all":
            return pruning.together(quotas, percents)
        return pruning.erdos_renyi(masks, pruning.together(quotas, percents)) if scope == "erk" else quotas

    def stackable(self, waiting: Sequence[Run], number: int, again: str = "") -> list[Run]:
        """Those of the waiting runs that can be trained as one with the first of them: with one plan, and from
        checkpoints of one iteration."""
        alike: dict[tuple[object, ...], list[Run]] = {}
        for run in waiting:
            saved = self.store(run).checkpoint(number, again or "checkpoint")
            done = (saved.iteration, len(saved.evals)) if saved else None
            alike.setdefault((self.plan(run, number, again), done), []).append(run)
        return next(iter(alike.values()))[: self.stack_size] if alike else []

    @cached_property
    def stack_size(self) -> int:
        """How many runs train as one network."""
        return stack_size(self.config, self.problem, self.device)

    @property
    def bf16(self) -> bool:
        """Whether products are computed in bfloat16."""
        return self.config.precision == "bf16"

    def channels_last(self, feed: Feed) -> bool:
        """Whether a network of one trial is to lie in memory with the channels last."""
        return hardware.channels_last(self.problem.make, feed.example(), self.bf16)

    def feed(self, runs: Sequence[Run]) -> Feed:
        """The data of these runs' trials on the device."""
        seeds = tuple(run.seed for run in runs)
        if seeds not in self._feeds:
            self._feeds.clear()  # so that the images lie on the device once
            sizes = self.config.valid_size, self.config.batch_size
            self._feeds[seeds] = self.problem.images.feed(seeds, *sizes, self.device, self.config.augment)
        return self._feeds[seeds]

    def plan(self, run: Run, number: int, again: str = "") -> Plan:
        """How long round `number` is, and its learning rates: of the dense network that is trained `again`, from the
        point of --rewind on."""
        schedule, of_round = ("rewound", 1) if again and not number else (ARMS[run.arm].schedule, number)
        feed = next(iter(self._feeds.values()), None) or self.feed([run])  # epochs are as long in all trials
        update = ARMS[run.arm].update if number else ""
        plan = make_plan(self.config, feed.epoch_steps, schedule, of_round, update)
        return replace(plan, learn=ARMS[run.arm].learn if number else "")

    def store(self, run: Run) -> Store:
        """What the run keeps under saves/."""
        whose = {"whose": self.problem.whose} if self.problem.whose else {}
        label = identity.label({**self.config.deciding(), **whose}, run, self.problem.fingerprint)
        original = "rewind" if self.config.rewind.amount else "initial"
        return Store(run, label, original, "drawn" if self.config.draw_at else "dense")

    @contextmanager
    def alone(self, run: Run) -> Iterator[None]:
        """Within it, a TrialError ends this run and no other. A file that is gone or damaged, which was sound when the
        run was picked up, ends the whole command."""
        try:
            yield
        except TrialError as error:
            self.failed[run] = str(error)
            self.tell(Note(f"{run}: {error}", failed=True))
        except (FileNotFoundError, Damaged) as error:
            again = same_command(self.config.overwrite)
            raise RecordError(f"{error}: {again} continues from the last good round") from None


@contextmanager
def blame_model(failed: str, exhausted: str, all_of_it: bool = False) -> Iterator[None]:
    """Within it, errors of the model's own code become a TrialError: `failed`, as `fc1 failed in round 3`, and the
    error itself. Memory that runs out becomes one that says `exhausted`, where that is given. Errors of files pass, as
    do those that this library raises itself, unless the model is to blame for `all_of_it`."""
    try:
        yield
    except torch.OutOfMemoryError:
        if not exhausted:
            raise
        raise TrialError(exhausted) from None
    except (KeyboardInterrupt, OSError, RecordError, TrialError):
        raise
    except BaseException as error:
        if checks.ours(error) and not all_of_it:
            raise
        raise TrialError(f"{failed} with {checks.said(error)}") from error
