"""The graph of trainings, and who gets which when: what is needed is there, what another holds is left to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import experiment, settings

from lth.records import files, tables
from lth.records.events import Note, RoundDone
from lth.records.lock import clock
from lth.records.tables import Run
from lth.run.queue import FAILED, Piece, Queue
from lth.run.tasks import Task, by_run, runs_of, tasks_of, trainings
from lth.settings.config import Config


def free(run: Run) -> Run:
    """Nobody else is at it."""
    return run


def train(config: Config, piece: Piece, rounds: int | None = None) -> None:
    """Do a piece, or the first of its rounds."""
    experiment(config).run(piece.runs, piece.rounds if rounds is None else rounds)


def taken(queue: Queue) -> list[tuple[str, int]]:
    """All that can be taken now, as the runs' names and the rounds they can go to."""
    pieces = []
    while piece := queue.take():
        pieces.append((" ".join(map(str, piece.runs)), piece.rounds))
    return pieces


def test_the_graph_is_data(tmp_path: Path) -> None:
    arms = ("ticket_reinit", "reinit", "one_shot", "random_shuffle")
    config = Config(prune_type=arms, prune_iterations=3, trials=2, seed=4, root=tmp_path)
    graph = tasks_of(config)
    lt, random, control, reinit, one_shot, shuffle = runs_of(config)[:6]
    assert [run.arm for run in (lt, random, shuffle)] == ["lt", "random", "random_shuffle"]
    assert graph[:3] == [Task(lt, 0), Task(lt, 1, ((lt, 0),)), Task(lt, 2, ((lt, 1),))]
    found = by_run(graph)
    assert found[control] == [
        Task(control, 0, ((lt, 0),), shared=True),
        Task(control, 1, ((control, 0), (lt, 0))),  # the ticket of lt's round 1 is made at the end of its round 0
        Task(control, 2, ((control, 1), (lt, 1))),
    ]
    for run in (random, reinit, one_shot):
        assert found[run] == [Task(run, 0, ((lt, 0),), True), Task(run, 1, ((run, 0),)), Task(run, 2, ((run, 1),))]
    assert found[shuffle][2].needs == ((shuffle, 1), (random, 1))
    assert len(graph) == 2 * 6 * 3 and trainings(graph) == 2 * (1 + 6 * 2), "the dense round is trained once a trial"


def test_work_is_given_out_as_soon_as_it_has_what_it_needs(place: Path) -> None:
    config = settings(place, prune_type=("lt", "reinit", "ticket_reinit"), prune_iterations=4, trials=2)
    queue = Queue([config], free)
    lt, other = queue.take(), queue.take()
    assert lt == Piece(config, (runs_of(config)[0],), 4) and other is not None and str(other.runs[0]) == "lt seed1"
    assert queue.take() is None, "the other arms need the dense rounds"
    train(config, lt, rounds=1)
    assert taken(queue) == [("reinit seed0", 4), ("ticket_reinit seed0", 1)], "lt has not made the next ticket yet"
    queue.give_back(Piece(config, (runs_of(config)[2],), 1), {})
    train(config, lt, rounds=3)
    assert taken(queue) == [("ticket_reinit seed0", 3)], "it follows lt, whose work goes on"
    assert queue.left()[lt.runs[0]] == 1 and sum(queue.left().values()) == 17 and not queue.over()


def test_a_finished_run_without_the_tickets_that_others_need_holds_nothing_up(place: Path) -> None:
    config = settings(place, prune_type=("lt", "ticket_reinit"))
    train(config, Piece(config, (runs_of(config)[0],), 3))
    (runs_of(config)[0].saves / "ticket_02.safetensors").unlink()
    assert taken(Queue([config], free)) == [("ticket_reinit seed0", 3)], "its own training says what is missing"


def test_what_failed_is_not_tried_again_and_what_needs_it_is_not_waited_for(place: Path) -> None:
    config = settings(place, prune_type=("lt", "ticket_reinit"))
    queue = Queue([config], free)
    piece = queue.take()
    assert piece is not None
    train(config, piece, rounds=1)
    queue.give_back(piece, {piece.runs[0]: "the loss became nan"})
    assert taken(queue) == [("ticket_reinit seed0", 3)] and not queue.over()
    queue.give_back(Piece(config, (runs_of(config)[1],), 3), {runs_of(config)[1]: "no ticket"})
    assert queue.take() is None and queue.over() and len(queue.failed) == 2
    assert (piece.runs[0].dumps / FAILED).read_text() == "the loss became nan\n"


def test_stacks_are_given_out_together_and_those_that_need_others_after_them(place: Path) -> None:
    config = settings(place, prune_type=("lt", "reinit", "ticket_reinit"), trials=2, stack=2)
    queue = Queue([config], free, together=lambda config: 99)
    piece = queue.take()
    assert piece is not None and queue.take() is None and piece.rounds == 3
    assert list(map(str, piece.runs)) == ["lt seed0", "reinit seed0", "lt seed1", "reinit seed1"]
    train(config, piece)
    queue.give_back(piece, {})
    assert taken(queue) == [("ticket_reinit seed0 ticket_reinit seed1", 3)]
    assert taken(Queue([config], free, together=lambda config: 1)) == [
        ("ticket_reinit seed0", 3),
        ("ticket_reinit seed1", 3),
    ]


def test_several_experiments_share_a_queue_and_a_run_of_two_is_done_once(place: Path) -> None:
    configs = [settings(place), settings(place, lr=0.02), settings(place, trials=2, prune_iterations=4)]
    queue = Queue(configs, free)
    assert sorted(taken(queue)) == [("lt seed0", 3), ("lt seed0", 4), ("lt seed1", 4)]
    assert queue.config[runs_of(configs[0])[0]] == configs[2]


# With others


def test_what_another_process_holds_is_left_to_it(place: Path) -> None:
    config = settings(place, trials=3)
    first, second, third = runs_of(config)
    let_go: list[Run] = []

    def hold(run: Run) -> Run | None:
        if run == second:
            train(config, Piece(config, (second,), 3))  # another finishes it at this moment
        return None if run == first else run

    queue = Queue([config], hold, let_go.append)
    assert taken(queue) == [("lt seed2", 3)] and let_go == [second]
    assert not queue.over(), "one is still another's"
    train(config, Piece(config, (third,), 3))
    queue.give_back(Piece(config, (third,), 3), {})
    assert let_go == [second, third] and not queue.over()
    train(config, Piece(config, (first,), 3))
    assert queue.over()


def test_what_others_do_is_news_once(place: Path) -> None:
    config = settings(place, prune_type=("lt", "reinit"))
    lt, reinit = runs_of(config)
    train(config, Piece(config, (lt,), 1))
    queue = Queue([config], lambda run: run if run == lt else None)
    assert queue.news() == [] and taken(queue) == [("lt seed0", 3)]
    train(config, Piece(config, (reinit,), 2))
    train(config, Piece(config, (lt,), 2))
    dense, pruned = queue.news()
    assert isinstance(dense, RoundDone) and dense.run == reinit and dense.row["round"] == 0 and dense.seconds == 0
    assert isinstance(pruned, RoundDone) and pruned.row == tables.table(reinit, "rounds").to_dict("records")[1]
    assert pruned.seconds == tables.table(reinit, "times")["seconds"][1] > 0
    queue.give_back(Piece(config, (lt,), 3), {})
    assert queue.news() == [], "what this process does it tells itself"


@pytest.mark.parametrize("late", [True, False])
def test_a_run_that_another_process_could_not_finish_is_not_tried_again(place: Path, late: bool) -> None:
    """But by those that begin later: the reason may be gone."""
    config = settings(place, trials=2)
    since = clock(place)
    mark = runs_of(config)[0].dumps / FAILED
    files.write(mark, b"the loss became nan\n")
    os.utime(mark, (since - 1, since - 1) if late else None)
    queue = Queue([config], free, since=since)
    if late:
        assert queue.news() == [] and taken(queue) == [("lt seed0", 3), ("lt seed1", 3)] and not mark.exists()
    else:
        assert queue.news() == [Note("lt seed0: the loss became nan (in another process)", failed=True)]
        assert queue.news() == [] and taken(queue) == [("lt seed1", 3)] and list(queue.failed) == runs_of(config)[:1]
