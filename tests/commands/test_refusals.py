"""Results of another model or other data: refused before anything is written, and never averaged."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import Capture, Patch, arrays, settings

import combine_plots
import lth
import utils
from lth.analysis import verdict
from lth.commands import session
from lth.records import identity, journal, tables
from lth.records.files import RecordError
from lth.records.tables import runs_of
from lth.settings.config import Config, ConfigError


@pytest.fixture(autouse=True)
def edited_at_once(monkeypatch: Patch) -> None:
    """Edits within a second are seen: no compiled files, which are told apart by whole seconds."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def edit(place: Path, old: str = "nn.ReLU()", new: str = "nn.Tanh()") -> None:
    file = place / "archs/tiny/mlp.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def everything(place: Path) -> dict[Path, tuple[int, bytes]]:
    files = [
        file
        for kind in ("dumps", "saves", "plots")
        for file in (place / kind).rglob("*")
        if file.suffix not in (".lock", ".holder") and file.is_file()
    ]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def refused(config: Config, *words: str) -> None:
    """The session is refused in one sentence with these words, and nothing is written."""
    before = everything(config.root)
    with pytest.raises(ConfigError) as caught:
        session.run(config)
    (sentence,) = caught.value.problems
    assert all(word in sentence for word in words) and "\n" not in sentence, sentence
    assert everything(config.root) == before


def test_an_edited_model_is_refused_wherever_its_rounds_would_meet_the_old_ones(place: Path) -> None:
    config = settings(place, prune_iterations=2)
    session.run(config)
    edit(place)
    here = str(runs_of(config)[0].dumps)
    told = ("--name must be new, or the old results", "holds results of a different model")
    words = (here, *told, "overwritten, since")
    refused(config, *words)  # finished as it is
    refused(replace(config, prune_iterations=3), *words)
    refused(replace(config, trials=2), *words)
    beside = (here, "beside these runs", *told, "moved away, since")
    refused(replace(config, prune_type=("reinit",)), *beside)
    refused(replace(config, seed=1), *beside)
    refused(replace(config, seed=1, overwrite=True), *beside)
    session.run(replace(config, name="other"))
    (run,) = session.run(replace(config, overwrite=True))
    edit(place, "nn.Tanh()", "nn.ReLU()")
    refused(config, *words)
    assert len(tables.table(run, "rounds")) == 2


def test_other_data_are_refused_and_equal_ones_are_not(place: Path, capsys: Capture) -> None:
    config = settings(place, prune_iterations=2)
    (place / "data2").mkdir()
    np.savez(place / "data2/tiny.npz", **arrays(seed=1))
    session.run(replace(config, data=place / "data2"))
    words = (str(runs_of(config)[0].dumps), "or the old results overwritten, since", "holds results of different data")
    refused(replace(config, trials=2), *words)
    edit(place)
    refused(config, "holds results of a different model and different data")
    edit(place, "nn.Tanh()", "nn.ReLU()")
    np.savez_compressed(place / "data/tiny.npz", **arrays(seed=1))  # the same arrays in another file
    (place / "data/tiny.npz").touch()
    session.run(replace(config, quiet=False))
    assert "all rounds are finished" in capsys.readouterr().out
    (place / "data/tiny.npz").unlink()
    session.run(config)  # what is finished needs no data


def test_other_settings_are_refused_beside_the_runs_of_the_same_name(place: Path) -> None:
    config = settings(place, name="mine", prune_iterations=2)
    (run,) = session.run(config)
    words = ["beside these runs", "or the old results moved away", "of different settings (lr 0.01, now 0.02)"]
    for other in (replace(config, seed=1), replace(config, prune_type=("reinit",))):
        refused(replace(other, lr=0.02), str(run.dumps), *words)
        refused(replace(other, lr=0.02, overwrite=True), str(run.dumps), *words)
    runs = session.run(replace(config, trials=2, prune_iterations=3, prune_type=("lt", "reinit")))
    assert verdict.table(runs)["trials"].tolist() == [2] * 6, "these may differ"
    refused(replace(config, overwrite=True, lr=0.02), *words)


def test_settings_that_an_arm_does_not_look_at_may_be_others_beside_it(place: Path) -> None:
    config = settings(place, name="mine", prune_iterations=2)
    session.run(config)
    before = replace(config, prune_type=("random_init",), random_rates="erk")
    session.run(before)
    session.run(replace(config, prune_iterations=3))
    runs = tables.find(place)
    assert len(verdict.table(runs)["arm"].unique()) == 2 and identity.mixed(runs) == ""
    refused(replace(before, random_rates="uniform"), "random_rates erk, now uniform")
    refused(replace(before, seed=1, random_rates="uniform"), "beside these runs", "random_rates erk, now uniform")
    with pytest.raises(ConfigError, match="random_rates erk, now uniform"):
        session.check_finished(replace(before, random_rates="uniform", overwrite=True))


def test_results_of_different_models_are_never_averaged(place: Path, capsys: Capture) -> None:
    """Two trials of different models in one folder, as after copying; and other settings beside them."""
    config = settings(place, prune_iterations=2)
    (one,) = session.run(config)
    session.run(replace(config, lr=0.02))
    edit(place)
    (two,) = session.run(replace(config, seed=1, root=place / "elsewhere"))
    copied = replace(two, root=place)
    for kind in ("dumps", "saves"):
        shutil.copytree(two.folder(kind), copied.folder(kind))
    with pytest.raises(ValueError, match=r"different experiments \(a different model\) and are not averaged"):
        verdict.table([one, copied])
    assert utils.exit_code(combine_plots.main, ["--root", str(place), "--grid", "--format", "svg"]) == 2
    said = capsys.readouterr()
    assert str(one.dumps) in said.err and str(copied.dumps) in said.err and len(said.err.splitlines()) == 1
    drawn = {file.parent.name for file in place.glob("plots/**/verdict.csv")}
    assert len(drawn) == 1 and "lr=0.02" in drawn.pop()
    table = lth.results(place)
    assert table.groupby("fingerprint")["seed"].nunique().to_dict() == dict.fromkeys(table["fingerprint"], 1)
    assert "fingerprint" not in lth.results(place / "elsewhere") and len(table) == 6


def test_a_copied_folder_is_no_further_trial(place: Path, capsys: Capture) -> None:
    (run,) = session.run(settings(place, prune_iterations=1))
    copied = run.dumps.with_name("seed7")
    shutil.copytree(run.dumps, copied)
    assert utils.exit_code(combine_plots.main, ["--root", str(place)]) == 2
    assert f"error: {copied / journal.NAME} is the journal of another run (lt/seed0)" in capsys.readouterr().err
    written = pd.read_csv(run.plots / "verdict.csv")
    assert (written["arm"].tolist(), written["trials"].tolist()) == (["lt"], [1])
    with pytest.raises(RecordError, match="is the journal of another run"):
        lth.results(place)
    before, further = everything(place), settings(place, seed=7, prune_iterations=2)
    with pytest.raises(RecordError, match=r"the journal of another run \(lt/seed0\): .*, or use --overwrite"):
        session.run(further)
    assert everything(place) == before
    session.run(replace(further, overwrite=True))
    shutil.copytree(run.dumps, run.dumps.with_name("seed00"))  # which is no run's name
    assert len(lth.results(place)) == 3 and len(tables.runs_at(place, "dumps/*/*/*/*/*")) == 2
