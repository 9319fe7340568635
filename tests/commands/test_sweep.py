"""--sweep from the command to its table: the same results as the commands one by one."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers import Capture, argv_of, assert_same, do, results, settings

import main
import utils
from lth.analysis import verdict
from lth.commands import session
from lth.records import tables
from lth.records.tables import Run


def argv(place: Path, *more: str) -> list[str]:
    return argv_of(place, "--root", str(place / "swept"), "--prune_type", "lt", "reinit", *more)


def test_a_sweep_gives_what_its_commands_give_and_one_table(place: Path, capsys: Capture) -> None:
    command = argv(place, "--sweep", "lr=0.01,0.02", "seed=0,4")
    assert utils.exit_code(main.main, command) == 0
    out = capsys.readouterr().out
    usual = {"root": place / "single", "prune_type": ("lt", "reinit")}
    for lr in (0.01, 0.02):
        for seed in (0, 4):
            do(settings(place, lr=lr, seed=seed, **usual))
    assert_same(results(place / "swept"), results(place / "single"))
    assert "4 experiments, 8 runs of 3 rounds" in out and "lr=0.02 reinit seed4 " in out
    assert (
        out.index("\nlr=0.01: ")
        < out.index("\nlr=0.02: ")
        < out.index("/plots:\n  grid.png\n  index.html\n  sweep.csv\n")
    )
    places = [line for line in out.splitlines() if line.startswith(("1. lr=", "2. lr="))]
    assert len(places) == 2 and "1. lr=" in places[0] and "% validation accuracy" in places[0]
    page = (place / "swept" / "plots" / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2 and "0.02" in page and "<h1>2 experiments</h1>" in page
    assert (place / "swept" / "plots" / "grid.png").exists()
    found = pd.read_csv(place / "swept" / "plots" / "sweep.csv")
    assert list(found) == ["lr", "arm", "round", "remaining", "trials", "test", "low", "high", "ES"]
    assert len(found) == 2 * 2 * 3 and set(found["trials"]) == {2}
    row = found.query("lr == 0.02 and arm == 'reinit' and round == 2").iloc[0]
    (folder,) = place.glob("swept/dumps/mlp/tiny/*lr=0.02*")
    runs = [Run(place / "swept", "mlp", "tiny", folder.name, "reinit", seed) for seed in (0, 4)]
    tests = [tables.table(run, "rounds")["test"][2] for run in runs]
    assert row["test"] == pytest.approx(sum(tests) / 2) and (row["low"], row["high"]) == pytest.approx(
        verdict.accuracy_interval(pd.Series(tests))
    )

    before = {file: file.stat().st_mtime_ns for file in (place / "swept").rglob("*")}
    assert utils.exit_code(main.main, command) == 0
    assert "all rounds are finished" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (place / "swept").rglob("*")} == before
    table = place / "swept" / "plots" / "sweep.csv"
    table.write_text(table.read_text(), encoding="utf-16")  # as a spreadsheet may save it
    command = argv(place, "--sweep", "lr=0.02,2e-2", "arch_type=mlp,MLP", "seed=0,4")
    assert utils.exit_code(main.main, command) == 0
    again = pd.read_csv(table)
    assert set(again["lr"]) == {0.02} and len(again) == 2 * 3, "another sweep has another table, each experiment once"


def test_every_combination_is_checked_before_any_work(place: Path, capsys: Capture) -> None:
    assert utils.exit_code(main.main, argv(place, "--sweep", "batch_size=10,500", "rewind=0,9it,20it")) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(set(said)) and not (place / "swept").exists()
    assert any("--rewind" in line and "9it" in line for line in said), said
    assert any("--rewind" in line and "20it" in line for line in said) and any("--batch_size" in line for line in said)


def test_a_dry_run_shows_what_is_left_and_touches_nothing(place: Path, capsys: Capture) -> None:
    def planned(*more: str) -> str:
        capsys.readouterr()
        assert utils.exit_code(main.main, argv(place, "--dry_run", *more)) == 0
        return " ".join(capsys.readouterr().out.split())

    asked = ["--sweep", "lr=0.01,0.02", "--prune_type", "lt", "ticket_reinit", "--trials", "3"]
    out = planned(*asked)
    line = "ticket_reinit: 3 trials x 3 rounds, 6 trainings left; needs the dense round of lt and the masks of lt"
    assert out.count(line) == 2 and "30 trainings left, up to 12 at once" in out
    assert not (place / "swept").exists()
    shared = planned("--prune_type", "lt", "--trials", "2", "--sweep", "seed=0,1")
    assert "9 trainings left" in shared, "two seeds share a trial"

    session.run(settings(place, root=place / "swept", prune_iterations=2, quiet=True, connectivity=True))
    out = planned(*asked, "--connectivity")
    assert "56 trainings left" in out, "each ticket is trained twice"
    out = planned("--prune_type", "lt", "--overwrite")
    assert "lt: 1 trial x 3 rounds, 3 trainings left" in out
    assert list((place / "swept").rglob("rounds.csv")), "nothing is moved aside"


def test_a_dry_run_downloads_nothing(place: Path, capsys: Capture) -> None:
    shutil.copytree(place / "archs" / "tiny", place / "archs" / "mnist")
    asked = argv(place, "--dataset", "mnist", "--dry_run", "--data", str(place / "none"))
    assert utils.exit_code(main.main, asked) == 2 and not (place / "none").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert said == f"error: --dry_run neither downloads nor converts images, and there is no {place}/none/mnist.npz"
