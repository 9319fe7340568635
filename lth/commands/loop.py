"""The loop of work: look for a run that can be trained, take its lock, train it as far as it can go, release it.

It is the same in this process, in --jobs processes beside each other, in every process of --join and in the tasks of a
Ray cluster (lth.commands.cluster).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

import torch
import torch.multiprocessing  # teaches pickle to share tensors between processes

from lth.commands import device as devices
from lth.commands.device import MachineError
from lth.commands.queue import POLL, Piece, Queue, Watch, Work, next_look
from lth.experiment import Experiment, start_tickets
from lth.experiment.trainer import Event, Note
from lth.records.files import RecordError
from lth.records.lock import Locks, Lost
from lth.records.tables import Run
from lth.settings import checks
from lth.settings.config import Config, ConfigError, same_command
from lth.training.train import Stopped, TrialError

Tell = Callable[[Event], None]

# What stops all work, since it is the fault of this machine; other errors are the fault of the runs.
FATAL = (OSError, RecordError, ConfigError, MachineError)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # read when a process loads PyTorch
KILLED = "a worker process was killed, by lack of memory perhaps (--jobs lowers the need)"


class Interrupted(Exception):
    """A signal asked the program to stop, and it did."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextlib.contextmanager
def signals(patient: bool = False) -> Iterator[Callable[[], int]]:
    """Within it, Ctrl-C and SIGTERM are only noted; the function given says which one came (0: none). A second one
    acts as usual, unless `patient`."""
    came: list[int] = []

    def note(signum: int, frame: object) -> None:
        came.append(signum)
        if not patient:
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


class Trainer:
    """Trains pieces of experiments in this process, one after the other."""

    def __init__(self, device: torch.device, tell: Tell, stop: Callable[[], bool]) -> None:
        self.device, self.tell, self.stop = device, tell, stop
        self.work: Work | None = None  # the last that was trained, as `experiment`

    def train(self, piece: Piece) -> dict[Run, str]:
        """Train a piece. Returns the runs that ended early, with the reason. MachineError if the device died
        of it; ConfigError if files that the settings name have been spoiled since the command began."""
        work = piece.work
        try:
            if self.work is not work:
                problem = start_tickets.problem(work.config, work.images)
                self.experiment = Experiment(work.config, problem, self.device, self.tell, self.stop)
                self.work = work
            self.experiment.run(piece.runs, piece.rounds)
            return {run: why for run, why in self.experiment.failed.items() if run in piece.runs}
        except Exception as error:
            if self.device.type != "cpu":  # whose memory the next piece needs
                devices.release(error)
            if devices.answers(self.device):
                raise
            raise MachineError(
                f"{checks.first_line(error)}; {self.device} can no longer be used by this process: "
                f"{same_command(work.config.overwrite)} continues from here"
            ) from error


def work(queue: Queue, trainer: Trainer, look: Callable[[bool], object] = lambda idle: None) -> list[Exception]:
    """Do what can be done in the queue, until nothing is left for any process or the trainer is to stop. `look` is
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


def work_here(queue: Queue, device: torch.device, tell: Tell, signalled: Callable[[], int]) -> None:
    """The loop in this process. Raises what stopped it, or in the end what pieces raised."""
    watch = Watch(queue, tell, [os.getpid()])
    finish(work(queue, Trainer(device, watch.hear, lambda: bool(signalled())), watch.look), signalled)


def finish(errors: Sequence[Exception], signalled: Callable[[], int]) -> None:
    """Raise Interrupted after a signal, else the first of the errors, those first that stopped all work."""
    if signalled():
        raise Interrupted(signalled())
    if errors:
        raise min(errors, key=lambda error: not isinstance(error, FATAL))


def portable(error: BaseException) -> Exception:
    """The error, as another process can read it."""
    with contextlib.suppress(Exception):  # whatever a foreign class raises when it is pickled
        if isinstance(error, Exception) and type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return TrialError(f"{type(error).__name__}: {error}")


def at_once(config: Config) -> int:
    """How many processes train beside each other on a CPU, if there is work for so many."""
    return config.jobs or max(1, devices.cores() // (config.threads or 1))


def work_in_processes(queue: Queue, size: int, threads: int, tell: Tell, signalled: Callable[[], int]) -> None:
    """The loop in `size` processes of so many threads each, while this one looks on. Raises what stopped it, or in the
    end what pieces raised."""
    for tensor in (tensor for work in queue.works for tensor in work.images.tensors()):
        tensor.share_memory_()
    context = multiprocessing.get_context("spawn")
    pids: dict[Any, int] = {}  # of the processes, by the connections to them
    with _undisturbed(threads):
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_loop, args=(theirs, queue.works))
            process.start()
            theirs.close()
            pids[ours] = process.pid or 0
    idle, errors, asked = dict.fromkeys(pids, False), list[Exception](), False
    watch = Watch(queue, tell, list(pids.values()))
    try:
        while idle:
            link: Any
            for link in wait(list(idle), POLL):
                try:
                    message = link.recv()
                except (EOFError, OSError):
                    message = [MachineError(KILLED)]
                if isinstance(message, list):  # its last: what pieces raised
                    del idle[link]
                    link.close()
                    errors += message
                elif isinstance(message, bool):
                    idle[link] = message
                else:
                    watch.hear(message)
            stopped = signalled() or any(isinstance(error, FATAL) for error in errors)
            if stopped and not asked:
                asked = True
                if signalled():
                    tell(Note("stopping: each process first writes where its round is"))
                for link in idle:
                    with contextlib.suppress(OSError):  # it has ended
                        link.send("write your checkpoints and end")
            elif not stopped:
                watch.look(all(idle.values()))
    finally:  # at a second Ctrl-C the connections are closed, and the processes end at once
        for link in idle:
            link.close()
    queue.open()  # which reads why runs ended early
    finish(errors, signalled)


@contextlib.contextmanager
def _undisturbed(threads: int) -> Iterator[None]:
    """Start processes of so many threads in which Ctrl-C is left to the parent from their first moment on, and which do
    not import the program that started them: a script without `if __name__ == "__main__"` would begin again there."""
    program, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    before = {name: os.environ[name] for name in THREADS if name in os.environ}
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    masks = hasattr(signal, "pthread_sigmask")  # Windows has none
    if masks:
        resource_tracker.ensure_running()  # which would unblock the signal if the first process started it
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        sys.modules["__main__"] = program
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name in THREADS:
            del os.environ[name]
        os.environ.update(before)


def _loop(link: Connection, works: Sequence[Work]) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a scheduler sends it to all
    asked = threading.Event()

    def obey() -> None:
        """Stop when asked to; end at once when the parent is gone."""
        with contextlib.suppress(EOFError, OSError):
            while link.recv():
                asked.set()
        os._exit(1)

    threading.Thread(target=obey, daemon=True).start()
    errors: Sequence[BaseException]
    try:
        with Locks() as locks:
            errors = work(Queue(works, locks), Trainer(torch.device("cpu"), link.send, asked.is_set), link.send)
    except BaseException as error:  # whatever a model raises outside of its training
        errors = [error]
    with contextlib.suppress(OSError):  # the parent is gone
        link.send([portable(error) for error in errors])
