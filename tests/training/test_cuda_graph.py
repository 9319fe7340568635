"""Which steps become a CUDA graph, on the pretended GPU: none in which Python decides something anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers import CPU, constant, training
from nets import NoCopy, Scaled
from pretended_gpu import CUDA, gpu
from torch import nn

from lth.training.schedule import Plan
from lth.training.train import Trained

WAYS = ("random", "numpy", "torch", "own generator", "counts", "begins with the first batch")


def trained(make: Callable[[], nn.Module], device: torch.device) -> Trained:
    return training(make, Plan(steps=12, evaluate_every=5, lr=constant()), device=device).run()[0]


def same(one: Trained, other: Trained) -> bool:
    return one.evals == other.evals and all(torch.equal(one.final[name], x) for name, x in other.final.items())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("way", ["", "holds a computed weight"])
def test_a_step_is_captured_whatever_the_model_remembers_of_it(way: str) -> None:
    expected = trained(partial(Scaled, way), CPU)
    with gpu() as machine:
        assert same(trained(partial(Scaled, way), CUDA), expected)
        assert [graph.replays for graph in machine.graphs] == [12]


@pytest.mark.parametrize("make", [*(partial(Scaled, way) for way in WAYS), NoCopy])
def test_what_python_decides_in_every_step_is_not_frozen(make: Callable[[], nn.Module]) -> None:
    """Nor has what the model draws, counts or sets advanced when its training begins."""
    expected = trained(make, CPU)
    with gpu() as machine, pytest.warns(UserWarning, match="no CUDA graph of this model's step, .* it draws"):
        assert same(trained(make, CUDA), expected)
    assert not machine.graphs
