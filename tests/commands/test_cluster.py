"""--ray: what a task does on its node, and what is said where it cannot; test_kill.py has the real Ray."""

import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import CPU, Capture, Patch, argv_of, assert_released, assert_same, do, results, settings

import main
import utils
from lth.commands import cluster, session
from lth.commands.cluster import Cluster, Order
from lth.commands.device import MachineError
from lth.commands.prepare import make_work
from lth.records import tables
from lth.records.tables import runs_of
from lth.settings.config import Config


def orders(config: Config) -> list[Order]:
    """An experiment as tasks get it."""
    config.root.mkdir(exist_ok=True)
    return [cluster.order(make_work(config, "", ["--ray", "auto"], {}))]


def done(config: Config) -> list[Exception]:
    """A task of an experiment, done here; what it raised."""
    return cluster.run_task(orders(config), False)


def test_a_task_does_what_the_plain_command_does(place: Path) -> None:
    config = settings(place, root=place / "ray", prune_type=("lt", "ticket_reinit"))
    assert done(config) == []
    do(settings(place, root=place / "plain", prune_type=("lt", "ticket_reinit")))
    assert_same(results(place / "ray"), results(place / "plain"))
    about = tables.read_json(runs_of(config)[0].dumps / "config.json")
    assert about["command"] == ["--ray", "auto"] and about["device"].startswith("cpu")
    assert_released(place)
    assert done(config) == [], "nothing is left to do"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_task_writes_a_checkpoint(place: Path, monkeypatch: Patch, signum: signal.Signals) -> None:
    config = settings(place, checkpoint_every=100)
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(signal.SIGTERM))
    train = cluster.Worker.train

    def interrupted(self: Any, piece: Any) -> Any:
        signal.raise_signal(signum)
        signal.raise_signal(signum)  # Ray says it again and again
        return train(self, piece)

    monkeypatch.setattr(cluster.Worker, "train", interrupted)
    try:
        assert done(config) == []
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (runs_of(config)[0].saves / "checkpoint.safetensors").exists()
    assert came == ([signum] if signum == signal.SIGTERM else []), "the process would continue, and Ray not try again"
    assert_released(place)


def test_a_node_that_does_not_share_the_folder_is_named(place: Path, tmp_path: Path) -> None:
    config = settings(place)
    ((asked, *rest),) = orders(config)
    elsewhere = replace(asked, data=tmp_path / "none"), *rest
    unseen = replace(asked, root=tmp_path / "unseen"), *rest
    for wrong, expected in ((unseen, "--root must be where all nodes"), (elsewhere, "--data must be where all nodes")):
        (error,) = cluster.run_task([wrong], False)  # type: ignore[list-item]
        assert isinstance(error, MachineError) and expected in str(error) and "\n" not in str(error)
    assert not results(place)


class Pretended:
    """Ray, as far as a command uses it: two tasks that are done here when they are waited for."""

    exceptions = SimpleNamespace(RayError=LookupError)

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.cancelled, self.started = error, list[Any](), list[Any]()

    def remote(self, **resources: Any) -> Any:
        assert resources == {"max_retries": -1, "retry_exceptions": False, "num_cpus": 1, "num_gpus": 0}
        return lambda do: SimpleNamespace(remote=lambda *order: self.started.append(order) or len(self.started))

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def wait(self, tasks: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return tasks[:1], tasks[1:]

    def get(self, task: int) -> Any:
        if self.error:
            raise self.error
        if task in self.cancelled:
            raise IndexError
        return cluster.run_task(*self.started[task - 1])

    def cancel(self, task: int) -> None:
        self.cancelled.append(task)


def test_progress_is_read_in_the_folder_and_idle_tasks_end(place: Path, capsys: Capture, monkeypatch: Patch) -> None:
    ray = Pretended()
    config = settings(place, root=place / "ray", ray="local", trials=2, quiet=False, gpu=None, jobs=None)

    def connected(config: Config) -> Any:
        return cluster.contextlib.nullcontext(Cluster(ray, config))

    monkeypatch.setattr(cluster, "connected", connected)
    monkeypatch.setattr(cluster, "local_device", lambda: (CPU, ""))
    monkeypatch.setattr(cluster.torch.cuda, "is_available", lambda: False)
    session.run(config)
    out = capsys.readouterr().out
    assert "on a Ray cluster of 1 node with 2 cores" in out and len(ray.started) == 2 and ray.cancelled == [2]
    assert [out.count(f"lt seed{seed} ") for seed in (0, 1)] == [3, 3]
    do(settings(place, root=place / "plain", trials=2))
    assert_same(results(place / "ray"), results(place / "plain"))
    ray.error = KeyError("node died")
    with pytest.raises(MachineError, match="a task of the cluster failed: 'node died'"):
        session.run(replace(config, trials=3))


def test_without_ray_one_sentence_says_what_to_install(place: Path, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    before = set(place.rglob("*"))
    assert utils.exit_code(main.main, argv_of(place, "--ray", "auto", "--batch_size", "5000")) == 2
    said = capsys.readouterr().err
    assert "error: --ray needs Ray, which is not installed here: pip install -r requirements-ray.txt\n" in said
    assert "--batch_size" in said, "all mistakes in one message"
    assert set(place.rglob("*")) == before


def test_an_address_where_nothing_listens_is_reported_at_once(place: Path, monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "ray", Pretended())  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(MachineError, match=f"--ray {address} reaches no Ray cluster, is it running"):
        cluster.connected(settings(place, ray=address)).__enter__()
