"""What is shown of the work: what the processes of this command tell, and what others finish in the same folder."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection

from lth.commands.queue import Queue
from lth.records import files, lock, tables
from lth.records.events import Event, Note, RoundDone
from lth.records.tables import Run

POLL = 0.2  # seconds between looks at the folder, or at what the processes tell
SHARE = 20  # a look at the folder that takes long is followed by a pause so many times as long,
LONGEST = 30.0  # but no longer than these seconds


def next_look(began: float) -> float:
    """When to look at the folder again, after a look that began then: seldom, where looks take long."""
    return time.monotonic() + min(max(POLL, SHARE * (time.monotonic() - began)), LONGEST)


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
        """Tell what others have done since the last look, unless that was just now, and, if this command is `idle`,
        once whom it waits for."""
        if (began := time.monotonic()) < self.due:
            return
        waiting = self.queue.open()
        for run in self.queue.work:
            ended = run in self.queue.failed and run not in self.failed
            if (ended or self.queue.finished(run) > self.shown[run]) and not self._is_ours(run):
                self._show(run)
                if ended:
                    self.tell(Note(f"{run}: {self.queue.failed[run]} (in another process)", failed=True))
        self.failed = {*self.queue.failed}
        others = [f"{lock.holder(run.dumps)} has {run}" for run in waiting if idle and lock.is_held(run.dumps)]
        if others and not self.waited:
            self.tell(Note(f"waiting for others: {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}"))
        self.waited = idle and (self.waited or bool(others))
        self.due = next_look(began)

    def _is_ours(self, run: Run) -> bool:
        """Whether a process of this command was the last to hold a run."""
        last = files.read_json(lock.holder_file(run.dumps))
        return last.get("host") == socket.gethostname() and last.get("pid") in self.ours

    def _show(self, run: Run) -> None:
        rows, seconds = tables.table(run, "rounds").to_dict("records"), tables.table(run, "times")["seconds"]
        for number in range(self.shown[run], min(self.queue.finished(run), self.queue.rounds(run))):
            shared = number == 0 and self.queue.dense[run] != run
            row = {str(key): value for key, value in rows[number].items()}
            self.hear(RoundDone(run, row, 0.0 if shared else float(seconds[number]), ()))
