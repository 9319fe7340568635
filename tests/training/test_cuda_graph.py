"""Which steps become a CUDA graph, on the pretended GPU: none in which Python decides something anew."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NoReturn

import numpy as np
import pytest
import torch
from helpers import CPU, Mlp, constant, training
from pretended_gpu import CUDA, gpu
from torch import Tensor, nn

from lth.training.schedule import Plan
from lth.training.train import Trained

PLAN = Plan(steps=12, evaluate_every=5, lr=constant())


class Scaled(Mlp):
    """Remembers activations, which are the same when a step is done again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.noise, self.seen = 0, np.random.default_rng(0), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach().mean()
        return super().forward(x * self.factor())

    def factor(self) -> float:
        return 1.0


class Depth(Scaled):
    def factor(self) -> float:
        return float(random.random() < 0.5)


class NumpyNoise(Scaled):
    def factor(self) -> float:
        return np.random.rand()


class TorchNoise(Scaled):
    def factor(self) -> float:
        return torch.rand(1).item()


class Generator(Scaled):
    def factor(self) -> float:
        return self.noise.random()


class Annealed(Scaled):
    def factor(self) -> float:
        self.calls += self.training
        return 1 / (1 + self.calls)


class Begins(Scaled):
    """Sets its weights by the first batch."""

    def factor(self) -> float:
        if not self.calls:
            self.fc1.bias.data.fill_(0.5)
            self.calls = 1
        return 1.0


class NoCopy(Scaled):
    def __deepcopy__(self, memo: object) -> NoReturn:
        raise RuntimeError("no copy")


class Normed(Scaled):
    """Holds a weight that it has computed, which copy.deepcopy refuses."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.weight_norm(self.fc1)


def trained(make: Callable[[], nn.Module], device: torch.device) -> Trained:
    return training(make, PLAN, device=device).run()[0]


def same(one: Trained, other: Trained) -> bool:
    return one.evals == other.evals and all(torch.equal(one.final[name], x) for name, x in other.final.items())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("make", [Scaled, Normed])
def test_a_step_is_captured_whatever_the_model_remembers_of_it(make: type[nn.Module]) -> None:
    expected = trained(make, CPU)
    with gpu() as machine:
        assert same(trained(make, CUDA), expected)
        assert [graph.replays for graph in machine.graphs] == [12]


@pytest.mark.parametrize("make", [Depth, NumpyNoise, TorchNoise, Generator, Annealed, Begins, NoCopy])
def test_what_python_decides_in_every_step_is_not_frozen(make: type[nn.Module]) -> None:
    """Nor has what the model draws, counts or sets advanced when its training begins."""
    expected = trained(make, CPU)
    with gpu() as machine, pytest.warns(UserWarning, match="no CUDA graph of this model's step, .* it draws"):
        assert same(trained(make, CUDA), expected)
    assert not machine.graphs
