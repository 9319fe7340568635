"""The loop of work, here and in --jobs processes: what goes wrong in one is said, and the others end as they should."""

import io
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from helpers import CPU, Capture, Patch, Told, argv_of, arrays, assert_released, experiment, settings, works

import main
import utils
from lth.commands import command, loop
from lth.commands.device import MachineError
from lth.commands.loop import Worker
from lth.commands.queue import FAILED, Piece, Queue
from lth.commands.terminal import wrapped
from lth.experiment.trainer import Evaluated, Event, Trainer
from lth.records import tables
from lth.records.files import RecordError, Unreadable
from lth.records.lock import Locks, Lost
from lth.records.store import Store
from lth.records.tables import Run, runs_of
from lth.settings.config import Config, ConfigError
from lth.training.train import TrialError


def work(config: Config, tell: loop.Tell | None = None) -> None:
    """The loop in this process."""
    with Locks() as locks:
        loop.work_here(Queue(works(config), locks), CPU, Told() if tell is None else tell, lambda: 0)


@pytest.mark.parametrize("argv, again", [([], "again"), (["--overwrite"], "without --overwrite")])
def test_advice_after_a_stop(argv: list[str], again: str, place: Path, monkeypatch: Patch, capsys: Capture) -> None:
    def stopped(argv: Sequence[str]) -> int:
        raise loop.Interrupted(signal.SIGTERM)

    assert command.exit_code(stopped, argv) == 143
    said = " ".join(capsys.readouterr().err.split())
    assert said == f"stopped by SIGTERM: finished rounds are kept, the same command {again} continues from here"
    made = experiment(settings(place, prune_iterations=1, overwrite=bool(argv)))
    monkeypatch.setattr(made, "record", lambda run, *given: Store(run).ticket(1))
    with pytest.raises(RecordError, match=rf"is gone: the same command {again} continues from the last good round$"):
        made.run(runs_of(made.trainer.config), 1)
    monkeypatch.setattr(loop.devices, "failure", lambda device: "an illegal memory access")
    with pytest.raises(MachineError, match=rf"used by this process: the same command {again} continues from here$"):
        monkeypatch.setattr(loop, "Experiment", None)
        Worker(CPU, Told(), lambda: False).train(Piece(works(made.trainer.config)[0], (), 1))


def kinds_of(base: type[Exception]) -> set[type[Exception]]:
    return {base}.union(*map(kinds_of, base.__subclasses__()))


def test_what_workers_raise_travels_as_it_is(tmp_path: Path) -> None:
    ours = {kind for kind in kinds_of(Exception) if kind.__module__.startswith("lth.")} - {loop.Interrupted}
    assert {TrialError, RecordError, Unreadable, MachineError} <= ours
    for error in (kind("it broke") for kind in ours):
        again = pickle.loads(pickle.dumps(loop.picklable(error)))
        assert type(again) is type(error) and str(again) == str(error)

    class Own(Exception):
        def __init__(self, first: int, second: Callable[[], int]) -> None:
            super().__init__(f"{first}")

    assert str(loop.picklable(Own(5, lambda: 6))) == "Own: 5"
    with pytest.raises(OSError, match=r"^the disk is full$"):  # which stops all, rather than what failed before
        loop.raise_errors([TrialError("mlp failed"), OSError("the disk is full")], lambda: 0)
    with pytest.raises(loop.Interrupted):
        loop.raise_errors([OSError("the disk is full")], lambda: signal.SIGTERM)


@pytest.mark.parametrize("kind", [RuntimeError, BrokenPipeError, MachineError, Lost])
def test_errors_are_raised_once_other_runs_have_ended(place: Path, monkeypatch: Patch, kind: type[Exception]) -> None:
    config, tries = settings(place, trials=2, prune_iterations=2), []

    def train(self: Worker, piece: Piece) -> dict[Run, str]:
        tries.append(piece)
        if piece.runs[0].seed == 0 and len(tries) < 9:  # if it is swallowed, the piece is tried again and again
            raise kind("it broke")
        experiment(config).run(piece.runs, piece.rounds)
        return {}

    monkeypatch.setattr(Worker, "train", train)
    broken, whole = runs_of(config)
    if kind is Lost:  # another machine has it now, while this one was cut off from the file server
        monkeypatch.setattr(Told, "__call__", lambda self, event: tries.extend([event] * 9))
        work(config)
        assert [tables.finished_rounds(run) for run in (broken, whole)] == [2, 2]
        return
    with pytest.raises(kind, match=r"^it broke$"):
        work(config)
    stops_all = kind is not RuntimeError
    assert not tables.finished_rounds(broken) and (stops_all or tables.finished_rounds(whole) == 2)
    assert (broken.dumps / FAILED).exists() != stops_all, "no other process tries what is said to have failed"
    assert not (whole.dumps / FAILED).exists()
    assert_released(place)


def test_finished_runs_are_shown_where_one_ends_early(place: Path, monkeypatch: Patch, capsys: Capture) -> None:
    train = Trainer.train

    def broken(self: Trainer, stack: Any, *rest: Any) -> Any:
        if stack[0].arm == "reinit":
            raise TrialError("mlp failed in round 1 with ValueError: no")
        return train(self, stack, *rest)

    monkeypatch.setattr(Trainer, "train", broken)
    assert utils.exit_code(main.main, argv_of(place, "--prune_type", "lt", "reinit")) == 1
    said = capsys.readouterr()
    assert "of lt can be called a winning one" in said.out and "comparison.png" in said.out
    assert "reinit seed0: mlp failed in round 1" in said.out + said.err
    assert said.err.rstrip().endswith("error: mlp failed in round 1 with ValueError: no")


@pytest.mark.skipif(os.name != "posix", reason="needs signal masks")
def test_ctrl_c_does_not_reach_processes_that_are_being_started(monkeypatch: Patch) -> None:
    """Python's resource tracker, which starts before the first of them, unblocks the signal."""
    tracker = resource_tracker.ResourceTracker()
    monkeypatch.setattr(resource_tracker, "ensure_running", tracker.ensure_running)
    with loop._worker_environment(1):
        tracker.ensure_running()
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    tracker._stop()


def test_at_a_second_ctrl_c_all_processes_end_at_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "small.npz", **arrays(500, 100, shape=(28, 28)))
    changes = {"arch_type": "fc1", "dataset": "small", "end_iter": "1000000it", "checkpoint_every": 1000, "trials": 2}
    config = settings(tmp_path, data=tmp_path, **changes)
    begun, before = set[Run](), set(multiprocessing.active_children())

    def tell(event: Event) -> None:
        begun.update([event.run] if isinstance(event, Evaluated) else [])
        if len(begun) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.work_in_processes(Queue(works(config)), 2, 1, tell, lambda: 0)
    for process in set(multiprocessing.active_children()) - before:
        process.join(20)
        assert process.exitcode is not None
    assert not list(tmp_path.rglob("checkpoint.safetensors"))
    assert_released(tmp_path)


def test_characters_that_an_output_lacks_and_control_characters_are_escaped(monkeypatch: Patch) -> None:
    content, errors = io.BytesIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii", newline="\n"))
    monkeypatch.setattr(sys, "stderr", errors)

    def colourful(argv: Sequence[str]) -> NoReturn:
        print("85.67 ± 1, in b\udce9d\x1b[2J")
        print("\r 5%|#", end="")  # as a progress bar is drawn
        raise RuntimeError("\x1b]0;title\x07\x9b31m")

    assert command.exit_code(colourful, []) == 1
    assert content.getvalue() == b"85.67 \\xb1 1, in b\\udce9d\\x1b[2J\n\r 5%|#"
    assert errors.getvalue() == "error: RuntimeError: \\x1b]0;title\\x07\\x9b31m (--debug shows where)\n"


def test_closed_outputs_end_nothing(monkeypatch: Patch) -> None:
    """As in `main.py >&- 2>&-`."""

    def told_and_refused(argv: Sequence[str]) -> NoReturn:
        print(wrapped("what stands above the table", sys.stdout))
        raise ConfigError("--lr must be a number above 0")

    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert command.exit_code(told_and_refused, []) == 2
