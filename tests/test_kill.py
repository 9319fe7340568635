"""kill -9 at random moments: nothing is lost, nothing differs, nothing is left behind. All kinds of commands, and more
kills, where LTH_EXHAUSTIVE is set."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from helpers import Command, arrays, assert_released, assert_same, results

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
EXHAUSTIVE = bool(os.environ.get("LTH_EXHAUSTIVE"))


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
@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
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
