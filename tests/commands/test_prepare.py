"""What is settled and reported before anything is trained: threads, the device (never another than was asked for),
what config.json records, and how long it will take."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import CPU, Capture, Patch, do, settings
from own import find, runner, seeded

import lth
import main
import utils
from lth.commands import device as devices
from lth.commands import forecast, prepare, queue, session
from lth.records.files import read_json
from lth.records.tables import runs_of
from lth.settings.config import Config, ConfigError
from lth.settings.values import Duration


@pytest.mark.parametrize(
    ("files", "given"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({}, 8),
    ],
)
def test_cores_within_a_container_quota(tmp_path: Path, monkeypatch: Patch, files: dict[str, str], given: int) -> None:
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda process: range(8), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert devices.cores(tmp_path) == given


def threads(config: Config, runs: int) -> int | None:
    _, problem = prepare.prepare(config)
    return prepare.with_threads(config, problem, runs_of(config)[0], runs, CPU).threads


def test_large_networks_share_the_cores_and_small_ones_use_one(place: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(devices, "cores", lambda: 8)
    config = settings(place)
    assert threads(config, 1) == 1
    monkeypatch.setattr(prepare, "LARGE_STEP", 1000.0)
    assert [threads(config, runs) for runs in (1, 2, 3, 20)] == [8, 4, 2, 1]
    assert threads(replace(config, threads=3), 1) == 3


def test_the_threads_of_the_first_runs_are_kept(place: Path, monkeypatch: Patch) -> None:
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
    with pytest.raises(ConfigError, match=r"holds results of different settings \(valid_size 12, now 5000\)"):
        session.run(settings(place, valid_size=5000, prune_iterations=2))


def machine(monkeypatch: Patch, gpus: int, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(devices, "failure", lambda device: "")


@pytest.mark.parametrize(
    ("gpus", "mps", "asked", "given"),
    [
        *[(0, False, None, "cpu"), (0, True, None, "mps"), (2, False, None, "cuda:0")],
        *[(2, False, "1", "cuda:1"), (2, False, "cpu", "cpu")],
    ],
)
def test_what_is_asked_for_is_given(monkeypatch: Patch, gpus: int, mps: bool, asked: str | None, given: str) -> None:
    machine(monkeypatch, gpus, mps)
    device, remark = devices.choose(asked)
    assert str(device) == given and bool(remark) == (asked is None and given == "cpu")


def test_a_gpu_that_cannot_be_used_is_left_alone_unless_it_is_asked_for(monkeypatch: Patch) -> None:
    machine(monkeypatch, 1)
    monkeypatch.setattr(devices, "failure", lambda device: "no kernel image is available")
    remark = "cuda:0 cannot be used (no kernel image is available): training on the CPU"
    assert devices.choose(None) == (torch.device("cpu"), remark)
    assert devices.choose("0") == (torch.device("cuda:0"), "")


def test_what_is_not_there_is_refused(monkeypatch: Patch) -> None:
    for gpus, mps, asked, said in (
        (0, False, "0", "--gpu must be cpu, or be left out, since PyTorch finds no GPU here, not 0"),
        (0, True, "0", "--gpu must be mps, or cpu, or be left out, not 0"),
        (1, False, "1", "--gpu must be below 1, the number of GPUs that PyTorch finds, or cpu, or be left out, not 1"),
        (2, False, "mps", "not mps"),
    ):
        machine(monkeypatch, gpus, mps)
        with pytest.raises(ConfigError) as caught:
            devices.choose(asked)
        assert said in str(caught.value)


def test_every_door_refuses_a_gpu_that_is_not_there(place: Path, monkeypatch: Patch, capsys: Capture) -> None:
    machine(monkeypatch, 0)
    (run,) = session.run(settings(place, gpu=None, prune_iterations=1))
    before = sorted(place.iterdir())
    flags = f"--arch_type mlp --dataset tiny --data {place / 'data'} --batch_size 500 --gpu 3 --quiet --root {place}"
    assert utils.exit_code(main.main, flags.split()) == 2
    said = capsys.readouterr().err.splitlines()  # with all else that is wrong
    assert len(said) == 2 and "--gpu must be cpu" in said[0] and "--batch_size must be at most" in said[1]
    for device, value in (("cuda:99", "99"), ("5", "5"), (torch.device("cuda"), "0")):
        with pytest.raises(ValueError, match=f"^device must be cpu, or be left out, .* not {value}$"):
            find(seeded(), device=device)
        with pytest.raises(ValueError, match=r"^device must be cpu"):
            runner(place, device=device).run()
        with pytest.raises(ValueError, match=r"^device must be cpu"):
            lth.load_ticket(run.dumps).evaluate(place / "data" / "tiny.npz", device=device)
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize(("sparsely", "minutes", "gradual"), [(False, 35, 7), (True, 25, 8)])
def test_the_forecast(
    place: Path, monkeypatch: Patch, capsys: Capture, sparsely: bool, minutes: int, gradual: int
) -> None:
    def measured(*given: object, **more: object) -> forecast.Cost:
        number, learn = given[4:]
        return forecast.Cost(step=120.0 if learn else 60.0 - 10 * int(str(number)), image=0.0)

    monkeypatch.setattr(forecast, "measure_cost", measured)
    monkeypatch.setattr(forecast, "WORTH_MEASURING", 0.0)
    monkeypatch.setattr(devices, "cores", lambda: 2)
    monkeypatch.setattr(forecast.sparse, "choose", lambda *given: ["fc1.weight"] * sparsely)
    config = settings(place, prune_type=("lt", "reinit"), prune_iterations=4, trials=2, jobs=4, dry_run=True)
    config = replace(config, end_iter=Duration(5, "it"))
    session.run(config)  # four processes on two cores; a run of reinit takes over lt's dense round
    assert f"4 rounds of 5 iterations: about {minutes} minutes on this CPU" in capsys.readouterr().out
    monkeypatch.setattr(queue.Queue, "finished", lambda self, run: 3)
    session.run(config)  # the last round of four runs
    assert "about 5 minutes on this CPU" in capsys.readouterr().out
    changes = {"prune_type": ("rigl", "supermask"), "update_freq": Duration(2, "it"), "trials": 1}
    session.run(replace(config, **changes))  # as the last round of lt; twice as long as a dense one
    assert "about 10 minutes on this CPU" in capsys.readouterr().out
    monkeypatch.setattr(queue.Queue, "finished", lambda self, run: 2)
    session.run(replace(config, **changes | {"prune_type": ("gmp",)}))
    assert f"about {gradual} minutes on this CPU" in capsys.readouterr().out


def test_a_measured_step_and_evaluation_make_a_training(place: Path) -> None:
    config = prepare.with_valid_size(
        settings(place, end_iter=Duration(7, "it"), valid_freq=Duration(2, "it"), batch_size=8)
    )
    images, problem = prepare.prepare(config)
    cost = forecast.measure_cost(config, images, problem, CPU, number=1)
    assert 0 < cost.step < 1 and 0 < cost.image < 1 and not (place / "dumps").exists()
    evaluated = 4 * ((config.valid_size or 0) + len(images.test))  # at 2, 4, 6 and 7
    assert forecast.Cost(10, 0.5).training(config, images) == 7 * 10 + evaluated * 0.5


def test_overwrite_says_whose_masks_are_trained_again_too(place: Path, capsys: Capture) -> None:
    config = settings(place, prune_type=("ticket_reinit",), prune_iterations=2, quiet=False)
    told = "--overwrite also starts lt again, whose masks ticket_reinit takes"
    session.run(config)
    assert told not in capsys.readouterr().out
    session.run(replace(config, overwrite=True))
    assert told in " ".join(capsys.readouterr().out.split())


def test_what_continues_says_which_rounds_are_finished(place: Path, capsys: Capture) -> None:
    session.run(settings(place, prune_iterations=1))
    session.run(settings(place, prune_iterations=3, quiet=False))
    told = capsys.readouterr().out
    assert "Continuing lt seed0: 1 of 3 rounds are finished\n  round 0: 100.00% of the weights, ES " in told
    session.run(settings(place, prune_iterations=4, overwrite=True, quiet=False))
    assert "Continuing" not in capsys.readouterr().out
