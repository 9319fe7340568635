"""--ray: the loop of work as tasks of a Ray cluster. Placement, retries and dead nodes are Ray's.

A task reads the data, takes the locks of runs, trains, and writes results into the folder that all nodes share, as a
process of --join does; the command reads its progress there. Where Ray does a task again because its node has died, the
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
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lth import data
from lth.commands import holding, loop
from lth.commands.about import about_command
from lth.commands.holding import Prepared
from lth.commands.loop import FATAL, POLL, Tell, Trainer, next_look
from lth.commands.queue import Queue, Work
from lth.commands.tasks import runs_of
from lth.experiment import start_tickets
from lth.records.events import Event, Note
from lth.records.files import RecordError
from lth.records.lock import Locks
from lth.records.tables import Run
from lth.settings import names
from lth.settings.config import LTH, Config, ConfigError
from lth.training.problem import stack_size

MISSING = "--ray needs Ray, which is not installed here: pip install -r requirements-ray.txt"
UNSEEN = 120.0  # seconds after which what a node has written must be seen here: NFS may hide it for one minute


class ClusterError(RecordError):
    """The cluster cannot be reached or does not do what is asked of it; the message is one sentence for the user."""


@dataclass(frozen=True)
class Order:
    """What a task is given: the experiments with absolute paths, the runs that had ended early before (see Queue),
    whether it has a GPU, and a file that it must see if the folder is shared."""

    works: Sequence[Work]
    before: Mapping[Run, int]
    gpu: bool
    mark: Path


def installed() -> None:
    """ConfigError if there is no Ray."""
    try:
        importlib.import_module("ray")
    except ImportError:
        raise ConfigError(MISSING) from None


@contextlib.contextmanager
def connected(config: Config) -> Iterator[Cluster]:
    """The cluster that --ray names, with this program on its nodes. ClusterError if it cannot be reached."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for reports to Ray's makers
    ray: Any = importlib.import_module("ray")
    before = signal.getsignal(signal.SIGTERM)
    _answers(str(config.ray))
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder)
        shutil.copytree(LTH, program / "lth", ignore=shutil.ignore_patterns("__pycache__"))
        for archs in reversed(names.ARCHS):  # the files of the first win
            if archs.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(archs, program / "archs", ignore=ignored, dirs_exist_ok=True)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(config.threads or 1))
        try:
            ray.init(
                address=config.ray,
                runtime_env={"working_dir": str(program), "env_vars": threads},
                log_to_driver=config.debug,
                logging_level=logging.INFO if config.debug else logging.ERROR,
                include_dashboard=False if config.ray == "local" else None,
            )
        except Exception as error:  # of a dozen kinds
            raise ClusterError(_unreachable(str(config.ray), error)) from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # ray.init has put its own there
    try:
        yield Cluster(ray, config)
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """ClusterError if nothing listens at host:port: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise ClusterError(_unreachable(address, error)) from None


def _unreachable(address: str, error: Exception) -> str:
    hint = "`ray start --head` starts one, and --ray local needs none" if address == "auto" else "is it running?"
    said = " ".join(str(error).split()) or type(error).__name__
    return f"--ray {address} reaches no Ray cluster, {hint} ({said[:200]})"


class Cluster:
    """A Ray cluster. `device` is of the kind that its tasks train on; this machine may have none of it."""

    def __init__(self, ray: Any, config: Config) -> None:
        self.ray, self.root, self.most, self.threads = ray, config.root.resolve(), config.jobs, config.threads or 1
        has = ray.cluster_resources()
        self.cpus, self.gpus = int(has.get("CPU", 0)), 0 if config.gpu == "cpu" else int(has.get("GPU", 0))
        self.nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.device = torch.device("cuda" if self.gpus else "cpu")

    def __str__(self) -> str:
        nodes = f"{len(self.nodes)} node{'s' if len(self.nodes) != 1 else ''}"
        return f"a Ray cluster of {nodes} with {self.gpus or self.cpus} {'GPUs' if self.gpus else 'cores'}"

    def works(self, prepared: Sequence[Prepared], about: dict[Config, str], command: Sequence[str]) -> list[Work]:
        """The experiments for the tasks, with absolute paths."""
        return [
            Work(
                _absolute(one.asked),
                _absolute(one.config),
                about[one.asked],
                stack_size(one.config, one.problem, self.device),
                about_command(one.asked, one.config, command),
            )
            for one in prepared
        ]

    def work(self, works: Sequence[Work], queue: Queue, tell: Tell, signalled: Callable[[], int]) -> None:
        """The loop in tasks of the cluster, as many as there may be runs under way; `queue` looks on. Raises what
        stopped it, or in the end what pieces raised."""
        needs = {"CPU": self.threads, **({"GPU": 1} if self.gpus else {})}
        if not any(all(node.get(name, 0) >= count for name, count in needs.items()) for node in self.nodes):
            asked = " and ".join(f"{count} {name}" for name, count in needs.items())
            tell(
                Note(f"warning: no node of the cluster has the {asked} of a task: all wait until one comes (--threads)")
            )
        resources = {"num_cpus": self.threads, "num_gpus": 1 if self.gpus else 0}
        task = self.ray.remote(max_retries=-1, retry_exceptions=False, **resources)(do)
        open_runs = len(list(queue.open()))
        size = min(self.most or open_runs, -(-open_runs // min(work.together for work in works)))
        mark = self.root / f"{uuid.uuid4().hex}.probe"
        mark.touch()
        try:
            order = Order(works, queue.before, bool(self.gpus), mark)
            errors = self._wait([task.remote(order) for _ in range(size)], queue, tell, signalled)
        finally:
            mark.unlink(missing_ok=True)
        until = time.monotonic() + UNSEEN
        while not (errors or signalled() or queue.over()):
            if time.monotonic() > until:
                raise ClusterError(
                    f"the nodes do not write into the {self.root} of this machine: --root must be shared"
                )
            time.sleep(POLL)
        for event in queue.news([]):
            tell(event)
        loop.finish(errors, signalled)

    def _wait(self, tasks: list[Any], queue: Queue, tell: Tell, signalled: Callable[[], int]) -> list[Exception]:
        """Until all tasks have ended; gives what they raised."""
        errors: list[Exception] = []
        cancelled, due = False, 0.0
        try:
            while tasks:
                done, tasks = self.ray.wait(tasks, timeout=POLL)
                for ended in done:
                    errors += self._raised(ended, cancelled)
                if (began := time.monotonic()) >= due:
                    for event in queue.news([]):
                        tell(event)
                    due = next_look(began)
                fatal = any(isinstance(error, FATAL) for error in errors)
                if not cancelled and (signalled() or fatal or (done and queue.over())):  # others need not begin
                    cancelled = True
                    self._cancel(tasks)
        except BaseException:
            self._cancel(tasks)
            raise
        return errors

    def _cancel(self, tasks: Sequence[Any]) -> None:
        """Those under way write their checkpoints, the others never begin."""
        for task in tasks:
            self.ray.cancel(task)

    def _raised(self, task: Any, cancelled: bool) -> list[Exception]:
        """What a task raised that has ended."""
        try:
            return list(self.ray.get(task))
        except (self.ray.exceptions.TaskCancelledError, self.ray.exceptions.RayTaskError) as error:
            said = " ".join(str(error).split())[-300:]
            return [] if cancelled else [ClusterError(f"a task of the cluster failed: {said}")]
        except self.ray.exceptions.RayError as error:
            return [ClusterError(f"the cluster could not do a task: {' '.join(str(error).split())[:300]}")]


def _absolute(config: Config) -> Config:
    return replace(config, root=config.root.resolve(), data=config.data.resolve(), gpu=None, ray=None, overwrite=False)


# On the nodes


def do(order: Order) -> list[Exception]:
    """The task: the loop of work on this node. Gives what was raised; what was done is in the folder."""
    with _asked() as asked:
        try:
            errors = _work(order, asked)
        except Exception as error:
            errors = [error]
    return [loop.portable(error) for error in errors]


def _work(order: Order, stop: Callable[[], bool]) -> list[Exception]:
    config, host = order.works[0].config, socket.gethostname()
    if not order.mark.exists():
        raise ClusterError(
            f"{host} does not see the {config.root} of the command: --root must be a folder that all share"
        )
    if not config.data.is_dir():
        raise ClusterError(f"{host} has no folder {config.data}: --data must be where all nodes of the cluster see it")
    device = torch.device("cuda:0" if order.gpu and torch.cuda.is_available() else "cpu")
    loaded: dict[tuple[object, ...], data.Images] = {}
    works, inputs = [], {}
    for work in order.works:
        config, what = work.config, (work.config.dataset, work.config.data, work.config.pixels, work.config.image_size)
        images = loaded[what] = loaded.get(what) or data.load(*what)
        problem = start_tickets.problem(config, images)
        prepared = Prepared(work.asked, config, runs_of(work.asked), images, problem)
        prepared = holding.with_stack(prepared, device)
        works.append(replace(work, facts={**holding.facts(prepared, device, ()), **work.facts}))
        inputs[work.asked] = prepared.config, images
    with Locks() as locks:
        trainer = Trainer(inputs, device, _say_nothing, stop)
        return loop.work(Queue(works, locks, order.before), trainer.train, _say_nothing, stop)


def _say_nothing(event: Event) -> None: ...


@contextlib.contextmanager
def _asked() -> Iterator[Callable[[], bool]]:
    """Within it, Ray's cancelling and SIGTERM (a node that is pre-empted) are only noted, for as long as checkpoints
    take; afterwards SIGTERM does what it does to a process of Ray, so that the task is done again elsewhere."""
    came: list[int] = []
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    for signum in before:
        signal.signal(signum, lambda signum, frame: came.append(signum))
    try:
        yield lambda: bool(came)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if signal.SIGTERM in came:
            signal.raise_signal(signal.SIGTERM)
