"""--ray: the work of a queue as plain tasks of a Ray cluster. Placement, retries and dead nodes are Ray's.

A task is a piece of the work. Its node reads the data, takes the locks of the piece's runs, trains, and writes results
into the folder that all nodes share, as a process of --join does; what comes back is how it ended. Where
Ray does a task again because its node has died, the locks of the first attempt are free.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from lth import data
from lth.data.images import Images
from lth.experiment import start_tickets
from lth.records import tables
from lth.records.events import Event, Note
from lth.records.files import RecordError
from lth.records.lock import Locks
from lth.records.tables import Run
from lth.run.about import about_command
from lth.run.holding import Prepared, Shared
from lth.run.jobs import FATAL, Outcome, Tell
from lth.run.processes import Experiments
from lth.run.queue import Piece, begin, gave_up
from lth.settings import names
from lth.settings.config import LTH, Config, ConfigError
from lth.training.train import Stopped, TrialError

MISSING = "--ray needs Ray, which is not installed here: pip install -r requirements-ray.txt"
UNSEEN = 120.0  # seconds after which what a node has written must be seen here: NFS may hide it for one minute


class ClusterError(RecordError):
    """The cluster cannot be reached or does not do what is asked of it; the message is one sentence for the user."""


@dataclass(frozen=True)
class Work:
    """What a task is given: a piece of the work with absolute paths, its settings as the data settle them, whether it
    has a GPU, and what config.json says of its experiment."""

    piece: Piece
    config: Config
    gpu: bool
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a task gives back: where it was done, how many rounds of each run are finished, the runs that ended early by
    their place in the piece, or what stopped all of it, and what is to be said."""

    host: str
    finished: tuple[int, ...] = ()
    failed: Mapping[int, str] = field(default_factory=dict)
    error: Exception | None = None
    notes: tuple[Note, ...] = ()


def installed() -> None:
    """ConfigError if there is no Ray."""
    try:
        importlib.import_module("ray")
    except ImportError:
        raise ConfigError(MISSING) from None


@contextmanager
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
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(config.threads))
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
    """Work as tasks of a Ray cluster: `Workers` of lth.run.jobs, once `prepare` has said for what."""

    def __init__(self, ray: Any, config: Config) -> None:
        self.ray, self.most, self.threads = ray, config.jobs, config.threads
        has = ray.cluster_resources()
        self.cpus, self.gpus = int(has.get("CPU", 0)), 0 if config.gpu == "cpu" else int(has.get("GPU", 0))
        self.nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.device = torch.device("cuda" if self.gpus else "cpu")
        self.running: dict[Any, Piece] = {}
        self.cancelled: set[Any] = set()
        self.unseen: list[tuple[Piece, Answer, float]] = []  # what has ended, and until when it must be seen here

    def __str__(self) -> str:
        nodes = f"{len(self.nodes)} node{'s' if len(self.nodes) != 1 else ''}"
        return f"a Ray cluster of {nodes} with {self.gpus or self.cpus} {'GPUs' if self.gpus else 'cores'}"

    def _remark(self) -> str:
        """What is in the way of the tasks, if anything is."""
        needs = {"CPU": self.threads, **({"GPU": 1} if self.gpus else {})}
        if any(all(node.get(name, 0) >= count for name, count in needs.items()) for node in self.nodes):
            return ""
        asked = " and ".join(f"{count} {name}" for name, count in needs.items())
        return f"warning: no node of the cluster has the {asked} of a task: all wait until one comes (--threads)"

    def prepare(self, prepared: Sequence[Prepared], command: Sequence[str], tell: Tell) -> None:
        """Say what the tasks are about: the experiments, which the command line `command` asked for."""
        self.tell = tell
        self.settled = {one.asked: one.config for one in prepared}
        self.facts = {one.asked: about_command(one.asked, one.config, command) for one in prepared}
        if remark := self._remark():
            tell(Note(remark))
        resources = {"num_cpus": self.threads, "num_gpus": 1 if self.gpus else 0}
        self.task = self.ray.remote(max_retries=-1, retry_exceptions=False, **resources)(do)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def free(self) -> bool:
        """Whether Ray may be given another task: always, but for --jobs."""
        return self.most is None or len(self.running) < self.most

    def start(self, piece: Piece) -> None:
        """Give a piece to Ray."""
        config = _absolute(self.settled[piece.config])
        runs = tuple(replace(run, root=config.root) for run in piece.runs)
        there = replace(piece, config=config, runs=runs)
        name = f"{piece.runs[0]} to round {piece.rounds - 1}"
        work = Work(there, config, bool(self.gpus), self.facts[piece.config])
        self.running[self.task.options(name=name).remote(work)] = piece

    def ended(self, seconds: float) -> list[Outcome]:
        """What has ended, and can be seen here."""
        if not self.running:
            time.sleep(seconds)
        done, _ = self.ray.wait(list(self.running), timeout=seconds) if self.running else ([], [])
        outcomes = []
        for task in done:
            piece = self.running.pop(task)
            try:
                answer = self.ray.get(task)
            except (self.ray.exceptions.TaskCancelledError, self.ray.exceptions.RayTaskError) as error:
                if task not in self.cancelled:
                    error = ClusterError(f"a task of the cluster failed: {' '.join(str(error).split())[-300:]}")
                    outcomes.append(Outcome(piece, error=error))
                else:
                    outcomes.append(Outcome(piece, error=Stopped()))
            except self.ray.exceptions.RayError as error:
                said = " ".join(str(error).split())
                outcomes.append(Outcome(piece, error=ClusterError(f"the cluster could not do a task: {said[:300]}")))
            else:
                for note in answer.notes:
                    self.tell(note)
                self.unseen.append((piece, answer, time.monotonic() + UNSEEN))
        waiting, self.unseen = self.unseen, []
        for piece, answer, until in waiting:
            if self.cancelled or self._seen(piece, answer):
                outcomes.append(Outcome(piece, {piece.runs[i]: why for i, why in answer.failed.items()}, answer.error))
            elif time.monotonic() < until:
                self.unseen.append((piece, answer, until))
            else:
                outcomes.append(Outcome(piece, error=ClusterError(_not_shared(piece.runs[0].root, answer.host))))
        return outcomes

    def stop(self) -> None:
        """Cancel all tasks: those under way write their checkpoints, the others never begin."""
        for task in self.running:
            if task not in self.cancelled:
                self.cancelled.add(task)
                self.ray.cancel(task)

    def _seen(self, piece: Piece, answer: Answer) -> bool:
        found = (tables.finished_rounds(run) for run in piece.runs)
        return all(here >= there for here, there in zip(found, answer.finished, strict=False))


def _absolute(config: Config) -> Config:
    return replace(config, root=config.root.resolve(), data=config.data.resolve(), gpu=None, ray=None)


def _not_shared(root: Path, host: str) -> str:
    return f"{host} does not write into the {root.resolve()} of this machine: --root must be a folder that all share"


# On the nodes


def do(work: Work) -> Answer:
    """The task: train what the piece says, if no other process holds it by then."""
    notes: list[Note] = []

    def tell(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event)

    with _asked() as asked:
        try:
            answer = _train(work, tell, asked)
        except Exception as error:
            answer = Answer(socket.gethostname(), error=_portable(error))
    return replace(answer, notes=tuple(notes))


def _train(work: Work, tell: Tell, stop: Callable[[], bool]) -> Answer:
    piece, config, host = work.piece, work.config, socket.gethostname()
    if not piece.runs[0].dumps.parent.is_dir():  # made by the command when it looked who has the run
        raise ClusterError(_not_shared(config.root, host))
    if not config.data.is_dir():
        raise ClusterError(f"{host} has no folder {config.data}: --data must be where all nodes of the cluster see it")
    device = torch.device("cuda:0" if work.gpu and torch.cuda.is_available() else "cpu")
    images = _images(config.dataset, config.data, config.pixels)
    prepared = Prepared(piece.config, config, list(piece.runs), images, start_tickets.problem(config, images))
    with Locks() as locks:
        shared = Shared([prepared], locks, device, (), work.facts)
        places = {run: place for place, run in enumerate(piece.runs)}
        held = [run for run in map(shared.hold, piece.runs) if run is not None]
        for run in held:
            begin(run)
        failed: Mapping[Run, str] = {}
        if held:
            experiments = Experiments({piece.config: (config, images)}, device, tell, stop)
            try:
                failed = experiments.do(replace(piece, runs=tuple(held)))
            except (Stopped, *FATAL):
                raise
            except Exception as error:
                failed = dict.fromkeys(held, str(error))
                raise
            finally:
                for run in held:
                    if run in failed:
                        gave_up(run, failed[run])
        finished = tuple(tables.finished_rounds(run) for run in piece.runs)
    return Answer(host, finished, {places[run]: why for run, why in failed.items()})


@lru_cache(maxsize=2)
def _images(dataset: str, folder: Path, pixels: str) -> Images:
    """The images, kept for the next task of this process."""
    return data.load(dataset, folder, pixels)


@contextmanager
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


def _portable(error: Exception) -> Exception:
    """The error, as another process can read it."""
    try:
        return error if isinstance(pickle.loads(pickle.dumps(error)), type(error)) else TrialError(str(error))
    except Exception:  # whatever a foreign class does when it is pickled
        return TrialError(f"{type(error).__name__}: {error}")
