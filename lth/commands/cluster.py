"""--ray: the loop of work as tasks of a Ray cluster. Placement, retries and dead nodes are Ray's.

A task reads the data, takes the locks of runs, trains, and writes results into the folder that all nodes share, as a
process of --join does; the command reads its progress there. Where Ray repeats a task because its node has died, the
locks of the first attempt are free.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
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
from lth.commands.loop import FATAL, THREADS, Tell, Trainer
from lth.commands.prepare import Loaded, images_of, on_machine
from lth.commands.queue import POLL, Queue, Watch, Work
from lth.experiment import start_tickets
from lth.experiment.trainer import Note
from lth.records.lock import Locks
from lth.records.tables import Run
from lth.settings import names
from lth.settings.checks import said
from lth.settings.config import LTH, Config, ConfigError
from lth.training.problem import stack_size

Order = tuple[Config, Sequence[Run], Mapping[str, Any]]  # an experiment for a task: settings, runs, facts
UNSEEN = 120.0  # seconds after which what a node has written must be seen here: NFS may hide it for one minute


def installed() -> None:
    """ConfigError if there is no Ray."""
    try:
        importlib.import_module("ray")
    except ImportError:
        message = "--ray needs Ray, which is not installed here: pip install -r requirements-ray.txt"
        raise ConfigError(message) from None


@contextlib.contextmanager
def connected(config: Config) -> Iterator[Cluster]:
    """The cluster that --ray names, with this program on its nodes. MachineError if it cannot be reached."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for reports to Ray's makers
    ray: Any = importlib.import_module("ray")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryDirectory() as program:
        for source, name in [*((archs, "archs") for archs in reversed(names.ARCHS)), (LTH, "lth")]:
            if source.is_dir():  # of two models of one name, that of the first folder of archs wins
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, Path(program, name), ignore=ignored, dirs_exist_ok=True)
        try:
            host, _, port = str(config.ray).rpartition(":")
            if host:  # where nothing listens, Ray would try for minutes
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
            hint = "`ray start --head` starts one, and --ray local needs none"
            hint = hint if config.ray == "auto" else "is it running?"
            raise MachineError(f"--ray {config.ray} reaches no Ray cluster, {hint} ({said(error)})") from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # ray.init has put its own there
    try:
        yield Cluster(ray, config)
    finally:
        ray.shutdown()


class Cluster:
    """A Ray cluster. `device` is of the kind that its tasks train on; this machine may have none of it."""

    def __init__(self, ray: Any, config: Config) -> None:
        self.ray, self.root, self.most, self.threads = ray, config.root.resolve(), config.jobs, config.threads or 1
        self.nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.gpus = 0 if config.gpu == "cpu" else int(sum(node.get("GPU", 0) for node in self.nodes))
        self.device = torch.device("cuda" if self.gpus else "cpu")

    def __str__(self) -> str:
        nodes = f"{len(self.nodes)} node{'s' if len(self.nodes) != 1 else ''}"
        cores = int(sum(node.get("CPU", 0) for node in self.nodes))
        return f"a Ray cluster of {nodes} with {self.gpus or cores} {'GPUs' if self.gpus else 'cores'}"

    def stacked(self, works: Sequence[Work]) -> list[Work]:
        """The experiments with the number of runs that a task trains as one network."""
        return [replace(work, together=stack_size(work.config, work.problem, self.device)) for work in works]

    def work(self, queue: Queue, tell: Tell, signalled: Callable[[], int]) -> None:
        """The loop in tasks of the cluster, as many as there may be runs under way, while this process looks on. Raises
        what stopped it, or in the end what pieces raised."""
        needs = {"CPU": self.threads, **({"GPU": 1} if self.gpus else {})}
        if not any(all(node.get(name, 0) >= count for name, count in needs.items()) for node in self.nodes):
            wait = f"no node of the cluster has the {needs} of a task: all wait until one comes (--threads)"
            tell(Note(f"warning: {wait}"))
        options = {"num_cpus": self.threads, "num_gpus": needs.get("GPU", 0)}
        task = self.ray.remote(max_retries=-1, retry_exceptions=False, **options)(do)
        left, together = len(queue.open()), min(work.together for work in queue.works)
        watch, count, orders = Watch(queue, tell), -(-left // together), list(map(order, queue.works))
        waiting = [task.remote(orders, bool(self.gpus)) for _ in range(min(self.most or count, count))]
        errors, cancelled = list[Exception](), False
        try:
            while waiting:
                done, waiting = self.ray.wait(waiting, timeout=POLL)
                for ended in done:
                    errors += self._raised(ended, cancelled)
                watch.look()
                fatal = any(isinstance(error, FATAL) for error in errors)
                if not cancelled and (signalled() or fatal or (done and not queue.open())):
                    cancelled = True  # those under way write their checkpoints, the others never begin
                    for other in waiting:
                        self.ray.cancel(other)
        finally:
            for other in waiting:  # after a second Ctrl-C
                self.ray.cancel(other)
        until = time.monotonic() + UNSEEN
        while not (errors or signalled()) and queue.open():
            if time.monotonic() > until:
                raise MachineError(f"the nodes do not write into {self.root} of this machine: --root must be shared")
            time.sleep(POLL)
        watch.due = 0.0
        watch.look()
        loop.finish(errors, signalled)

    def _raised(self, task: Any, cancelled: bool) -> list[Exception]:
        """What a task raised that has ended."""
        try:
            return list(self.ray.get(task))
        except self.ray.exceptions.RayError as error:
            return [] if cancelled else [MachineError(f"a task of the cluster failed: {str(error).strip()[-300:]}")]


def order(work: Work) -> Order:
    """What a task is told of an experiment, with absolute paths. It reads the images and makes the network itself."""
    paths: Any = {"root": work.config.root.resolve(), "data": work.config.data.resolve()}
    config = replace(work.config, **paths, gpu=None, ray=None, overwrite=False)
    return config, [replace(run, root=config.root) for run in work.runs], work.facts


# On the nodes


def do(orders: Sequence[Order], gpu: bool) -> list[Exception]:
    """The task: the loop of work on this node, on its GPU if it has one. Ray's cancelling and SIGTERM (a node that is
    pre-empted) let it write checkpoints; then SIGTERM acts as usual, so that Ray repeats the task elsewhere. Returns
    what was raised; what was done is in the folder."""
    with loop.signals(patient=True) as signalled:  # Ray may say it again and again
        try:
            errors = _work(orders, gpu, lambda: bool(signalled()))
        except Exception as error:
            errors = [error]
        stopped = signalled()
    if stopped == signal.SIGTERM:
        signal.raise_signal(stopped)
    return [loop.portable(error) for error in errors]


def _work(orders: Sequence[Order], gpu: bool, stop: Callable[[], bool]) -> list[Exception]:
    first, host = orders[0][0], socket.gethostname()
    for name in ("root", "data"):
        if not (folder := getattr(first, name)).is_dir():
            raise MachineError(f"{host} has no folder {folder}: --{name} must be where all nodes of the cluster see it")
    device = torch.device("cuda:0" if gpu and torch.cuda.is_available() else "cpu")
    works, loaded = list[Work](), Loaded()
    for config, runs, facts in orders:
        images = images_of(config, loaded)
        work = Work(config, runs, images, start_tickets.problem(config, images), facts)
        works.append(on_machine(work, device))
    with Locks() as locks:
        return loop.work(Queue(works, locks), Trainer(device, lambda event: None, stop))
