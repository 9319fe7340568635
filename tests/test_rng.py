"""Random numbers of models, rules and loaders: seeded, restored, and continued after a stop."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Patch, assert_same, do, results, settings

from lth import rng
from lth.training.train import Stopped

pytestmark = pytest.mark.versions

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
        return self.net(x + {noise})
"""
TORCH = "0.1 * torch.randn_like(x)"
ALL = f"{TORCH} + random.gauss(0, 0.1) + 0.1 * float(np.random.randn())"


def drawn() -> list[float]:
    return [torch.rand(()).item(), float(np.random.randn()), random.gauss(0, 1)]


def model(place: Path, noise: str) -> None:
    (place / "archs" / "tiny" / "noisy.py").write_text(DRAWING.format(noise=noise))


def test_generators_are_seeded_preserved_and_restored() -> None:
    rng.seed(2**40 + 3)
    first = [drawn() for _ in range(3)]
    own = rng.Generators(2**40 + 3)
    rng.seed(2**40 + 3)
    for draws in first[:2]:
        with rng.seeded(5):
            assert drawn() != draws
        with own.active():
            assert drawn() == draws
        with rng.preserved(CPU):
            assert drawn() == draws
        saved = rng.state(CPU)
        assert drawn() == draws
    assert drawn() == first[2]
    rng.restore(saved, CPU)
    assert torch.rand(()).item() == first[1][0]
    assert rng.derive_seed(1, "order", 2) != rng.derive_seed(1, "order", 3)


def test_the_generators_of_gpus_are_preserved_where_they_are_in_use(monkeypatch: Patch) -> None:
    asked: list[list[int]] = []
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: asked.append(list(devices)) or fork(devices=[]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for used in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=used: used)
        with rng.seeded(5):
            pass
    assert asked == [[], [0, 1]]


@pytest.mark.parametrize("noise", [TORCH, ALL])
def test_models_that_draw_are_reproducible(place: Path, noise: str) -> None:
    """After a stop in the middle of a round too, if they draw from PyTorch's generators alone."""
    model(place, noise)
    config = settings(place, arch_type="noisy", prune_iterations=2, checkpoint_every=0)
    turns = itertools.count()
    do(replace(config, root=place / "once"), stop=lambda: next(turns) < 0)
    rng.seed(77)
    expected = drawn()
    rng.seed(77)
    do(replace(config, root=place / "again"))
    assert drawn() == expected  # the caller's own draws are undisturbed
    assert_same(results(place / "again"), results(place / "once"))
    for turn in range(0, next(turns), 9) if noise == TORCH else ():
        turns, root = itertools.count(), place / f"stopped{turn}"
        with pytest.raises(Stopped):
            do(replace(config, root=root), stop=lambda turns=turns, turn=turn: next(turns) == turn)
        do(replace(config, root=root))
        assert_same(results(root), results(place / "once"))
