"""--ray: the work loop in tasks of a Ray cluster. Ray places the tasks and repeats those whose node has died.

Like a process of --join, a task reads the data, takes the locks of runs, trains, and writes results into the folder
that all nodes share; the command reads its progress there. When Ray repeats a task, the locks of the first attempt are
free.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lth.commands import loop
from lth.commands.device import MachineError
from lth.commands.loop import FATAL, THREADS, Tell, Worker
from lth.commands.prepare import Loaded, load_images, on_machine
from lth.commands.queue import POLL, FolderWatcher, Queue, Work
from lth.experiment import start_tickets
from lth.experiment.trainer import Note
from lth.records.lock import Locks
from lth.records.tables import Run
from lth.settings import names
from lth.settings.checks import error_with_type
from lth.settings.config import LTH, Config, ConfigError
from lth.training.problem import stack_size

Order = tuple[Config, Sequence[Run], Mapping[str, Any]]  # an experiment for a task: settings, runs, facts
DELAY = 120.0  # seconds within which files written on a node must appear here: NFS may hide them for a minute


def local_device() -> tuple[torch.device, str]:
    """The CPU for checks on this machine, until the cluster decides on the device, and no remark. ConfigError if Ray is
    not installed."""
    try:
        importlib.import_module("ray")
    except ImportError:
        message = "--ray needs Ray, which is not installed here: pip install -r requirements-ray.txt"
        raise ConfigError(message) from None
    return torch.device("cpu"), ""


@contextlib.contextmanager
def connected(config: Config) -> Iterator[Cluster]:
    """The cluster that --ray names, with this program on its nodes. MachineError if it cannot be reached."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to Ray's makers
    ray: Any = importlib.import_module("ray")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryDirectory() as program:
        for source, name in [*((archs, "archs") for archs in reversed(names.ARCHS)), (LTH, "lth")]:
            if source.is_dir():  # of two models with the same name, the one in the first folder wins
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, Path(program, name), ignore=ignored, dirs_exist_ok=True)
        try:
            host, _, port = str(config.ray).rpartition(":")
            if host:  # if nothing listens there, Ray would try for minutes
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            threads = dict.fromkeys(THREADS, str(config.threads or 1))
            ray.init(
                address=config.ray,
                runtime_env={"working_dir": program, "env_vars": threads},
                log_to_driver=config.debug,
                logging_level=logging.INFO if config.debug else logging.ERROR,
                include_dashboard=False if config.ray == "local" else None,
            )
        except Exception as error:  # of a dozen kinds
            hint = "is it running?"
            if config.ray == "auto":
                hint = "`ray start --head` starts one, and --ray local needs none"
            raise MachineError(
                f"--ray {config.ray} reaches no Ray cluster, {hint} ({error_with_type(error)})"
            ) from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # ray.init has replaced it
    try:
        yield Cluster(ray, config)
    finally:
        ray.shutdown()


class Cluster:
    """A Ray cluster. `device` has the type that its tasks train on, which this machine may lack."""

    def __init__(self, ray: Any, config: Config) -> None:
        self.ray, self.root, self.max_tasks, self.threads = ray, config.root.resolve(), config.jobs, config.threads or 1
        self.nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.gpus = 0 if config.gpu == "cpu" else int(sum(node.get("GPU", 0) for node in self.nodes))
        self.device = torch.device("cuda" if self.gpus else "cpu")

    def __str__(self) -> str:
        nodes = f"{len(self.nodes)} node{'s' if len(self.nodes) != 1 else ''}"
        cores = int(sum(node.get("CPU", 0) for node in self.nodes))
        return f"a Ray cluster of {nodes} with {self.gpus or cores} {'GPUs' if self.gpus else 'cores'}"

    def stacked(self, works: Sequence[Work]) -> list[Work]:
        """The experiments, with the number of runs per piece that a task trains as one network."""
        return [replace(work, piece_size=stack_size(work.config, work.problem, self.device)) for work in works]

    def work(self, queue: Queue, tell: Tell, signalled: Callable[[], int]) -> None:
        """The loop in tasks of the cluster, at most one per piece, while this process watches. Raises the error that
        stopped it, or in the end the first that a piece raised."""
        needs = {"CPU": self.threads, **({"GPU": 1} if self.gpus else {})}
        if not any(all(node.get(name, 0) >= count for name, count in needs.items()) for node in self.nodes):
            problem = f"no node of the cluster has the {needs} of a task: all wait until one comes (--threads)"
            tell(Note(f"warning: {problem}"))
        options = {"num_cpus": self.threads, "num_gpus": needs.get("GPU", 0)}
        task = self.ray.remote(max_retries=-1, retry_exceptions=False, **options)(run_task)
        orders = list(map(order, queue.works))
        pieces = math.ceil(len(queue.unfinished()) / min(work.piece_size for work in queue.works))
        tasks = [task.remote(orders, bool(self.gpus)) for _ in range(min(self.max_tasks or pieces, pieces))]
        watcher, errors, cancelled = FolderWatcher(queue, tell), list[Exception](), False
        try:
            while tasks:
                done, tasks = self.ray.wait(tasks, timeout=POLL)
                for ended in done:
                    errors += self._errors_of(ended, cancelled)
                watcher.look()
                fatal = any(isinstance(error, FATAL) for error in errors)
                if not cancelled and (signalled() or fatal or (done and not queue.unfinished())):
                    cancelled = True  # running tasks write their checkpoints, the others never start
                    for other in tasks:
                        self.ray.cancel(other)
        finally:
            for other in tasks:  # after a second Ctrl-C
                self.ray.cancel(other)
        deadline = time.monotonic() + DELAY
        while not (errors or signalled()) and queue.unfinished():
            if time.monotonic() > deadline:
                raise MachineError(f"the nodes do not write into {self.root} of this machine: --root must be shared")
            time.sleep(POLL)
        watcher.due = 0.0
        watcher.look()
        loop.raise_errors(errors, signalled)

    def _errors_of(self, task: Any, cancelled: bool) -> list[Exception]:
        """The errors of a task that has ended."""
        try:
            return list(self.ray.get(task))
        except self.ray.exceptions.RayError as error:
            return [] if cancelled else [MachineError(f"a task of the cluster failed: {str(error).strip()[-300:]}")]


def order(work: Work) -> Order:
    """An experiment as it is sent to a task, with absolute paths. The task reads the images and makes the network."""
    paths: Any = {"root": work.config.root.resolve(), "data": work.config.data.resolve()}
    config = replace(work.config, **paths, gpu=None, ray=None, overwrite=False)
    return config, [replace(run, root=config.root) for run in work.runs], work.facts


# On the nodes


def run_task(orders: Sequence[Order], gpu: bool) -> list[Exception]:
    """The task: the work loop on this node, on its GPU if it has one. When Ray cancels it, or at SIGTERM (a node that
    is pre-empted), it writes checkpoints; then SIGTERM acts as usual, so that Ray repeats the task elsewhere. Returns
    the errors; the results are in the folder."""
    with loop.signals(patient=True) as signalled:  # Ray may send it several times
        try:
            errors = _work(orders, gpu, lambda: bool(signalled()))
        except Exception as error:
            errors = [error]
        signum = signalled()
    if signum == signal.SIGTERM:
        signal.raise_signal(signum)
    return [loop.picklable(error) for error in errors]


def _work(orders: Sequence[Order], gpu: bool, stop: Callable[[], bool]) -> list[Exception]:
    first, host = orders[0][0], socket.gethostname()
    for name in ("root", "data"):
        if not (folder := getattr(first, name)).is_dir():
            raise MachineError(f"{host} has no folder {folder}: --{name} must be where all nodes of the cluster see it")
    device = torch.device("cuda:0" if gpu and torch.cuda.is_available() else "cpu")
    works, loaded = list[Work](), Loaded()
    for config, runs, facts in orders:
        images = load_images(config, loaded)
        work = Work(config, runs, images, start_tickets.problem(config, images), facts)
        works.append(on_machine(work, device))
    with Locks() as locks:
        return loop.work(Queue(works, locks), Worker(device, lambda event: None, stop))
