"""Random numbers of other people's code: seeded, kept, and gone on with."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Told, assert_same, do, results, settings

from lth import chance
from lth.experiment.strategy import UNSAVED
from lth.records import tables
from lth.training.train import Stopped

CPU = torch.device("cpu")
DRAWING = """
import random

import numpy as np
import torch
from torch import nn


class noisy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, num_classes))

    def forward(self, x):
        noise = 0.1 * torch.randn_like(x) + random.gauss(0, 0.1) + float(np.random.randn())
        return self.net(x + noise)
"""


def drawn() -> list[float]:
    return [torch.rand(()).item(), float(np.random.randn()), random.gauss(0, 1)]


def test_all_generators_begin_anew_and_go_on() -> None:
    chance.seed(2**40 + 3)
    first = [drawn() for _ in range(3)]
    chance.seed(2**40 + 3)
    assert drawn() == first[0]
    saved = chance.state(CPU)
    with chance.seeded(5):
        inside = drawn()
    with chance.kept(CPU):
        assert drawn() == first[1] != inside
    assert drawn() == first[1]
    chance.restore(saved, CPU)
    assert [drawn(), drawn()] == first[1:]
    torch.manual_seed(0)
    chance.restore({"random": saved["random"]}, CPU)  # of an older checkpoint
    assert torch.rand(()).item() == first[1][0]


def test_the_generators_of_gpus_are_kept_too_where_they_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: asked.append(list(devices)) or fork(devices=[]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for used in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=used: used)
        with chance.seeded(5):
            pass
    assert asked == [[], [0, 1]]


COUNTING = """
from torch import nn


class counting(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net, self._calls = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, num_classes)), 0

    def forward(self, x):
        self._calls += self.training
        return self.net(x * (1 + self._calls % 7 / 10))
"""
KEEPING = """
import numpy as np
from torch import nn


class keeping(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, num_classes))
        self.noise = np.random.default_rng(0)

    def forward(self, x):
        return self.net(x * (1 + 0.1 * self.noise.random()))
"""


@pytest.mark.parametrize("name, code", [("noisy", DRAWING), ("counting", COUNTING), ("keeping", KEEPING)])
def test_models_that_draw_or_count_are_reproducible_also_after_a_stop(place: Path, name: str, code: str) -> None:
    (place / "archs" / "tiny" / f"{name}.py").write_text(code)
    config = settings(place, arch_type=name, prune_iterations=2, checkpoint_every=0)
    turns = itertools.count()
    do(replace(config, root=place / "once"), stop=lambda: next(turns) < 0)
    random.seed(77)
    np.random.seed(77)
    do(replace(config, root=place / "again"))
    assert_same(results(place / "again"), results(place / "once"))
    for turn in range(0, next(turns), 9):
        turns, root, told = itertools.count(), place / f"stopped{turn}", Told()
        with pytest.raises(Stopped):
            do(replace(config, root=root), told, stop=lambda turns=turns, turn=turn: next(turns) == turn)
        assert (UNSAVED in told.notes) == (name != "noisy" and turn > 0)
        do(replace(config, root=root))
        assert_same(results(root), results(place / "once"))


def test_draws_of_the_callers_own_go_on_undisturbed(place: Path) -> None:
    chance.seed(3)
    expected = drawn()
    chance.seed(3)
    do(settings(place))
    assert drawn() == expected


def test_how_often_the_test_images_come_does_not_matter_to_a_model_that_draws(place: Path) -> None:
    (place / "archs" / "tiny" / "noisy.py").write_text(DRAWING)
    losses = []
    for test_freq in ("2it", "8it"):
        config = settings(place, arch_type="noisy", valid_freq="2it", test_freq=test_freq, root=place / test_freq)
        (run,) = do(config)
        losses.append(tables.table(run, "evals")[["train_loss", "val_loss"]].to_numpy().tolist())
    assert losses[0] == losses[1]
