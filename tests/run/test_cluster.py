"""--ray: what a task does on its node, and what is said where it cannot; test_many_machines.py has the real Ray."""

from __future__ import annotations

import errno
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import CPU, assert_released, assert_same, do, held, results, settings

import main
import utils
from lth.records import tables
from lth.records.events import RoundDone
from lth.records.lock import Locks
from lth.run import cluster, session
from lth.run.about import about_command
from lth.run.cluster import ClusterError, Work
from lth.run.holding import Elsewhere
from lth.run.queue import FAILED, Piece, Queue
from lth.run.tasks import runs_of
from lth.settings.config import Config, ConfigError
from lth.training.train import Stopped


def work(config: Config, rounds: int = 3) -> Work:
    """The first run of an experiment as a task."""
    runs = runs_of(config)[:1]
    runs[0].dumps.parent.mkdir(parents=True, exist_ok=True)
    facts = about_command(config, config, ["--ray", "auto"])
    return Work(Piece(config, tuple(runs), rounds), session.settled(config), False, facts)


def test_a_task_does_what_the_plain_command_does_and_gives_back_states(place: Path) -> None:
    config = settings(place, root=place / "ray")
    state = cluster.do(work(config))
    do(settings(place, root=place / "plain"))
    assert_same(results(place / "ray"), results(place / "plain"))
    assert (state.finished, state.failed, state.error, state.notes) == ((3,), {}, None, ())
    run = runs_of(config)[0]
    about = tables.read_json(run.dumps / "config.json")
    assert about["command"] == ["--ray", "auto"] and about["device"].startswith("cpu")
    assert_released(place)


def test_what_another_process_holds_is_left_to_it(place: Path) -> None:
    config = settings(place)
    with Locks() as locks:
        locks.take(runs_of(config)[0].dumps)
        assert cluster.do(work(config)).finished == (0,)
    assert not results(place)


def test_an_error_of_the_experiment_is_a_state_and_not_tried_again(place: Path) -> None:
    config = settings(place, optimizer="sgd", lr=1e30)
    state = cluster.do(work(config))
    assert "the loss became" in state.failed[0] and state.notes[0].failed and state.error is None
    assert "the loss became" in (runs_of(config)[0].dumps / FAILED).read_text()


def test_what_is_wrong_with_a_node_is_no_fault_of_the_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(place)

    def full(self: Any, piece: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cluster.Experiments, "do", full)
    error = cluster.do(work(config)).error
    assert isinstance(error, OSError) and error.errno == errno.ENOSPC
    assert not (runs_of(config)[0].dumps / FAILED).exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_task_that_is_cancelled_or_pre_empted_writes_where_it_is_and_lets_go(
    place: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    config = settings(place, checkpoint_every=100)
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(signal.SIGTERM))
    feed = cluster.Shared.hold

    def hold(self: Any, run: Any) -> Any:
        signal.raise_signal(signum)
        signal.raise_signal(signum)  # Ray says it again and again
        return feed(self, run)

    monkeypatch.setattr(cluster.Shared, "hold", hold)
    try:
        state = cluster.do(work(config))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert isinstance(state.error, Stopped) and (runs_of(config)[0].saves / "checkpoint.safetensors").exists()
    assert came == ([signum] if signum == signal.SIGTERM else []), "the process would go on, and Ray not try again"
    assert_released(place)


def test_a_node_that_does_not_share_the_folder_is_named(place: Path, tmp_path: Path) -> None:
    config = settings(place)
    wrong = work(config)
    without_data = cluster.do(replace(wrong, config=replace(config, data=tmp_path / "none"))).error
    wrong.piece.runs[0].dumps.parent.rmdir()
    for error, expected in (
        (cluster.do(wrong).error, "does not write into the"),
        (without_data, "--data must be where all nodes"),
    ):
        assert isinstance(error, ClusterError) and expected in str(error) and "\n" not in str(error)
    assert not results(place)


def test_what_is_done_elsewhere_is_news_while_it_is_under_way(place: Path) -> None:
    config = settings(place, trials=2)
    with Locks() as locks:
        prepared = session.Prepared(config, config, runs_of(config), *session.prepare(config))
        there = Elsewhere([prepared], locks, CPU, ())
        queue = Queue([config], there.hold, there.let_go, there.together, elsewhere=True)
        piece = queue.take()
        assert piece is not None
        assert_released(place)  # the task takes the lock
        assert cluster.do(replace(work(config, rounds=2), piece=replace(piece, rounds=2))).finished == (2,)
        assert [event.row["round"] for event in queue.news() if isinstance(event, RoundDone)] == [0, 1]
        cluster.do(replace(work(config), piece=piece))
        queue.give_back(piece, {})
        assert [event.row["round"] for event in queue.news() if isinstance(event, RoundDone)] == [2]
        with held(runs_of(config)[1].dumps):
            assert queue.take() is None and not queue.over(), "another command has it"


def test_without_ray_one_sentence_says_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    argv = ["--arch_type", "mlp", "--dataset", "tiny", "--data", str(place / "data"), "--root", str(place)]
    argv += ["--ray", "auto", "--batch_size", "5000"]
    before = set(place.rglob("*"))
    assert utils.exit_code(main.main, argv) == 2
    said = capsys.readouterr().err
    assert "error: --ray needs Ray, which is not installed here: pip install -r requirements-ray.txt\n" in said
    assert "--batch_size" in said, "all mistakes in one message"
    assert set(place.rglob("*")) == before


@pytest.mark.parametrize("address", ["auto", "local", "10.0.0.7:6379", "head.cluster:6379", "[fe80::1]:6379"])
def test_addresses(address: str) -> None:
    assert Config(ray=address, gpu="cpu").ray == address


@pytest.mark.parametrize("address", ["", "Auto", "host", "host:", ":6379", "host:port", "ray://host:10001", "a b:1"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="ray must be auto, local or the host:port of a Ray cluster, not"):
        Config(ray=address)


def test_an_address_where_nothing_listens_is_said_at_once(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ClusterError, match=f"--ray 127.0.0.1:{port} reaches no Ray cluster, is it running"):
        cluster._answers(f"127.0.0.1:{port}")


def test_a_gpu_by_number_is_for_one_machine() -> None:
    with pytest.raises(ConfigError, match="--gpu 1 cannot be given with --ray"):
        Config(ray="auto", gpu="1")


def test_foreign_errors_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Exception):
        def __init__(self, first: int, second: Callable[[], int]) -> None:
            super().__init__(f"{first}")

    assert str(cluster._portable(Own(5, lambda: 6))) == "Own: 5"
    assert isinstance(cluster._portable(ClusterError("x")), ClusterError)
