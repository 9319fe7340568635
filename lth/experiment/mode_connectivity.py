"""Linear mode connectivity (Frankle et al. 2020, arXiv:1912.05671): do two trainings of one ticket, which differ in the
order of the data alone, end where the straight line between them has low error?

The dense network of round 0 starts from the point that tickets are rewound to, as they do. One of the two trainings is
the round's own, where its last weights are still there; else it is trained again, as the other one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lth.experiment import line
from lth.experiment.line import STABLE, Errors
from lth.experiment.strategy import Experiment
from lth.records import recording, resume, tables, tickets
from lth.records.events import Connected
from lth.records.files import delete
from lth.records.tables import Run
from lth.records.tickets import ENDS, Ticket
from lth.settings.arms import ARMS
from lth.training import layout
from lth.training.models import State
from lth.training.network import Network
from lth.training.train import Stopped, TrialError


class Connectivity(Experiment):
    """An experiment that measures the line of every round before the next one begins (--connectivity)."""

    def look_back(self, runs: Sequence[Run], number: int) -> None:
        """Measure the line of round `number` where it is finished: train its missing ends, write the table."""
        waiting = [run for run in self._unmeasured(runs, number) if number or not self._shared(run)]
        chosen = waiting if number else list({run.seed: run for run in reversed(waiting)}.values())[::-1]
        for end in ENDS:
            while stack := self._alike([run for run in chosen if self._missing(run, number, end)], number, end):
                started = [self._started(run, number) for run in stack]
                for run, trained in zip(stack, self.train(stack, started, end), strict=False):
                    with self._alone(run):
                        if trained.failure is not None:
                            raise TrialError(f"round {number}, trained again, ended: {trained.failure}")
                        tickets.write_checkpoint(run, number, replace(trained, extra={}), self._identity(run), end)
        for run in chosen:
            if run not in self.failed:
                with self._alone(run):
                    self._measure(run, number)
        for run in waiting:
            if run not in chosen:  # the dense round is the same in all arms of a trial
                self._shared(run)

    def _unmeasured(self, runs: Sequence[Run], number: int) -> list[Run]:
        """The runs of which the round is finished and its line not measured."""
        return [
            run
            for run in runs
            if run not in self.failed and tables.connected_rounds(run) == number < tables.finished_rounds(run)
        ]

    def _missing(self, run: Run, number: int, end: str) -> bool:
        return run not in self.failed and self._end(run, number, end) is None

    def _shared(self, run: Run) -> bool:
        """Whether another arm of the trial has measured the dense round; then it is taken over."""
        return any(recording.share_connectivity(run, run.of_arm(arm)) for arm in ARMS if arm != run.arm)

    def _started(self, run: Run, number: int) -> Ticket:
        ticket = self.ticket(run, number)
        if number:
            return ticket
        return replace(
            ticket, start=tickets.read_state(run, self._original, self._identity(run)), origin=self._original
        )

    def _end(self, run: Run, number: int, end: str) -> State | None:
        """The last weights of a training, if they are there."""
        if end == "first" and (number or self._original == "initial"):
            try:
                return resume.end_of_round(run, number, self._identity(run))
            except FileNotFoundError:
                pass
        trained = resume.checkpoint(run, number, self._identity(run), end)
        return trained.final if trained and trained.complete(self._plan(run, number, end).steps) else None

    def _measure(self, run: Run, number: int) -> None:
        one, other = (self._end(run, number, end) for end in ENDS)
        assert one is not None and other is not None
        masks, feed = self.ticket(run, number).masks, self._feed([run])
        fast = layout.channels_last(self.problem.make, feed.example())

        def errors(state: State) -> Errors:
            if self.stop():
                raise Stopped
            network = Network(
                self.problem.make(),
                [state],
                [masks],
                self.device,
                self.problem.criterion,
                autocast=self.config.precision == "bf16",
                channels_last=fast,
            )
            return line.measure(network, feed, run.seed)

        points = [
            {"point": share, "train_error": found.train, "test_error": found.test}
            for share, found in line.along(one, other, errors)
        ]
        for end in ENDS:  # before the round counts as measured, so that none is left behind by a stop
            delete(run.saves / f"{end}.safetensors")
        recording.write_connectivity(run, number, points)
        found = tables.barriers(run).iloc[number]
        stable = max(found["train"], found["test"]) < STABLE
        self.tell(Connected(run, number, found["train"], found["test"], stable))
