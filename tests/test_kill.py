"""kill -9 at random moments of a run with several trials in parallel: nothing is lost, nothing differs."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from helpers import arrays

from lth.settings.config import PROJECT

COMMAND = [
    *("main.py", "--trials", "2", "--prune_percent", "60", "--prune_iterations", "4"),
    *("--end_iter", "100it", "--valid_freq", "10it", "--valid_size", "1000", "--checkpoint_every", "0"),
    *("--jobs", "2", "--gpu", "cpu"),
]
METHODS = (  # few images, since the line takes all of them 30 times
    "--prune_type snip synflow_shuffle --trials 1 --prune_iterations 3 --rewind 40it --connectivity "
    "--dataset small --valid_size 200"
)


def start(root: Path, asked: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *COMMAND, *asked.split(), "--root", str(root)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_training(run: subprocess.Popen[str], root: Path) -> None:
    """Until it writes a checkpoint: what comes before is Python, PyTorch and the workers being loaded."""
    since = time.time()
    while run.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if any(file.stat().st_mtime > since for file in root.rglob("checkpoint*")):
                return
        time.sleep(0.02)


def results(root: Path) -> dict[str, bytes]:
    """The files that must not depend on stops, by their path."""
    names = ("rounds", "evals", "layers", "connectivity")
    tables = [file for name in names for file in root.glob(f"dumps/**/{name}.csv")]
    weights = [file for name in ("ticket", "trained") for file in root.glob(f"saves/**/{name}_*.safetensors")]
    return {str(file.relative_to(root)): file.read_bytes() for file in [*tables, *weights]}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
@pytest.mark.parametrize(
    "asked, runs, files, kills",
    [
        pytest.param("--prune_type lt reinit", 4, 3 + 2 * 4, 5, id="usual"),
        pytest.param(METHODS, 3, 4 + 2 * 3, 3, id="methods"),
    ],
)
def test_a_run_killed_anywhere_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, asked: str, runs: int, files: int, kills: int
) -> None:
    if "--dataset small" in asked:
        np.savez(tmp_path / "small.npz", **arrays(2000, 400, shape=(28, 28)))
        asked += f" --data {tmp_path}"
    undisturbed = tmp_path / "undisturbed"
    wait_for_training(whole := start(undisturbed, asked), undisturbed)
    began = time.monotonic()
    out, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, out
    took = time.monotonic() - began
    expected = results(undisturbed)
    assert len(expected) == runs * files

    chance, root, killed, begun = random.Random(0), tmp_path / "killed0", 0, 1
    while killed < kills:
        wait_for_training(run := start(root, asked), root)
        children: list[psutil.Process] = []
        try:
            out, _ = run.communicate(timeout=chance.uniform(0, 0.9) * took)
            assert run.returncode == 0, out
            assert results(root) == expected
            root, begun = tmp_path / f"killed{begun}", begun + 1  # this one is finished: begin another
            continue
        except subprocess.TimeoutExpired:
            with contextlib.suppress(psutil.NoSuchProcess):
                children = psutil.Process(run.pid).children(recursive=True)
            if killed % 2:
                os.killpg(run.pid, signal.SIGKILL)
            else:
                run.kill()  # the parent alone: its children must notice
        run.wait()
        killed += 1
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive, "children outlive their parent"
        for file in root.glob("dumps/**/*.csv"):
            pd.read_csv(file)
            assert file.read_bytes().endswith(b"\n")
    out, _ = (last := start(root, asked)).communicate(timeout=300)
    assert last.returncode == 0, out
    assert results(root) == expected
