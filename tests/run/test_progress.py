"""What a terminal shows: bars of any number of runs at any width, and sentences broken between words."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from helpers import Mlp, settings, training

from lth.records.events import Evaluated, Event, Moved, Note, RoundDone
from lth.records.tables import Run
from lth.run import session
from lth.run.progress import Progress
from lth.run.terminal import wrapped
from lth.training import train
from lth.training.schedule import Plan
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
        lines, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]", self.getvalue()):
            if part == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif part == "\r":
                column = 0
            elif part.startswith("\x1b"):
                row -= int(part[2:-1] or 1) if part[-1] == "A" else 0
                lines[row] = "" if part == "\x1b[2K" else lines[row]
            else:
                if column == self.columns:
                    row, column = row + 1, 0
                    lines += [""] * (row + 1 - len(lines))
                lines[row] = f"{lines[row][:column]:{column}}{part}{lines[row][column + 1 :]}"
                column += 1
        return [line.rstrip() for line in lines]


RUNS = [Run(Path(), "fc1", "mnist", "default", arm, seed) for arm in ("lt", "random_finetune") for seed in (0, 1)]


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def evaluated(run: Run, number: int, iteration: int, steps: int = 5000) -> Evaluated:
    return Evaluated(run, number, Evaluation(iteration, 0.1234, 0.2, 97.5, 97.25), steps, 500)


def done(run: Run, number: int) -> RoundDone:
    return RoundDone(run, {"round": number, "remaining": 80.0, "ES": 4500, "val": 97.5, "test": 97.25}, 61.5, ())


@pytest.fixture(params=[60, 80, 120])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("TERM", "xterm-256color")
    return Terminal(request.param)


def shown(terminal: Terminal, events: list[Event], runs: list[Run]) -> tuple[Progress, Clock]:
    """A second before each event."""
    clock = Clock()
    progress = Progress(8, 1, False, terminal, runs, clock)
    for event in events:
        clock.now += 1
        progress(event)
    return progress, clock


@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_run_has_one_bar_in_a_line_of_its_own(terminal: Terminal, count: int) -> None:
    runs = RUNS[:count]
    events: list[Event] = [Moved(run, 3, 0, 5000) for run in runs]
    for iteration in (400, 500, 600):
        events += [Moved(run, 3, iteration, 5000) for run in runs]
        events += [evaluated(run, 3, iteration) for run in runs[:1]]
    progress, clock = shown(terminal, events, runs)
    bars = terminal.screen[1:]
    assert len(bars) == count
    for run, line in zip(runs, bars, strict=True):
        assert line.startswith(f"{run} round 3 ") and "━" * 5 in line
        assert len(line) <= terminal.columns - 4, "there must be room for the ^C of the terminal"
    if count < 4:
        assert all("600/5000" in line and " it/s" in line for line in bars)
        assert "val 97.50%" in bars[0]
    assert ("loss 0.1234" in bars[0]) == (terminal.columns > (60 if count < 3 else 80))
    clock.now += 1
    progress(done(runs[0], 3))
    progress(Moved(runs[0], 4, 0, 5000))
    heads, row, *bars = terminal.screen
    assert row.split()[:4] == [*str(runs[0]).split(), "3", "80.00%"] and "97.25" in row
    if heads.endswith("time left"):
        seconds = round((clock() - progress.began) * 7)  # one of eight rounds is done
        assert row.split()[-1] == f"{seconds // 60}m{seconds % 60:02}s"
    assert heads.endswith("time left") or (terminal.columns == 60 and count == 4)
    assert len(bars) == count and f"{runs[0]} round 4" in bars[-1]
    progress.close()
    assert not any(terminal.screen[2:]), "the bars are gone"


def test_bars_have_their_names_from_the_beginning_and_move_between_evaluations(terminal: Terminal) -> None:
    progress, clock = shown(terminal, [Moved(RUNS[0], 0, 0, 5000)], RUNS[:2])
    assert terminal.screen[1].startswith("lt seed0 round 0 ") and "0/5000" in terminal.screen[1]
    clock.now += 1
    progress(Moved(RUNS[0], 0, 250, 5000))
    assert "250/5000" in terminal.screen[1]
    progress.close()


def test_speed_counts_what_was_done_since_the_bar_began(terminal: Terminal) -> None:
    """A run that is taken up at iteration 4000 has not done them in this second."""
    events: list[Event] = [Moved(RUNS[0], 0, iteration, 50000) for iteration in (4000, 4150, 4300, 4450)]
    progress, _ = shown(terminal, events, RUNS[:1])
    assert re.search(r"\b150 it/s", terminal.screen[1])
    progress.close()


def test_a_failure_goes_to_stderr_and_the_bars_stay(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    progress, clock = shown(terminal, [Moved(RUNS[0], 0, 0, 5000), Note("lt seed1: it broke", failed=True)], RUNS)
    clock.now += 1
    progress(Moved(RUNS[0], 0, 100, 5000))
    assert "it broke" in capsys.readouterr().err and "it broke" not in terminal.getvalue()
    assert ["100/5000" in line for line in terminal.screen if line] == [False, True]
    progress.close()


def test_quiet_shows_nothing_and_files_get_plain_lines(terminal: Terminal) -> None:
    events = [Moved(RUNS[0], 0, 0, 5000), evaluated(RUNS[0], 0, 5000), done(RUNS[0], 0)]
    quiet = Progress(1, 1, True, terminal, RUNS)
    file = io.StringIO()
    plain = Progress(1, 1, False, file, RUNS)
    for event in events:
        quiet(event)
        plain(event)
    quiet.close()
    plain.close()
    silent = io.StringIO()
    Progress(1, 1, True, silent, RUNS).close()
    assert silent.getvalue() == ""
    assert terminal.getvalue() == "" and "\x1b" not in file.getvalue()
    head, line, row = file.getvalue().splitlines()
    assert head.split() == ["run", "round", "remaining", "ES", "val", "test", "seconds", "time", "left"]
    assert "epoch 10 of 10: loss 0.1234  val 97.50%" in line and "61.5" in row


def test_a_training_says_where_it_is_between_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "BEAT", 0)
    told: list[int] = []
    training(Mlp, Plan(9, 6, lambda iteration: 0.01)).run(moved=told.append)
    assert told == list(range(10))
    resumed = training(Mlp, Plan(9, 6, lambda iteration: 0.01, start=4))
    monkeypatch.setattr(train, "BEAT", 1000)
    resumed.run(moved=told.append)
    assert told[10:] == [4]


def test_a_whole_run_on_a_terminal(place: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(train, "BEAT", 0)
    session.run(settings(place, quiet=False, prune_type=("lt", "reinit"), prune_iterations=2))
    text = terminal.getvalue()
    assert text.index("lt seed0 round 1 ") < text.index("reinit seed0 round 1 ")
    rows = [line.split()[:3] for line in terminal.screen if re.match(r"(lt|reinit) seed0 ", line)]
    assert sorted(rows) == [[arm, "seed0", number] for arm in ("lt", "reinit") for number in "01"]
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0, "the cursor is back"


def test_sentences_are_broken_between_words(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"the weights under saves/ take up to 1,234 MB: {'/a-long-path' * 12} and a few-words-more\n\n  indented"
    assert wrapped(text, io.StringIO()) == text
    lines = wrapped(text, terminal).split("\n")
    assert " ".join(" ".join(lines).split()) == " ".join(text.split()) and lines[-2:] == ["", "  indented"]
    assert all(len(line) <= terminal.columns or " " not in line for line in lines)
