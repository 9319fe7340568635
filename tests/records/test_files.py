"""Files that several processes write."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lth.records import files

pytestmark = pytest.mark.versions


def test_two_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    """As processes that share a sweep and end together."""
    file, contents = tmp_path / "sweep.csv", [letter * 100_000 for letter in (b"a", b"b", b"c")]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(20):
            list(pool.map(lambda content: files.write(file, content), contents))
            assert file.read_bytes() in contents
    assert [*tmp_path.iterdir()] == [file]
