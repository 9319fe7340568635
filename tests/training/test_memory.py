"""Memory that a step frees serves the next one, and is given back at the end."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from lth.settings.config import PROJECT
from lth.training import memory

STEPS = """
import resource
import psutil, torch
from lth.training import memory

def pages_taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (40, 16, 80, 8):
        torch.ones(size * 2**18).mul_(2)  # that many MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

process = psutil.Process()
with memory.kept():
    print(*(pages_taken() * resource.getpagesize() // 2**20 for _ in range(7)))
    held = process.memory_info().rss
print((held - process.memory_info().rss) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own")
def test_what_a_step_frees_serves_the_next_and_is_given_back_at_the_end() -> None:
    """In a process of its own: in one that has had other work its heap has holes."""
    told = {name: text for name, text in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", STEPS], cwd=PROJECT, env=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    taken, (given_back,) = ([*map(int, line.split())] for line in done.stdout.splitlines())
    # megabytes that each step took from the system: the first ones what they need, and how these lie is chance
    assert taken[0] >= 80 and taken[3:] == [0, 0, 0, 0], taken
    assert given_back > 60


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_a_user_has_told_glibc_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(memory.ctypes, "CDLL", asked.append)
    with memory.kept():
        assert not asked


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_not_asked_for_what_glibc_has(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows would fail to open the C library so; the program must run on."""
    asked: list[object] = []
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(memory.ctypes, "CDLL", asked.append)
    done = []
    for within in (memory.kept, memory.filled):
        with within():
            done.append(within)
    assert len(done) == 2 and not asked


def test_where_there_is_no_glibc_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems have Linux with another C library."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    done = []
    with memory.kept(), memory.filled():
        done.append(1)
    assert done
