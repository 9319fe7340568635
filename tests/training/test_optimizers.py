"""PyTorch's private functions against the public ones, and the program without them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import Conv, constant, training
from torch import Tensor, nn

from lth.training import optimizers
from lth.training.schedule import Plan

pytestmark = pytest.mark.versions


@pytest.fixture(autouse=True)
def tried_anew() -> Iterator[None]:
    yield
    optimizers.has_private_functions.cache_clear()


def tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((7, 5), (5,), (3, 2, 2, 2))]


def both_ways(monkeypatch: pytest.MonkeyPatch, step: Any) -> None:
    """`step` gives lists of tensors; those by private and by public functions are close."""
    found = []
    for private in (True, False):
        monkeypatch.setattr(optimizers, "has_private_functions", lambda private=private: private)
        found.append(step())
    monkeypatch.undo()
    for one, other in zip(*found, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_gradients_are_those_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the program is slower than it says, or wrong; look for what took the private functions' place."""
    assert optimizers.has_private_functions()
    leaves = [tensor.requires_grad_() for tensor in tensors(0)]

    def step() -> list[list[Tensor]]:
        found = optimizers.gradients((leaves[0].sum(0) * leaves[1]).tanh().sum(), leaves)
        assert not found[2].any() and all(leaf.grad is None for leaf in leaves)
        return [found]

    both_ways(monkeypatch, step)


@pytest.mark.parametrize("adamw", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_that_of_torch_optim(monkeypatch: pytest.MonkeyPatch, adamw: bool, decay: float) -> None:
    def step() -> list[list[Tensor]]:
        weights, moments = tensors(0), [tensors(1), [abs(x) for x in tensors(2)]]
        moments[1][0][2] = torch.inf  # pruned weights: see lth.training.optimizers.Fused
        for number in range(1, 6):
            counted, lr = torch.tensor(float(number)), torch.tensor(0.01 * number)
            optimizers.adam_(weights, tensors(number + 3), moments, counted, lr, decay, adamw)
            assert counted == number
        return [weights, *moments]

    both_ways(monkeypatch, step)


@pytest.mark.parametrize("momentum, nesterov, decay", [(0.0, False, 0.1), (0.9, False, 0.0), (0.9, True, 0.1)])
def test_sgd_is_that_of_torch_optim(
    monkeypatch: pytest.MonkeyPatch, momentum: float, nesterov: bool, decay: float
) -> None:
    def step() -> list[list[Tensor]]:
        weights, momenta = tensors(0), [torch.zeros_like(x) for x in tensors(0)] if momentum else []
        for number in range(5):
            lr = torch.tensor(0.01 * (number + 1))
            optimizers.sgd_(weights, tensors(number + 3), momenta, lr, decay, momentum, nesterov)
        return [weights, momenta]

    both_ways(monkeypatch, step)


def refuse(*args: object, **kwargs: object) -> None:
    raise TypeError("unexpected keyword argument")


@pytest.mark.parametrize("gone", ["_fused_sgd_", ""])
@pytest.mark.parametrize("kind, options", [("adam", {}), ("adamw", {"weight_decay": 0.1}), ("sgd", {"momentum": 0.9})])
def test_a_pytorch_without_them_costs_speed_and_not_the_program(
    monkeypatch: pytest.MonkeyPatch, gone: str, kind: str, options: dict[str, Any]
) -> None:
    def make() -> nn.Module:
        return Conv(dropout=0.3)

    plan = Plan(12, 4, constant(0.005))
    expected = training(make, plan, kind=kind, keep=0.5, **options).run()[0]
    optimizers.has_private_functions.cache_clear()
    if gone:
        monkeypatch.delattr(torch, gone)
    else:  # or they want other arguments
        monkeypatch.setattr(optimizers, "_run_backward", refuse)
    made = training(make, plan, kind=kind, keep=0.5, **options)
    assert not optimizers.has_private_functions() and not made.optimizer.capturable
    states = []
    made.run(checkpoint=lambda state: states.append(copy.deepcopy(state)), checkpoint_every=0)
    found = training(make, plan, kind=kind, keep=0.5, resume=states[0], **options).run()[0]
    for name, tensor in expected.final.items():
        torch.testing.assert_close(found.final[name], tensor, rtol=1e-3, atol=1e-4)
