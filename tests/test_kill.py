"""kill -9 at random moments: nothing is lost, nothing differs, nothing is left behind. All kinds of commands, more
kills and a Ray cluster of three nodes, one of which is killed, where LTH_EXHAUSTIVE is set."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from helpers import EXHAUSTIVE, Command, arrays, assert_released, assert_same, results

from lth.records import lock

FLAGS = [
    *("--arch_type", "fc1", "--dataset", "small", "--prune_percent", "60", "--prune_iterations", "3"),
    *("--end_iter", "100it", "--valid_freq", "10it", "--valid_size", "200", "--checkpoint_every", "0", "--gpu", "cpu"),
]
KINDS = {  # what is asked for, and how many processes share it
    "one arm": ("--jobs 1", 1),
    "two arms, two jobs": ("--prune_type lt reinit --trials 2 --jobs 2", 1),
    "three joined processes": ("--prune_type lt reinit --trials 2 --jobs 1 --join", 3),
    "connectivity": ("--prune_type snip synflow_shuffle --rewind 40it --connectivity --jobs 2", 1),
    "a sweep": ("--sweep lr=1e-3,2e-3 seed=0,1 --jobs 2", 1),
}
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def started(root: Path, asked: str) -> Command:
    return Command(root, *FLAGS, *asked.split())


def kill(command: Command, everyone: bool) -> None:
    """kill -9 all of it, or the parent alone: its children must notice."""
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(command.process.pid).children(recursive=True)
    os.killpg(command.process.pid, signal.SIGKILL) if everyone else command.process.kill()
    command.process.wait()
    assert not psutil.wait_procs(children, timeout=10)[1], "children outlive their parent"


@pytest.mark.slow
@posix
@pytest.mark.parametrize("kind", KINDS if EXHAUSTIVE else ["two arms, two jobs", "three joined processes"])
def test_a_command_killed_anywhere_continues_as_if_nothing_had_happened(tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / "small.npz", **arrays(2000, 400, shape=(28, 28)))
    asked, count = KINDS[kind]
    whole = started(tmp_path / "undisturbed", asked.replace("--join", ""))
    while whole.runs() and not whole.is_training():
        time.sleep(0.02)
    began = time.monotonic()
    whole.ends()
    took, expected = time.monotonic() - began, results(whole.root)
    assert expected

    chance, root = random.Random(kind), tmp_path / "killed0"
    crew = [started(root, asked) for _ in range(count)]
    kills = 13 if EXHAUSTIVE else 4
    while kills:
        while any(one.runs() for one in crew) and not crew[-1].is_training():
            time.sleep(0.02)
        until = time.monotonic() + chance.uniform(0, 0.9) * took
        while any(one.runs() for one in crew) and time.monotonic() < until:
            time.sleep(0.005)
        if alive := [one for one in crew if one.runs()]:
            victim = chance.choice(alive)
            kill(victim, everyone=chance.random() < 0.5)
            kills -= 1
            for file in root.glob("dumps/**/*.csv"):
                pd.read_csv(file)
                assert file.read_bytes().endswith(b"\n")
            crew = [*(one for one in crew if one is not victim), started(root, asked)]
        else:  # this one is finished: begin another
            assert_finished(crew, expected)
            root = tmp_path / f"killed{len(list(tmp_path.iterdir()))}"
            crew = [started(root, asked) for _ in range(count)]
    assert_finished(crew, expected)


def assert_finished(crew: list[Command], expected: dict[str, bytes]) -> None:
    """All commands end well, with the same results as the undisturbed one."""
    for command in crew:
        command.ends()
    root = crew[0].root
    assert_same(results(root), expected)
    assert_released(root)
    assert not [file for file in root.rglob("*") if file.name.endswith((".partial", ".probe"))]


SWEEP = [
    *("--arch_type", "lenet5", "--dataset", "small", "--gpu", "cpu", "--prune_type", "lt", "reinit"),
    *("--sweep", "lr=1e-3,2e-3", "seed=0,1", "--prune_iterations", "3", "--prune_percent", "30"),
    *("--end_iter", "60it", "--valid_freq", "20it", "--valid_size", "200", "--checkpoint_every", "0"),
]
QUICK_TO_NOTICE = {  # that a node has died, within two seconds or so
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


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
    """The runs whose locks are held, by the number of the process."""
    runs = [file.with_suffix("") for file in root.glob("dumps/*/*/*/*/*.holder")]
    return {json.loads(run.with_suffix(".holder").read_text())["pid"]: run for run in runs if lock.is_held(run)}


def under_way(root: Path) -> dict[int, Path]:
    """Those of them that have a checkpoint."""
    saves = {pid: root / "saves" / run.relative_to(root / "dumps") for pid, run in holders(root).items()}
    return {pid: run for pid, run in saves.items() if (run / "checkpoint.safetensors").exists()}


@pytest.fixture
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


@pytest.mark.slow
@posix
@pytest.mark.skipif(not EXHAUSTIVE, reason="LTH_EXHAUSTIVE is not set")
def test_a_sweep_survives_its_driver_and_one_of_the_nodes(tmp_path: Path, ray_cluster: Any) -> None:
    np.savez(tmp_path / "small.npz", **arrays(count=2000, tests=200, shape=(28, 28)))
    plain, root = tmp_path / "plain", tmp_path / "ray"
    Command(plain, *SWEEP, "--jobs", "2").ends()
    argv = [*SWEEP, "--ray", ray_cluster.address]

    stopped = Command(root, *argv)
    wait_for(lambda: under_way(root), "a task works")
    stopped.signal(signal.SIGINT)
    said = stopped.ends(130)
    assert "stopped by SIGINT: finished rounds are kept, the same command again continues from here" in said
    assert not holders(root) and list(root.rglob("checkpoint.safetensors"))

    killed, before = Command(root, *argv), finished(root)
    wait_for(lambda: finished(root) > before and under_way(root), "tasks continue")
    workers = list(holders(root))
    killed.signal(signal.SIGKILL)
    wait_for(lambda: not any(map(psutil.pid_exists, workers)), "Ray ends the tasks of a dead driver")

    last, others, before = Command(root, *argv), list(ray_cluster.worker_nodes), finished(root)

    def busy() -> Any:
        """A process that works on a node that can be killed, and that node."""
        if finished(root) > before:
            for pid in under_way(root):
                with contextlib.suppress(psutil.NoSuchProcess):
                    above = {process.pid for process in psutil.Process(pid).parents()}
                    for node in others:
                        if node.all_processes["raylet"][0].process.pid in above:
                            return pid, node
        return None

    pid, node = wait_for(busy, "a node works that can be killed")
    run = holders(root)[pid]
    ray_cluster.remove_node(node, allow_graceful=False)
    assert finished(root) < 2 * 2 * 2 * 3, "too quick to be in the middle"
    said = last.ends()
    assert "4 experiments, 8 runs of 3 rounds on a Ray cluster of 3 nodes with 3 cores" in said
    assert_same(results(root), results(plain))
    assert (root / "plots/sweep.csv").read_bytes() == (plain / "plots/sweep.csv").read_bytes()
    assert (root / "plots/grid.png").exists() and not list(root.rglob("*.partial"))
    assert_released(root)
    assert json.loads(run.with_suffix(".holder").read_text())["pid"] != pid, "it was done again elsewhere"
