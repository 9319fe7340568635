"""The device: a GPU where there is one, but never another than the one that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import settings
from own import find, runner, seeded

import lth
import main
import utils
from lth.commands import device as devices
from lth.commands import session
from lth.settings.config import ConfigError


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(devices, "_failure", lambda device: "")


@pytest.mark.parametrize(
    ("gpus", "mps", "asked", "given"),
    [
        *[(0, False, None, "cpu"), (0, True, None, "mps"), (2, False, None, "cuda:0")],
        *[(2, False, "1", "cuda:1"), (2, False, "cpu", "cpu")],
    ],
)
def test_what_is_asked_for_is_given(
    monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool, asked: str | None, given: str
) -> None:
    machine(monkeypatch, gpus, mps)
    device, remark = devices.choose(asked)
    assert str(device) == given and bool(remark) == (asked is None and given == "cpu")


def test_a_gpu_that_cannot_be_used_is_left_alone_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 1)
    monkeypatch.setattr(devices, "_failure", lambda device: "no kernel image is available")
    remark = "cuda:0 cannot be used (no kernel image is available): training on the CPU"
    assert devices.choose(None) == (torch.device("cpu"), remark)
    assert devices.choose("0") == (torch.device("cuda:0"), "")


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_every_door_refuses_a_gpu_that_is_not_there(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
