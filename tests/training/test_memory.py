"""Memory that a step frees serves the next one, and is returned at the end."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from lth.settings.config import PROJECT
from lth.training import hardware

STEPS = """
import resource
import psutil, torch
from lth.training import hardware

def pages_taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (40, 16, 80, 8):
        torch.ones(size * 2**18).mul_(2)  # that many MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

process = psutil.Process()
with hardware.memory_kept():
    print(*(pages_taken() * resource.getpagesize() // 2**20 for _ in range(7)))
    held = process.memory_info().rss
print((held - process.memory_info().rss) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own")
def test_what_a_step_frees_serves_the_next_and_is_returned_at_the_end() -> None:
    """In a process of its own, since the heap of a process that has done other work has holes."""
    env = {name: text for name, text in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", STEPS], cwd=PROJECT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    taken, (returned,) = ([*map(int, line.split())] for line in done.stdout.splitlines())
    # Megabytes that each step took from the system: how the blocks of the first steps lie is chance.
    assert taken[0] >= 80 and taken[3:] == [0, 0, 0, 0], taken
    assert returned > 60


@pytest.mark.parametrize("system, variable", [("win32", ""), ("linux", "MALLOC_TRIM_THRESHOLD_"), ("linux", "")])
def test_nothing_changes_without_glibc_or_where_its_user_has_chosen(
    system: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening the C library would fail on Windows; other C libraries on Linux have no mallopt."""
    asked: list[object] = []
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: asked.append(name) or object())
    if variable:
        monkeypatch.setenv(variable, "1")
    with hardware.memory_kept():
        assert bool(asked) == (system == "linux" and not variable)
