"""Having the work of a queue done: who gets what next, until all is done or a signal stops it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from lth.records import lock
from lth.records.events import Event, Note
from lth.records.files import RecordError
from lth.records.lock import Lost
from lth.records.tables import Run
from lth.run.device import DeviceError
from lth.run.queue import Piece, Queue
from lth.settings.config import Config
from lth.training.train import Stopped, TrialError

POLL = 0.2  # seconds between looks at the workers
SHARE = 20  # of the time that a look at the folder takes, others share it: so much longer until the next look
LONGEST = 30.0  # seconds between looks at the folder
FATAL = (OSError, RecordError, DeviceError, BrokenProcessPool)  # of this machine; others are of what they happened to
Tell = Callable[[Event], None]


class Interrupted(Exception):
    """A signal asked the program to stop, and it did."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextmanager
def signals() -> Iterator[Callable[[], int]]:
    """Within it, Ctrl-C and SIGTERM are only noted; the function given says which one came (0: none). A second one
    acts as usual."""
    came: list[int] = []

    def note(signum: int, frame: object) -> None:
        came.append(signum)
        signal.signal(signum, before[signum])

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        for signum in before:
            signal.signal(signum, note)
    try:
        yield lambda: came[0] if came else 0
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def stop_if(signalled: Callable[[], int]) -> None:
    """Interrupted if a signal has come."""
    if signalled():
        raise Interrupted(signalled())


@dataclass(frozen=True)
class Outcome:
    """How the work on a piece ended: the runs that failed, with the reason, or what stopped all of it."""

    piece: Piece
    failed: Mapping[Run, str] = field(default_factory=dict)
    error: BaseException | None = None


class Workers(Protocol):
    """Those who do the work, within `with`. They tell of it while `ended` waits."""

    def free(self) -> bool:
        """Whether another piece can be started."""

    def start(self, piece: Piece) -> None:
        """Begin with a piece."""

    def ended(self, seconds: float) -> list[Outcome]:
        """What has ended by now; waits for the first, but not longer than this."""

    def stop(self) -> None:
        """Ask all to write their checkpoints and end."""

    def __enter__(self) -> Workers: ...

    def __exit__(self, *exception: object) -> None: ...


def work(
    queue: Queue, workers: Workers, tell: Tell, signalled: Callable[[], int] = lambda: 0, joined: bool = False
) -> None:
    """Do everything in the queue; where other processes have `joined` in it, wait for what they do.

    Raises Interrupted once everything has stopped after a signal; what a piece raised after the others have ended. What
    is FATAL stops them, and says nothing about the piece's runs: another process may do them.
    """
    errors: list[BaseException] = []
    busy, over, told, waiting, next_look = 0, False, False, False, 0.0
    with workers:
        while True:
            stopping = bool(signalled()) or any(isinstance(error, FATAL) for error in errors)
            if stopping:
                if signalled() and not told:
                    tell(Note("stopping: each process first writes where its round is"))
                    told = True
                workers.stop()
            elif time.monotonic() >= next_look:
                began = time.monotonic()
                while workers.free() and (piece := queue.take()):
                    workers.start(piece)
                    busy += 1
                if joined:
                    for event in queue.news():
                        tell(event)
                over = queue.over()
                next_look = time.monotonic() + (min(SHARE * (time.monotonic() - began), LONGEST) if joined else 0)
            if not busy and (stopping or over):
                break
            if not busy and not waiting:
                tell(Note("waiting: other processes have begun all that can be done now"))
            waiting = not busy
            for outcome in workers.ended(POLL):
                errors += _settle(outcome, queue, tell, joined)
                busy, next_look = busy - 1, 0.0
    stop_if(signalled)
    errors.sort(key=lambda error: not isinstance(error, FATAL))  # why it stopped before what went on without some runs
    if errors and isinstance(errors[0], BrokenProcessPool):
        raise TrialError("a worker process was killed, by lack of memory perhaps (--jobs lowers the need)") from None
    if errors:
        raise errors[0]


def _settle(outcome: Outcome, queue: Queue, tell: Tell, joined: bool) -> list[BaseException]:
    """Give a piece back to the queue, with the runs of it that failed. Gives what stopped the work on it, if that is to
    be raised in the end."""
    failed, error, raised = dict(outcome.failed), outcome.error, list[BaseException]()
    if isinstance(error, Lost):
        failed |= {} if joined else _lost(outcome.piece, tell)
    elif error is not None and not isinstance(error, Stopped):
        raised.append(error)
        if not isinstance(error, FATAL):
            failed |= {run: str(error) for run in outcome.piece.runs}
            if len(queue.tasks) > len(failed):  # the others go on: now is the time to say it
                for run in outcome.piece.runs:
                    tell(Note(f"{run}: {error}", failed=True))
    queue.give_back(outcome.piece, failed)
    return raised


def _lost(piece: Piece, tell: Tell) -> dict[Run, str]:
    """The runs of a piece that another process has taken over, with the reason, which is told."""
    lost = {}
    for run in piece.runs:
        try:
            lock.check(run.dumps)
        except Lost as error:
            lost[run] = str(error)
            tell(Note(f"{run}: {error}", failed=True))
    return lost


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def at_once(config: Config) -> int:
    """How many processes train beside each other on a CPU, if there is work for so many."""
    return config.jobs or max(1, cores() // config.threads)
