"""Running many experiments side by side: a process a run on a CPU, stacks of runs in this process on a GPU."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.multiprocessing  # teaches pickle to share tensors between processes

from lth.data.images import Images
from lth.experiment import Experiment, TrialError
from lth.records import folders
from lth.records.events import Event, Note
from lth.records.files import RecordError
from lth.records.tables import Run
from lth.settings import names
from lth.settings.arms import ARMS
from lth.settings.config import Config
from lth.training.problem import Problem
from lth.training.train import Stopped

POLL = 0.2  # seconds between looks at the workers


@dataclass(frozen=True)
class Task:
    """Some runs, trained together up to a number of rounds, once the tasks numbered in `needs` are done."""

    runs: tuple[Run, ...]
    rounds: int
    needs: tuple[int, ...] = ()


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


def runs_of(config: Config) -> list[Run]:
    """The runs that the settings ask for, a trial's arms one after another; first those whose masks others need."""
    needed = [ARMS[arm].mask_of for arm in config.prune_type if ARMS[arm].mask_of]
    arms = dict.fromkeys([*needed, *config.prune_type])
    dataset = names.dataset(config.dataset)
    spelled = folders.spelled(
        config.root, names.model(config.arch_type, dataset, config.data), dataset, config.folder()
    )
    return [Run(config.root, *spelled, arm, seed) for seed in config.seeds for arm in arms]


def tasks_of(runs: Sequence[Run], rounds: int, together: bool) -> list[Task]:
    """What is to be done in which order: the dense round of a trial once, its arms after that, then those that take
    the masks of others.

    `together` makes one task of all runs that can be trained at the same time (for stacking).
    """
    own = [run for run in runs if not ARMS[run.arm].mask_of]
    controls = [run for run in runs if ARMS[run.arm].mask_of]
    if together:
        return [Task(tuple(own), rounds), *([Task(tuple(controls), rounds, (0,))] if controls else [])]
    tasks: list[Task] = []
    number: dict[tuple[int, str], int] = {}
    for seed in dict.fromkeys(run.seed for run in own):
        first, *others = (run for run in own if run.seed == seed)
        if others:  # they share the dense round that the first one trains
            number[seed, "dense"] = len(tasks)
            tasks.append(Task((first,), 1))
    for run in own:
        needs = (number[run.seed, "dense"],) if (run.seed, "dense") in number else ()
        number[run.seed, run.arm] = len(tasks)
        tasks.append(Task((run,), rounds, needs))
    return tasks + [Task((run,), rounds, (number[run.seed, ARMS[run.arm].mask_of],)) for run in controls]


def run_tasks(
    tasks: Sequence[Task],
    config: Config,
    images: Images,
    device: torch.device,
    tell: Callable[[Event], None],
    signalled: Callable[[], int] = lambda: 0,
    problem: Problem | None = None,
) -> None:
    """Do all tasks, side by side in processes where the device is a CPU and there is more than one job.

    Raises Interrupted once everything has stopped after a signal; TrialError and RecordError of a task after the
    others have ended. `problem`, where it is not the settings' own, keeps everything in this process.
    """
    jobs = min(config.jobs or max(1, cores() // config.threads), len(tasks))
    if problem is not None or device.type != "cpu" or jobs == 1:
        experiment = Experiment(config, problem or Problem.of(config, images), device, tell, lambda: bool(signalled()))
        try:
            for task in tasks:
                experiment.run(task.runs, task.rounds)
        except Stopped:
            raise Interrupted(signalled()) from None
        return
    _in_processes(tasks, jobs, config, images, tell, signalled)


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_processes(
    tasks: Sequence[Task],
    jobs: int,
    config: Config,
    images: Images,
    tell: Callable[[Event], None],
    signalled: Callable[[], int],
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when a child loads torch
        os.environ[name] = str(config.threads)
    for tensor in images.tensors():
        tensor.share_memory_()
    context = multiprocessing.get_context("spawn")
    events, stop = context.Queue(), context.Event()
    errors: list[BaseException] = []
    waiting, running, done = dict(enumerate(tasks)), dict[Future[set[Run]], int](), set[int]()
    failed: set[Run] = set()  # another worker may get a run's next task: it would let it fail once more
    with ProcessPoolExecutor(jobs, context, _start_worker, (config, images, events, stop)) as pool:
        try:
            with _undisturbed():  # all workers load PyTorch now, not when there is work for them
                for _ in range(jobs):
                    pool.submit(os.getpid)
            while waiting or running:
                if signalled() and not stop.is_set():
                    tell(Note("stopping: each process first writes where its round is"))
                if signalled() or any(isinstance(error, (RecordError, BrokenProcessPool)) for error in errors):
                    stop.set()
                    waiting.clear()
                for number in [n for n, task in waiting.items() if done.issuperset(task.needs)]:
                    if failed.issuperset(waiting[number].runs):
                        done.add(number)
                        del waiting[number]
                    elif len(running) < jobs:
                        with _undisturbed():
                            running[pool.submit(_work, waiting.pop(number))] = number
                ended, _ = wait(running, POLL, FIRST_COMPLETED)
                _drain(events, tell)
                for future in ended:
                    number, error = running.pop(future), future.exception()
                    if error is None:
                        failed |= future.result()
                        done.add(number)
                    elif not isinstance(error, Stopped):
                        errors.append(error)
                if not running and not any(done.issuperset(task.needs) for task in waiting.values()):
                    waiting.clear()  # what they need has failed
        except BaseException:
            stop.set()
            raise
    _drain(events, tell)
    if signalled():
        raise Interrupted(signalled())
    if errors and isinstance(errors[0], BrokenProcessPool):
        raise TrialError("a worker process was killed, by lack of memory perhaps (--jobs lowers the need)") from None
    if errors:
        raise errors[0]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Start processes in which Ctrl-C is left to the parent from their first moment on."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what a child starts with
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _drain(events: Any, tell: Callable[[Event], None]) -> None:
    while True:
        try:
            tell(events.get(timeout=0.01))
        except queue.Empty:
            return


class _Worker:
    """What a worker process keeps between tasks."""

    experiment: Experiment


def _start_worker(config: Config, images: Images, events: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asked = threading.Event()

    def watch() -> None:
        """Stop when asked to; die at once when the parent has died."""
        parent = multiprocessing.parent_process()
        assert parent is not None
        while not multiprocessing.connection.wait([parent.sentinel], POLL):
            if stop.is_set():
                asked.set()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    problem = Problem.of(config, images)
    _Worker.experiment = Experiment(config, problem, torch.device("cpu"), events.put, asked.is_set)


def _work(task: Task) -> set[Run]:
    """Do a task; gives those of its runs that ended early."""
    _Worker.experiment.run(task.runs, task.rounds)
    return _Worker.experiment.failed.intersection(task.runs)
