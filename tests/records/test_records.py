"""What runs leave on disk: the journal and the tables that are made of it, files that say whose they are, and what a
run that continues discards. Damage is reported and mended, and changes no number."""

import errno
import os
import pickle
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import Capture, Malicious, Patch, Told, assert_same, do, held, lay_out, results, settings
from torch import Tensor

import lth
from lth.analysis import verdict
from lth.commands import command, session
from lth.records import files, journal, tables
from lth.records.files import Damaged, RecordError
from lth.records.lock import Locked
from lth.records.store import SHARED, Store, Ticket, load_tensors, numbered, save_tensors
from lth.records.tables import Run, runs_of
from lth.settings.config import Config

ROUNDS, MORE = 2, 3
versions = pytest.mark.versions
posix = pytest.mark.skipif(os.name != "posix", reason="needs links and limits of POSIX")


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


def reported(capsys: Capture) -> str:
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
def test_tables_are_written_again_from_the_journal(finished: Config, run: Run, rounds: int, capsys: Capture) -> None:
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


LINES: dict[str, Callable[[list[str]], list[str]]] = {
    "value": lambda lines: [lines[0], lines[1].replace('"evals":["1', '"evals":["2', 1)],
    "cut": lambda lines: [lines[0], lines[1][:-40]],
    "no text": lambda lines: [lines[0], "\0" * 30 + "\n"],
}


@pytest.mark.parametrize("how", LINES)
def test_a_damaged_journal_line_ends_the_good_rounds(finished: Config, run: Run, how: str, capsys: Capture) -> None:
    file = run.dumps / journal.NAME
    file.write_text("".join(LINES[how]((run.dumps / journal.NAME).read_text().splitlines(keepends=True))))
    damaged = file.read_bytes()
    for reading in (lambda: lth.results(run.root), lambda: lth.load_ticket(run.dumps)):
        with pytest.raises(RecordError, match=r"journal\.jsonl is damaged in line 2: the command that made it"):
            reading()
    spoiled: list[RecordError] = []
    assert tables.find(run.root, on_error=spoiled.append) == [] and len(spoiled) == 1
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


def test_two_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    """As processes that share a sweep and end together."""
    file, contents = tmp_path / "sweep.csv", [letter * 100_000 for letter in (b"a", b"b", b"c")]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(20):
            list(pool.map(lambda content: files.write(file, content), contents))
            assert file.read_bytes() in contents
    assert [*tmp_path.iterdir()] == [file]


@posix
def test_files_and_folders_are_synced_in_order(finished: Config, tmp_path: Path, monkeypatch: Patch) -> None:
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


@posix
@pytest.mark.parametrize("number, tolerated", [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: Patch, number: int, tolerated: bool) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with nullcontext() if tolerated else pytest.raises(files.Unwritable, match=r"cannot write .*config\.json"):
        files.write(tmp_path / "config.json", b"{}")


def test_weights_that_are_out_of_reach_cost_nothing(finished: Config, run: Run) -> None:
    before, elsewhere = results(run.root), run.saves.rename(run.root / "elsewhere")
    with pytest.raises(RecordError, match=r"lt seed0: 2 rounds are finished, but there are no weights in .*saves"):
        go(finished, run, MORE)
    assert not run.saves.exists()
    elsewhere.rename(run.saves)
    assert_same(results(run.root), before)
    go(finished, run, MORE)
    assert_same(results(run.root), expected(finished, MORE))


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
    do(replace(finished, root=run.root, prune_iterations=MORE), told)
    (copy,) = run.dumps.glob(f"{journal.NAME}.before-*")
    assert copy.read_bytes() == known and f"is kept as {copy.name}" in told.notes
    assert_same(results(run.root), expected(finished, MORE))


def test_a_damaged_run_of_another_command_is_said_and_left_out(finished: Config, run: Run, capsys: Capture) -> None:
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


def test_a_file_that_is_set_aside_is_named_also_with_quiet(place: Path, capsys: Capture) -> None:
    (run,) = session.run(settings(place, prune_iterations=2))
    file = run.saves / "ticket_01.safetensors"
    file.write_bytes(b"junk")
    session.run(settings(place, prune_iterations=3, quiet=True))
    assert f"{file.name}.damaged, continuing from the last good round" in capsys.readouterr().err


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Run(tmp_path, "net", "images", "default", "lt", 0), "settings")


@versions
def test_a_ticket_keeps_the_order_of_the_layers(store: Store) -> None:
    """layers.csv must not depend on whether a round's ticket was made just now or read after a stop."""
    masks = {"features.conv.weight": torch.tensor([True, False, True]), "classifier.weight": torch.ones(2, 2).bool()}
    start = {"features.conv.weight": torch.randn(3), "classifier.weight": torch.randn(2, 2)}
    store.write_ticket(Ticket(3, masks, start, "own", at_random=2))
    read = store.ticket(3)
    assert list(read.masks) == list(masks) and read.at_random == 2
    assert all(torch.equal(read.masks[name], masks[name]) for name in masks)
    assert all(torch.equal(read.start[name], start[name]) for name in start)


MASK = {"mask/w": torch.tensor([0b10110000], dtype=torch.uint8)}  # of 2 x 3 weights
START = {"start/w": torch.ones(2, 3)}
FACTS = {"round": 1, "shapes": [["w", [2, 3]]], "origin": "own"}


CRAFTED: list[tuple[dict[str, Tensor], dict[str, Any]]] = [
    ({}, {"shapes": [["w", [2, 30]]]}),  # the mask is cut short
    ({}, {"shapes": [["w", "ab"]]}),
    ({}, {"shapes": [["other", [2, 3]]]}),
    ({}, {"origin": "../../other/seed0/initial"}),
    ({"start/w": torch.ones(6)}, {}),
]


@versions
def test_crafted_tickets_and_checkpoints_are_damaged(store: Store) -> None:
    """Whatever they say, their checksum is right."""
    file = store.file("ticket_01")
    save_tensors(file, {**MASK, **START}, "settings", **FACTS)
    assert store.ticket(1).masks["w"].sum() == 3
    for tensors, facts in CRAFTED:
        save_tensors(file, {**MASK, **START, **tensors}, "settings", **{**FACTS, **facts})
        with pytest.raises(Damaged, match=r"ticket_01\.safetensors"):
            store.ticket(1)
    file, sound = store.file("checkpoint"), {"round": 1, "iteration": 8, "seconds": {}, "supermask": None}
    save_tensors(file, {"evals": torch.ones(1, 5)}, "settings", **sound)
    assert store.read_checkpoint()[0] == 1
    for evals, facts in ((5, {"round": "one"}), (5, {"iteration": None}), (3, {})):
        save_tensors(file, {"evals": torch.ones(1, evals)}, "settings", **{**sound, **facts})
        with pytest.raises(Damaged, match=r"checkpoint\.safetensors"):
            store.read_checkpoint()


def with_metadata(**changes: str) -> Callable[[Path], bytes]:
    """The content of a file with changes in what it says of itself."""

    def rewritten(file: Path) -> bytes:
        with safetensors.safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return safetensors.torch.save(tensors, metadata={**opened.metadata(), **changes})

    return rewritten


DAMAGE: dict[str, Callable[[Path], bytes]] = {
    "truncated": lambda file: file.read_bytes()[: file.stat().st_size // 2],
    "empty": lambda file: b"",
    "text": lambda file: b"these are no weights\n" * 40,
    "zeros": lambda file: bytes(file.stat().st_size),
    "pickle": lambda file: pickle.dumps(Malicious(file.with_name("executed"))),
    "was made with different settings": with_metadata(identity="0123456789abcdef"),
    "newer version": with_metadata(format="2"),
    "checksum is wrong": lambda file: file.read_bytes().replace(b"4321", b"4322"),
    "foreign": lambda file: safetensors.torch.save({"a": torch.ones(3)}),
}


@versions
def test_whatever_is_in_a_file_is_never_executed_and_named_if_it_cannot_be_used(tmp_path: Path) -> None:
    for kind, damaged in DAMAGE.items():
        file = tmp_path / kind / "initial.safetensors"
        save_tensors(file, {"w": torch.ones(20)}, "settings", iteration=4321)
        file.write_bytes(damaged(file))
        with pytest.raises(Damaged, match=r"initial\.safetensors") as error:
            load_tensors(file, "settings")
        assert not file.with_name("executed").exists() and (" " not in kind or kind in str(error.value))


@versions
@pytest.mark.parametrize("name", ["ticket_01", "checkpoint", "dense"])
@pytest.mark.parametrize("other", ["lt/seed1", "reinit/seed0"])
def test_only_the_dense_round_may_come_from_another_run(tmp_path: Path, name: str, other: str) -> None:
    file, source = (tmp_path / run / f"{name}.safetensors" for run in ("lt/seed0", other))
    save_tensors(source, {"w": torch.ones(2)}, "settings")
    file.parent.mkdir(parents=True)
    shutil.copy(source, file)
    if other == "reinit/seed0" and name in SHARED:
        load_tensors(file, "settings")
    else:
        with pytest.raises(Damaged, match=rf"{name}\.safetensors is a copy of {name}\.safetensors of \S*seed"):
            load_tensors(file, "settings")


@versions
def test_rounds_that_are_made_again_leave_nothing_but_the_ticket_they_start_from(store: Store) -> None:
    saves = store.run.saves
    saves.mkdir(parents=True)
    files = [numbered(kind, number) for kind in ("ticket", "trained") for number in range(4)]
    copies = ["ticket_02 copy", "ticket_03 (1)", "ticket_3", "ticket_best", "trained_03_old", "trained_best"]
    for name in (*files, "initial", "dense", *copies):
        store.file(name).touch()
    assert list(store.files_by_round("ticket")) == [0, 1, 2, 3]
    store.drop_rounds(2)
    kept = ["dense", "initial", "ticket_00", "ticket_01", "ticket_02", "trained_00", "trained_01"]
    assert sorted(file.stem for file in saves.iterdir()) == sorted([*kept, *copies])


@versions
def test_multiply_adds_are_those_of_the_surviving_weights(place: Path) -> None:
    (run,) = do(settings(place, arch_type="conv"))
    rounds, layers = tables.table(run, "rounds"), tables.table(run, "layers")
    assert (layers.groupby("round")["macs"].sum() == rounds["macs"]).all()  # this model multiplies by nothing else
    uses = layers["macs"] / layers["weights"]
    assert (layers["dense_macs"] == uses * layers["total"]).all() and set(layers["kind"]) == {"conv", "fc"}
    kinds = verdict.compression([run]).set_index(["round", "kind"])["macs"]
    assert (kinds.groupby("round").sum() == rounds["macs"]).all()
    assert uses.groupby(layers["layer"]).nunique().eq(1).all() and uses.max() > 1  # a filter is used at many places
    speedup = verdict.table([run])["speedup"].tolist()
    assert speedup == pytest.approx((rounds["macs"][0] / rounds["macs"]).tolist()) and speedup[2] > speedup[1] > 1
