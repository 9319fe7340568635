"""What a terminal shows while rounds are trained: one bar at any width, and sentences broken between words."""

import io
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from helpers import Capture, Patch, do, settings
from tensorboardX import SummaryWriter

from lth.commands import progress, session
from lth.commands.progress import Board, Progress
from lth.experiment.trainer import BarriersMeasured, Evaluated, Event, Note, RoundDone, Stepped
from lth.records import tables
from lth.records.tables import Run
from lth.training import hardware
from lth.training.train import Evaluation


class Terminal(io.StringIO):
    """A terminal of so many columns: `screen` is what it shows after all that was written to it."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns

    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> list[str]:
        lines, column = [""], 0
        for character in self.getvalue():
            if character == "\n" or (column == self.columns and character != "\r"):
                lines, column = [*lines, ""], 0
            if character == "\r":
                column = 0
            elif character != "\n":
                lines[-1] = f"{lines[-1][:column]:{column}}{character}{lines[-1][column + 1 :]}"
                column += 1
        return [line.rstrip() for line in lines]


RUNS = [Run(Path(), "fc1", "mnist", "default", arm, seed) for arm in ("lt", "random_finetune") for seed in (0, 1)]


def evaluated(run: Run, number: int, iteration: int, steps: int = 5000) -> Evaluated:
    return Evaluated(run, number, Evaluation(iteration, 0.1234, 0.2, 97.5, 97.25), steps, 500)


def done(run: Run, number: int, seconds: float = 61.5) -> RoundDone:
    return RoundDone(run, {"round": number, "remaining": 80.0, "ES": 4500, "val": 97.5, "test": 97.25}, seconds, ())


@pytest.fixture(params=[60, 120])
def terminal(request: pytest.FixtureRequest, monkeypatch: Patch) -> Terminal:
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setattr(progress, "REFRESH", 0)
    return Terminal(request.param)


@pytest.fixture
def clock(monkeypatch: Patch) -> list[float]:
    """Time that stands still: its one item is the time."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def shown(progress: Progress, *events: Event, clock: list[float] | None = None) -> None:
    """A second before each event."""
    for event in events:
        if clock:
            clock[0] += 1
        progress(event)


@pytest.mark.parametrize("count", [1, 4])
def test_one_bar_below_finished_rounds(terminal: Terminal, clock: list[float], count: int, monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    made = Progress(dict.fromkeys(RUNS[:count], 2), 1, False)
    moves = [Stepped(run, 3, iteration, 5000) for iteration in (0, 500) for run in RUNS[:count]]
    shown(made, *moves, clock=clock)
    heads, bar = terminal.screen
    assert heads.split()[:3] == ["run", "round", "remaining"]
    assert re.match(rf"  [56]%\|.{{8,}}\| {500 * count}/{10_000 * count}, \dm\d\ds left, ", bar)
    assert len(bar) <= terminal.columns - 4, "there must be room for the ^C of the terminal"
    assert bar.count(" r3") == count or bar.endswith(", ..."), "no name is cut off"
    shown(made, done(RUNS[0], 3), Stepped(RUNS[0], 4, 0, 5000))
    heads, row, bar = terminal.screen
    assert row.split()[:4] == [*str(RUNS[0]).split(), "3", "80.00%"] and "97.25" in row
    assert f"| {5000 + 500 * (count - 1)}/{10_000 * count}, " in bar
    made.close()
    assert not any(terminal.screen[2:]), "the bar is gone"


def test_time_left_counts_trainings_alone_from_the_first_step(clock: list[float], capsys: Capture) -> None:
    """Start-up, a shared round and what was done before made it two to three times too long."""
    lt, other = RUNS[:2]
    made = Progress({lt: 3, other: 2}, 1, False)
    clock[0] += 1000  # processes start
    shown(made, done(other, 0, seconds=0.0), Stepped(lt, 0, 20, 100))
    assert made.time_left() == 0, "unknown"
    clock[0] += 5
    shown(made, Stepped(lt, 0, 50, 100))  # taken up at 20: 30 iterations in 5 seconds, of 500 in all
    assert made.time_left() == pytest.approx(450 / 30 * 5)
    clock[0] += 5
    shown(made, done(lt, 0, seconds=10.0), Stepped(lt, 1, 0, 100))
    assert made.time_left() == pytest.approx(400 / 80 * 10)
    shown(made, Note(f"{other}: it broke", failed=other))
    assert made.time_left() == pytest.approx(200 / 80 * 10), "it trains no more"
    shown(Progress({lt: 2}, 1, False), BarriersMeasured(lt, 1, 1.0, 1.0, True, 0.25))
    assert "round 1 1.00 points (test), 1.00 (train): stable; from round 0: 0.25 (test)" in capsys.readouterr().out
    elsewhere = Progress({lt: 3}, 1, False)  # nothing is heard of it but its finished rounds
    shown(elsewhere, done(lt, 0, seconds=60.0))
    assert elsewhere.time_left() == pytest.approx(120)
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] == "2m00s"


def test_files_get_plain_lines(capsys: Capture) -> None:
    evaluations = [evaluated(RUNS[0], 0, iteration, 5000) for iteration in (200, 1000, 1200, 4900, 5000)]
    shown(Progress({RUNS[0]: 1}, 2, False), Stepped(RUNS[0], 0, 0, 5000), *evaluations, done(RUNS[0], 0))
    head, *lines, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "round", "remaining", "ES", "val", "test", "seconds", "time", "left"]
    assert [line.split()[4] for line in lines] == ["1000", "4900", "5000"], "every two epochs, and the last"
    assert "of 5000: loss 0.1234  val 97.50%" in lines[-1] and "61.5" in row and "\r" not in row


def test_a_whole_run_on_a_terminal(place: Path, terminal: Terminal, monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(hardware, "BEAT", 0)
    session.run(settings(place, quiet=False, prune_type=("lt", "reinit"), prune_iterations=2))
    assert "24/24" in terminal.getvalue(), "three trainings of 8 iterations: the second dense round is shared"
    rows = [line.split()[:3] for line in terminal.screen if re.match(r"(lt|reinit) seed0 ", line)]
    assert sorted(rows) == [[arm, "seed0", number] for arm in ("lt", "reinit") for number in "01"]


def test_rounds_of_other_processes_have_their_curves(place: Path, monkeypatch: Patch) -> None:
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


def rounded(scalars: Iterable[tuple[str, float, int]]) -> list[tuple[str, int, float]]:
    """In one order, and as exact as CSV files have them."""
    return sorted((name, step, round(float(value), 4)) for name, value, step in scalars)
