"""What there is to do next: the folder is the queue. Several processes may work on it; each run is held by one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lth.records import files, resume, tables
from lth.records.events import Event, Note, RoundDone
from lth.records.files import RecordError
from lth.records.tables import Run
from lth.run.tasks import Task, by_run, tasks_of
from lth.settings.config import Config

FAILED = "failed.txt"  # in a run's folder: why it ended early, until somebody tries it again


@dataclass(frozen=True)
class Piece:
    """Work for one worker: runs of one experiment, held by this process, to be trained up to a number of rounds."""

    config: Config
    runs: tuple[Run, ...]
    rounds: int


def begin(run: Run) -> None:
    """Somebody tries a run again that may have ended early."""
    files.delete(run.dumps / FAILED)


def gave_up(run: Run, why: str) -> None:
    """Tell all processes that a run ended early."""
    with contextlib.suppress(RecordError):
        files.write(run.dumps / FAILED, f"{why}\n".encode())


class Queue:
    """The tasks of some experiments, given out run by run.

    configs: the experiments, with what tells their runs from each other in what is said about them.
    hold: gives a run with the right to write it, or None if another process has that.
    let_go: gives that right back.
    together: how many runs of an experiment may be given out at once, to be trained as one network.
    since: the time, by the folder's clock, from which on a run that another process could not finish is not tried here.
    elsewhere: whether those who do the work hold the runs themselves and say nothing: what they do is news here.
    """

    def __init__(
        self,
        configs: Sequence[Config] | Mapping[Config, str],
        hold: Callable[[Run], Run | None],
        let_go: Callable[[Run], None] = lambda run: None,
        together: Callable[[Config], int] = lambda config: 1,
        since: float = 0.0,
        elsewhere: bool = False,
    ) -> None:
        self.hold, self.let_go, self.together, self.since = hold, let_go, together, since
        self.elsewhere = elsewhere
        self.config: dict[Run, Config] = {}
        self.tasks: dict[Run, list[Task]] = {}
        about = configs if isinstance(configs, Mapping) else dict.fromkeys(configs, "")
        for config in about:
            for run, tasks in by_run(tasks_of(config, about[config])).items():
                if len(tasks) > len(self.tasks.get(run, ())):
                    self.config[run], self.tasks[run] = config, tasks
        self.busy: set[Run] = set()
        self.failed: dict[Run, str] = {}  # with the reason
        self._tables: dict[Run, tuple[tuple[int, ...], int]] = {}
        self._told = {run: self.finished(run) for run in self.tasks}
        self._news: list[Event] = []

    def take(self) -> Piece | None:
        """Work that can be done now, if there is any that no other process holds."""
        for runs, rounds in self._ready():
            held = [run for run in map(self.hold, runs) if run is not None]
            able = [run for run in held if self.finished(run) < rounds <= self._reach(run, held)]
            for run in held:
                if run not in able:
                    self.let_go(run)
            if able:
                for run in able:
                    self._catch_up(run)
                    if not self.elsewhere:
                        begin(run)
                self.busy.update(able)
                return Piece(self.config[able[0]], tuple(able), rounds)
        return None

    def give_back(self, piece: Piece, failed: Mapping[Run, str]) -> None:
        """Work has ended, done or not. What `failed`, with the reason, is not tried again."""
        for run in piece.runs:
            if run in failed:
                self.failed[run] = failed[run]
                if not self.elsewhere:
                    gave_up(run, failed[run])
            if self.elsewhere:
                self._catch_up(run)
            self._told[run] = self.finished(run)
            self.busy.discard(run)
            self.let_go(run)

    def news(self) -> list[Event]:
        """What other processes have done since this was last asked: rounds finished, runs that ended early."""
        for run in self.tasks:
            if self.elsewhere or run not in self.busy:
                self._catch_up(run)
        for run in list(self._open()):
            file = run.dumps / FAILED
            with contextlib.suppress(OSError):
                if file.stat().st_mtime >= self.since:
                    self.failed[run] = file.read_text(encoding="utf-8").strip()
                    self._news.append(Note(f"{run}: {self.failed[run]} (in another process)", failed=True))
        news, self._news = self._news, []
        return news

    def over(self) -> bool:
        """Whether nothing is left to do, for this process or another."""
        return not self.busy and not any(True for _ in self._open())

    def finished(self, run: Run) -> int:
        """How many rounds of a run are finished, with the line that --connectivity measures. Its tables are read again
        only when they have changed."""
        connectivity = self.config[run].connectivity
        try:
            names = ("rounds", "connectivity") if connectivity else ("rounds",)
            found = [(run.dumps / f"{name}.csv").stat() for name in names]
        except FileNotFoundError:
            return 0
        except OSError:
            return tables.done_rounds(run, connectivity)  # the reason why it cannot be read
        mark = tuple(number for stat in found for number in (stat.st_mtime_ns, stat.st_size, stat.st_ino))
        if run not in self._tables or self._tables[run][0] != mark:
            self._tables[run] = mark, tables.done_rounds(run, connectivity)
        return self._tables[run][1]

    def left(self) -> dict[Run, int]:
        """How many trainings each run still needs: two per round with --connectivity, none for a shared round."""
        return {
            run: sum(not task.shared for task in tasks[self.finished(run) :]) * (1 + self.config[run].connectivity)
            for run, tasks in self.tasks.items()
        }

    def _catch_up(self, run: Run) -> None:
        """Note the rounds that another process has finished."""
        before, now = self._told[run], min(self.finished(run), len(self.tasks[run]))
        if before < now:
            seconds = tables.table(run, "times")["seconds"].tolist()
            for number, row in enumerate(tables.table(run, "rounds").to_dict("records")[before:now], before):
                took = 0.0 if self.tasks[run][number].shared else seconds[number]
                self._news.append(RoundDone(run, {str(key): value for key, value in row.items()}, took, ()))
        self._told[run] = now

    def _open(self) -> Iterator[Run]:
        """The runs that somebody has to go on with; those that this process works on are left out."""
        for run in self.tasks:
            if run not in self.failed and run not in self.busy and not self._ended(run):
                yield run

    def _ended(self, run: Run) -> bool:
        return self.finished(run) >= len(self.tasks[run])

    def _ready(self) -> Iterator[tuple[list[Run], int]]:
        """Runs that can go on now, as many together as one worker may have, and up to which round."""
        for config, group in itertools.groupby(list(self._open()), self.config.__getitem__):
            runs, size = list(group), self.together(config)
            along = [run for run in runs if self._reach(run) > self.finished(run)] if size > 1 else []
            reach = {run: self._reach(run, along) for run in runs}
            able = [run for run in runs if reach[run] > self.finished(run)]
            if size > 1:  # most rounds first: what waits for others had better wait for all that it needs
                able.sort(key=reach.__getitem__, reverse=True)
            for rounds, alike in itertools.groupby(able, reach.__getitem__):
                waiting = list(alike)
                for first in range(0, len(waiting), size):
                    yield waiting[first : first + size], rounds

    def _reach(self, run: Run, along: Sequence[Run] = ()) -> int:
        """Up to which round a run can go on now, where the runs `along` are trained together with it."""
        rounds = self.finished(run)
        for task in self.tasks[run][rounds:]:
            if not all(other == run or self._met(task, other, number, along) for other, number in task.needs):
                break
            rounds += 1
        return rounds

    def _met(self, task: Task, other: Run, number: int, along: Sequence[Run]) -> bool:
        """Whether a task has what it needs of another run. Where that will not go on, its own training says so."""
        if other in self.failed or self._ended(other):
            return True
        if task.shared:
            return other in along or self.finished(other) > number
        return self.finished(other) > number and resume.has_ticket(other, task.round)
