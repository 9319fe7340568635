"""What there is to do next: the folder is the queue. Many processes may share it; each run is locked by one of them."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lth.commands import holding
from lth.commands.tasks import Task, by_run, tasks_of
from lth.records import files, identity, journal, lock, tables
from lth.records.events import Event, Note, RoundDone
from lth.records.files import RecordError
from lth.records.lock import Locks
from lth.records.store import Store
from lth.records.tables import Run
from lth.records.tickets import numbered
from lth.settings.config import Config

FAILED = "failed.txt"  # in a run's folder: why it ended early, until somebody tries it again


@dataclass(frozen=True)
class Work:
    """An experiment for the loop of work, which may be in another process.

    asked, config: its settings, as they were asked for and as the data settle them.
    about: what tells its runs from those of other settings in what is said about them.
    together: how many of its runs may be trained at once, as one stacked network.
    facts: what the config.json of each run says.
    """

    asked: Config
    config: Config
    about: str
    together: int
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """Runs of one experiment (by its settings as they were asked for), locked, to be trained up to so many rounds."""

    asked: Config
    runs: tuple[Run, ...]
    rounds: int


class Queue:
    """The runs of some experiments, as the folder shows them.

    locks: of this process; None for who only looks on.
    before: the marks of runs that had ended early when the command began (see `marks`), which are tried again.
    """

    def __init__(self, works: Sequence[Work], locks: Locks | None = None, before: Mapping[Run, int] | None = None):
        self.locks = locks
        self.work: dict[Run, Work] = {}
        self.tasks: dict[Run, list[Task]] = {}
        for work in works:
            for run, tasks in by_run(tasks_of(work.asked, work.about)).items():
                if len(tasks) > len(self.tasks.get(run, ())):
                    self.work[run], self.tasks[run] = work, tasks
        self.before = self.marks() if before is None else before
        self.failed: dict[Run, str] = {}  # with the reason
        self._tables: dict[Run, tuple[tuple[int, ...], int]] = {}
        self._told = {run: self.finished(run) for run in self.tasks}

    def take(self) -> Piece | None:
        """Runs that can go on now, locked for this process; None if there are none that nobody works on."""
        assert self.locks is not None
        self._look_for_failures()
        for runs, rounds in self.ready():
            locked = [run for run in runs if self.locks.try_take(run.dumps)]
            able = [run for run in locked if self.finished(run) < rounds <= self._reach(run, locked)]
            for run in locked:
                if run not in able:  # another process has been at it meanwhile
                    self.locks.release(run.dumps)
            if able:
                work = self.work[able[0]]
                if found := identity.mismatch(able, work.config, work.facts["fingerprint"]):
                    raise RecordError(found[1])
                for run in able:
                    holding.write_config(run, work.config, work.facts)
                    files.delete(run.dumps / FAILED)
                return Piece(work.asked, tuple(able), rounds)
        return None

    def give_back(self, piece: Piece, failed: Mapping[Run, str]) -> None:
        """Work has ended, done or not. What `failed`, with the reason, is tried by no process of this command again."""
        assert self.locks is not None
        for run in piece.runs:
            if run in failed:
                self.failed[run] = failed[run]
                with contextlib.suppress(RecordError):
                    files.write(run.dumps / FAILED, f"{failed[run]}\n".encode())
            self._told[run] = self.finished(run)
            self.locks.release(run.dumps)

    def news(self, ours: Collection[int]) -> list[Event]:
        """What other processes than `ours` of this machine, by their numbers, have done since this was last asked:
        rounds finished, runs that ended early."""
        known, news = set(self.failed), list[Event]()
        self._look_for_failures()
        for run in self.tasks:
            failed = run in self.failed and run not in known
            if (failed or self.finished(run) > self._told[run]) and not _of(run, ours):
                news += self._catch_up(run, self.finished(run))
                if failed:
                    news.append(Note(f"{run}: {self.failed[run]} (in another process)", failed=True))
        return news

    def hear(self, event: Event) -> list[Event]:
        """An event that a process of ours told, behind what others had done of the same run before it."""
        if not isinstance(event, RoundDone):
            return [event]
        number = int(event.row["round"])
        news = self._catch_up(event.run, number)
        self._told[event.run] = number + 1
        return [*news, event]

    def waiting_for(self) -> str:
        """Who works on what is left, in a sentence; nothing if nobody does."""
        others = [f"{lock.holder(run.dumps)} has {run}" for run in self.open() if lock.is_held(run.dumps)]
        return f"waiting for others: {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}" if others else ""

    def over(self) -> bool:
        """Whether nothing is left to do, for this process or another."""
        self._look_for_failures()
        return not any(True for _ in self.open())

    def finished(self, run: Run) -> int:
        """How many rounds of a run are finished, with the line that --connectivity measures. Its journal is read again
        only when it has changed."""
        connectivity = self.work[run].config.connectivity
        try:
            found = (run.dumps / journal.NAME).stat()
        except FileNotFoundError:
            return 0
        except OSError:
            return tables.done_rounds(run, connectivity)  # the reason why it cannot be read
        mark = (found.st_mtime_ns, found.st_size, found.st_ino)
        if run not in self._tables or self._tables[run][0] != mark:
            self._tables[run] = mark, tables.done_rounds(run, connectivity)
        return self._tables[run][1]

    def left(self) -> dict[Run, int]:
        """How many trainings each run still needs: two per round with --connectivity, none for a shared round."""
        return {
            run: sum(not task.shared for task in tasks[self.finished(run) :]) * (1 + self.work[run].config.connectivity)
            for run, tasks in self.tasks.items()
        }

    def marks(self) -> dict[Run, int]:
        """When the runs that have ended early did so, by the clock of their file system."""
        found = {}
        for run in self.tasks:
            with contextlib.suppress(OSError):
                found[run] = (run.dumps / FAILED).stat().st_mtime_ns
        return found

    def _look_for_failures(self) -> None:
        for run, mark in self.marks().items():
            if run not in self.failed and mark != self.before.get(run):
                with contextlib.suppress(FileNotFoundError):
                    self.failed[run] = files.read(run.dumps / FAILED).decode(errors="replace").strip()

    def _catch_up(self, run: Run, upto: int) -> list[Event]:
        """The rounds below `upto` that have not been told."""
        news, before, now = list[Event](), self._told[run], min(upto, len(self.tasks[run]))
        if before < now:
            seconds = tables.table(run, "times")["seconds"].tolist()
            for number, row in enumerate(tables.table(run, "rounds").to_dict("records")[before:now], before):
                took = 0.0 if self.tasks[run][number].shared else seconds[number]
                news.append(RoundDone(run, {str(key): value for key, value in row.items()}, took, ()))
        self._told[run] = max(before, now)
        return news

    def open(self) -> Iterator[Run]:
        """The runs that somebody has to go on with."""
        return (run for run in self.tasks if run not in self.failed and not self._ended(run))

    def _ended(self, run: Run) -> bool:
        return self.finished(run) >= len(self.tasks[run])

    def ready(self) -> Iterator[tuple[list[Run], int]]:
        """Runs that can go on now, as many together as one process may train, and up to which round."""
        for _, group in itertools.groupby(list(self.open()), lambda run: self.work[run].asked):
            runs = list(group)
            size = self.work[runs[0]].together
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
        return self.finished(other) > number and Store(other).has(numbered("ticket", task.round))


def _of(run: Run, ours: Collection[int]) -> bool:
    """Whether one of these processes of this machine was the last to hold a run."""
    last = files.read_json(lock.holder_file(run.dumps))
    return last.get("host") == socket.gethostname() and last.get("pid") in ours
