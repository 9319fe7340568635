"""Memory that a step frees serves the next one, and is given back at the end."""

from __future__ import annotations

import os
import platform
import sys

import psutil
import pytest
import torch

from lth.training import memory

MB = 2**20


def pages_taken() -> int:
    """How many pages a step with a few large tensors takes from the system."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (40, 16, 80, 8):
        torch.ones(size * MB // 4).mul_(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own")
def test_what_a_step_frees_serves_the_next_and_is_given_back_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource  # other systems have none

    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    process = psutil.Process()
    with memory.kept():
        first, *later = [pages_taken() for _ in range(4)]
        held = process.memory_info().rss
    assert all(pages < MB // resource.getpagesize() for pages in later), (first, later)
    assert held - process.memory_info().rss > 60 * MB


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
