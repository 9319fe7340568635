"""Trains tickets on one device: which of them as one stacked network, with which data, schedule and checkpoints. Also
the events that it reports, which the terminal, TensorBoard and callbacks show."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
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
from lth.training.train import ChooseSparse, Evaluation, Trained, Training, TrialError
from lth.training.updates import Goals


@dataclass(frozen=True)
class Evaluated:
    """An evaluation in a round of `steps` iterations, with `epoch_steps` per epoch."""

    run: Run
    round: int
    evaluation: Evaluation
    steps: int
    epoch_steps: int


@dataclass(frozen=True)
class Stepped:
    """The current iteration of a round, of `steps`: sent when its training begins, then now and then. `repeat` names a
    repeated training of the same ticket."""

    run: Run
    round: int
    iteration: int
    steps: int
    repeat: str = ""


@dataclass(frozen=True)
class RoundDone:
    """A finished round: its row of rounds.csv, its seconds (0 if another arm trained it), the layers that have no
    weights left, and how many survivors were drawn from weights with equal scores."""

    run: Run
    row: dict[str, Any]
    seconds: float
    empty: tuple[str, ...]
    at_random: int = 0


@dataclass(frozen=True)
class BarriersMeasured:
    """The error barriers, in points, between two trainings of a round's ticket (--connectivity), on training and test
    images. from_last: the barrier, on test images, between the ends of the previous round and this one; None in round
    0."""

    run: Run
    round: int
    train: float
    test: float
    stable: bool
    from_last: float | None = None


@dataclass(frozen=True)
class Note:
    """A sentence for the user. `failed`: the run that ended early, if the sentence says why. `warning`: show it with
    --quiet, too."""

    text: str
    failed: Run | None = None
    warning: bool = False


Event = Evaluated | Stepped | RoundDone | BarriersMeasured | Note
Callback = Callable[[dict[str, Any]], object]  # gets the dicts of `as_dict`


def as_dict(event: Event) -> dict[str, Any] | None:
    """An evaluation or a finished round as a plain dict, for callbacks: its `event` ("evaluation" or "round"), its run
    and its numbers. None for other events."""
    if isinstance(event, Evaluated):
        return {"event": "evaluation", **event.run.columns, "round": event.round, **vars(event.evaluation)}
    if isinstance(event, RoundDone):
        return {"event": "round", **event.run.columns, **event.row, "seconds": event.seconds}
    return None


def one_per_trial(runs: Sequence[Run]) -> list[Run]:
    """The first run of each trial."""
    first: dict[int, Run] = {}
    for run in runs:
        first.setdefault(run.seed, run)
    return list(first.values())


class Trainer:
    """Trains the tickets of runs with the same settings on one device.

    tell: called with each Event. stop: returns whether to stop. failed: the runs that have ended early, with the
    reason.
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

    def ticket(self, run: Run, number: int, repeat: str = "") -> Ticket:
        """The ticket that round `number` starts from. A repeated dense round starts from the weights that tickets are
        reset to."""
        with self.contain_errors(run):
            store = self.store(run)
            ticket = store.ticket(number)
            return replace(ticket, start=store.weights(store.original)) if repeat and not number else ticket

    def train(self, stack: Sequence[Run], tickets: Sequence[Ticket], repeat: str = "") -> list[Trained]:
        """Train the tickets of a stack of runs as one network, from their checkpoints if there are any; only the first
        of them if memory is too small for all.

        `repeat` names a repeated training of the same tickets, which has its own checkpoints: `first` has the round's
        order of the data, any other name another order.
        """
        try:
            return self._train(stack, tickets, repeat)
        except torch.OutOfMemoryError:  # for a single run it is a TrialError
            self.stack_size = len(stack) // 2
        exhausted = f"the memory of {self.device} is too small for {len(stack)} stacked trials"
        self.tell(Note(f"{exhausted}: training at most {self.stack_size} together"))
        return self.train(stack[: self.stack_size], tickets[: self.stack_size], repeat)

    def _train(self, stack: Sequence[Run], tickets: Sequence[Ticket], repeat: str) -> list[Trained]:
        number, name = tickets[0].round, repeat or "checkpoint"
        plan = self.plan(stack[0], number, repeat)
        checkpoints = [self.store(run).checkpoint(number, name) for run in stack]
        saved = [trained for trained in checkpoints if trained is not None]
        if saved and saved[0].complete(plan.steps):
            return saved  # stopped between the round's end and its line in the journal
        feed = self.feed(stack)
        order = ["order", number] if repeat in ("", ENDS[0]) else ["order", number, repeat]

        def report(trial: int, evaluation: Evaluation) -> None:
            if not repeat:
                self.tell(Evaluated(stack[trial], number, evaluation, plan.steps, feed.epoch_steps))

        def stepped(iteration: int) -> None:
            for run in stack:
                self.tell(Stepped(run, number, iteration, plan.steps, repeat))

        def checkpoint(states: list[Trained]) -> None:
            for run, state in zip(stack, states, strict=True):
                if state.failure is None:
                    self.store(run).write_checkpoint(number, state, name)

        exhausted = f"the memory of {self.device} is exhausted at batch size {self.config.batch_size}"
        exhausted = "" if len(stack) > 1 else f"{exhausted}: lower --batch_size"
        with blame_model(f"{stack[0].arch_type} failed in round {number}", exhausted):
            choose_sparse = self._sparse_chooser(stack[0], feed)
            network, goals = self._network(stack, tickets, plan, feed, choose_sparse), list[Goals]()
            if plan.updates:
                arm = ARMS[stack[0].arm]
                quotas = ([self.quotas(arm, ticket.masks, rounds) for rounds in (0, number)] for ticket in tickets)
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
                choose_sparse,
            )
            return training.run(report, checkpoint, self.config.checkpoint_every, self.stop, stepped)

    def _sparse_chooser(self, run: Run, feed: Feed) -> ChooseSparse:
        """A function that names the weights to train with sparse products, given the masks of each trial."""
        limits: Mapping[str, float] = {}
        if not self.problem.whole:  # which needs all weights
            # The limits that the run began with, since others give other numbers.
            limits = tables.read_config(run).get("sparse_up_to", sparse.limits(self.config))
        return partial(sparse.choose, self.problem.make(), shares=limits, example=feed.example())

    def _network(
        self, stack: Sequence[Run], tickets: Sequence[Ticket], plan: Plan, feed: Feed, choose_sparse: ChooseSparse
    ) -> Network:
        """The network that trains the tickets of a stack of runs."""
        model, masks = self.problem.make(), [ticket.masks for ticket in tickets]
        arguments = model, [ticket.start for ticket in tickets], masks, self.device, self.problem.criterion, self.bf16
        channels_last = len(stack) == 1 and self.channels_last(feed)
        if plan.learn:
            seeds = [derive_seed(run.seed, "learn", tickets[0].round) for run in stack]
            return LearnedMasks(*arguments, how=LEARNED[plan.learn], seeds=seeds, channels_last=channels_last)
        changing = plan.updates is not None
        return Network(*arguments, sparse=choose_sparse(masks), changing=changing, channels_last=channels_last)

    def quotas(self, arm: Arm, masks: Masks, rounds: int) -> list[Quota]:
        """The number of survivors of `masks` that each group of layers keeps after that many rounds of the arm."""
        config = self.config
        percents = pruning.percents(self.problem.make(), config.rates(), config.prune_embeddings)
        scope = config.random_rates if arm.compared == "layer" else config.prune_scope
        quotas = pruning.quotas(masks, percents, scope, rounds)
        if arm.compared == "all":
            return pruning.merge_quotas(quotas, percents)
        return pruning.erdos_renyi(masks, pruning.merge_quotas(quotas, percents)) if scope == "erk" else quotas

    def stackable(self, runs: Sequence[Run], number: int, repeat: str = "") -> list[Run]:
        """The runs that can be trained as one network with the first of them: those with the same plan whose
        checkpoints are at the same iteration."""
        groups: dict[tuple[object, ...], list[Run]] = {}
        for run in runs:
            saved = self.store(run).checkpoint(number, repeat or "checkpoint")
            done = (saved.iteration, len(saved.evals)) if saved else None
            groups.setdefault((self.plan(run, number, repeat), done), []).append(run)
        return next(iter(groups.values()))[: self.stack_size] if groups else []

    @cached_property
    def stack_size(self) -> int:
        """The number of runs that are trained as one network."""
        return stack_size(self.config, self.problem, self.device)

    @property
    def bf16(self) -> bool:
        """Whether products are computed in bfloat16."""
        return self.config.precision == "bf16"

    def channels_last(self, feed: Feed) -> bool:
        """Whether a network of one trial uses the channels-last memory format."""
        return hardware.channels_last(self.problem.make, feed.example(), self.bf16)

    def feed(self, runs: Sequence[Run]) -> Feed:
        """The data of these runs' trials on the device."""
        seeds = tuple(run.seed for run in runs)
        if seeds not in self._feeds:
            self._feeds.clear()  # so that the device has the images only once
            sizes = self.config.valid_size, self.config.batch_size
            self._feeds[seeds] = self.problem.images.feed(seeds, *sizes, self.device, self.config.augment)
        return self._feeds[seeds]

    def plan(self, run: Run, number: int, repeat: str = "") -> Plan:
        """The length and the learning rates of round `number`. A repeated dense round begins at the point of --rewind,
        as later rounds do."""
        schedule, round = ("rewound", 1) if repeat and not number else (ARMS[run.arm].schedule, number)
        feed = next(iter(self._feeds.values()), None) or self.feed([run])  # epochs have the same length in all trials
        update = ARMS[run.arm].update if number else ""
        plan = make_plan(self.config, feed.epoch_steps, schedule, round, update)
        return replace(plan, learn=ARMS[run.arm].learn if number else "")

    def store(self, run: Run) -> Store:
        """The run's files under saves/."""
        settings = self.config.deciding()
        if self.problem.initial_fingerprint:
            settings["whose"] = self.problem.initial_fingerprint
        experiment_id = identity.experiment_id(settings, run, self.problem.fingerprint)
        original = "rewind" if self.config.rewind.amount else "initial"
        return Store(run, experiment_id, original, "drawn" if self.config.draw_at else "dense")

    @contextmanager
    def contain_errors(self, run: Run) -> Iterator[None]:
        """A TrialError inside the `with` block ends this run and no other. A file that is gone or damaged, although it
        was sound when the run was resumed, ends the whole command."""
        try:
            yield
        except TrialError as error:
            self.failed[run] = str(error)
            self.tell(Note(f"{run}: {error}", failed=run))
        except (FileNotFoundError, Damaged) as error:
            command = same_command(self.config.overwrite)
            raise RecordError(f"{error}: {command} continues from the last good round") from None


@contextmanager
def blame_model(failed: str, exhausted: str, own_errors: bool = False) -> Iterator[None]:
    """Turn errors of the model's code inside the `with` block into a TrialError: `failed`, as `fc1 failed in round 3`,
    and the error itself. A lack of memory becomes one with the text `exhausted`, unless that is empty. Errors of files
    pass, and errors that this library raises itself unless the model is to blame for them, too (`own_errors`)."""
    try:
        yield
    except torch.OutOfMemoryError:
        if not exhausted:
            raise
        raise TrialError(exhausted) from None
    except (KeyboardInterrupt, OSError, RecordError, TrialError):
        raise
    except BaseException as error:
        if checks.raised_by_lth(error) and not own_errors:
            raise
        raise TrialError(f"{failed} with {checks.error_with_type(error)}") from error
