"""The rounds: train, record, prune, reset (Strategy 1 of Frankle & Carbin, Appendix B), and going on after a stop.

What is on disk is the state: a round starts from its ticket, a ticket is made of the round before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from lth import pruning
from lth.data.feed import Feed
from lth.data.images import Images, Source
from lth.pruning import Masks, Rule
from lth.records import tables, tickets
from lth.records.files import RecordError
from lth.records.tables import Run
from lth.records.tickets import Ticket, numbered
from lth.settings.arms import ARMS
from lth.settings.config import Config, derive_seed
from lth.training import models
from lth.training.models import Build, State
from lth.training.network import Criterion, Fused, Network, Optimizer
from lth.training.schedule import Plan, make_plan
from lth.training.train import Evaluation, Trained, Training, numerics

STACK_WEIGHTS = 20_000_000  # that one stacked network may have in all, before arithmetic and not launching binds it


class TrialError(Exception):
    """One trial cannot go on; others can."""


@dataclass(frozen=True)
class Problem:
    """What is trained: images, the model, its initial and its fresh random weights, loss, optimiser, pruning rule.

    `initial` and `fresh` give weights for a seed. `rule`, if given, prunes in place of the settings' own percentages.
    `whose` tells problems apart that the settings do not name: files of one are not used for another.
    """

    images: Source
    make: Build
    initial: Callable[[int], State]
    fresh: Callable[[int], State]
    optimizer: Callable[[Network], Optimizer]
    criterion: Criterion = nn.functional.cross_entropy
    rule: Rule | None = None
    whose: str = ""

    @classmethod
    def of(cls, config: Config, images: Images) -> Problem:
        """The problem that the settings name."""
        make = models.find(config.arch_type, config.dataset, images.classes)

        def weights(seed: int) -> State:
            return models.state_of(models.build(make, config.init, seed))

        def optimizer(network: Network) -> Optimizer:
            return Fused(config.optimizer, network, config.lr, config.weight_decay, config.momentum, config.nesterov)

        return cls(images, make, weights, weights, optimizer)


@dataclass(frozen=True)
class Evaluated:
    """Tells of an evaluation within a round that lasts `steps` iterations of `epoch` an epoch."""

    run: Run
    round: int
    evaluation: Evaluation
    steps: int
    epoch: int


@dataclass(frozen=True)
class RoundDone:
    """Tells of a finished round: its line of rounds.csv, its seconds (0 if shared), and layers left without weights."""

    run: Run
    row: dict[str, Any]
    seconds: float
    empty: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """A sentence for the user; `failed` says that a trial ended by it."""

    text: str
    failed: bool = False


Event = Evaluated | RoundDone | Note


class Experiment:
    """Rounds of some runs on one device. `tell` gets an Event now and then, `stop` is asked whether to stop."""

    def __init__(
        self,
        config: Config,
        problem: Problem,
        device: torch.device,
        tell: Callable[[Event], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.problem, self.device, self.tell, self.stop = config, problem, device, tell, stop
        self.failed: set[Run] = set()
        self._feeds: dict[tuple[int, ...], Feed] = {}

    def run(self, runs: Sequence[Run], rounds: int) -> None:
        """Strategy 1 for several runs at once: each is trained, recorded, pruned and reset `rounds` - 1 times over."""
        with numerics(self.config.precision, self.config.threads):
            for run in runs:
                self._pick_up(run)
            for number in range(rounds):
                while stack := self._next_stack(runs, number):
                    started = [self.ticket(run, number) for run in stack]
                    trained = self.train(stack, started)
                    for run, ticket, result in zip(stack, started, trained, strict=True):
                        self.record(run, ticket, result)

    def ticket(self, run: Run, number: int) -> Ticket:
        """What round `number` starts from: the survivors of the pruning, reset as the arm says."""
        try:
            if (run.saves / f"{numbered('ticket', number)}.safetensors").exists():
                return tickets.read_ticket(run, number, self._identity(run))
            masks = self.masks(run, number)
            start, origin = self.start(run, number)
        except (FileNotFoundError, tickets.Damaged) as error:  # all was well when the run was picked up
            raise RecordError(f"{error}: the same command again goes on from the last good round") from None
        ticket = Ticket(number, masks, start, origin)
        tickets.write_ticket(run, ticket, self._identity(run))
        return ticket

    def masks(self, run: Run, number: int) -> Masks:
        """Which weights survive into round `number`."""
        arm, generator = ARMS[run.arm], torch.Generator().manual_seed(derive_seed(run.seed, "mask", number))
        if number == 0:
            return pruning.dense(pruning.prunable(self.problem.make()))
        if arm.control:
            found = tickets.read_ticket(replace(run, arm="lt"), number, self._identity(run)).masks
            return found if arm.mask == "lt" else pruning.shuffled(found, generator)
        before = tickets.read_ticket(run, number - 1, self._identity(run))
        final = self._end_of_round(run, number - 1)
        if self.problem.rule is not None:
            return self._by_rule(self.problem.rule, final, before.masks, derive_seed(run.seed, "rule", number))
        if arm.scores == "random":
            scores = pruning.random_scores(before.masks, generator)
        else:
            weights = {name: before.start[name] for name in before.masks}
            scores = pruning.score(self.config.prune_method, weights, final)
        return pruning.prune_lowest(scores, before.masks, self._percents(), self.config.prune_scope)

    def start(self, run: Run, number: int) -> tuple[State, str]:
        """The values that the weights of round `number` start from, and in which file they are."""
        arm = ARMS[run.arm]
        if number and arm.start == "fresh":
            return self.problem.fresh(derive_seed(run.seed, "weights", number)), "own"
        if number and arm.start == "trained":
            return self._end_of_round(run, number - 1), "own"
        origin = "rewind" if number and self.config.rewind.amount else "initial"
        return tickets.read_state(run, origin, self._identity(run)), origin

    def train(self, stack: Sequence[Run], started: Sequence[Ticket]) -> list[Trained]:
        """Train the tickets of a stack of runs, together, from their checkpoints where there are any."""
        number = started[0].round
        saved = [self._checkpoint(run, number) for run in stack]
        plan = self._plan(stack[0], number)
        going_on = [checkpoint for checkpoint in saved if checkpoint is not None]
        if going_on and going_on[0].complete(plan.steps):
            return going_on  # stopped between the round's end and its line in rounds.csv
        feed, model = self._feed(stack), self.problem.make()
        seeds = [(run.seed, "order", number) for run in stack]

        def report(trial: int, evaluation: Evaluation) -> None:
            self.tell(Evaluated(stack[trial], number, evaluation, plan.steps, feed.epoch_steps))

        def checkpoint(states: list[Trained]) -> None:
            for run, state in zip(stack, states, strict=True):
                if state.failure is None:
                    tickets.write_checkpoint(run, number, state, self._identity(run))

        try:
            network = Network(
                model,
                [ticket.start for ticket in started],
                [ticket.masks for ticket in started],
                self.device,
                self.problem.criterion,
                autocast=self.config.precision == "bf16",
            )
            optimizer = self.problem.optimizer(network)
            dropout = derive_seed(stack[0].seed, "dropout", number)
            training = Training(network, optimizer, feed, plan, seeds, dropout, going_on)
            every = self.config.checkpoint_every
            return training.run(report, checkpoint, every, self.stop)
        except torch.OutOfMemoryError:
            raise TrialError(
                f"the memory of {self.device} is exhausted at batch size {self.config.batch_size} with {len(stack)} "
                f"stacked trials: lower --batch_size{' or --stack' if len(stack) > 1 else ''}"
            ) from None

    def record(self, run: Run, ticket: Ticket, trained: Trained) -> None:
        """Write what came of a round; its line in rounds.csv, the last thing written, makes it finished."""
        if trained.failure is not None:
            self._fail(run, f"round {ticket.round} ended: {trained.failure}; earlier rounds are kept")
            return
        identity, keep = self._identity(run), self.config.keep_weights
        if keep != "none":
            tickets.write_state(run, numbered("trained", ticket.round), trained.best, identity)
        if ticket.round == 0:
            tickets.write_state(run, "dense", trained.final, identity)
            if trained.kept:
                tickets.write_state(run, "rewind", trained.kept, identity)
        tickets.write_checkpoint(run, ticket.round, replace(trained, extra={}), identity)
        if keep == "last":  # before the round counts as finished, so that none is left behind by a stop
            for earlier in range(ticket.round):
                (run.saves / f"{numbered('trained', earlier)}.safetensors").unlink(missing_ok=True)
        row = tables.write_round(run, ticket.round, ticket.masks, trained)
        self._tell_round(run, row, sum(trained.seconds.values()), ticket.masks)

    def _fail(self, run: Run, why: str) -> None:
        self.failed.add(run)
        self.tell(Note(f"{run}: {why}", failed=True))

    def _tell_round(self, run: Run, row: dict[str, Any], seconds: float, masks: Masks) -> None:
        empty = tuple(name for name, count in pruning.survivors(masks).items() if not count)
        self.tell(RoundDone(run, row, seconds, empty))

    def _pick_up(self, run: Run) -> None:
        """Make sure that the run's files can be built upon; take back rounds that cannot."""
        for name in tables.TABLES:
            tables.table(run, name)  # a spoiled one is better said now than after hours of training
        finished, identity = tables.finished_rounds(run), self._identity(run)
        rewinds = bool(self.config.rewind.amount)
        sound = tickets.sound_rounds(run, finished, identity, rewinds, lambda text: self.tell(Note(text)))
        if sound < finished:
            self.tell(Note(f"{run}: going on from round {sound}, the first whose ticket is lost"))
            tables.keep_rounds(run, sound)
        tickets.drop_rounds(run, sound)
        if not (run.saves / "initial.safetensors").exists():
            tickets.write_state(run, "initial", self.problem.initial(derive_seed(run.seed, "weights", 0)), identity)

    def _next_stack(self, runs: Sequence[Run], number: int) -> list[Run]:
        """Runs that wait for round `number` and can be trained as one; the dense round of a trial only once."""
        waiting = [run for run in runs if run not in self.failed and tables.finished_rounds(run) <= number]
        for run in [run for run in waiting if number and ARMS[run.arm].control]:
            if not (replace(run, arm="lt").saves / f"{numbered('ticket', number)}.safetensors").exists():
                waiting.remove(run)
                self._fail(run, f"round {number} has no ticket of lt to take its mask from")
        if number == 0:
            waiting = [run for run in waiting if not self._share_dense(run)]
            first = {run.seed: run for run in reversed(waiting)}
            waiting = list(first.values())[::-1]
        alike: dict[tuple[int, int | None], list[Run]] = {}
        for run in waiting:
            saved = self._checkpoint(run, number)
            where = (self._plan(run, number).start, saved.iteration if saved else None)
            alike.setdefault(where, []).append(run)
        return next(iter(alike.values()))[: self.stack_size] if alike else []

    @cached_property
    def stack_size(self) -> int:
        """How many runs train as one network: --stack, or on a GPU as many as STACK_WEIGHTS allows, else one."""
        if self.config.stack or self.device.type != "cuda":
            return self.config.stack or 1
        size = max(1, STACK_WEIGHTS // sum(parameter.numel() for parameter in self.problem.make().parameters()))
        return size if size == 1 or stackable(self.problem) else 1

    def _share_dense(self, run: Run) -> bool:
        """Take over the dense round if another arm of this trial has it: the same seed, the same network."""
        for arm in ARMS:
            sibling, identity = replace(run, arm=arm), self._identity(run)
            if arm != run.arm and tables.finished_rounds(sibling):
                try:
                    tickets.adopt_dense(run, sibling, identity, bool(self.config.rewind.amount))
                    masks = tickets.read_ticket(run, 0, identity).masks
                except (tickets.Damaged, FileNotFoundError):
                    continue
                self._tell_round(run, tables.table(run, "rounds").iloc[0].to_dict(), 0.0, masks)
                return True
        return False

    def _checkpoint(self, run: Run, number: int) -> Trained | None:
        """Where round `number` was when it stopped, if it did."""
        try:
            of_round, saved = tickets.read_checkpoint(run, self._identity(run))
        except FileNotFoundError:
            return None
        return saved if of_round == number else None

    def _end_of_round(self, run: Run, number: int) -> State:
        """The weights at the end of a round, which pruning looks at."""
        if number == 0:
            return tickets.read_state(run, "dense", self._identity(run))
        saved = self._checkpoint(run, number)
        if saved is None:
            raise FileNotFoundError(f"the checkpoint of round {number} of {run} is gone")
        return saved.final

    def _by_rule(self, rule: Rule, final: State, masks: Masks, seed: int) -> Masks:
        """The masks that a rule of torch.nn.utils.prune's kind adds to `masks`."""
        model = models.load_state(self.problem.make(), final)
        pruning.attach(model, masks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rule(model)
        return {**masks, **pruning.detach(model)}

    def _percents(self) -> dict[str, float]:
        """Percent of the survivors that a round prunes, for each layer."""
        config, usual = self.config, self.config.round_percent
        fc = usual if config.fc_percent is None else config.fc_percent
        rates = {
            "conv": usual if config.conv_percent is None else config.conv_percent,
            "fc": fc,
            "output": fc if config.output_percent is None else config.output_percent,
        }
        return {name: rates[kind] for name, kind in pruning.layer_kinds(self.problem.make()).items()}

    def _plan(self, run: Run, number: int) -> Plan:
        return make_plan(self.config, self._feed([run]).epoch_steps, ARMS[run.arm].start, number)

    def _feed(self, runs: Sequence[Run]) -> Feed:
        seeds = tuple(run.seed for run in runs)
        if seeds not in self._feeds:
            config = self.config
            self._feeds[seeds] = self.problem.images.feed(
                seeds, config.valid_size, config.batch_size, self.device, config.augment
            )
        return self._feeds[seeds]

    def _identity(self, run: Run) -> str:
        whose = {"whose": self.problem.whose} if self.problem.whose else {}
        return tickets.identity({**self.config.deciding(), **whose}, run)


def stackable(problem: Problem) -> bool:
    """Whether the model can be trained as one stacked network: torch.func.vmap cannot follow branches on values."""
    model, images = problem.make(), torch.zeros(4, *problem.images.shape)
    state, masks = models.state_of(model), pruning.dense(pruning.prunable(model))
    try:
        network = Network(model, [state, state], [masks, masks], torch.device("cpu"), problem.criterion)
        network.losses(images, torch.zeros(4, dtype=torch.int64)).sum().backward()
    except Exception:  # whatever a model's own code raises under vmap
        return False
    return True
