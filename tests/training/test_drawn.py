"""What a model's constructor draws: a seed decides it, and tickets are trained on the function they were found on."""

from __future__ import annotations

import platform
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same, do, experiment, results, settings, work
from torch import nn

import lth
from lth.records import tables
from lth.run import session
from lth.settings.config import PROJECT, ConfigError
from lth.training import drawn, fingerprint, memory, models
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


def dirty() -> None:
    """Leave numbers that are others each time in memory that is free."""
    random = np.random.default_rng()
    _ = [torch.from_numpy(random.random(size)).float() for size in (10, 20, 100, 5000, 200_000) for _ in range(20)]


class Harmless(nn.Module):
    """Differs from one to the next in what decides nothing."""

    made = count()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)
        self.number, self.created, self.name = next(self.made), float(next(self.made)), f"net {next(self.made)}"
        self.pair, self.times = (next(self.made), next(self.made)), [float(next(self.made)), 0.0]
        self.generator, self.numpy, self.loss = torch.Generator(), np.random.default_rng(), lambda x: x
        self.generator.seed()
        dirty()
        self.register_buffer("scratch", torch.empty(100))
        self.cache = torch.empty(100)
        self.memory = [torch.empty(10), np.zeros(3)]


class Scratch(nn.Module):
    """Keeps memory that nobody has written to."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)
        dirty()
        self.memory = make()


EMPTY: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.empty(200, 784),
    "complex": lambda: torch.empty(5000, dtype=torch.complex64),
    "few of numpy": lambda: np.empty(20),
    "numpy": lambda: np.empty((200, 784)),
    "like": lambda: [np.empty_like(np.ones(5000)), np.empty_like(np.ones(20))],
    "whole": lambda: np.empty(5000, dtype=np.int64),
    "both": lambda: torch.from_numpy(np.empty(4000)),
}
PERTURBED: dict[str, Callable[[], Any]] = {
    "array": lambda: np.ndarray((5000,)),
    "storage": lambda: torch.tensor([]).set_(torch.UntypedStorage(16000)),  # type: ignore[call-overload]
}
HARMLESS: dict[str, Callable[[], nn.Module]] = {
    "counts": Harmless,
    "weight norm": lambda: nn.utils.weight_norm(nn.Linear(64, 4)),
    "lstm": lambda: nn.LSTM(4, 4),
    **{name: partial(Scratch, make) for name, make in EMPTY.items()},
}
if platform.libc_ver()[0] == "glibc":
    HARMLESS |= {name: partial(Scratch, make) for name, make in PERTURBED.items()}


@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS)
def test_what_was_not_drawn_is_none_of_it(make: Callable[[], nn.Module]) -> None:
    def build(seed: int) -> nn.Module:
        return models.build(make, "own", seed)

    filled = torch.get_deterministic_debug_mode()
    drawn.check_drawn(build, "net")
    assert drawn.kept_in_attributes(make(), build) == ""
    found = fingerprint.of_model(make)
    dirty()
    assert fingerprint.of_model(make) == found
    assert torch.get_deterministic_debug_mode() == filled
    assert np.empty is memory.EMPTY["empty"] and np.empty_like is memory.EMPTY["empty_like"]


class Reused(nn.Module):
    """Keeps memory in which something was drawn before."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)
        torch.rand(5000), np.random.rand(5000)
        self.one, self.other = torch.empty(5000), np.empty(5000)


def test_memory_that_held_draws_of_before_is_none_of_them() -> None:
    assert drawn.kept_in_attributes(Reused(), lambda seed: models.build(Reused, "own", seed)) == ""


def test_empty_arrays_of_objects_hold_none_as_ever() -> None:
    with memory.filled():
        made = np.empty(3, dtype=object), np.empty_like(["a"]), np.empty(2, order="F")
    assert made[0].tolist() == [None] * 3 and made[1].shape == (1,) and not made[2].any()


def test_a_model_that_keeps_scratch_memory_trains_in_several_processes(place: Path) -> None:
    """Each has other numbers there, which are no change of the model."""
    dirt = "_ = [np.random.default_rng().random((200, 784)) for _ in range(3)]; del _"
    scratch = "self.scratch, self.other = np.empty((200, 784)), torch.empty(200, 784)"
    write(place, "self.register_buffer('order', torch.randperm(64))", f"{dirt}; {scratch}")
    flags = "--arch_type mixed --dataset tiny --data data --trials 2 --jobs 2 --gpu cpu --prune_iterations 2"
    sizes = "--end_iter 8it --valid_freq 4it --valid_size 40 --batch_size 10"
    command = [sys.executable, str(PROJECT / "main.py"), *flags.split(), *sizes.split(), "--root", str(place)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plain attributes" not in done.stdout and len(tables.find(place)) == 2


NAN = float("nan")
ALIKE: list[Callable[[], Any]] = [
    lambda: [NAN, 1.0, *range(9)],
    lambda: torch.tensor([complex(NAN, 1), 2]),
    lambda: torch.empty(4, 5, device="meta"),
    lambda: [torch.empty(4, 5, device="meta")] * 2,
    lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    lambda: torch.tensor([1.0, 1e-7 * next(Harmless.made)]),  # as rounding leaves it where numbers cancel
    lambda: [1.0, 2.0, 3.0, 4.0, 1e-9 * next(Harmless.made)],
    lambda: np.array([NAN, 1e-7 * next(Harmless.made)]),
]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("make", ALIKE)
def test_what_is_the_same_or_cannot_be_compared_is_not_refused(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Harmless, "made", count())  # few have been made
    drawn.check_drawn(lambda seed: models.build(partial(Scratch, make), "own", seed), "net")


@pytest.mark.parametrize(
    "make",
    [
        lambda: [random.Random().random() for _ in range(9)],
        lambda: [(random.Random().random(), 1.0) for _ in range(9)],
        lambda: [1, np.random.default_rng().random(2)],
        lambda: np.random.default_rng().permutation(np.arange(10_000, 10_020)),
        lambda: torch.from_numpy(np.random.default_rng().random(5) * 1j),
    ],
)
def test_draws_of_every_kind_are_found(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError, match="it differs in memory"):
        drawn.check_drawn(lambda seed: models.build(partial(Scratch, make), "own", seed), "net")


class Mine(nn.Linear):
    """A layer of one's own."""


class View(Mine):
    """Looks at its weight, and at a buffer, under other names too."""

    def __init__(self) -> None:
        super().__init__(64, 4)
        self.register_buffer("order", torch.randperm(64))
        self.tied, self.parts = self.weight.t(), [self.weight[0], self.weight[1].detach()]
        self.first, self.scaled = self.order[:8], 2 * self.weight


@pytest.mark.parametrize(
    "make",
    [lambda: nn.utils.spectral_norm(Mine(64, 4)), lambda: nn.utils.weight_norm(Mine(64, 4)), View],
    ids=["spectral_norm", "weight_norm", "views"],
)
@pytest.mark.parametrize("init", ["own", "glorot"])
def test_what_is_made_of_weights_is_not_said_to_lie_in_attributes(make: Callable[[], nn.Module], init: str) -> None:
    assert drawn.kept_in_attributes(make(), lambda seed: models.build(make, init, seed)) == ""
