"""The rounds: train, record, prune, reset (Strategy 1 of Frankle & Carbin, arXiv:1803.03635, Appendix B).

Every step reads and writes files, so that a stop anywhere loses nothing; lth/records/resume.py goes on from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

import torch

from lth import prune, pruning, rng
from lth.data.images import Feed
from lth.experiment import borrowed
from lth.experiment.selection import Candidates, select
from lth.experiment.starts import STARTS
from lth.pruning import Masks
from lth.records import recording, resume, same, tables, tickets
from lth.records.events import Evaluated, Event, Moved, Note, RoundDone
from lth.records.files import RecordError, delete
from lth.records.tables import Run
from lth.records.tickets import Ticket, numbered
from lth.rng import derive_seed
from lth.settings import checks
from lth.settings.arms import ARMS
from lth.settings.config import Config, same_command
from lth.training import layout, memory, sparse
from lth.training.models import State
from lth.training.network import Network
from lth.training.numerics import numerics
from lth.training.problem import Problem, stack_size
from lth.training.schedule import Plan, make_plan
from lth.training.scores import SCORES, Batches
from lth.training.train import Evaluation, Trained, Training, TrialError

NOTHING_PRUNED = (
    "layers come to it with masks of torch.nn.utils.prune, their weights called weight_orig; fetch_layers names them"
)


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
        self.failed: dict[Run, str] = {}  # with the reason
        self._feeds: dict[tuple[int, ...], Feed] = {}

    def run(self, runs: Sequence[Run], rounds: int) -> None:
        """Strategy 1 for several runs at once: `rounds` trainings of each, and a pruning and a reset after all but the
        last."""
        with numerics(self.config.precision, self.config.threads), memory.kept(), rng.preserved(self.device):
            for run in runs:
                self._go_on(run, rounds)
            for number in range(rounds):
                while stack := self._next_stack(runs, number, rounds):
                    started = [self.ticket(run, number) for run in stack]
                    trained = self.train(stack, started)
                    for run, ticket, result in zip(stack, started, trained, strict=False):
                        with self._alone(run):
                            self.record(run, ticket, result)
                            if number + 1 < rounds:
                                masks = self.prune(run, ticket, result.final)
                                self.reset(run, number + 1, masks, result.final)
                self.look_back(runs, number)

    def look_back(self, runs: Sequence[Run], number: int) -> None:
        """What is to be found out about round `number` before the next one begins: mode_connectivity.py does."""

    def ticket(self, run: Run, number: int) -> Ticket:
        """What round `number` starts from: the survivors of the last pruning, as they were reset."""
        with self._alone(run):
            return tickets.read_ticket(run, number, self._identity(run))

    def train(self, stack: Sequence[Run], started: Sequence[Ticket], again: str = "") -> list[Trained]:
        """Train the tickets of a stack of runs, together, from their checkpoints where there are any; only the first of
        them if the memory is too small for all. `again` names a further training, with checkpoints of its own: `first`
        has the round's order of the data, others another."""
        try:
            return self._train(stack, started, again)
        except torch.OutOfMemoryError:  # of a single run it is a TrialError
            self.stack_size = len(stack) // 2
        exhausted = f"the memory of {self.device} is too small for {len(stack)} stacked trials"
        self.tell(Note(f"{exhausted}: training at most {self.stack_size} together"))
        return self.train(stack[: self.stack_size], started[: self.stack_size], again)

    def _train(self, stack: Sequence[Run], started: Sequence[Ticket], again: str) -> list[Trained]:
        number, into = started[0].round, again or "checkpoint"
        saved = [resume.checkpoint(run, number, self._identity(run), into) for run in stack]
        plan = self._plan(stack[0], number, again)
        going_on = [checkpoint for checkpoint in saved if checkpoint is not None]
        if going_on and going_on[0].complete(plan.steps):
            return going_on  # stopped between the round's end and its line in rounds.csv
        feed = self._feed(stack)
        other = [again] if again not in ("", tickets.ENDS[0]) else []
        seeds = [(run.seed, "order", number, *other) for run in stack]

        def report(trial: int, evaluation: Evaluation) -> None:
            if not again:
                self.tell(Evaluated(stack[trial], number, evaluation, plan.steps, feed.epoch_steps))

        def moved(iteration: int) -> None:
            for run in stack:
                self.tell(Moved(run, number, iteration, plan.steps, again))

        def checkpoint(states: list[Trained]) -> None:
            for run, state in zip(stack, states, strict=True):
                if state.failure is None:
                    tickets.write_checkpoint(run, number, state, self._identity(run), into)

        with self._blamed(stack, number):
            network = self._network(stack, started, feed)
            optimizer = self.problem.optimizer(network)
            random_seed = derive_seed(stack[0].seed, "dropout", number)
            training = Training(network, optimizer, feed, plan, seeds, random_seed, going_on)
            trained = training.run(report, checkpoint, self.config.checkpoint_every, self.stop, moved)
        return trained

    def record(self, run: Run, ticket: Ticket, trained: Trained) -> None:
        """Write what came of a round; its line in the journal makes it finished."""
        if trained.failure is not None:
            raise TrialError(f"round {ticket.round} ended: {trained.failure}; earlier rounds are kept")
        for name, mask in ticket.masks.items():
            if trained.final[name][~mask].any():
                raise TrialError(
                    f"round {ticket.round} ended with pruned weights of {name} that are not 0: {run.arch_type} changes "
                    "its weights when it is called, which voids the mask; earlier rounds are kept"
                )
        identity, keep = self._identity(run), self.config.keep_weights
        weights = {} if keep == "none" else {numbered("trained", ticket.round): trained.best}
        if ticket.round == 0:
            weights |= {"dense": trained.final} | ({"rewind": trained.kept} if trained.kept else {})
        for name, state in weights.items():
            tickets.write_state(run, name, state, identity)
        tickets.write_checkpoint(run, ticket.round, replace(trained, extra={}), identity)
        earlier = [numbered("trained", number) for number in range(ticket.round) if keep == "last"]
        recording.forget(run, earlier)
        for name in earlier:  # before the round counts as finished, so that none is left behind by a stop
            delete(run.saves / f"{name}.safetensors")
        saves = [*([] if ticket.round else ["initial"]), numbered("ticket", ticket.round), *weights]
        row = recording.write_round(run, ticket.round, ticket.masks, trained, self.problem.cost[0], saves)
        empty = tuple(name for name, count in pruning.survivors(ticket.masks).items() if not count)
        self.tell(RoundDone(run, row, sum(trained.seconds.values()), empty))

    def prune(self, run: Run, ticket: Ticket, final: State) -> Masks:
        """Which of the ticket's weights survive into the next round. `final` are the weights at the end of this one."""
        arm, number = ARMS[run.arm], ticket.round + 1
        if arm.mask_of:
            return borrowed.of_arm(run, ticket, self._identity)
        if arm.prunes == "given":
            return borrowed.of_ticket(ticket, lambda number: self._given(run, number)[0])
        if self.problem.rule is not None:
            seed = derive_seed(run.seed, "rule", number)
            masks = prune.by_rule(self.problem.rule, self.problem.make(), final, ticket.masks, seed)
            if pruning.survivors(masks) == pruning.survivors(ticket.masks):
                self.tell(Note(f"{run}: prune_rule pruned nothing before round {number} ({NOTHING_PRUNED})"))
            return masks
        masks, weights, rounds, identity = ticket.masks, final, 1, self._identity(run)
        if arm.prunes != "trained":  # at once, all that so many rounds prune
            masks, rounds = tickets.read_ticket(run, 0, identity).masks, number
            weights = tickets.read_state(run, "dense" if arm.prunes == "dense" else self._original, identity)
        drawn = arm.prunes == "trained" and arm.start == "fresh"  # anew in this round
        initial = ticket.start if drawn else tickets.read_state(run, "initial", identity)
        generator = torch.Generator().manual_seed(derive_seed(run.seed, "mask", number))
        candidates = Candidates(masks, weights, rounds, initial, lambda: self._score_batches(run), generator)
        try:
            return select(arm, self.config, self.problem, candidates)
        except torch.OutOfMemoryError:
            raise TrialError(
                f"the memory of {self.device} is exhausted by the scores of {arm.scores} at batch size "
                f"{self.config.batch_size}: lower --batch_size"
            ) from None
        except (Exception, SystemExit) as error:
            if arm.scores not in SCORES:  # without a look at the model's code
                raise
            because = f"{run.arch_type} failed in the scores of {arm.scores} with {checks.said(error)}"
            raise TrialError(f"{because}; rounds before round {number} are kept") from error

    def reset(self, run: Run, number: int, masks: Masks, final: State) -> None:
        """Write the ticket of round `number`: `masks`, and the values that the arm lets the survivors start from."""
        arm, identity = ARMS[run.arm], self._identity(run)
        if arm.start == "fresh" and number:
            start, origin = self.problem.fresh(derive_seed(run.seed, "weights", number)), "own"
        elif arm.start == "trained" and number:
            start, origin = final, "own"
        elif arm.start == "given" and number:
            start, origin = self._given(run, number)[1], "own"
        elif arm.start in STARTS and number:
            generator = torch.Generator().manual_seed(derive_seed(run.seed, arm.start, number))
            original = tickets.read_state(run, self._original, identity)
            start, origin = STARTS[arm.start](original, masks, generator), "own"
        else:
            origin = self._original if number else "initial"
            start = tickets.read_state(run, origin, identity)
        tickets.write_ticket(run, Ticket(number, masks, start, origin), identity)

    def _given(self, run: Run, number: int) -> tuple[Masks, State]:
        """The masks and the weights that round `number` starts from: the dense one, or with --ticket any."""
        if self.problem.given is not None:
            return self.problem.given(run.seed, number)
        initial = self.problem.initial(derive_seed(run.seed, "weights", 0))
        return pruning.dense(pruning.prunable(self.problem.make(), self.config.prune_embeddings)), initial

    def _go_on(self, run: Run, rounds: int) -> None:
        """Take the run up where its files say it stands; a new one begins with the dense ticket or --ticket's."""
        identity = self._identity(run)
        if differ := same.another(run, self.problem.fingerprint):  # as when a file is edited while workers start
            raise RecordError(f"{run.dumps} holds results of another experiment: {same.said(differ)} since")
        resume.pick_up(run, identity, bool(self.config.rewind.amount), lambda text: self.tell(Note(text)))
        if not (run.saves / "initial.safetensors").exists():
            tickets.write_state(run, "initial", self._given(run, 0)[1], identity)
        if not resume.has_ticket(run, 0):
            self.reset(run, 0, self._given(run, 0)[0], {})
        self._prune_and_reset(run, rounds)

    def _prune_and_reset(self, run: Run, rounds: int) -> None:
        """What is left to do after the last finished round, if it was stopped there, shared, or the last one then."""
        number, identity = tables.finished_rounds(run), self._identity(run)
        if 0 < number < rounds and not resume.has_ticket(run, number):
            with self._alone(run):
                before = tickets.read_ticket(run, number - 1, identity)
                final = resume.end_of_round(run, number - 1, identity)
                self.reset(run, number, self.prune(run, before, final), final)

    def _network(self, stack: Sequence[Run], started: Sequence[Ticket], feed: Feed) -> Network:
        """The network that trains these tickets, one beside the other."""
        model, masks = self.problem.make(), [ticket.masks for ticket in started]
        bf16 = self.config.precision == "bf16"
        return Network(
            model,
            [ticket.start for ticket in started],
            masks,
            self.device,
            self.problem.criterion,
            autocast=bf16,
            sparse=self._sparse(stack[0], model, masks, feed),
            channels_last=len(stack) == 1 and layout.channels_last(self.problem.make, feed.example(), bf16),
        )

    @contextmanager
    def _blamed(self, stack: Sequence[Run], number: int) -> Iterator[None]:
        """Within it, what the model's own code raises, or exhausts, ends these runs and says so."""
        try:
            yield
        except torch.OutOfMemoryError:
            if len(stack) > 1:
                raise
            raise TrialError(
                f"the memory of {self.device} is exhausted at batch size {self.config.batch_size}: lower --batch_size"
            ) from None
        except (OSError, RecordError):
            raise
        except (Exception, SystemExit) as error:
            if checks.ours(error):
                raise
            raise TrialError(f"{stack[0].arch_type} failed in round {number} with {checks.said(error)}") from error

    @contextmanager
    def _alone(self, run: Run) -> Iterator[None]:
        """Within it, what ends this run does not end the others."""
        try:
            yield
        except TrialError as error:
            self.failed[run] = str(error)
            self.tell(Note(f"{run}: {error}", failed=True))
        except (FileNotFoundError, tickets.Damaged) as error:  # all was well when the run was picked up
            goes_on = f"{same_command(self.config.overwrite)} goes on from the last good round"
            raise RecordError(f"{error}: {goes_on}") from None

    def _next_stack(self, runs: Sequence[Run], number: int, rounds: int) -> list[Run]:
        """Runs that wait for round `number` and can be trained as one; the dense round of a trial only once."""
        waiting = [run for run in runs if run not in self.failed and tables.finished_rounds(run) <= number]
        if number == 0:
            waiting = [run for run in waiting if not self._share_dense(run, rounds)]
            first = {run.seed: run for run in reversed(waiting)}
            waiting = list(first.values())[::-1]
        return self._alike(waiting, number)

    def _alike(self, waiting: Sequence[Run], number: int, again: str = "") -> list[Run]:
        """Those of the waiting runs that can be trained as one with the first of them."""
        alike: dict[tuple[object, ...], list[Run]] = {}
        for run in waiting:
            saved = resume.checkpoint(run, number, self._identity(run), again or "checkpoint")
            final = bool(number and self.config.meaning(run.arm))  # one plan serves a stack: its rates too
            done = (saved.iteration, len(saved.evals)) if saved else None
            alike.setdefault((self._plan(run, number, again).start, final, done), []).append(run)
        return next(iter(alike.values()))[: self.stack_size] if alike else []

    @cached_property
    def stack_size(self) -> int:
        """How many runs train as one network."""
        return stack_size(self.config, self.problem, self.device)

    def _share_dense(self, run: Run, rounds: int) -> bool:
        """Take over the dense round, and go on from it, if another arm of this trial has trained it."""
        if not resume.share_dense(run, self._identity, bool(self.config.rewind.amount)):
            return False
        self.tell(RoundDone(run, tables.table(run, "rounds").iloc[0].to_dict(), 0.0, ()))
        self._prune_and_reset(run, rounds)
        return True

    @property
    def _original(self) -> str:
        """The name of the weights that survivors are reset to."""
        return "rewind" if self.config.rewind.amount else "initial"

    def _score_batches(self, run: Run) -> Batches:
        """Training batches of this trial, the same in every round and arm."""
        feed = self._feed([run])
        return [feed.fetch(batch) for batch in feed.epoch([(run.seed, "scores")], 0)[: self.config.score_batches]]

    def _plan(self, run: Run, number: int, again: str = "") -> Plan:
        # The dense network that is trained again starts from the point that tickets are rewound to.
        schedule, of_round = ("rewound", 1) if again and not number else (ARMS[run.arm].schedule, number)
        feed = next(iter(self._feeds.values()), None) or self._feed([run])  # epochs are as long in all trials
        return make_plan(self.config, feed.epoch_steps, schedule, of_round)

    def _sparse(self, run: Run, model: torch.nn.Module, masks: Sequence[Masks], feed: Feed) -> list[str]:
        rule = {} if self.problem.whole else resume.sparse_up_to(run, sparse.limits(self.config))
        return sparse.choose(model, masks, rule, feed.example())

    def _feed(self, runs: Sequence[Run]) -> Feed:
        seeds = tuple(run.seed for run in runs)
        if seeds not in self._feeds:
            self._feeds.clear()  # so that the images lie on the device once
            config = self.config
            self._feeds[seeds] = self.problem.images.feed(
                seeds, config.valid_size, config.batch_size, self.device, config.augment
            )
        return self._feeds[seeds]

    def _identity(self, run: Run) -> str:
        whose = {"whose": self.problem.whose} if self.problem.whose else {}
        decides = {**self.config.deciding(), **self.config.meaning(run.arm), **whose}
        return tickets.identity(decides, run, self.problem.fingerprint)
