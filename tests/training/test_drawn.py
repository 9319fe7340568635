"""What a model's constructor draws: a seed decides it, and tickets are trained on the function they were found on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_same, do, experiment, results, settings, work
from torch import nn

import lth
from lth.records import tables
from lth.run import session
from lth.settings.config import ConfigError
from lth.training import drawn, models
from lth.training.train import Stopped

MIXED = """
import numpy as np
import random
import torch
from torch import nn


class Mixed(nn.Module):
    \"\"\"Sees the pixels in an order of its own.\"\"\"

    def __init__(self, num_classes=4):
        super().__init__()
        {order}
        self.layers = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, num_classes))
        {more}

    def forward(self, x):
        return self.layers(x.flatten(1)[:, self.order])
"""
ATTRIBUTE = "self.order = torch.randperm(64)"


def write(place: Path, order: str, more: str = "") -> None:
    (place / "archs" / "tiny" / "mixed.py").write_text(MIXED.format(order=order, more=more))


def test_what_a_constructor_keeps_in_an_attribute_is_the_same_in_all_trainings(place: Path) -> None:
    write(place, ATTRIBUTE)
    shared = {"arch_type": "mixed", "end_iter": "40it", "valid_freq": "20it", "checkpoint_every": 0}
    (run,) = do(settings(place, **shared, root=place / "whole"))
    asked = count()
    with pytest.raises(Stopped):
        work(experiment(settings(place, **shared, root=place / "stopped"), stop=lambda: next(asked) > 90))
    do(settings(place, **shared, root=place / "stopped"))
    assert_same(results(place / "stopped"), results(place / "whole"))
    for number, test in enumerate(tables.table(run, "rounds")["test"]):
        found = lth.load_ticket(run.saves, number).evaluate(place / "data" / "tiny.npz", device="cpu")
        assert float(f"{found:.10g}") == test


@pytest.mark.parametrize(
    ("order", "said"), [(ATTRIBUTE, True), ("self.register_buffer('order', torch.randperm(64))", False)]
)
def test_that_trials_share_it_is_said(place: Path, capsys: pytest.CaptureFixture[str], order: str, said: bool) -> None:
    write(place, order)
    session.run(settings(place, arch_type="mixed", prune_iterations=1, quiet=False))
    found = " ".join(capsys.readouterr().out.split())
    assert ("mixed keeps what its constructor draws in plain attributes (order)" in found) == said


@pytest.mark.parametrize(
    ("order", "more", "init", "named"),
    [
        ("self.order = torch.from_numpy(np.random.default_rng().permutation(64))", "", "glorot", "order"),
        ("self.order = random.Random().sample(range(64), 64)", "", "glorot", "order"),
        (ATTRIBUTE, "self.layers[0].weight.data += torch.tensor(np.random.default_rng().normal())", "own",
         "layers.0.weight"),
        (ATTRIBUTE, "self.layers[0].weight.data += torch.tensor(np.random.default_rng().normal())", "glorot", ""),
    ],
)  # fmt: skip
def test_draws_that_no_seed_decides_are_refused_before_anything_is_written(
    place: Path, order: str, more: str, init: str, named: str
) -> None:
    write(place, order, more)
    config = settings(place, arch_type="mixed", init=init, prune_iterations=1)
    if not named:  # what is drawn anew anyway
        session.prepare(config)
        return
    with pytest.raises(ConfigError, match=rf"generator that nothing seeds: built twice .*, it differs in {named}$"):
        session.run(config)
    assert not (place / "dumps").exists() and not (place / "saves").exists()


class Harmless(nn.Module):
    """Differs from one to the next in what decides nothing."""

    made = count()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)
        self.number, self.created, self.name = next(self.made), float(next(self.made)), f"net {next(self.made)}"
        self.generator, self.numpy, self.loss = torch.Generator(), np.random.default_rng(), lambda x: x
        self.generator.seed()
        self.register_buffer("scratch", torch.empty(100))
        self.cache = torch.empty(100)
        self.memory = [torch.empty(10), np.zeros(3)]


@pytest.mark.parametrize("make", [Harmless, lambda: nn.utils.weight_norm(nn.Linear(64, 4)), lambda: nn.LSTM(4, 4)])
def test_what_was_not_drawn_is_none_of_it(make: Callable[[], nn.Module]) -> None:
    def build(seed: int) -> nn.Module:
        return models.build(make, "own", seed)

    filled = torch.get_deterministic_debug_mode()
    drawn.check_drawn(build, "net")
    assert drawn.kept_in_attributes(make(), build) == "" and torch.get_deterministic_debug_mode() == filled
