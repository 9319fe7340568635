"""What there is to do next: the folder is the queue. Many processes may share it; each run is locked by one of them."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lth.data.images import Images
from lth.experiment.trainer import Event, Note, RoundDone
from lth.records import files, identity, journal, lock, tables
from lth.records.files import RecordError
from lth.records.lock import Locks
from lth.records.store import Store, numbered
from lth.records.tables import Run
from lth.settings.arms import ARMS
from lth.settings.config import Config
from lth.training.problem import Problem

FAILED = "failed.txt"  # in a run's folder: why it ended early, until a later command tries it again
POLL = 0.2  # seconds between looks at the folder, or for messages of the processes
SHARE = 20  # a look at the folder that takes long is followed by a pause so many times as long,
LONGEST = 30.0  # but no longer than these seconds


@dataclass(frozen=True)
class Work:
    """An experiment that can be done.

    runs: its runs; the first of a trial trains the dense round.
    images, problem: what its settings name.
    facts: what the config.json of each run says.
    together: how many of its runs may be trained at once, as one stacked network.
    """

    config: Config
    runs: Sequence[Run]
    images: Images = field(compare=False)
    problem: Problem = field(compare=False)
    facts: Mapping[str, Any] = field(default_factory=dict)
    together: int = 1

    def __getstate__(self) -> dict[str, Any]:
        """All but the problem, which another process makes of the settings and the images."""
        return {**vars(self), "problem": None}


@dataclass(frozen=True)
class Piece:
    """Runs of one experiment, locked by this process, to be trained up to so many rounds."""

    work: Work
    runs: Sequence[Run]
    rounds: int


def next_look(began: float) -> float:
    """When to look at the folder again after a look that began then: rarely where looks take long."""
    return time.monotonic() + min(max(POLL, SHARE * (time.monotonic() - began)), LONGEST)


class Queue:
    """The runs of some experiments, as the folder shows them. `locks` are held by this process; None for a process
    that only looks on. `failed` has the runs that ended early, here or elsewhere, with the reason."""

    def __init__(self, works: Sequence[Work], locks: Locks | None = None) -> None:
        self.works, self.locks = works, locks
        self.work: dict[Run, Work] = {}
        self.dense: dict[Run, Run] = {}  # the run of the trial that trains the dense round
        for work in works:
            first = {run.seed: run for run in reversed(work.runs)}
            for run in work.runs:
                if run not in self.work or self.rounds(run) < work.config.prune_iterations:
                    self.work[run], self.dense[run] = work, first[run.seed]
        self.failed: dict[Run, str] = {}
        self._finished: dict[Run, tuple[object, int]] = {}

    def rounds(self, run: Run) -> int:
        """How many rounds of a run are asked for."""
        return self.work[run].config.prune_iterations

    def finished(self, run: Run) -> int:
        """How many rounds of a run are finished, with the line that --connectivity measures. Its journal is read again
        only when it has changed."""
        stamp = journal.stamp(run)
        if stamp is None or self._finished.get(run, (None, 0))[0] != stamp:
            self._finished[run] = stamp, tables.done_rounds(run, self.work[run].config.connectivity)
        return self._finished[run][1]

    def left(self) -> dict[Run, int]:
        """How many trainings each run still needs: two per round with --connectivity, none for a dense round that
        another arm trains. With --overwrite nothing is finished."""
        left = {}
        for run, work in self.work.items():
            done = 0 if work.config.overwrite else self.finished(run)
            rounds = self.rounds(run) - max(done, self.dense[run] != run)
            left[run] = max(rounds, 0) * (1 + work.config.connectivity)
        return left

    def open(self) -> list[Run]:
        """The runs that are neither finished nor failed."""
        for run in self.work:
            if run not in self.failed:
                with contextlib.suppress(FileNotFoundError):
                    self.failed[run] = files.read(run.dumps / FAILED).decode(errors="replace").strip()
        return [run for run in self.work if not self._ended(run)]

    def try_again(self) -> None:
        """Forget which runs ended early in earlier commands."""
        for run in self.work:
            files.delete(run.dumps / FAILED)

    def take(self) -> Piece | None:
        """Runs that can be trained now, locked for this process; None if there are none that nobody works on."""
        assert self.locks is not None
        for runs, rounds in self.ready():
            locked = [run for run in runs if self.locks.try_take(run.dumps)]
            able = [run for run in locked if self.finished(run) < rounds <= self._reach(run, locked)]
            for run in locked:
                if run not in able:  # another process has been at it meanwhile
                    self.locks.release(run.dumps)
            if able:
                work = self.work[able[0]]
                identity.check(able, work.config, work.facts["fingerprint"])
                for run in able:
                    _write_config(run, work)
                return Piece(work, able, rounds)
        return None

    def give_back(self, piece: Piece, failed: Mapping[Run, str]) -> None:
        """Work has ended, done or not. No process of this command tries again what `failed`, with the reason."""
        assert self.locks is not None
        self.failed.update(failed)
        for run in piece.runs:
            if run in failed:
                with contextlib.suppress(RecordError):
                    files.write(run.dumps / FAILED, f"{failed[run]}\n".encode())
            self.locks.release(run.dumps)

    def ready(self) -> Iterator[tuple[list[Run], int]]:
        """Runs that can be trained now, as many together as one process may train, and up to which round; those of most
        rounds first, since what waits for others had better wait for all that it needs."""
        for work, group in itertools.groupby(self.open(), self.work.__getitem__):
            runs = list(group)
            along = [run for run in runs if self._reach(run) > self.finished(run)] if work.together > 1 else []
            reach = {run: rounds for run in runs if (rounds := self._reach(run, along)) > self.finished(run)}
            for rounds in sorted({*reach.values()}, reverse=True):
                alike = [run for run in reach if reach[run] == rounds]
                for first in range(0, len(alike), work.together):
                    yield alike[first : first + work.together], rounds

    def _reach(self, run: Run, along: Sequence[Run] = ()) -> int:
        """Up to which round a run can be trained now, where the runs `along` are trained together with it: as far as
        the dense round of its trial and the masks that it takes from another arm are there. Where that arm has ended
        without them, the run's own training reports it."""
        finished, rounds, dense = self.finished(run), self.rounds(run), self.dense[run]
        if not finished and dense not in (run, *along) and not self.finished(dense) and not self._ended(dense):
            return 0
        masks_of = ARMS[run.arm].mask_of
        if not masks_of or self._ended(other := run.of_arm(masks_of)):
            return rounds
        later = int(ARMS[masks_of].changes_masks)  # whose masks are there once the round is finished
        for number in range(max(finished, 1), rounds):
            if self.finished(other) < number + later or not Store(other).has(numbered("ticket", number)):
                return number
        return rounds

    def _ended(self, run: Run) -> bool:
        return run in self.failed or self.finished(run) >= self.rounds(run)


def _write_config(run: Run, work: Work) -> None:
    """Write config.json, which says what the run is trained with, unless the run is finished."""
    about = tables.config_of(run)
    if not about or tables.done_rounds(run, work.config.connectivity) < work.config.prune_iterations:
        usual = {} if ARMS[run.arm].changes_masks else work.facts["sparse_up_to"]  # their products are dense
        own = {"arm": run.arm, "seed": run.seed, "sparse_up_to": about.get("sparse_up_to", usual)}
        files.write_json(run.dumps / "config.json", {**work.facts, **own})


class Watch:
    """Passes events on to `tell`, and adds what processes other than `ours` (their numbers on this machine) do."""

    def __init__(self, queue: Queue, tell: Callable[[Event], object], ours: Collection[int] = ()) -> None:
        self.queue, self.tell, self.ours = queue, tell, ours
        self.shown = {run: queue.finished(run) for run in queue.work}
        self.failed, self.waited, self.due = {*queue.failed}, False, 0.0

    def hear(self, event: Event) -> None:
        """An event of this command."""
        if isinstance(event, RoundDone):
            self.shown[event.run] = int(event.row["round"]) + 1
        self.tell(event)

    def look(self, idle: bool = False) -> None:
        """Report what others have done since the last look, unless that was just now, and, if this command is `idle`,
        once whom it waits for."""
        if (began := time.monotonic()) < self.due:
            return
        waiting = self.queue.open()
        for run in self.queue.work:
            ended = run in self.queue.failed and run not in self.failed
            new = range(self.shown[run], min(self.queue.finished(run), self.queue.rounds(run)))
            if not (new or ended) or lock.held_by(run.dumps, self.ours):
                continue
            for number in new:
                rows, times = (tables.table(run, name).to_dict("records") for name in ("rounds", "times"))
                shared = number == 0 and self.queue.dense[run] != run
                row = {str(key): value for key, value in rows[number].items()}
                self.hear(RoundDone(run, row, 0.0 if shared else float(times[number]["seconds"]), ()))
            if ended:
                self.tell(Note(f"{run}: {self.queue.failed[run]} (in another process)", failed=True))
        self.failed = {*self.queue.failed}
        others = [f"{lock.holder(run.dumps)} has {run}" for run in waiting if idle and lock.is_held(run.dumps)]
        if others and not self.waited:
            self.tell(Note(f"waiting for others: {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}"))
        self.waited = idle and (self.waited or bool(others))
        self.due = next_look(began)
