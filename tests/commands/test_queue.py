"""Who gets which run when: what is needed is there, what another holds is left to it, what others do is shown."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import (
    CPU,
    Capture,
    Patch,
    Told,
    argv_of,
    assert_released,
    assert_same,
    do,
    experiment,
    held,
    results,
    settings,
    works,
)

import main
import utils
from lth.commands import loop, session
from lth.commands.progress import Progress
from lth.commands.queue import FAILED, FolderWatcher, Piece, Queue
from lth.experiment.trainer import Event, Note, RoundDone
from lth.records import files, tables
from lth.records.files import RecordError
from lth.records.lock import Locks
from lth.records.tables import Run, runs_of
from lth.settings import flags
from lth.settings.config import Config


@pytest.fixture
def locks() -> Iterator[Locks]:
    with Locks() as held:
        yield held


def piece_of(config: Config, run: Run, rounds: int) -> Piece:
    """A piece of one run."""
    return Piece(works(config)[0], [run], rounds)


def train(config: Config, piece: Piece, rounds: int | None = None) -> None:
    """Do a piece, or the first of its rounds."""
    experiment(config).run(piece.runs, piece.rounds if rounds is None else rounds)


def taken(queue: Queue) -> list[tuple[str, int]]:
    """All that can be taken now, as the runs' names and the rounds they can go to."""
    pieces = []
    while piece := queue.take():
        pieces.append((" ".join(map(str, piece.runs)), piece.rounds))
    return pieces


def test_work_is_taken_as_soon_as_it_has_what_it_needs(place: Path, locks: Locks) -> None:
    config = settings(place, prune_type=("lt", "reinit", "ticket_reinit"), prune_iterations=4, trials=2)
    queue = Queue(works(config), locks)
    lt, other = queue.take(), queue.take()
    assert lt == piece_of(config, runs_of(config)[0], 4) and other is not None and str(other.runs[0]) == "lt seed1"
    assert queue.take() is None, "the other arms need the dense rounds"
    train(config, lt, rounds=1)
    assert taken(queue) == [("reinit seed0", 4), ("ticket_reinit seed0", 1)], "lt has not made the next ticket yet"
    queue.give_back(piece_of(config, runs_of(config)[2], 1), {})
    train(config, lt, rounds=3)
    assert taken(queue) == [("ticket_reinit seed0", 3)], "it follows lt, which is still being trained"
    assert queue.left()[lt.runs[0]] == 1 and sum(queue.left().values()) == 17 and queue.unfinished()


def test_what_failed_is_not_tried_again_and_what_needs_it_is_not_waited_for(place: Path, locks: Locks) -> None:
    """Here or in another process of the command; later commands try again, since the reason may be gone."""
    config, told = settings(place, prune_type=("lt", "ticket_reinit")), Told()
    queue, other, looking = Queue(works(config), locks), Queue(works(config), Locks()), Queue(works(config))
    watch = FolderWatcher(looking, told, [os.getpid()])
    piece = queue.take()
    assert piece is not None
    train(config, piece, rounds=1)
    queue.give_back(piece, {piece.runs[0]: "the loss became nan"})
    assert (piece.runs[0].dumps / FAILED).read_text() == "the loss became nan\n"
    watch.look()
    assert not told, "what our own processes do they tell themselves"
    assert taken(queue) == [("ticket_reinit seed0", 3)] and other.unfinished()
    queue.give_back(piece_of(config, runs_of(config)[1], 3), {runs_of(config)[1]: "no ticket"})
    assert queue.take() is other.take() is None and not queue.unfinished() and not other.unfinished()
    assert queue.failed == other.failed == dict(zip(runs_of(config), ["the loss became nan", "no ticket"], strict=True))
    later = Queue(works(config), locks)
    later.clear_failures()
    assert taken(later) == [("lt seed0", 3), ("ticket_reinit seed0", 1)]
    assert not list(place.rglob(FAILED)) and not later.failed


def test_a_failure_that_cannot_be_written_ends_the_command(place: Path, monkeypatch: Patch) -> None:
    """Otherwise a worker's failed run would be unknown to its parent, whose exit code would be 0."""
    config, write = settings(place, trials=2), files.write

    def full(file: Path, content: bytes) -> None:
        if file.name == FAILED:
            raise RecordError("the disk is full")
        write(file, content)

    monkeypatch.setattr(files, "write", full)
    monkeypatch.setattr(loop.Worker, "train", lambda self, piece: dict.fromkeys(piece.runs, "the loss became nan"))
    with Locks() as locks, pytest.raises(RecordError, match="seed0: the loss became nan; then the disk is full"):
        loop.work(Queue(works(config), locks), loop.Worker(CPU, Told(), lambda: False))
    assert_released(place)


def test_stacks_are_taken_together_and_those_that_need_others_after_them(place: Path, locks: Locks) -> None:
    config = settings(place, prune_type=("lt", "reinit", "ticket_reinit"), trials=2, stack=2)
    queue = Queue(works(config, piece_size=99), locks)
    piece = queue.take()
    assert piece is not None and queue.take() is None and piece.rounds == 3
    assert list(map(str, piece.runs)) == ["lt seed0", "reinit seed0", "lt seed1", "reinit seed1"]
    train(config, piece)
    queue.give_back(piece, {})
    assert taken(queue) == [("ticket_reinit seed0 ticket_reinit seed1", 3)]


def test_what_another_process_holds_is_left_to_it(place: Path, locks: Locks, monkeypatch: Patch) -> None:
    config = settings(place, trials=3)
    first, second, third = runs_of(config)
    inner = Locks.try_take

    def try_take(self: Locks, folder: Path) -> bool:
        if folder == second.dumps:
            train(config, piece_of(config, second, 3))  # another finishes it at this moment
        return inner(self, folder)

    queue, told = Queue(works(config), locks), Told()
    watch = FolderWatcher(queue, told)
    with held(first.dumps):
        with monkeypatch.context() as patch:
            patch.setattr(Locks, "try_take", try_take)
            assert taken(queue) == [("lt seed2", 3)]
        assert Locks().try_take(second.dumps), "it is let go"
        for _ in range(2):
            watch.due = 0
            watch.look(idle=True)
        assert told.notes.count("waiting for others: process 77 on elsewhere has lt seed0, ") == 1
        train(config, piece_of(config, third, 3))
        queue.give_back(piece_of(config, third, 3), {})
        assert queue.take() is None and queue.unfinished(), "one is still another's"
    assert taken(queue) == [("lt seed0", 3)]


def test_what_others_do_is_shown_once_and_what_ours_do_by_themselves(place: Path) -> None:
    config, told = settings(place, prune_type=("lt", "reinit")), Told()
    lt, reinit = runs_of(config)
    train(config, piece_of(config, lt, 1))
    queue = Queue(works(config))
    watch = FolderWatcher(queue, told, [os.getpid()])
    train(config, piece_of(config, reinit, 2))
    with held(reinit.dumps):
        for _ in range(2):
            watch.due = 0
            watch.look()
    dense, pruned = told
    assert isinstance(dense, RoundDone) and dense.run == reinit and dense.row["round"] == 0 and dense.seconds == 0
    assert isinstance(pruned, RoundDone) and pruned.row == tables.table(reinit, "rounds").to_dict("records")[1]
    assert pruned.seconds == tables.table(reinit, "times")["seconds"][1] > 0
    files.write(reinit.dumps / FAILED, b"the loss became nan\n")
    watch.due = 0
    watch.look()
    assert told[2:] == [Note("reinit seed0: the loss became nan (in another process)", failed=reinit)]
    with Locks() as locks:
        locks.take(lt.dumps)
        train(config, piece_of(config, lt, 2))
        watch.pass_on(RoundDone(lt, {"round": 1}, 1.0, ()))
    watch.due = 0
    watch.look()
    assert told[3:] == [RoundDone(lt, {"round": 1}, 1.0, ())]


ARMS = {"prune_type": ("lt", "reinit"), "trials": 2}


@pytest.fixture
def whole(place: Path) -> tuple[Config, dict[str, bytes]]:
    """Settings to join in, and what must come of them."""
    undisturbed = place / "undisturbed"
    do(settings(place, root=undisturbed, **ARMS))
    return settings(place, root=place / "joined", join=True, **ARMS), results(undisturbed)


def test_a_held_run_is_awaited(whole: tuple[Config, dict[str, bytes]], capsys: Capture, monkeypatch: Patch) -> None:
    config, expected = whole
    other = contextlib.ExitStack()
    show = Progress.__call__

    def watched(self: Progress, event: Event) -> None:
        show(self, event)
        if isinstance(event, Note) and event.text.startswith("waiting for others"):
            other.close()

    monkeypatch.setattr(Progress, "__call__", watched)
    other.enter_context(held(runs_of(config)[0].dumps))
    session.run(replace(config, quiet=False))
    out = capsys.readouterr().out
    assert out.index("lt seed1 ") < out.index("waiting for others: process 77 on elsewhere has lt seed0")
    assert out.count("waiting for ") == 1
    assert_same(results(config.root), expected)
    assert_released(config.root)


def test_one_process_draws(place: Path, capsys: Capture) -> None:
    argv = argv_of(place, "--prune_iterations", "2", "--join", "--quiet")
    (run,) = runs_of(flags.parse(argv))
    with Locks() as locks:
        locks.take(run.dumps.parent.parent)
        assert utils.exit_code(main.main, argv) == 0
    assert f"another process is drawing the figures: {run.plots}" in capsys.readouterr().out
    assert not list(place.rglob("*.png"))
    assert utils.exit_code(main.main, argv) == 0
    assert (run.plots / "comparison.png").exists()
