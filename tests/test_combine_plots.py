"""combine_plots.py from outside: what it finds, draws and says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import conftest
import pandas as pd
import pytest
from conftest import MakeRuns
from helpers import Capture, Patch

import combine_plots
import utils
from lth.settings.config import PROJECT

FIGURES = {"comparison", "supermask", "training", "first_layer", "initial_weights"}  # all layers are pruned at one rate
ALWAYS = {"verdict.csv", "report.html", "figures.json"}


def drawn(root: Path) -> dict[str, set[str]]:
    """Names of the files in every folder under plots/."""
    folders: dict[str, set[str]] = {}
    for file in (root / "plots").rglob("*.*"):
        if file.is_file():
            folders.setdefault(file.parent.relative_to(root / "plots").as_posix(), set()).add(file.name)
    return folders


def test_partial_runs_of_several_settings(tmp_path: Path, make_runs: MakeRuns, capsys: Capture) -> None:
    whole = make_runs(rounds={"lt": 4, "reinit": 2}, seeds=(0, 1), settings="prune_percent=20")  # reinit goes on later
    make_runs(arms=["lt"], seeds=(0,), rounds=3, settings="prune_percent=40", accuracy=lambda arm, number, seed: 50.0)
    aside = whole[0].dumps.with_name("seed0.old-20250101")
    aside.mkdir()
    (aside / "rounds.csv").write_text("spoiled, and nobody's business")
    (whole[0].dumps.parent / "seed7").mkdir()  # begun, no round finished

    assert utils.exit_code(combine_plots.main, ["--root", str(tmp_path), "--format", "svg", "--grid"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    figures = {f"{name}.svg" for name in FIGURES} | ALWAYS
    first, second = "fc1/mnist/prune_percent=20", "fc1/mnist/prune_percent=40"
    assert drawn(tmp_path) == {first: figures, second: figures, ".": {"grid.svg", "figures.json", "index.html"}}
    told = re.findall(r"^(?:written to|all settings in) (.+):\n((?:  [\w.]+\n)+)", out, re.M)
    files = [Path(folder) / name for folder, names in told for name in names.split()]
    assert len(files) == len(set(files)) == 15 and all(file.is_file() for file in files)
    table = pd.read_csv(tmp_path / "plots" / first / "verdict.csv")
    assert len(table) == 4 + 2
    assert set(table["trials"]) == {2}
    other = pd.read_csv(tmp_path / "plots" / second / "verdict.csv")
    assert set(other["test"]) == {50.0}  # settings are never averaged with each other
    sentences = [line for line in out.splitlines() if line.startswith("fc1 on MNIST (")]
    assert [line for line in sentences if "prune" not in line.split(")")[0]] == []
    assert sum("20% pruned per round" in line for line in sentences) >= 3  # lt, reinit, what they rest on
    assert sum("40% pruned per round" in line for line in sentences) >= 1
    assert "\x1b" not in out
    assert not list(tmp_path.rglob("*.partial"))


def test_other_axes_when_asked(tmp_path: Path, make_runs: MakeRuns, capsys: Capture) -> None:
    def combined(*flags: str) -> str:
        assert utils.exit_code(combine_plots.main, ["--root", str(tmp_path), "--quiet", *flags]) == 0
        return capsys.readouterr().out

    make_runs(rounds=3, saves=False)
    assert "comparison_compression.png" not in combined()
    assert "comparison_compression.png" in combined("--x", "compression")
    (figure,) = tmp_path.rglob("comparison_compression.png")
    assert "Against compression" in (figure.parent / "report.html").read_text(encoding="utf-8")
    again = combined("--x", "compression")
    assert "up to date" in again and figure.name in again
    assert utils.exit_code(combine_plots.main, ["--root", str(tmp_path), "--quiet", "--x", "flops"]) == 0
    assert "multiply-adds, which were not counted" in capsys.readouterr().err


def test_only_what_is_asked_for(tmp_path: Path, make_runs: MakeRuns, capsys: Capture) -> None:
    for arch_type, dataset, settings in (("fc1", "mnist", "a"), ("fc1", "cifar10", "a"), ("fc1", "mnist", "b")):
        make_runs(
            arms=["lt"], seeds=[0], rounds=2, arch_type=arch_type, dataset=dataset, settings=settings, saves=False
        )
    flags = ["--root", str(tmp_path), "--arch_type", "FC1", "--dataset", "MNIST", "--name", "b", "--quiet"]
    assert utils.exit_code(combine_plots.main, flags) == 0
    assert drawn(tmp_path) == {"fc1/mnist/b": {"comparison.png", "supermask.png", "training.png", *ALWAYS}}
    told = capsys.readouterr()
    assert told.err == ""
    assert "vs dense" not in told.out
    assert told.out.startswith("One trial gives no interval, so no ticket of lt")  # only one: it needs no name


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset", "mnist", "--name", "x"], ["no run", "--dataset mnist --name x"]),
        (["--format", "gif"], ["--format", "gif", "svg"]),
        (["--formt", "png"], ["--formt"]),
        (["--root", "ROOT/file"], ["error: --root must be a folder, or a new one, not"]),
        (["--root", "ROOT/empty"], ["error: no run with a finished round", "dumps", "--root"]),
    ],
)
def test_mistakes(tmp_path: Path, make_runs: MakeRuns, capsys: Capture, flags: list[str], words: list[str]) -> None:
    (tmp_path / "file").write_text("mine")
    flags = [flag.replace("ROOT", str(tmp_path)) for flag in flags]
    make_runs(arms=["lt"], seeds=[0], rounds=1, saves=False, settings="default")
    assert utils.exit_code(combine_plots.main, ["--root", str(tmp_path), *flags]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert [word for word in words if word not in told.err] == []


@pytest.mark.skipif(os.name != "posix", reason="needs links")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("journal.jsonl", "no journal\n1,2\n"), ("journal.jsonl", "\x00\x01\x02")),
        *(("journal.jsonl", None), ("config.json", None)),
    ],
)
def test_damaged_files(tmp_path: Path, make_runs: MakeRuns, capsys: Capture, name: str, content: str | None) -> None:
    """Unreadable as another user's file; here a link to itself, which no user can read."""
    spoiled, _ = make_runs(arms=["lt"], seeds=[0, 1], rounds=1, saves=False)
    (file := spoiled.dumps / name).unlink()
    file.symlink_to(name) if content is None else file.write_text(content)
    assert utils.exit_code(combine_plots.main, ["--root", str(tmp_path), "--quiet"]) == 2
    told = capsys.readouterr()
    assert re.fullmatch(rf"error: {re.escape(str(file))} .*\n", told.err)
    assert "verdict.csv" in told.out  # the others are drawn


def test_the_verdict_is_printed_without_figures(tmp_path: Path, make_runs: MakeRuns, capsys: Capture) -> None:
    """As on a full disk, or among somebody's results that one may only read."""
    make_runs(arms=["lt"], seeds=[0], rounds=2, saves=False)
    (tmp_path / "plots").write_text("in the way")
    assert utils.exit_code(combine_plots.main, ["--root", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "fc1 on MNIST" in told.out and "One trial gives no interval" in told.out
    assert told.err.startswith("error: ") and str(tmp_path / "plots") in told.err


def test_with_nothing_to_do_it_loads_neither_pytorch_nor_matplotlib(tmp_path: Path, make_runs: MakeRuns) -> None:
    make_runs(rounds=3, seeds=(0, 1))
    make_runs(arms=["lt"], seeds=[0], rounds=3, arch_type="lenet5")
    flags = ["--root", str(tmp_path), "--grid"]
    assert utils.exit_code(combine_plots.main, flags) == 0
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "plots").rglob("*.*")}
    check = (
        "import sys, combine_plots, utils\n"
        "print([utils.exit_code(combine_plots.main, asked) for asked in (sys.argv[1:], ['--no_such_flag'])])\n"
        "print('loaded:', *sorted({'torch', 'matplotlib', 'seaborn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check, *flags], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.endswith("[0, 2]\nloaded:\n"), done.stderr
    assert "fc1 on MNIST: The sparsest winning ticket" in done.stdout, "it is printed again"
    assert "lenet5 on MNIST: One trial gives no interval" in done.stdout
    assert "up to date in" in done.stdout and "written to" not in done.stdout
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "plots").rglob("*.*")}


def test_changed_runs_are_drawn_again(tmp_path: Path, make_runs: MakeRuns, capsys: Capture) -> None:
    make_runs(arms=["lt"], seeds=[0, 1], rounds=2, saves=False)
    make_runs(arms=["lt"], seeds=[0], rounds=2, arch_type="lenet5", saves=False)
    flags = ["--root", str(tmp_path), "--quiet"]
    assert utils.exit_code(combine_plots.main, flags) == 0
    make_runs(arms=["lt"], seeds=[1], rounds=3, saves=False)
    capsys.readouterr()
    assert utils.exit_code(combine_plots.main, flags) == 0
    told = capsys.readouterr().out
    assert told.index("written to") < told.index("up to date in")
    assert len(pd.read_csv(tmp_path / "plots" / "fc1" / "mnist" / conftest.SETTINGS / "verdict.csv")) == 3


def test_a_stop_leaves_no_report_of_older_rounds(tmp_path: Path, make_runs: MakeRuns, monkeypatch: Patch) -> None:
    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    report, flags = (
        tmp_path / "plots/fc1/mnist" / conftest.SETTINGS / "report.html",
        ["--root", str(tmp_path), "--quiet"],
    )
    make_runs(arms=["lt"], seeds=[0], rounds=2, saves=False)
    assert utils.exit_code(combine_plots.main, flags) == 0
    before = report.read_bytes()
    make_runs(arms=["lt"], seeds=[0], rounds=3, saves=False)
    with monkeypatch.context() as patched:
        patched.setattr("lth.plots.report.write", stop)
        assert utils.exit_code(combine_plots.main, flags) == 130
    assert report.read_bytes() == before
    assert utils.exit_code(combine_plots.main, flags) == 0
    whole = report.read_bytes()
    report.write_bytes(whole[:1000])  # or as a spreadsheet saves verdict.csv
    assert utils.exit_code(combine_plots.main, flags) == 0
    assert report.read_bytes() == whole != before
