"""A sweep of eight runs by three nodes of a real Ray cluster, some of which are killed: the same bytes as the plain
command gives. Only where LTH_EXHAUSTIVE is set; test_kill.py has processes that --join and are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from helpers import Command, arrays, assert_released, assert_same, results

from lth.records import lock

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals"),
    pytest.mark.skipif(not os.environ.get("LTH_EXHAUSTIVE"), reason="LTH_EXHAUSTIVE is not set"),
]

ARGV = [
    *("--arch_type", "lenet5", "--dataset", "small", "--gpu", "cpu", "--prune_type", "lt", "reinit"),
    *("--sweep", "lr=1e-3,2e-3", "seed=0,1", "--prune_iterations", "3", "--prune_percent", "30"),
    *("--end_iter", "60it", "--valid_freq", "20it", "--valid_size", "200", "--checkpoint_every", "0"),
]
ROUNDS = 2 * 2 * 2 * 3
QUICK_TO_NOTICE = {  # that a node has died, within two seconds or so
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small.npz."""
    made = tmp_path_factory.mktemp("machines")
    np.savez(made / "small.npz", **arrays(count=2000, tests=200, shape=(28, 28)))
    return made


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands, none of which outlives the test."""
    commands: list[Command] = []

    def begin(*more: str) -> Command:
        commands.append(Command(folder / "ray", *ARGV, *more))
        return commands[-1]

    yield begin
    for command in commands:
        with contextlib.suppress(ProcessLookupError):
            command.signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[dict[str, bytes], bytes]:
    """What the plain command gives: results, and the table over all settings."""
    root = folder / "plain"
    Command(root, *ARGV, "--jobs", "2").ends()
    found = results(root)
    assert len(found) == 8 * (3 + 2 * 3 + 2)  # tables; tickets and weights at ES; initial and dense weights
    return found, (root / "plots" / "sweep.csv").read_bytes()


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """What the condition gives once it is true."""
    deadline = time.monotonic() + 300
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within five minutes"
        time.sleep(0.05)
    return found


def finished(root: Path) -> int:
    """How many rounds are finished."""
    return sum(len(file.read_text().splitlines()) - 1 for file in root.glob("dumps/*/*/*/*/*/rounds.csv"))


def holders(root: Path) -> dict[int, Path]:
    """Of the locks that are held, the files with their holders, by the number of the process."""
    found = {}
    for file in root.glob("dumps/*/*/*/*/*.holder"):
        if lock.is_held(file.with_suffix("")):
            found[json.loads(file.read_text())["pid"]] = file
    return found


def under_way(root: Path) -> dict[int, Path]:
    """Those of them whose run has a checkpoint."""
    saves = root / "saves"
    there = {pid: saves / file.relative_to(root / "dumps").with_suffix("") for pid, file in holders(root).items()}
    return {pid: run for pid, run in there.items() if (run / "checkpoint.safetensors").exists()}


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """Three nodes of one core each."""
    pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    usual = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={**usual, "_system_config": QUICK_TO_NOTICE})
    children: list[psutil.Process] = []
    try:
        for _ in range(2):
            made.add_node(**usual)
        made.wait_for_nodes()
        yield made
        children = psutil.Process().children(recursive=True)
    finally:
        made.shutdown()
        for process in psutil.wait_procs(children, timeout=10)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def node_of(pid: int, nodes: Any) -> Any:
    """The node that a worker belongs to."""
    above = {process.pid for process in psutil.Process(pid).parents()}
    return next((node for node in nodes if node.all_processes["raylet"][0].process.pid in above), None)


def test_a_sweep_survives_its_driver_and_one_of_the_nodes(
    folder: Path, expected: tuple[dict[str, bytes], bytes], start: Callable[..., Command], ray_cluster: Any
) -> None:
    root, more = folder / "ray", ("--ray", ray_cluster.address)
    stopped = start(*more)
    wait_for(lambda: under_way(root), "a task works")
    stopped.signal(signal.SIGINT)
    said = stopped.ends(130)
    assert "stopped by SIGINT: finished rounds are kept, the same command again continues from here" in said
    assert not holders(root) and list(root.rglob("checkpoint.safetensors"))

    killed, before = start(*more), finished(root)
    wait_for(lambda: finished(root) > before and under_way(root), "tasks continue")
    workers = list(holders(root))
    killed.signal(signal.SIGKILL)
    wait_for(lambda: not any(map(psutil.pid_exists, workers)), "Ray ends the tasks of a dead driver")

    last, others = start(*more), [node for node in ray_cluster.worker_nodes if node.all_processes]
    before = finished(root)

    def busy() -> Any:
        if finished(root) <= before:
            return None
        with contextlib.suppress(psutil.NoSuchProcess):
            found = {pid: node_of(pid, others) for pid in under_way(root)}
            return next(((pid, node) for pid, node in found.items() if node), None)

    pid, node = wait_for(busy, "a node works that can be killed")
    run = holders(root)[pid].with_suffix("")
    ray_cluster.remove_node(node, allow_graceful=False)
    assert finished(root) < ROUNDS, "too quick to be in the middle"
    said = last.ends()
    assert "4 experiments, 8 runs of 3 rounds on a Ray cluster of 3 nodes with 3 cores" in said
    assert_same(results(root), expected[0])
    assert (root / "plots" / "sweep.csv").read_bytes() == expected[1] and (root / "plots" / "grid.png").exists()
    assert_released(root)
    assert not list(root.rglob("*.partial"))
    assert json.loads(run.with_suffix(".holder").read_text())["pid"] != pid, "it was done again elsewhere"
