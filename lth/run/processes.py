"""Those who do the work on this machine: this process, or several side by side."""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from queue import Empty
from typing import Any

import torch
import torch.multiprocessing  # teaches pickle to share tensors between processes

from lth.data.images import Images
from lth.experiment import Experiment, start_tickets
from lth.experiment.mode_connectivity import Connectivity
from lth.records.events import Event
from lth.records.files import RecordError
from lth.records.tables import Run
from lth.run import device as devices
from lth.run.jobs import POLL, Outcome, Tell
from lth.run.queue import Piece
from lth.settings import checks
from lth.settings.config import Config, ConfigError, same_command

Data = Mapping[Config, tuple[Config, Images]]  # of each experiment, the settings as the data settle them, and these


def workers(
    size: int, threads: int, data: Data, device: torch.device, tell: Tell, stop: Callable[[], bool]
) -> Here | Processes:
    """So many processes on a CPU, but this one where that is enough, or where the device is a GPU."""
    if device.type != "cpu" or size == 1:
        return Here(data, device, tell, stop)
    return Processes(size, threads, data, tell)


class Experiments:
    """The experiment that a process is at, made anew when another one's turn comes."""

    def __init__(self, data: Data, device: torch.device, tell: Tell, stop: Callable[[], bool]) -> None:
        self.data, self.device, self.tell, self.stop = data, device, tell, stop
        self.of: Config | None = None

    def do(self, piece: Piece) -> dict[Run, str]:
        """Train what the piece says; gives those of its runs that ended early, with the reason. DeviceError if the
        device died of it; RecordError if files that the settings name have been spoiled since the command began."""
        try:
            return self._do(piece)
        except ConfigError as error:
            raise RecordError(f"{error} (all was well when the command began)") from None
        except Exception as error:
            if devices.answers(self.device):
                raise
            goes_on = f"{same_command(piece.config.overwrite)} goes on from here"
            dead = f"{self.device} can no longer be used by this process: {goes_on}"
            raise devices.DeviceError(f"{checks.first_line(error)}; {dead}") from error

    def _do(self, piece: Piece) -> dict[Run, str]:
        if self.of != piece.config:
            config, images = self.data[piece.config]
            kind = Connectivity if config.connectivity else Experiment
            self.experiment = kind(config, start_tickets.problem(config, images), self.device, self.tell, self.stop)
            self.of = piece.config  # only now: what raised above raises again
        self.experiment.run(piece.runs, piece.rounds)
        return {run: why for run, why in self.experiment.failed.items() if run in piece.runs}


class Here:
    """Work in this process."""

    def __init__(self, data: Data, device: torch.device, tell: Tell, stop: Callable[[], bool]) -> None:
        self.experiments = Experiments(data, device, tell, stop)
        self.piece: Piece | None = None

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def free(self) -> bool:
        """Whether there is nothing to do."""
        return self.piece is None

    def start(self, piece: Piece) -> None:
        """Note what to do next."""
        self.piece = piece

    def ended(self, seconds: float) -> list[Outcome]:
        """Do it."""
        if self.piece is None:
            time.sleep(seconds)
            return []
        piece, self.piece = self.piece, None
        try:
            return [Outcome(piece, self.experiments.do(piece))]
        except Exception as error:
            if self.experiments.device.type != "cpu":  # whose memory the next piece needs
                devices.release(error)
            return [Outcome(piece, error=error)]

    def stop(self) -> None:
        """What is under way asks for itself; what is not begun is left."""


class Processes:
    """Work in so many processes, of `threads` threads each."""

    def __init__(self, size: int, threads: int, data: Data, tell: Tell) -> None:
        self.size, self.threads, self.tell = size, threads, tell
        for _, images in data.values():
            for tensor in images.tensors():
                tensor.share_memory_()
        context = multiprocessing.get_context("spawn")
        self.events, self.asked, self.over = context.Queue(), context.Event(), context.Event()
        arguments = data, self.events, self.asked, self.over
        self.pool = ProcessPoolExecutor(size, context, _start_worker, arguments)
        self.running: dict[Future[dict[Run, str]], tuple[int, Piece]] = {}
        self.started = 0
        self.told: set[int] = set()  # the pieces whose last word was heard, which may be before their ends are known

    def __enter__(self) -> Processes:
        with _undisturbed(self.threads):  # all workers load PyTorch now, not when there is work for them
            for _ in range(self.size):
                self.pool.submit(os.getpid)
        threading.Thread(
            target=self._see_the_first_end, args=[list(self.pool._processes.values())], daemon=True
        ).start()
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:
            self.stop()
        self.pool.shutdown()
        self._hear(seconds=math.inf)

    def free(self) -> bool:
        """Whether a process is free."""
        return len(self.running) < self.size

    def start(self, piece: Piece) -> None:
        """Hand it to a process."""
        self.started += 1
        try:
            with _undisturbed(self.threads):
                future = self.pool.submit(_work, piece, self.started)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
        self.running[future] = self.started, piece

    def ended(self, seconds: float) -> list[Outcome]:
        """What the processes have done, and told."""
        if not self.running:
            time.sleep(seconds)
        ended, _ = wait(self.running, seconds, FIRST_COMPLETED)
        outcomes, tellers = [], frozenset[int]()
        for future in ended:
            (number, piece), error = self.running.pop(future), future.exception()
            outcomes.append(Outcome(piece, {} if error else future.result(), error))
            if not isinstance(error, BrokenProcessPool):
                tellers |= {number}
        self._hear(tellers)
        return outcomes

    def stop(self) -> None:
        """Ask all."""
        self.asked.set()

    def _see_the_first_end(self, processes: list[multiprocessing.process.BaseProcess]) -> None:
        """Let all end once one has: it was killed, or there is no more work. From Python 3.12 on, a pool that has lost
        a process waits for the others, in `submit` too, and only sends them SIGTERM."""
        multiprocessing.connection.wait([process.sentinel for process in processes])
        self.asked.set()
        self.over.set()

    def _hear(self, tellers: frozenset[int] = frozenset(), seconds: float = POLL) -> None:
        """Tell what the processes told, for so long at most where more and more comes, but to the last word of these
        pieces."""
        until = time.monotonic() + seconds
        while (waiting := bool(tellers - self.told)) or time.monotonic() < until:
            try:
                event = self.events.get(timeout=5 if waiting else 0.01)
            except Empty:
                return
            if isinstance(event, int):
                self.told.add(event)
            else:
                self.tell(event)


@contextmanager
def _undisturbed(threads: int) -> Iterator[None]:
    """Start processes of so many threads in which Ctrl-C is left to the parent from their first moment on."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # read when a child loads torch
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    masks = hasattr(signal, "pthread_sigmask")  # Windows has none
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Worker:
    """What a worker process keeps between pieces."""

    experiments: Experiments
    tell: Callable[[Event | int], None]
    busy = False


def _start_worker(data: Data, events: Any, stop: Any, over: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a scheduler sends it to all
    asked = threading.Event()

    def watch() -> None:
        """Stop when asked to; die at once when the parent has died, and when all is over once nothing is under way."""
        parent = multiprocessing.parent_process()
        assert parent is not None
        while not multiprocessing.connection.wait([parent.sentinel], POLL):
            if stop.is_set():
                asked.set()
            if over.is_set() and not _Worker.busy:
                break
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _Worker.tell = events.put
    _Worker.experiments = Experiments(data, torch.device("cpu"), events.put, asked.is_set)


def _work(piece: Piece, number: int) -> dict[Run, str]:
    """Do a piece; gives those of its runs that ended early. The last thing told is the piece's number."""
    _Worker.busy = True
    try:
        return _Worker.experiments.do(piece)
    finally:
        _Worker.tell(number)
        _Worker.busy = False
