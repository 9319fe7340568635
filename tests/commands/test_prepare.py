"""What is settled before anything is trained: threads and cores, and what config.json says of a run."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import CPU, do, settings

from lth.commands import device as devices
from lth.commands import prepare, session
from lth.records.files import read_json
from lth.records.tables import runs_of
from lth.settings.config import Config, ConfigError


@pytest.mark.parametrize(
    ("files", "given"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({}, 8),
    ],
)
def test_cores_are_those_of_the_mask_and_of_the_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], given: int
) -> None:
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda process: range(8), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert devices.cores(tmp_path) == given


def threads(config: Config, runs: int) -> int | None:
    _, problem = prepare.prepare(config)
    return prepare.with_threads(config, problem, runs_of(config)[0], runs, CPU).threads


def test_large_networks_share_the_cores_and_small_ones_use_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cores", lambda: 8)
    config = settings(place)
    assert threads(config, 1) == 1
    monkeypatch.setattr(prepare, "LARGE_STEP", 1000.0)
    assert [threads(config, runs) for runs in (1, 2, 3, 20)] == [8, 4, 2, 1]
    assert threads(replace(config, threads=3), 1) == 3


def test_the_threads_of_the_first_runs_are_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "LARGE_STEP", 1000.0)
    monkeypatch.setattr(devices, "cores", lambda: 2)
    config = settings(place, prune_type=("lt",), prune_iterations=1)
    (run,) = session.run(config)
    assert read_json(run.dumps / "config.json")["threads"] == 2
    monkeypatch.setattr(devices, "cores", lambda: 8)
    (later,) = session.run(replace(config, prune_type=("random",)))
    assert read_json(later.dumps / "config.json")["threads"] == 2
    assert threads(replace(config, overwrite=True), 1) == 8


def test_the_commit_says_when_files_are_not_as_it_has_them(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    assert prepare.commit(tmp_path) is None
    git("init")
    (tmp_path / "net.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    clean = prepare.commit(tmp_path)
    assert clean is not None and len(clean) == 40
    (tmp_path / "net.py").write_text("2")
    assert prepare.commit(tmp_path) == f"{clean} with uncommitted changes"


def test_the_split_of_a_small_set_is_recorded_and_its_run_repeated(place: Path) -> None:
    (run,) = session.run(settings(place, valid_size=None, prune_iterations=1))
    assert run.settings == settings(place, valid_size=5000).folder(), "nothing in its name: it is the default"
    found = read_json(run.dumps / "config.json")
    assert found["deciding"]["valid_size"] == "12" and found["settings"]["valid_size"] is None
    assert found["settings"]["data"] == str(place / "data")
    explicit = settings(place, valid_size=12, prune_iterations=1, root=place / "explicit")
    (other,) = do(explicit)
    assert (run.dumps / "evals.csv").read_bytes() == (other.dumps / "evals.csv").read_bytes()
    (again,) = session.run(settings(place, valid_size=None, prune_iterations=2))
    assert again == run
    with pytest.raises(ConfigError, match=r"holds results of other settings \(valid_size 12, now 5000\)"):
        session.run(settings(place, valid_size=5000, prune_iterations=2))
