"""The work loop: find a run that can be trained, take its lock, train it as far as possible, release it.

It is the same in this process, in --jobs processes side by side, in each process of --join and in the tasks of a Ray
cluster (lth.commands.cluster).
"""

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
import torch.multiprocessing  # makes pickle share tensors between processes

from lth.commands import device as devices
from lth.commands.device import MachineError
from lth.commands.queue import POLL, FolderWatcher, Piece, Queue, Work, next_look
from lth.experiment import Experiment, start_tickets
from lth.experiment.trainer import Event, Note
from lth.records.files import RecordError
from lth.records.lock import Locks, Lost
from lth.records.tables import Run
from lth.settings import checks
from lth.settings.config import Config, ConfigError, same_command
from lth.training.train import Stopped, TrialError

Tell = Callable[[Event], None]

# Errors of this machine, which stop all work; other errors end only the runs that raise them.
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
    """Record Ctrl-C and SIGTERM inside the `with` block instead of acting on them. Yields a function that returns the
    signal that came first, 0 if none has. A second one acts as usual, unless `patient`."""
    received: list[int] = []

    def record(signum: int, frame: object) -> None:
        received.append(signum)
        if not patient:
            signal.signal(signum, handlers[signum])

    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        for signum in handlers:
            signal.signal(signum, record)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


class Worker:
    """Trains pieces of experiments in this process, one after the other."""

    def __init__(self, device: torch.device, tell: Tell, stop: Callable[[], bool]) -> None:
        self.device, self.tell, self.stop = device, tell, stop
        self.work: Work | None = None  # the experiment that was trained last, kept as `experiment`

    def train(self, piece: Piece) -> dict[Run, str]:
        """Train a piece. Returns the runs that ended early, with the reason. MachineError if the device cannot be used
        afterwards; ConfigError if files that the settings name have been damaged since the command began."""
        work = piece.work
        try:
            if self.work is not work:
                problem = start_tickets.problem(work.config, work.images)
                self.experiment = Experiment(work.config, problem, self.device, self.tell, self.stop)
                self.work = work
            self.experiment.run(piece.runs, piece.rounds)
            return {run: reason for run, reason in self.experiment.failed.items() if run in piece.runs}
        except Exception as error:
            if self.device.type != "cpu":  # the next piece needs its memory
                devices.release(error)
            if not devices.failure(self.device):
                raise
            raise MachineError(
                f"{checks.error_message(error)}; {self.device} can no longer be used by this process: "
                f"{same_command(work.config.overwrite)} continues from here"
            ) from error


def work(queue: Queue, worker: Worker, look: Callable[[bool], object] = lambda idle: None) -> list[Exception]:
    """Train what can be trained, until nothing is left for any process or the worker is to stop. `look` is called after
    each look at the folder, with whether there was nothing to train at that moment.

    Returns the errors that pieces raised: their runs count as failed, and the loop continues with the others. FATAL
    errors are raised; their runs do not count as failed, since another process may be able to train them.
    """
    errors: list[Exception] = []
    due = 0.0
    while not worker.stop():
        if (began := time.monotonic()) < due:
            time.sleep(POLL)
            continue
        piece = queue.take()
        look(piece is None)
        if piece is None:
            if not queue.unfinished():
                break
            due = next_look(began)
            continue
        failed: Mapping[Run, str] = {}
        try:
            failed = worker.train(piece)
        except Stopped:
            pass
        except Lost as error:  # another process has the run now and continues it
            worker.tell(Note(str(error)))
        except FATAL:
            raise
        except Exception as error:
            errors.append(error)
            failed = dict.fromkeys(piece.runs, str(error))
            if len(queue.work) > len(failed):  # the error is raised only once the others have been trained
                for run in piece.runs:
                    worker.tell(Note(f"{run}: {error}", failed=run))
        finally:
            queue.give_back(piece, failed)
    return errors


def work_here(queue: Queue, device: torch.device, tell: Tell, signalled: Callable[[], int]) -> None:
    """The loop in this process. Raises the error that stopped it, or in the end the first that a piece raised."""
    watcher = FolderWatcher(queue, tell, [os.getpid()])
    worker = Worker(device, watcher.pass_on, lambda: bool(signalled()))
    raise_errors(work(queue, worker, watcher.look), signalled)


def raise_errors(errors: Sequence[Exception], signalled: Callable[[], int]) -> None:
    """Raise Interrupted after a signal, otherwise the first FATAL error, otherwise the first error, if any."""
    if signalled():
        raise Interrupted(signalled())
    if errors:
        raise min(errors, key=lambda error: not isinstance(error, FATAL))


def picklable(error: BaseException) -> Exception:
    """The error itself if it can be sent to another process, otherwise a TrialError with its message."""
    with contextlib.suppress(Exception):  # a class of the user may raise anything when it is pickled
        if isinstance(error, Exception) and type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return TrialError(f"{type(error).__name__}: {error}")


def process_count(config: Config) -> int:
    """The number of processes that train side by side on a CPU, if there is work for all of them."""
    return config.jobs or max(1, devices.cores() // (config.threads or 1))


def work_in_processes(queue: Queue, size: int, threads: int, tell: Tell, signalled: Callable[[], int]) -> None:
    """The loop in `size` processes with `threads` threads each, while this process watches. Raises the error that
    stopped it, or in the end the first that a piece raised."""
    for tensor in (tensor for work in queue.works for tensor in work.images.tensors()):
        tensor.share_memory_()
    context = multiprocessing.get_context("spawn")
    pids: dict[Any, int] = {}  # of the processes, by the connections to them
    with _worker_environment(threads):
        for _ in range(size):
            connection, other_end = context.Pipe()
            process = context.Process(target=_loop, args=(other_end, queue.works))
            process.start()
            other_end.close()
            pids[connection] = process.pid or 0
    idle, errors, stopping = dict.fromkeys(pids, False), list[Exception](), False
    watcher = FolderWatcher(queue, tell, list(pids.values()))
    try:
        while idle:
            ready: Any
            for ready in wait(list(idle), POLL):
                try:
                    message = ready.recv()
                except (EOFError, OSError):
                    message = [MachineError(KILLED)]
                if isinstance(message, list):  # the last message of a process: the errors that pieces raised
                    del idle[ready]
                    ready.close()
                    errors += message
                elif isinstance(message, bool):
                    idle[ready] = message
                else:
                    watcher.pass_on(message)
            stop = signalled() or any(isinstance(error, FATAL) for error in errors)
            if stop and not stopping:
                stopping = True
                if signalled():
                    tell(Note("stopping: each process first writes a checkpoint of its round"))
                for connection in idle:
                    with contextlib.suppress(OSError):  # the process has ended
                        connection.send("write your checkpoints and end")
            elif not stop:
                watcher.look(all(idle.values()))
    finally:  # at a second Ctrl-C the connections are closed, and the processes end at once
        for connection in idle:
            connection.close()
    queue.unfinished()  # which reads why runs ended early
    raise_errors(errors, signalled)


@contextlib.contextmanager
def _worker_environment(threads: int) -> Iterator[None]:
    """Processes that are started inside the `with` block have that many threads and ignore Ctrl-C, which the parent
    handles, from the first moment. They do not import the program that started them: a script without
    `if __name__ == "__main__"` would run again."""
    program, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    variables = {name: os.environ[name] for name in THREADS if name in os.environ}
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    has_masks = hasattr(signal, "pthread_sigmask")  # Windows has none
    if has_masks:
        resource_tracker.ensure_running()  # which would unblock the signal if the first process started it
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        sys.modules["__main__"] = program
        if has_masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name in THREADS:
            del os.environ[name]
        os.environ.update(variables)


def _loop(parent: Connection, works: Sequence[Work]) -> None:
    """The work loop in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a scheduler sends it to all processes
    stop = threading.Event()

    def obey() -> None:
        """Stop when the parent says so; end at once when it is gone."""
        with contextlib.suppress(EOFError, OSError):
            while parent.recv():
                stop.set()
        os._exit(1)

    threading.Thread(target=obey, daemon=True).start()
    errors: Sequence[BaseException]
    try:
        with Locks() as locks:
            errors = work(Queue(works, locks), Worker(torch.device("cpu"), parent.send, stop.is_set), parent.send)
    except BaseException as error:  # a model may raise anything outside of its training
        errors = [error]
    with contextlib.suppress(OSError):  # the parent is gone
        parent.send([picklable(error) for error in errors])
