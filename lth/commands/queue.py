"""Which runs to train next. The results folder is the queue; processes share it, and each run is locked by one."""

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
POLL = 0.2  # seconds between looks at the folder, and to wait for messages of worker processes
PAUSE_FACTOR = 20  # the pause after a look at the folder is this many times as long as the look took,
LONGEST_PAUSE = 30.0  # but at most this many seconds


@dataclass(frozen=True)
class Work:
    """An experiment, ready to be trained.

    runs: its runs; the first one of each trial trains the dense round.
    images, problem: the data and the model of its settings.
    facts: the content of each run's config.json.
    piece_size: the most runs that a process takes at a time, to train them as stacked networks.
    """

    config: Config
    runs: Sequence[Run]
    images: Images = field(compare=False)
    problem: Problem = field(compare=False)
    facts: Mapping[str, Any] = field(default_factory=dict)
    piece_size: int = 1

    def __getstate__(self) -> dict[str, Any]:
        """Everything except the problem, which another process makes from the settings and the images."""
        return {**vars(self), "problem": None}


@dataclass(frozen=True)
class Piece:
    """Runs of one experiment, locked by this process, to be trained until they have that many `rounds`."""

    work: Work
    runs: Sequence[Run]
    rounds: int


def next_look(began: float) -> float:
    """The time of the next look at the folder, after one that `began` then: later if it took long."""
    took = time.monotonic() - began
    return time.monotonic() + min(max(POLL, PAUSE_FACTOR * took), LONGEST_PAUSE)


class Queue:
    """The runs of several experiments and their state in the folder. `locks`: of this process; None if it only watches.
    `failed`: the runs that ended early, in any process, with the reason."""

    def __init__(self, works: Sequence[Work], locks: Locks | None = None) -> None:
        self.works, self.locks = works, locks
        self.work: dict[Run, Work] = {}
        self.dense: dict[Run, Run] = {}  # the run of the same trial that trains the dense round
        for work in works:
            first = {run.seed: run for run in reversed(work.runs)}
            for run in work.runs:
                if run not in self.work or self.rounds(run) < work.config.prune_iterations:
                    self.work[run], self.dense[run] = work, first[run.seed]
        self.failed: dict[Run, str] = {}
        self._finished: dict[Run, tuple[object, int]] = {}

    def rounds(self, run: Run) -> int:
        """The number of rounds of a run that the settings ask for."""
        return self.work[run].config.prune_iterations

    def finished(self, run: Run) -> int:
        """The number of finished rounds of a run, with the lines of --connectivity. Its journal is read again only when
        it has changed."""
        stamp = journal.stamp(run)
        if stamp is None or self._finished.get(run, (None, 0))[0] != stamp:
            self._finished[run] = stamp, tables.done_rounds(run, self.work[run].config.connectivity)
        return self._finished[run][1]

    def left(self) -> dict[Run, int]:
        """The number of trainings that each run still needs: two per round with --connectivity, none for a dense round
        that another arm trains. With --overwrite nothing is finished."""
        left = {}
        for run, work in self.work.items():
            done = 0 if work.config.overwrite else self.finished(run)
            rounds = self.rounds(run) - max(done, self.dense[run] != run)
            left[run] = max(rounds, 0) * (1 + work.config.connectivity)
        return left

    def unfinished(self) -> list[Run]:
        """The runs that have neither finished nor failed, in this process or, as their folders show, in another."""
        for run in self.work:
            if run not in self.failed:
                with contextlib.suppress(FileNotFoundError):
                    self.failed[run] = files.read(run.dumps / FAILED).decode(errors="replace").strip()
        return [run for run in self.work if not self._ended(run)]

    def clear_failures(self) -> None:
        """Forget which runs ended early in earlier commands, so that they are tried again."""
        for run in self.work:
            files.delete(run.dumps / FAILED)

    def take(self) -> Piece | None:
        """Lock runs that can be trained now and that no other process works on; None if there are none."""
        assert self.locks is not None
        for runs, rounds in self.ready():
            locked = [run for run in runs if self.locks.try_take(run.dumps)]
            ready = [run for run in locked if self.finished(run) < rounds <= self._reach(run, locked)]
            for run in locked:
                if run not in ready:  # another process has trained it meanwhile
                    self.locks.release(run.dumps)
            if ready:
                work = self.work[ready[0]]
                identity.check(ready, work.config, work.facts["fingerprint"])
                for run in ready:
                    write_config(run, work.config, work.facts)
                return Piece(work, ready, rounds)
        return None

    def give_back(self, piece: Piece, failed: Mapping[Run, str]) -> None:
        """Release the runs of a piece, finished or not. No process of this command tries those again that have
        `failed`, with the reason. RecordError if that cannot be written, since the other processes would not know of
        it."""
        assert self.locks is not None
        self.failed.update(failed)
        try:
            for run, reason in failed.items():
                files.write(run.dumps / FAILED, f"{reason}\n".encode())
        except RecordError as error:
            raise RecordError(f"{run}: {reason}; then {error}") from error
        finally:
            for run in piece.runs:
                self.locks.release(run.dumps)

    def ready(self) -> Iterator[tuple[list[Run], int]]:
        """Groups of runs that can be trained now, of the size of a piece, and the number of rounds that they can reach.
        Those with the most rounds come first: runs that need masks of others are best trained once all are there."""
        for work, group in itertools.groupby(self.unfinished(), self.work.__getitem__):
            runs, size = list(group), work.piece_size
            ready = [run for run in runs if self._reach(run) > self.finished(run)] if size > 1 else []
            reach = {run: rounds for run in runs if (rounds := self._reach(run, ready)) > self.finished(run)}
            for rounds in sorted({*reach.values()}, reverse=True):
                same_rounds = [run for run in reach if reach[run] == rounds]
                for first in range(0, len(same_rounds), size):
                    yield same_rounds[first : first + size], rounds

    def _reach(self, run: Run, companions: Sequence[Run] = ()) -> int:
        """The number of rounds that a run can reach now if it is trained together with its `companions`: it needs the
        dense round of its trial, and the masks that it takes from another arm. If that arm has ended without them, the
        run is trained nevertheless and reports it."""
        finished, rounds, dense = self.finished(run), self.rounds(run), self.dense[run]
        if not finished and dense not in (run, *companions) and not self.finished(dense) and not self._ended(dense):
            return 0
        masks_of = ARMS[run.arm].mask_of
        if not masks_of or self._ended(other := run.of_arm(masks_of)):
            return rounds
        after_round = int(ARMS[masks_of].changes_masks)  # then the masks exist only once their round is finished
        for number in range(max(finished, 1), rounds):
            if self.finished(other) < number + after_round or not Store(other).has(numbered("ticket", number)):
                return number
        return rounds

    def _ended(self, run: Run) -> bool:
        return run in self.failed or self.finished(run) >= self.rounds(run)


def write_config(run: Run, config: Config, facts: Mapping[str, Any]) -> None:
    """Write the run's config.json, unless the run is finished. A run that is continued keeps its limits of sparse
    products."""
    recorded = tables.read_config(run)
    if not recorded or tables.done_rounds(run, config.connectivity) < config.prune_iterations:
        limits = {} if ARMS[run.arm].learn else facts["sparse_up_to"]  # all weights take part where masks are learned
        own = {"arm": run.arm, "seed": run.seed, "sparse_up_to": recorded.get("sparse_up_to", limits)}
        files.write_json(run.dumps / "config.json", {**facts, **own})


class FolderWatcher:
    """Passes the events of this command to `tell`, and reports the progress of other processes as the folder shows it.
    `own_pids`: the processes of this command on this machine."""

    def __init__(self, queue: Queue, tell: Callable[[Event], object], own_pids: Collection[int] = ()) -> None:
        self.queue, self.tell, self.own_pids = queue, tell, own_pids
        self.reported = {run: queue.finished(run) for run in queue.work}  # the number of rounds
        self.failed, self.waiting, self.due = {*queue.failed}, False, 0.0

    def pass_on(self, event: Event) -> None:
        """Report an event of this command."""
        if isinstance(event, RoundDone):
            self.reported[event.run] = int(event.row["round"]) + 1
        self.tell(event)

    def look(self, idle: bool = False) -> None:
        """Report what other processes have done since the last look, unless that was just now; if this command is
        `idle`, report once which processes it waits for."""
        if (began := time.monotonic()) < self.due:
            return
        unfinished = self.queue.unfinished()
        for run in self.queue.work:
            has_failed = run in self.queue.failed and run not in self.failed
            new = range(self.reported[run], min(self.queue.finished(run), self.queue.rounds(run)))
            if not (new or has_failed) or lock.held_by(run.dumps, self.own_pids):
                continue
            for number in new:
                rows, times = (tables.table(run, name).to_dict("records") for name in ("rounds", "times"))
                shared = number == 0 and self.queue.dense[run] != run
                row = {str(key): value for key, value in rows[number].items()}
                self.pass_on(RoundDone(run, row, 0.0 if shared else float(times[number]["seconds"]), ()))
            if has_failed:
                self.tell(Note(f"{run}: {self.queue.failed[run]} (in another process)", failed=run))
        self.failed = {*self.queue.failed}
        others = [f"{lock.holder(run.dumps)} has {run}" for run in unfinished if idle and lock.is_held(run.dumps)]
        if others and not self.waiting:
            self.tell(Note(f"waiting for others: {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}"))
        self.waiting = idle and (self.waiting or bool(others))
        self.due = next_look(began)
