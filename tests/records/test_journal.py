"""Files that something else has touched: the same numbers again, or a sentence that names the file."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from helpers import assert_same, do, held, lay_out, results, settings

import lth
from lth.records import journal, recording, tables
from lth.records.files import RecordError
from lth.records.lock import Locked
from lth.records.tables import Run
from lth.run import session
from lth.run.tasks import runs_of
from lth.settings.config import Config

ROUNDS, MORE = 3, 4
posix = pytest.mark.skipif(os.name != "posix", reason="needs named pipes")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """The settings of a finished run, with another one of more rounds in `more`."""
    with pytest.MonkeyPatch.context() as patch:
        place = lay_out(tmp_path_factory.mktemp("place"), patch)
        config = settings(place, prune_iterations=ROUNDS, connectivity=True, root=place / "finished")
        session.run(config)
        do(replace(config, root=place / "more", prune_iterations=MORE))
        yield config


@pytest.fixture
def run(finished: Config, tmp_path: Path) -> Run:
    """A copy of that run, to be damaged."""
    shutil.copytree(finished.root, tmp_path / "run")
    return runs_of(replace(finished, root=tmp_path / "run"))[0]


def go(finished: Config, run: Run, rounds: int = ROUNDS) -> None:
    session.run(replace(finished, root=run.root, prune_iterations=rounds))


def expected(finished: Config, rounds: int = ROUNDS) -> dict[str, bytes]:
    return results(finished.root if rounds == ROUNDS else finished.root.parent / "more")


# Damages: each gets the lines of a file and gives others. Line 0 has the names of the columns.

Lines = list[str]


def bit(line: str, at: int) -> str:
    at %= len(line)
    return line[:at] + chr(ord(line[at]) ^ 1) + line[at + 1 :]


def last_digit(line: str) -> str:
    at = max(i for i, char in enumerate(line) if char.isdigit())
    return line[:at] + str((int(line[at]) + 5) % 10) + line[at + 1 :]


def moved(line: str) -> str:
    cells = line.split(",")
    return ",".join([cells[0], *cells[2:], cells[1]])


def minus(line: str) -> str:
    head, rest = line.split(",", 1)
    return f"{head},-{rest}"


CHANGES: dict[str, Callable[[Lines], Lines]] = {
    "bit": lambda lines: [*lines[:2], bit(lines[2], -1), *lines[3:]],
    "bit of the round": lambda lines: [*lines[:2], bit(lines[2], 0), *lines[3:]],
    "bit of a name": lambda lines: [bit(lines[0], 8), *lines[1:]],
    "digit": lambda lines: [*lines[:-1], last_digit(lines[-1])],
    "first line gone": lambda lines: [lines[0], *lines[2:]],
    "line gone": lambda lines: [*lines[:2], *lines[3:]],
    "last line gone": lambda lines: lines[:-1],
    "doubled": lambda lines: [*lines[:3], *lines[2:]],
    "last doubled": lambda lines: [*lines, lines[-1]],
    "minus": lambda lines: [*lines[:2], minus(lines[2]), *lines[3:]],
    "minus round": lambda lines: [*lines, f"-{lines[-1]}"],
    "column moved": lambda lines: [lines[0], *map(moved, lines[1:])],
    "whole column moved": lambda lines: list(map(moved, lines)),
    "other order": lambda lines: [lines[0], *lines[:0:-1]],
    "no lines": lambda lines: lines[:1],
    "nothing": lambda lines: [],
    "other text": lambda lines: ["hello"],
}


def instead(file: Path, what: str) -> None:
    """Put something in a file's place."""
    file.unlink()
    if what == "folder":
        file.mkdir()
    elif what == "pipe":
        os.mkfifo(file)
    elif what == "link":
        file.symlink_to("nowhere")
    elif what == "device":
        file.symlink_to("/dev/zero")
    elif what == "socket":
        here = Path.cwd()
        os.chdir(file.parent)  # the address of a socket may not be long
        try:
            socket.socket(socket.AF_UNIX).bind(file.name)
        finally:
            os.chdir(here)


INSTEAD = {
    "deleted": "is gone",
    "folder": "is a folder",
    "pipe": "is a named pipe",
    "link": "is a link that leads nowhere",
    "device": "is a device",
    "socket": "is a socket",
}
TABLES = ("rounds", "evals", "layers", "connectivity")


def damage(file: Path, how: str) -> None:
    if how in CHANGES:
        lines = CHANGES[how](file.read_text().splitlines())
        file.write_text("".join(f"{line}\n" for line in lines))
    else:
        instead(file, how)


@pytest.mark.parametrize(
    "name, how",
    [
        *(pytest.param(name, how) for name in TABLES for how in CHANGES),
        *(pytest.param(name, how, marks=posix) for name in TABLES[:2] for how in INSTEAD),
        *(("times", how) for how in ("digit", "last line gone")),
    ],
)
def test_a_damaged_table_is_named_to_readers_and_written_again_by_its_command(
    finished: Config, run: Run, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run.dumps / f"{name}.csv"
    before = file.read_bytes()
    damage(file, how)
    reason = INSTEAD.get(how, "is not as its run wrote it|has other columns|has a line of no round")
    for reading in (lambda: lth.results(run.root), lambda: lth.load_ticket(run.dumps)):
        with pytest.raises(RecordError, match=rf"{name}\.csv ({reason})[^\n]*: the command that made it"):
            reading()
    spoiled: list[RecordError] = []
    assert tables.find(run.root, spoiled=spoiled.append) == [] and len(spoiled) == 1
    go(finished, run)
    assert f"{name}.csv {INSTEAD.get(how, '')}" in " ".join(capsys.readouterr().err.split())
    assert file.read_bytes() == before
    assert_same(results(run.root), expected(finished))
    assert tables.find(run.root) == [run]


@pytest.mark.parametrize("how", ["digit", "last line gone", "doubled", "deleted"])
@pytest.mark.parametrize("name", TABLES)
def test_a_run_that_goes_on_takes_no_damaged_line_along(finished: Config, run: Run, name: str, how: str) -> None:
    damage(run.dumps / f"{name}.csv", how)
    go(finished, run, MORE)
    assert_same(results(run.root), expected(finished, MORE))


@pytest.mark.parametrize("rounds", [ROUNDS, MORE])
@pytest.mark.parametrize(
    "how", ["number", "bit", "line gone", "last line gone", "doubled", "other order", "nothing", "pipe"]
)
def test_a_damaged_journal_is_written_again_from_the_tables(
    finished: Config, run: Run, how: str, rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run.dumps / journal.NAME
    if how == "number":  # in what is JSON still
        sound = file.read_text()
        at = sound.index('","', sound.index('"evals":["') + 80) - 1
        file.write_text(sound[:at] + str((int(sound[at]) + 5) % 10) + sound[at + 1 :])
        assert len(file.read_text().splitlines()) == len([json.loads(line) for line in file.open()])
    elif how in CHANGES:
        lines = CHANGES[how](["", *file.read_text().splitlines()])[1:]
        file.write_text("".join(f"{line}\n" for line in lines))
    else:
        instead(file, how)
    with pytest.raises(RecordError, match=journal.NAME):
        lth.results(run.root)
    go(finished, run, rounds)
    assert journal.NAME in capsys.readouterr().err
    assert_same(results(run.root), expected(finished, rounds))
    assert not tables.damage(run)


def test_a_finished_run_that_is_sound_is_left_alone(
    finished: Config, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.root.rglob("*")}
    go(finished, run)
    assert capsys.readouterr() == ("", "")
    assert before == {file: file.stat().st_mtime_ns for file in run.root.rglob("*")}


def test_a_dry_run_names_damages_and_leaves_them(
    finished: Config, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run.dumps / "evals.csv"
    damage(file, "digit")
    before = file.read_bytes()
    session.run(replace(finished, root=run.root, prune_iterations=MORE, dry_run=True))
    assert "evals.csv is not as its run wrote it" in " ".join(capsys.readouterr().err.split())
    assert file.read_bytes() == before


def test_what_another_process_works_on_is_not_written_again(finished: Config, run: Run) -> None:
    damage(run.dumps / "evals.csv", "digit")
    with held(run.dumps), pytest.raises(Locked, match="is in use by process"):
        go(finished, run)
    go(finished, run)
    assert_same(results(run.root), expected(finished))


def test_a_reader_beside_a_working_process_sees_no_damage(finished: Config, run: Run) -> None:
    """It writes evals.csv and layers.csv, then the journal, then rounds.csv."""
    more = replace(run, root=run.root.parent / "more")
    shutil.copytree(run.root, more.root)
    go(finished, more, MORE)
    names = [*("evals.csv", "layers.csv", "times.csv"), journal.NAME, "rounds.csv", journal.NAME, "connectivity.csv"]
    whole = (more.dumps / journal.NAME).read_text().splitlines()
    unconnected = json.loads(whole[-1])
    del unconnected["tables"]["connectivity"], unconnected["checksum"]
    last = journal.Entry(**unconnected)
    known = [*journal.load(run.dumps)[0].values(), last]
    with held(run.dumps):
        for turn, name in enumerate(names):
            if name == journal.NAME and turn == 3:
                journal.save(run.dumps, known)
            else:
                shutil.copyfile(more.dumps / name, run.dumps / name)
            assert tables.damage(run) == "", f"after {name} was written"
        assert len(tables.find(run.root)) == 1


def test_runs_of_older_versions_are_gone_on_with_and_get_a_journal(finished: Config, run: Run) -> None:
    (run.dumps / journal.NAME).unlink()
    assert len(lth.results(run.root)) == ROUNDS
    go(finished, run)
    assert not (run.dumps / journal.NAME).exists()
    go(finished, run, MORE)
    assert_same(results(run.root), expected(finished, MORE))
    assert len((run.dumps / journal.NAME).read_text().splitlines()) == MORE
    assert not tables.damage(run)


def test_columns_that_are_new_are_empty_in_the_lines_of_older_versions(finished: Config, run: Run) -> None:
    """Also those that stand between others."""
    (run.dumps / journal.NAME).unlink()
    old = {"layers": ["round", "layer", "remaining", "weights", "total"], "rounds": list(tables.ROUNDS[:-2])}
    for name, columns in old.items():
        file = run.dumps / f"{name}.csv"
        pd.read_csv(file, dtype=str)[columns].to_csv(file, index=False)
    for rounds in (ROUNDS, MORE):
        go(finished, run, rounds)
        for name, columns in old.items():
            found, whole = (tables.table(replace(run, root=root), name) for root in (run.root, finished.root))
            assert found[columns].head(len(whole)).equals(whole[columns])
    layers = tables.table(run, "layers")
    assert (layers["kind"].isna() == (layers["round"] < ROUNDS)).all() and layers["round"].max() == MORE - 1
    assert not tables.damage(run)


# Weights and other files


@pytest.mark.parametrize("rounds", [ROUNDS, MORE])
@pytest.mark.parametrize("how", ["deleted", pytest.param("link", marks=posix)])
@pytest.mark.parametrize("name", ["trained_01", "dense"])
def test_weights_that_are_gone_are_said(
    finished: Config, run: Run, name: str, how: str, rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run.saves / f"{name}.safetensors"
    instead(file, how)
    session.run(replace(finished, root=run.root, prune_iterations=rounds, quiet=False))
    said = capsys.readouterr()
    file.unlink(missing_ok=True)
    assert f"{name}.safetensors {INSTEAD[how]}" in " ".join(f"{said.out} {said.err}".split())
    wanted = {key: value for key, value in expected(finished, rounds).items() if name not in key}
    assert_same({key: value for key, value in results(run.root).items() if name not in key}, wanted)


def test_weights_that_were_not_kept_are_not_missed(finished: Config, tmp_path: Path) -> None:
    kept = [("last", 2), ("all", 3), ("none", 4)]
    (run,) = runs_of(replace(finished, root=tmp_path))
    for keep, rounds in kept:
        do(replace(finished, root=tmp_path, prune_iterations=rounds, keep_weights=keep, connectivity=False))
        assert recording.lost(run) == ""
    assert [file.stem for file in sorted(run.saves.glob("trained_*"))] == ["trained_01", "trained_02"]
    (run.saves / "trained_01.safetensors").unlink()
    assert "trained_01.safetensors is gone" in recording.lost(run)


@posix
@pytest.mark.parametrize(
    "name, how",
    [
        *(("ticket_01", "pipe"), ("trained_01", "device"), ("checkpoint", "socket"), ("checkpoint", "folder")),
        *(("config.json", "pipe"), ("config.json", "device")),
    ],
)
def test_what_is_no_file_is_said(
    finished: Config, run: Run, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run.dumps / name if name == "config.json" else run.saves / f"{name}.safetensors"
    instead(file, how)
    config = replace(finished, root=run.root, prune_iterations=MORE, quiet=False)
    if name == "config.json":
        with pytest.raises(RecordError, match=rf"{file.name} {INSTEAD[how]}: move it away"):
            session.run(config)
        file.rmdir() if how == "folder" else file.unlink()
    session.run(config)
    said = " ".join(capsys.readouterr().out.split())
    assert name == "config.json" or f"{file.name} {INSTEAD[how]}" in said
    wanted = expected(finished, MORE)
    if name == "trained_01":  # nothing is built on it, so that no round is trained again for it
        del wanted[str(file.relative_to(run.root))]
    assert_same(results(run.root), wanted)


# How they are written


@posix
def test_files_are_replaced_and_never_written_in_place(finished: Config, run: Run, tmp_path: Path) -> None:
    """Another name of the same file would change with it."""
    damage(run.dumps / "layers.csv", "digit")
    files = [file for file in run.root.rglob("*") if file.is_file()]
    before = {file: file.read_bytes() for file in files}
    for number, file in enumerate(files):
        os.link(file, tmp_path / f"{number}")
    go(finished, run, MORE)
    changed = [file.name for file in files if file.exists() and file.read_bytes() != before[file]]
    assert {"rounds.csv", "layers.csv", journal.NAME, "config.json", "checkpoint.safetensors"} <= set(changed)
    assert [file for number, file in enumerate(files) if (tmp_path / f"{number}").read_bytes() != before[file]] == []


@posix
def test_a_file_is_synced_before_it_is_renamed_and_its_folder_before_the_next_is(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else, after a loss of power, rounds.csv could be there and what it speaks of not, or without content."""
    synced: set[int] = set()
    unsynced: list[Path] = []
    renamed: list[str] = []
    inner = Path.replace

    def fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        unsynced[:] = [folder for folder in unsynced if folder.stat().st_ino not in synced]

    def replaced(self: Path, target: Path) -> Path:
        assert self.stat().st_ino in synced, f"{target.name} was not synced"
        assert not unsynced, f"{unsynced[0]} was not synced before {target.name} was renamed"
        synced.discard(target.parent.stat().st_ino)
        unsynced.append(target.parent)
        renamed.append(target.name)
        return inner(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replaced)
    do(replace(finished, root=tmp_path, prune_type=("lt", "reinit"), prune_iterations=2))
    assert not unsynced
    assert {"rounds.csv", journal.NAME, "ticket_01.safetensors", "checkpoint.safetensors"} <= set(renamed)
