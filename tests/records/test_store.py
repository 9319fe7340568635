"""What a run that goes on takes back, and what it does not: weights that are only out of reach now are not lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import Told, assert_same, do, lay_out, results, settings

from lth.commands import command, session
from lth.records import journal, tables
from lth.records.files import RecordError
from lth.records.store import load_tensors
from lth.records.tables import Run, runs_of
from lth.settings.config import Config

ROUNDS, MORE = 2, 3
posix = pytest.mark.skipif(os.name != "posix", reason="needs links and limits of POSIX")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """The settings of a finished run, with another one of more rounds in `more`."""
    with pytest.MonkeyPatch.context() as patch:
        place = lay_out(tmp_path_factory.mktemp("place"), patch)
        config = settings(place, prune_iterations=ROUNDS, root=place / "finished")
        do(config)
        do(replace(config, root=place / "more", prune_iterations=MORE))
        yield config


@pytest.fixture
def run(finished: Config, tmp_path: Path) -> Run:
    """A copy of that run."""
    shutil.copytree(finished.root, tmp_path / "run")
    return runs_of(replace(finished, root=tmp_path / "run"))[0]


def go(finished: Config, run: Run, tell: Told | None = None) -> None:
    do(replace(finished, root=run.root, prune_iterations=MORE), tell)


def test_weights_that_are_out_of_reach_cost_nothing(finished: Config, run: Run) -> None:
    before, elsewhere = results(run.root), run.saves.rename(run.root / "elsewhere")
    with pytest.raises(RecordError, match=r"lt seed0: 2 rounds are finished, but there are no weights in .*saves"):
        go(finished, run)
    assert not run.saves.exists()
    elsewhere.rename(run.saves)
    assert_same(results(run.root), before)
    go(finished, run)
    assert_same(results(run.root), results(finished.root.parent / "more"))


@posix
def test_too_many_open_files_are_no_damage(run: Run) -> None:
    import resource

    file = run.saves / "initial.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(RecordError, match=r"initial\.safetensors cannot be read \(Too many open files\)"):
            load_tensors(file)
        with pytest.raises(RecordError, match=r"journal\.jsonl cannot be read \(Too many open files\)"):
            tables.entries(run)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert load_tensors(file)


def test_the_numbers_of_rounds_that_are_taken_back_are_kept(finished: Config, run: Run) -> None:
    known, told = (run.dumps / journal.NAME).read_bytes(), Told()
    (run.saves / "ticket_01.safetensors").unlink()
    (run.saves / "initial.safetensors").unlink()
    go(finished, run, told)
    (copy,) = run.dumps.glob(f"{journal.NAME}.before-*")
    assert copy.read_bytes() == known and f"is kept in {copy.name}" in told.notes
    assert_same(results(run.root), results(finished.root.parent / "more"))


def test_a_damaged_run_of_another_command_is_said_and_left_out(
    finished: Config, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its dense round is not taken over, its tickets and numbers are not looked at, and the command does its work."""
    (run.dumps / journal.NAME).write_text("hello\n")
    config = replace(finished, root=run.root, prune_type=("reinit",), connectivity=True)
    command.perform({config: {}}, [])
    said = capsys.readouterr()
    assert "warning:" in said.err and journal.NAME in said.err and len(said.err.splitlines()) < 5
    (reinit,) = runs_of(config)
    assert tables.finished_rounds(reinit) == ROUNDS and reinit.plots.joinpath("verdict.csv").exists()
    assert tables.runs_in("--ticket", reinit.saves.parent) == [reinit]
    with pytest.raises(RecordError, match=journal.NAME):
        tables.runs_in("--ticket", run.saves.parent)


def test_a_file_that_is_set_aside_is_named_also_with_quiet(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = session.run(settings(place, prune_iterations=2))
    file = run.saves / "ticket_01.safetensors"
    file.write_bytes(b"junk")
    session.run(settings(place, prune_iterations=3, quiet=True))
    assert f"{file.name}.damaged, continuing from the last good round" in capsys.readouterr().err
