"""Files that several processes write."""

from __future__ import annotations

import errno
import os
import stat
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


def test_json_that_is_nested_too_deeply_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for content in (b"{", b"[]", b"\xff"):
        file.write_bytes(content)
        assert files.read_json(file) == {}
    file.write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(files.RecordError, match=r"config\.json is damaged: .* nested too deeply"):
        files.read_json(file)


def test_a_shared_file_is_synced_also_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, file, synced = tmp_path / "dense", tmp_path / "run" / "dense", list[bool]()

    def none(*names: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    def sync(descriptor: int) -> None:
        synced.append(stat.S_ISREG(os.fstat(descriptor).st_mode))

    source.write_bytes(b"weights")
    monkeypatch.setattr(os, "link", none)
    monkeypatch.setattr(os, "fsync", sync)
    files.share(source, file)
    assert file.read_bytes() == b"weights" and True in synced, "the copy itself, not its folder alone"


def test_what_was_set_aside_before_stays(tmp_path: Path) -> None:
    file = tmp_path / "ticket_01.safetensors"
    for content in (b"first", b"second", b"third"):
        file.write_bytes(content)
        assert files.set_aside(file).read_bytes() == content
    file.mkdir()  # no file can be replaced by it
    assert files.set_aside(file).is_dir()
    assert sorted(each.read_bytes() for each in tmp_path.iterdir() if each.is_file()) == [b"first", b"second", b"third"]
