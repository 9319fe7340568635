"""Memory that a step frees serves the next one, and is given back at the end."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import psutil
import pytest
import torch

from lth.training import memory

MB = 2**20
PAGE = resource.getpagesize()


def pages_taken() -> int:
    """How many pages a step with a few large tensors takes from the system."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (40, 16, 80, 8):
        torch.ones(size * MB // 4).mul_(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own")
def test_what_a_step_frees_serves_the_next_and_is_given_back_at_the_end() -> None:
    process = psutil.Process()
    with memory.kept():
        first, *later = [pages_taken() for _ in range(4)]
        held = process.memory_info().rss
    assert all(pages < MB // PAGE for pages in later), (first, later)
    assert held - process.memory_info().rss > 60 * MB


def test_where_there_is_no_glibc_nothing_changes() -> None:
    """The program must run on: this system is only pretended."""
    code = "import sys; sys.platform = 'darwin'\nfrom lth.training import memory\nwith memory.kept(): print('well')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "well\n"
