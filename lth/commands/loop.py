"""The loop of work: look for a run that can be trained, take its lock, train it as far as it can go, release it.

It is the same in this process, in --jobs processes beside each other (lth.commands.processes), in every process of
--join and in the tasks of a Ray cluster (lth.commands.cluster).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from lth.commands import device as devices
from lth.commands.queue import Piece, Queue
from lth.commands.watch import POLL, Watch, next_look
from lth.data.images import Images
from lth.experiment import Experiment, start_tickets
from lth.records.events import Event, Note
from lth.records.files import RecordError
from lth.records.lock import Lost
from lth.records.tables import Run
from lth.settings import checks
from lth.settings.config import Config, ConfigError, same_command
from lth.training.train import Stopped, TrialError

Tell = Callable[[Event], None]
Data = Mapping[Config, tuple[Config, Images]]  # by the settings as asked for: as the data settle them, and these


class Interrupted(Exception):
    """A signal asked the program to stop, and it did."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class WorkerKilled(TrialError):
    """A worker process has vanished."""


# What stops all work, since it is the fault of this machine; other errors are the fault of the runs.
FATAL = (OSError, RecordError, ConfigError, devices.DeviceError, WorkerKilled)


@contextlib.contextmanager
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


class Trainer:
    """Trains pieces of some experiments in this process, one after the other."""

    def __init__(self, data: Data, device: torch.device, tell: Tell, stop: Callable[[], bool]) -> None:
        self.data, self.device, self.tell, self.stop = data, device, tell, stop
        self.asked: Config | None = None  # of the experiment that it is at

    def train(self, piece: Piece) -> dict[Run, str]:
        """Train what the piece says. Returns those of its runs that ended early, with the reason. DeviceError if the
        device died of it; ConfigError if files that the settings name have been spoiled since the command began."""
        try:
            if self.asked != piece.asked:
                config, images = self.data[piece.asked]
                problem = start_tickets.problem(config, images)
                self.experiment = Experiment(config, problem, self.device, self.tell, self.stop)
                self.asked = piece.asked  # only now: what raised above raises again
            self.experiment.run(piece.runs, piece.rounds)
            return {run: why for run, why in self.experiment.failed.items() if run in piece.runs}
        except Exception as error:
            if self.device.type != "cpu":  # whose memory the next piece needs
                devices.release(error)
            if devices.answers(self.device):
                raise
            raise devices.DeviceError(
                f"{checks.first_line(error)}; {self.device} can no longer be used by this process: "
                f"{same_command(piece.asked.overwrite)} continues from here"
            ) from error


def work(
    queue: Queue,
    trainer: Trainer,
    look: Callable[[bool], object] = lambda idle: None,
) -> list[Exception]:
    """Do what can be done in the queue, until nothing is left for any process, or the trainer is to stop. `look` is
    called after every look at the folder, with whether there was nothing to do at the moment.

    Returns what pieces raised: their runs count as failed, and the loop continues with the others. FATAL errors are
    raised, and say nothing about the runs: another process may train them.
    """
    errors: list[Exception] = []
    due = 0.0
    while not trainer.stop():
        if (began := time.monotonic()) < due:
            time.sleep(POLL)
            continue
        piece = queue.take()
        look(piece is None)
        if piece is None:
            if not queue.open():
                break
            due = next_look(began)
            continue
        failed: Mapping[Run, str] = {}
        try:
            failed = trainer.train(piece)
        except Stopped:
            pass
        except Lost as error:  # the process that has it now continues it
            trainer.tell(Note(str(error)))
        except FATAL:
            raise
        except Exception as error:
            errors.append(error)
            failed = dict.fromkeys(piece.runs, str(error))
            if len(queue.work) > len(failed):  # the others are trained first: now is the time to report it
                for run in piece.runs:
                    trainer.tell(Note(f"{run}: {error}", failed=True))
        finally:
            queue.give_back(piece, failed)
    return errors


def work_here(queue: Queue, data: Data, device: torch.device, tell: Tell, signalled: Callable[[], int]) -> None:
    """The loop in this process. Raises what stopped it, or in the end what pieces raised."""
    watch = Watch(queue, tell, [os.getpid()])
    errors = work(queue, Trainer(data, device, watch.hear, lambda: bool(signalled())), watch.look)
    finish(errors, signalled)


def finish(errors: list[Exception], signalled: Callable[[], int]) -> None:
    """Raise Interrupted after a signal, else the first of the errors, those first that stopped all work."""
    stop_if(signalled)
    if errors:
        raise min(errors, key=lambda error: not isinstance(error, FATAL))


def portable(error: BaseException) -> Exception:
    """The error, as another process can read it."""
    with contextlib.suppress(Exception):  # whatever a foreign class raises when it is pickled
        copy = pickle.loads(pickle.dumps(error))
        if isinstance(error, Exception) and type(copy) is type(error):
            return error
    return TrialError(f"{type(error).__name__}: {error}")


def at_once(config: Config) -> int:
    """How many processes train beside each other on a CPU, if there is work for so many."""
    return config.jobs or max(1, devices.cores() // (config.threads or 1))
