"""TensorBoard gets the same numbers whether the rounds are told as they come or found in the folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from helpers import do, settings
from tensorboardX import SummaryWriter

from lth.commands.tensorboard import Board
from lth.experiment.trainer import Event, RoundDone
from lth.records import tables


def test_rounds_of_other_processes_have_their_curves(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[str, float, int]] = []
    monkeypatch.setattr(SummaryWriter, "add_scalar", lambda self, *what: logged.append(what))
    told: list[Event] = []
    (run,) = do(settings(place), told.append)
    board = Board()
    for event in told:
        board(event)
    as_they_came = set(logged)
    logged.clear()
    board = Board()
    for row in tables.table(run, "rounds").to_dict("records"):
        board(RoundDone(run, {str(key): value for key, value in row.items()}, 1.0, ()))
    steps = {step for name, _, step in logged if name == "loss/train"}
    assert steps == {8 * number + at for number in range(3) for at in (4, 8)}
    assert rounded(logged) == rounded(as_they_came)


def test_weights_and_curves_that_cannot_be_read_end_nothing(place: Path) -> None:
    told: list[Event] = []
    (run,) = do(settings(place), told.append)
    for file in (run.dumps / "evals.csv", run.saves / "trained_01.safetensors"):
        file.unlink()
        file.symlink_to(file.name)  # a link to itself, which cannot be read
    board = Board()
    for row in tables.table(run, "rounds").to_dict("records"):
        board(RoundDone(run, {str(key): value for key, value in row.items()}, 1.0, ()))
    board.close()


def rounded(scalars: Iterable[tuple[str, float, int]]) -> list[tuple[str, int, float]]:
    """In one order, and as exact as CSV files have them."""
    return sorted((name, step, round(float(value), 4)) for name, value, step in scalars)
