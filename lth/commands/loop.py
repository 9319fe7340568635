"""The loop of work: look for a run that can go on, take its lock, train it as far as it can go, let it go.

It is the same in this process, in --jobs processes beside each other (lth.commands.processes), in every process of
--join and in the tasks of a Ray cluster (lth.commands.cluster).
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lth.commands import device as devices
from lth.commands.queue import Piece, Queue
from lth.data.images import Images
from lth.experiment import Experiment, start_tickets
from lth.records.events import Event, Note
from lth.records.files import RecordError
from lth.records.lock import Lost
from lth.records.tables import Run
from lth.settings import checks
from lth.settings.config import Config, ConfigError, same_command
from lth.training.train import Stopped, TrialError

POLL = 0.2  # seconds between looks at the folder, or at what the processes tell
SHARE = 20  # of the time that a look at the folder takes, others share it: so much longer until the next look
LONGEST = 30.0  # seconds between looks at the folder
Tell = Callable[[Event], None]
Data = Mapping[Config, tuple[Config, Images]]  # by the settings as asked for: as the data settle them, and these


class Interrupted(Exception):
    """A signal asked the program to stop, and it did."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class WorkerKilled(TrialError):
    """A worker process has vanished."""


FATAL = (OSError, RecordError, devices.DeviceError, WorkerKilled)  # of this machine; others are the fault of the runs


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


def next_look(began: float) -> float:
    """When to look at the folder again, after a look that began then: seldom, where looks take long."""
    return time.monotonic() + min(max(POLL, SHARE * (time.monotonic() - began)), LONGEST)


class Trainer:
    """Trains pieces of some experiments in this process, one after the other."""

    def __init__(self, data: Data, device: torch.device, tell: Tell, stop: Callable[[], bool]) -> None:
        self.data, self.device, self.tell, self.stop = data, device, tell, stop
        self.asked: Config | None = None  # of the experiment that it is at

    def train(self, piece: Piece) -> dict[Run, str]:
        """Train what the piece says; gives those of its runs that ended early, with the reason. DeviceError if the
        device died of it; RecordError if files that the settings name have been spoiled since the command began."""
        try:
            if self.asked != piece.asked:
                config, images = self.data[piece.asked]
                problem = start_tickets.problem(config, images)
                self.experiment = Experiment(config, problem, self.device, self.tell, self.stop)
                self.asked = piece.asked  # only now: what raised above raises again
            self.experiment.run(piece.runs, piece.rounds)
            return {run: why for run, why in self.experiment.failed.items() if run in piece.runs}
        except ConfigError as error:
            raise RecordError(f"{error} (all was well when the command began)") from None
        except Exception as error:
            if self.device.type != "cpu":  # whose memory the next piece needs
                devices.release(error)
            if devices.answers(self.device):
                raise
            goes_on = f"{same_command(piece.asked.overwrite)} goes on from here"
            dead = f"{self.device} can no longer be used by this process: {goes_on}"
            raise devices.DeviceError(f"{checks.first_line(error)}; {dead}") from error


def work(
    queue: Queue,
    train: Callable[[Piece], Mapping[Run, str]],
    tell: Tell,
    stop: Callable[[], object],
    look: Callable[[bool], object] = lambda idle: None,
) -> list[Exception]:
    """Do what can be done in the queue, until nothing is left for any process, or `stop` says so. `look` is called
    after every look at the folder, with whether there was nothing to do at the moment.

    Gives what pieces raised: their runs count as failed, and others go on. FATAL errors are raised, and say nothing
    about the runs: another process may train them.
    """
    errors: list[Exception] = []
    due = 0.0
    while not stop():
        if (began := time.monotonic()) < due:
            time.sleep(POLL)
            continue
        piece = queue.take()
        look(piece is None)
        if piece is None:
            if queue.over():
                break
            due = next_look(began)
            continue
        failed: Mapping[Run, str] = {}
        try:
            failed = train(piece)
        except Stopped:
            pass
        except Lost as error:  # whoever has it goes on with it
            tell(Note(f"{error}"))
        except FATAL:
            raise
        except Exception as error:
            errors.append(error)
            failed = dict.fromkeys(piece.runs, str(error))
            if len(queue.tasks) > len(failed):  # the others go on: now is the time to say it
                for run in piece.runs:
                    tell(Note(f"{run}: {error}", failed=True))
        finally:
            queue.give_back(piece, failed)
    return errors


def work_here(queue: Queue, data: Data, device: torch.device, tell: Tell, signalled: Callable[[], int]) -> None:
    """The loop in this process. Raises what stopped it, or in the end what pieces raised."""
    waited = False

    def look(idle: bool) -> None:
        nonlocal waited
        for event in queue.news([os.getpid()]):
            tell(event)
        if idle and not waited and not queue.over() and (sentence := queue.waiting_for()):
            tell(Note(sentence))
            waited = True
        waited &= idle

    trainer = Trainer(data, device, tell, lambda: bool(signalled()))
    errors = work(queue, trainer.train, tell, signalled, look)
    finish(errors, signalled)


def finish(errors: list[Exception], signalled: Callable[[], int]) -> None:
    """Raise Interrupted after a signal, else the first of the errors, those first that stopped all work."""
    stop_if(signalled)
    if errors:
        raise min(errors, key=lambda error: not isinstance(error, FATAL))


def portable(error: Exception) -> Exception:
    """The error, as another process can read it."""
    try:
        return error if isinstance(pickle.loads(pickle.dumps(error)), type(error)) else TrialError(str(error))
    except Exception:  # whatever a foreign class does when it is pickled
        return TrialError(f"{type(error).__name__}: {error}")


def at_once(config: Config) -> int:
    """How many processes train beside each other on a CPU, if there is work for so many."""
    return config.jobs or max(1, devices.cores() // (config.threads or 1))
