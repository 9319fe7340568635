"""How many threads a run gets, and how long a command is said to take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import settings

from lth.commands import device as devices
from lth.commands import forecast, holding, queue, session
from lth.records.files import read_json
from lth.records.tables import runs_of
from lth.settings.config import Config
from lth.settings.values import Duration

CPU = torch.device("cpu")


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
    _, problem = session.prepare(config)
    return holding.with_threads(config, problem, runs_of(config)[0], runs, CPU).threads


def test_large_networks_share_the_cores_and_small_ones_use_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cores", lambda: 8)
    config = settings(place)
    assert threads(config, 1) == 1
    monkeypatch.setattr(holding, "LARGE_STEP", 1000.0)
    assert [threads(config, runs) for runs in (1, 2, 3, 20)] == [8, 4, 2, 1]
    assert threads(replace(config, threads=3), 1) == 3


def test_the_threads_of_the_first_runs_are_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "LARGE_STEP", 1000.0)
    monkeypatch.setattr(devices, "cores", lambda: 2)
    config = settings(place, prune_type=("lt",), prune_iterations=1)
    (run,) = session.run(config)
    assert read_json(run.dumps / "config.json")["threads"] == 2
    monkeypatch.setattr(devices, "cores", lambda: 8)
    (later,) = session.run(replace(config, prune_type=("random",)))
    assert read_json(later.dumps / "config.json")["threads"] == 2
    assert threads(replace(config, overwrite=True), 1) == 8


def test_the_forecast_counts_what_is_left_by_what_its_rounds_take(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(config: Config, images: object, problem: object, device: object, number: int) -> forecast.Cost:
        return forecast.Cost(step=60.0, image=0.0)  # a minute per step

    monkeypatch.setattr(forecast, "measured", measured)
    monkeypatch.setattr(forecast, "SHORT", 0.0)
    config = settings(place, prune_type=("lt", "reinit"), prune_iterations=4, trials=2, jobs=2, dry_run=True)
    config = replace(config, end_iter=Duration(5, "it"))
    session.run(config)  # two processes; a run of reinit takes the dense round of lt over: 2 x (4 + 3) x 5 minutes
    assert "4 rounds of 5 iterations: about 35 minutes on this CPU" in capsys.readouterr().out
    monkeypatch.setattr(queue.Queue, "finished", lambda self, run: 3)
    session.run(config)  # the last round of four runs
    assert "about 10 minutes on this CPU" in capsys.readouterr().out


def test_a_measured_step_and_evaluation_make_a_training(place: Path) -> None:
    config = session.settled(settings(place, end_iter=Duration(7, "it"), valid_freq=Duration(2, "it"), batch_size=8))
    images, problem = session.prepare(config)
    cost = forecast.measured(config, images, problem, CPU, number=1)
    assert 0 < cost.step < 1 and 0 < cost.image < 1 and not (place / "dumps").exists()
    evaluated = 4 * ((config.valid_size or 0) + len(images.test))  # at 2, 4, 6 and 7
    assert forecast.Cost(10, 0.5).training(config, images) == 7 * 10 + evaluated * 0.5
