"""Random numbers: seeded, restored and continued; which trainings share their order and dropout and which do not."""

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, Conv, Patch, assert_same, do, results, settings
from torch import Tensor

from lth import pruning, rng
from lth.experiment.trainer import Trainer
from lth.models import building
from lth.training.network import Network
from lth.training.train import Stopped, Training

pytestmark = pytest.mark.versions

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


def record(monkeypatch: Patch) -> list[dict[str, Any]]:
    """Notes of each training its runs and round, each trial's order of the data in two epochs, and dropout's state."""
    found: list[dict[str, Any]] = []
    train, run = Trainer.train, Training.run

    def noted(self: Trainer, stack: Any, started: Any) -> Any:
        found.append({"runs": [(run.arm, run.seed) for run in stack], "round": started[0].round})
        return train(self, stack, started)

    def begun(self: Training, *args: Any, **options: Any) -> Any:
        orders = [self.feed.epoch(self.order_seeds, epoch) for epoch in (0, 1)]
        # Places among the training images, since each trial has other ones.
        parts = [(order[:, trial], i) for order in orders for trial, i in enumerate(self.feed.train_indices)]
        found[-1]["orders"] = [torch.searchsorted(indices, order.contiguous()) for order, indices in parts]
        found[-1]["dropout"] = torch.get_rng_state()
        return run(self, *args, **options)

    monkeypatch.setattr(Trainer, "train", noted)
    monkeypatch.setattr(Training, "run", begun)
    return found


def one_of_each(tensors: list[Tensor]) -> bool:
    return len({tuple(tensor.flatten().tolist()) for tensor in tensors}) == len(tensors)


def test_rounds_and_trials_draw_their_own_order_and_dropout_and_arms_the_same(place: Path, monkeypatch: Patch) -> None:
    found = record(monkeypatch)
    do(settings(place, arch_type="drop", trials=2, prune_type=("lt", "reinit"), end_iter="2it", valid_freq="2it"))
    assert len(found) == 2 * (1 + 2 * 2)
    by_arm = {(*training["runs"][0], training["round"]): training for training in found}
    lt = [training for (arm, _, _), training in by_arm.items() if arm == "lt"]
    assert len(lt) == 6
    assert one_of_each([order for training in lt for order in training["orders"]]), "an order of the data comes twice"
    assert one_of_each([training["dropout"] for training in lt]), "dropout is the same in two trainings"
    for (arm, seed, number), training in by_arm.items():  # the arms of a trial differ by their weights alone
        twin = by_arm["lt", seed, number]
        assert arm == "lt" or torch.equal(training["dropout"], twin["dropout"])
        assert all(torch.equal(a, b) for a, b in zip(training["orders"], twin["orders"], strict=True))


def test_dropout_drops_other_units_in_each_trial_of_a_stack() -> None:
    state = building.state_of(building.build(lambda: Conv(dropout=0.5), "glorot", 0))
    masks = pruning.dense(pruning.prunable(Conv()))
    network = Network(Conv(dropout=0.5), [state] * 3, [masks] * 3, CPU)
    images, labels = torch.randn(8, 1, 8, 8).repeat(3, 1, 1, 1), torch.arange(8).remainder(4).repeat(3)
    network.model.train()
    losses = network.losses(images, labels).tolist()
    assert len(set(losses)) == 3, "equal trials, equal images: only dropout can make a difference"
    network.model.eval()
    assert len(set(network.losses(images, labels).tolist())) == 1
