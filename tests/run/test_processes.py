"""Work in several processes, which are threads here: what goes wrong in one is said, and what they are started with."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import process as pools
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import CPU, Told, arrays, experiment, settings

import main
import utils
from lth import data
from lth.experiment import Experiment
from lth.records import tables, tickets
from lth.records.events import Evaluated, Event, Note
from lth.records.files import RecordError, Unreadable
from lth.records.tables import Run
from lth.run import cluster, command, jobs, processes
from lth.run.device import DeviceError
from lth.run.queue import FAILED, Piece, Queue
from lth.run.tasks import runs_of
from lth.training.train import TrialError

NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Threads(ThreadPoolExecutor):
    """In place of processes; keeps the environment that each would have been started in."""

    started: list[dict[str, str]]
    _processes: ClassVar[dict[int, Any]] = {}

    def __init__(
        self, size: int, context: object, initializer: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        super().__init__(size)
        Threads.started = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        Threads.started.append(dict(os.environ))
        return super().submit(function, *arguments, **options)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "ProcessPoolExecutor", Threads)


@pytest.mark.parametrize("argv, goes_on", [([], "again"), (["--overwrite"], "without --overwrite")])
def test_after_a_stop_the_advice_moves_nothing_aside(
    argv: list[str], goes_on: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(argv: Sequence[str]) -> int:
        raise jobs.Interrupted(signal.SIGTERM)

    assert command.exit_code(stopped, argv) == 143
    said = " ".join(capsys.readouterr().err.split())
    assert said == f"stopped by SIGTERM: finished rounds are kept, the same command {goes_on} continues from here"
    made = experiment(settings(place, prune_iterations=1, overwrite=bool(argv)))
    monkeypatch.setattr(made, "record", lambda run, *given: tickets.read_ticket(run, 1))
    with pytest.raises(RecordError, match=rf"is gone: the same command {goes_on} goes on from the last good round$"):
        made.run(runs_of(made.config), 1)
    monkeypatch.setattr(processes.devices, "answers", lambda device: False)
    with pytest.raises(DeviceError, match=rf"used by this process: the same command {goes_on} goes on from here$"):
        processes.Experiments({}, CPU, Told(), lambda: False).do(Piece(made.config, (), 1))


def kinds_of(base: type[Exception]) -> set[type[Exception]]:
    return {base}.union(*map(kinds_of, base.__subclasses__()))


def test_what_workers_raise_travels_as_it_is(tmp_path: Path) -> None:
    """An error that cannot be read again counts as a worker that was killed."""
    ours = {kind for kind in kinds_of(Exception) if kind.__module__.startswith("lth.")} - {jobs.Interrupted}
    assert {TrialError, RecordError, Unreadable, DeviceError, cluster.ClusterError} <= ours
    for error in (*(kind("it broke") for kind in ours), Unreadable.of(tmp_path, OSError(40, "too many links"))):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)


@pytest.mark.parametrize("kind", [TrialError, RecordError, RuntimeError, DeviceError, BrokenPipeError])
@pytest.mark.parametrize("size", [1, 2])
def test_what_a_worker_raises_is_raised_once_the_others_have_ended(
    place: Path, in_threads: None, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], size: int
) -> None:
    config = settings(place, trials=2, prune_iterations=2)
    workers = processes.workers(
        size, 1, {config: (config, data.load("tiny", place / "data"))}, CPU, Told(), lambda: False
    )
    tries = []

    def do(piece: Piece) -> dict[Any, str]:
        tries.append(piece)
        if piece.runs[0].seed == 0 and len(tries) < 9:  # if it is swallowed, the piece is tried again and again
            raise kind("it broke")
        experiment(config).run(piece.runs, piece.rounds)
        return {}

    def in_worker(piece: Piece, number: int) -> dict[Any, str]:
        try:
            return do(piece)
        finally:
            workers.events.put(number)

    monkeypatch.setattr(processes, "_work", in_worker)
    monkeypatch.setattr(processes.Experiments, "do", lambda self, piece: do(piece))
    with pytest.raises(kind, match=r"^it broke$"):
        jobs.work(Queue([config], lambda run: run), workers, Told())
    broken, whole = runs_of(config)
    ended_early = kind not in (TrialError, RuntimeError)  # the others stop for it
    assert not tables.finished_rounds(broken) and (ended_early or tables.finished_rounds(whole) == 2)
    assert (broken.dumps / FAILED).exists() != ended_early, "all that --join skip what is said to have failed"
    assert not (whole.dumps / FAILED).exists()


def test_an_output_that_is_closed_is_no_fault_of_the_runs(place: Path) -> None:
    """As in `main.py --jobs 1 --join | head`."""
    config = settings(place, trials=3)

    def tell(event: Event) -> None:
        if isinstance(event, Evaluated):
            raise BrokenPipeError("it is closed")

    at_hand = {config: (config, data.load("tiny", place / "data"))}
    with pytest.raises(BrokenPipeError, match=r"^it is closed$"):
        jobs.work(Queue([config], lambda run: run), processes.workers(1, 1, at_hand, CPU, tell, lambda: False), tell)
    assert not list(place.rglob(FAILED))


def test_what_stops_all_is_said_rather_than_what_failed_before(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(place, trials=2)
    kinds = iter([TrialError("mlp failed"), OSError("the disk is full")])

    def do(self: Any, piece: Piece) -> None:
        raise next(kinds)

    monkeypatch.setattr(processes.Experiments, "do", do)
    with pytest.raises(OSError, match=r"^the disk is full$"):
        jobs.work(Queue([config], lambda run: run), processes.workers(1, 1, {}, CPU, Told(), lambda: False), Told())
    assert [run.seed for run in runs_of(config) if (run.dumps / FAILED).exists()] == [0]


def test_a_model_that_is_half_saved_is_no_fault_of_the_runs(place: Path) -> None:
    config = settings(place, trials=3)
    at_hand = {config: (config, data.load("tiny", place / "data"))}
    workers = processes.workers(1, 1, at_hand, CPU, Told(), lambda: False)
    (place / "archs" / "tiny" / "mlp.py").write_text("from torch import nn\n\n\nclass Mlp(nn.Mod")
    with pytest.raises(RecordError, match=r"mlp\.py cannot be loaded: .* \(all was well when the command began\)$"):
        jobs.work(Queue([config], lambda run: run), workers, Told())
    assert not list(place.rglob(FAILED))


def test_a_device_that_died_is_no_fault_of_the_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an assertion in a GPU, say: all further work of the process fails too, whatever it is."""
    config = settings(place, trials=3)
    at_hand = {config: (config, data.load("tiny", place / "data"))}

    def run(self: Experiment, runs: Any, rounds: int) -> None:
        monkeypatch.setattr(torch, "ones", dead)
        raise TrialError("mlp failed in round 0 with AcceleratorError: CUDA error: unspecified launch failure")

    def dead(*shape: int, device: torch.device) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(Experiment, "run", run)
    with pytest.raises(DeviceError, match=r"^mlp failed in round 0 .* failure; cpu can no longer be used by this"):
        workers = processes.workers(1, 1, at_hand, CPU, Told(), lambda: False)
        jobs.work(Queue([config], lambda run: run), workers, Told())
    assert not list(place.rglob(FAILED))


def test_processes_start_with_so_many_threads_and_nothing_stays_of_it(
    place: Path, in_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP reads the variables when a child loads PyTorch; later it is too late to have fewer."""
    monkeypatch.setenv(NAMES[0], "7")
    monkeypatch.delenv(NAMES[1], raising=False)
    config = settings(place, threads=3)
    monkeypatch.setattr(processes, "_work", lambda piece, number: {})
    workers = processes.workers(2, config.threads, {}, CPU, Told(), lambda: False)
    with workers:
        workers.start(Piece(config, tuple(runs_of(config)), 1))
    assert len(Threads.started) == 3, "two that load PyTorch at once, and the piece"
    assert all(environment[name] == "3" for environment in Threads.started for name in NAMES)
    assert os.environ[NAMES[0]] == "7" and NAMES[1] not in os.environ


def test_a_set_up_that_failed_leaves_no_other_experiment_in_its_place(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a model's file is being edited while the runs of a sweep begin."""
    first, second = (settings(place, lr=lr, prune_iterations=1) for lr in (0.1, 0.2))
    at_hand = {config: (config, data.load("tiny", place / "data")) for config in (first, second)}
    experiments = processes.Experiments(at_hand, CPU, Told(), lambda: False)
    pieces = [Piece(config, tuple(runs_of(config)), 1) for config in (first, second)]
    experiments.do(pieces[0])
    with monkeypatch.context() as broken:
        broken.setattr(processes.start_tickets, "problem", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            experiments.do(pieces[1])
    experiments.do(pieces[1])
    assert experiments.experiment.config.lr == 0.2


def test_what_workers_tell_without_end_keeps_nobody_from_the_rest(
    place: Path, in_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "POLL", 0.05)
    told = Told()
    workers = processes.Processes(1, 1, {}, told)
    until = time.monotonic() + 5

    def get(timeout: float) -> Note:
        return Note("and more") if time.monotonic() < until else pytest.fail("heard for five seconds")

    monkeypatch.setattr(workers, "events", SimpleNamespace(get=get))
    workers._hear(seconds=0.05)
    assert told


def test_a_claim_whose_last_word_came_before_its_end_was_known_is_not_waited_for(
    place: Path, in_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its worker has nothing to do for as long as others tell of theirs."""
    config = settings(place)
    monkeypatch.setattr(processes, "POLL", 0.05)
    monkeypatch.setattr(processes, "_work", lambda piece, number: {})
    workers, until = processes.Processes(2, 1, {}, Told()), time.monotonic() + 5
    words: list[Any] = [1]

    def get(timeout: float) -> Any:
        assert time.monotonic() < until, "waited for what was heard already"
        return words.pop() if words else Note("another is at work")

    monkeypatch.setattr(workers, "events", SimpleNamespace(get=get))
    with workers:
        workers._hear()
        workers.start(Piece(config, tuple(runs_of(config)), 1))
        assert [outcome.piece.config for outcome in workers.ended(1)] == [config]
        monkeypatch.setattr(workers, "_hear", lambda seconds: None)


def test_what_the_others_finished_is_shown_where_one_cannot_go_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = Experiment.train

    def broken(self: Experiment, stack: Any, *rest: Any) -> Any:
        if stack[0].arm == "reinit":
            raise TrialError("mlp failed in round 1 with ValueError: no")
        return train(self, stack, *rest)

    monkeypatch.setattr(Experiment, "train", broken)
    words = "--arch_type mlp --dataset tiny --gpu cpu --jobs 1 --prune_iterations 2 --end_iter 4it --valid_size 40"
    words += f" --batch_size 10 --prune_type lt reinit --root {place} --data {place / 'data'}"
    assert utils.exit_code(main.main, words.split()) == 1
    said = capsys.readouterr()
    assert "of lt can be called a winning one" in said.out and "comparison.png" in said.out
    assert "reinit seed0: mlp failed in round 1" in said.out + said.err
    assert said.err.rstrip().endswith("error: mlp failed in round 1 with ValueError: no")


@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
def test_where_a_worker_is_killed_the_others_write_where_they_are_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from Python 3.12 on, where a broken pool tells its workers nothing but SIGTERM, which they ignore."""
    monkeypatch.setattr(pools._ExecutorManagerThread, "shutdown_workers", lambda self: None)  # type: ignore[attr-defined]
    np.savez(tmp_path / "small.npz", **arrays(500, 100, shape=(28, 28)))
    changes = {"arch_type": "fc1", "dataset": "small", "end_iter": "1000000it", "checkpoint_every": 1000, "trials": 2}
    config = settings(tmp_path, data=tmp_path, **changes)
    workers = processes.Processes(2, 1, {config: (config, data.load("small", tmp_path))}, lambda event: tell(event))
    begun, started, errors = set[Run](), list[BaseProcess](), list[BaseException]()

    def tell(event: Event) -> None:
        begun.update([event.run] if isinstance(event, Evaluated) else [])
        if len(begun) == 2 and not started:
            started.extend(workers.pool._processes.values())
            started[0].kill()

    def work() -> None:
        try:
            jobs.work(Queue([config], lambda run: run), workers, tell)
        except BaseException as error:
            errors.append(error)

    working = threading.Thread(target=work, daemon=True)
    working.start()
    working.join(120)
    left = [worker for worker in started or workers.pool._processes.values() if worker.is_alive()]
    for worker in left:
        worker.kill()
    assert len(started) == 2 and not working.is_alive() and not left, "it waits for workers that wait for it"
    assert str(*errors).startswith("a worker process was killed")
    assert len(list(tmp_path.rglob("checkpoint.safetensors"))) == 1
