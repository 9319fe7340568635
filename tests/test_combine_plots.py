"""combine_plots.py from outside: what it finds, draws and says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import MakeRuns

import combine_plots
import utils
from lth.settings.config import PROJECT

FIGURES = {"comparison", "training", "layers", "first_layer", "initial_weights"}


def from_outside(root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the script as its users do."""
    command = [sys.executable, str(PROJECT / "combine_plots.py"), "--root", str(root), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "100"})


def drawn(root: Path) -> dict[str, set[str]]:
    """Names of the files in every folder under plots/."""
    folders: dict[str, set[str]] = {}
    for file in (root / "plots").rglob("*.*"):
        if file.is_file():
            folders.setdefault(file.parent.relative_to(root / "plots").as_posix(), set()).add(file.name)
    return folders


def test_partial_runs_of_several_settings(tmp_path: Path, make_runs: MakeRuns) -> None:
    whole = make_runs(rounds={"lt": 4, "reinit": 2}, seeds=(0, 1), settings="prune_percent=20")  # reinit goes on later
    make_runs(arms=["lt"], seeds=(0,), rounds=3, settings="prune_percent=40", accuracy=lambda arm, number, seed: 50.0)
    aside = whole[0].dumps.with_name("seed0.old-20250101")
    aside.mkdir()
    (aside / "rounds.csv").write_text("spoiled, and nobody's business")
    (whole[0].dumps.parent / "seed7").mkdir()  # begun, no round finished

    done = from_outside(tmp_path, "--format", "svg", "--grid")

    assert (done.returncode, done.stderr) == (0, "")
    figures = {f"{name}.svg" for name in FIGURES} | {"verdict.csv"}
    first, second = "fc1/mnist/prune_percent=20", "fc1/mnist/prune_percent=40"
    assert drawn(tmp_path) == {first: figures, second: figures, ".": {"grid.svg"}}
    told = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ") and "plots" in line]
    assert len(told) == len(set(told)) == 13
    assert all(Path(name).is_file() for name in told)
    table = pd.read_csv(tmp_path / "plots" / first / "verdict.csv")
    assert len(table) == 4 + 2
    assert set(table["trials"]) == {2}
    other = pd.read_csv(tmp_path / "plots" / second / "verdict.csv")
    assert set(other["test"]) == {50.0}  # settings are never averaged with each other
    assert done.stdout.count("winning ticket keeps") == 2
    assert "\x1b" not in done.stdout
    assert not list(tmp_path.rglob("*.partial"))


def test_only_what_is_asked_for(tmp_path: Path, make_runs: MakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    for arch_type, dataset, settings in (("fc1", "mnist", "a"), ("fc1", "cifar10", "a"), ("fc1", "mnist", "b")):
        make_runs(
            arms=["lt"], seeds=[0], rounds=2, arch_type=arch_type, dataset=dataset, settings=settings, saves=False
        )
    flags = ["--root", str(tmp_path), "--arch_type", "FC1", "--dataset", "MNIST", "--name", "b", "--quiet"]
    assert utils.exit_code(combine_plots.main, flags) == 0
    assert drawn(tmp_path) == {"fc1/mnist/b": {"comparison.png", "training.png", "layers.png", "verdict.csv"}}
    told = capsys.readouterr()
    assert told.err == ""
    assert "vs dense" not in told.out
    assert "no interval" in told.out


def test_nothing_found(tmp_path: Path) -> None:
    done = from_outside(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: no run with a finished round .*dumps.*--root.*\n", done.stderr)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset", "mnist", "--name", "x"], ["no run", "--dataset mnist --name x"]),
        (["--format", "gif"], ["--format", "gif", "svg"]),
        (["--formt", "png"], ["--formt"]),
    ],
)
def test_one_message_and_exit_code_2(
    tmp_path: Path, make_runs: MakeRuns, capsys: pytest.CaptureFixture[str], flags: list[str], words: list[str]
) -> None:
    make_runs(arms=["lt"], seeds=[0], rounds=1, saves=False, settings="default")
    assert utils.exit_code(combine_plots.main, ["--root", str(tmp_path), *flags]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert [word for word in words if word not in told.err] == []


@pytest.mark.parametrize("content", ["", "no table\n1,2\n", "round,remaining\n0,100\n", "\x00\x01\x02"])
def test_a_spoiled_table_is_one_clear_line(
    tmp_path: Path, make_runs: MakeRuns, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    spoiled, _ = make_runs(arms=["lt"], seeds=[0, 1], rounds=1, saves=False)
    (spoiled.dumps / "rounds.csv").write_text(content)
    assert utils.exit_code(combine_plots.main, ["--root", str(tmp_path), "--quiet"]) == 2
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 1
    assert str(spoiled.dumps / "rounds.csv") in told.err
    assert "verdict.csv" in told.out  # the others are drawn
