"""The journal and the tables that are made of it: damage is reported and mended, and changes no number."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import assert_same, do, held, lay_out, results, settings

import lth
from lth.commands import session
from lth.records import files, journal, tables
from lth.records.files import RecordError
from lth.records.lock import Locked
from lth.records.tables import Run, runs_of
from lth.settings.config import Config

ROUNDS, MORE = 2, 3
posix = pytest.mark.skipif(os.name != "posix", reason="needs links")


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


def reported(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    return " ".join(f"{said.out} {said.err}".split())


def digit(file: Path) -> None:
    """Change the last digit of a file."""
    content = file.read_text()
    at = max(index for index, char in enumerate(content) if char.isdigit())
    file.write_text(content[:at] + str((int(content[at]) + 5) % 10) + content[at + 1 :])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "evals": (digit, "differs from journal.jsonl"),
    "rounds": (lambda file: file.write_text("".join(file.open().readlines()[:-1])), "differs from journal.jsonl"),
    "layers": (Path.unlink, "is gone"),
    "connectivity": (digit, "differs from journal.jsonl"),
}


@pytest.mark.parametrize("rounds", [ROUNDS, MORE])
def test_tables_are_written_again_from_the_journal_and_readers_never_look_at_them(
    finished: Config, run: Run, rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = lth.results(run.root)
    for name, (damage, _) in DAMAGES.items():
        damage(run.dumps / f"{name}.csv")
    assert lth.results(run.root).equals(whole) and len(whole) == ROUNDS
    go(finished, run, rounds)
    said = reported(capsys)
    for name, (_, words) in DAMAGES.items():
        assert f"{name}.csv {words}: written again from journal.jsonl" in said
        assert (run.dumps / f"{name}.csv.damaged").exists() == (words != "is gone")
    assert_same(results(run.root), expected(finished, rounds))


def lines_of(run: Run) -> list[str]:
    return (run.dumps / journal.NAME).read_text().splitlines(keepends=True)


LINES: dict[str, Callable[[list[str]], list[str]]] = {
    "value": lambda lines: [lines[0], lines[1].replace('"evals":["1', '"evals":["2', 1)],
    "cut": lambda lines: [lines[0], lines[1][:-40]],
    "no text": lambda lines: [lines[0], "\0" * 30 + "\n"],
}


@pytest.mark.parametrize("how", LINES)
def test_a_damaged_line_of_the_journal_ends_the_good_rounds(
    finished: Config, run: Run, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run.dumps / journal.NAME
    file.write_text("".join(LINES[how](lines_of(run))))
    damaged = file.read_bytes()
    for reading in (lambda: lth.results(run.root), lambda: lth.load_ticket(run.dumps)):
        with pytest.raises(RecordError, match=r"journal\.jsonl is damaged in line 2: the command that made it"):
            reading()
    spoiled: list[RecordError] = []
    assert tables.find(run.root, spoiled=spoiled.append) == [] and len(spoiled) == 1
    go(finished, run, MORE)
    (copy,) = run.dumps.glob("*.before-*")
    assert copy.read_bytes() == damaged
    assert f"is damaged in line 2: continuing from round 1; the old one is kept as {copy.name}" in reported(capsys)
    assert_same(results(run.root), expected(finished, MORE))


def test_a_journal_that_is_gone_or_of_another_run_is_refused(finished: Config, run: Run) -> None:
    other = run.of_arm("reinit")
    shutil.copytree(run.dumps, other.dumps)
    own = journal.run_name(run.dumps)
    file = run.dumps / journal.NAME
    sound, before = file.read_bytes(), results(run.root)
    journal.save(other.dumps, tables.entries(run))
    for content, match in (
        (None, "is gone: put it back, or use --overwrite"),
        ((other.dumps / journal.NAME).read_bytes(), rf"is the journal of another run \(reinit/seed0\): .* {own}"),
    ):
        file.unlink(missing_ok=True)
        if content:
            file.write_bytes(content)
        for act in (lambda: lth.results(run.root), lambda: go(finished, run, MORE)):
            with pytest.raises(RecordError, match=match):
                act()
    assert_same(results(run.root), before)
    file.write_bytes(sound)
    shutil.rmtree(other.dumps)
    go(finished, run, MORE)
    assert_same(results(run.root), expected(finished, MORE))


def test_what_another_process_works_on_is_not_written_again(finished: Config, run: Run) -> None:
    digit(run.dumps / "evals.csv")
    with held(run.dumps), pytest.raises(Locked, match="is in use by process"):
        go(finished, run)
    go(finished, run)
    assert_same(results(run.root), expected(finished))


# How they are written


def test_two_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    """As processes that share a sweep and end together."""
    file, contents = tmp_path / "sweep.csv", [letter * 100_000 for letter in (b"a", b"b", b"c")]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(20):
            list(pool.map(lambda content: files.write(file, content), contents))
            assert file.read_bytes() in contents
    assert [*tmp_path.iterdir()] == [file]


@posix
def test_a_file_is_synced_before_it_is_renamed_and_its_folder_before_the_next_is(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else, after a loss of power, the journal could be there and what it speaks of not, or without content."""
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
