"""PyTorch's private functions against the public ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lth.training.optimizers import adam_, gradients, sgd_

pytestmark = pytest.mark.versions


def tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((7, 5), (5,), (3, 2, 2, 2))]


def step(optimizer: torch.optim.Optimizer, lr: float, found: list[Tensor]) -> None:
    (group,) = optimizer.param_groups
    group["lr"] = lr
    for weight, gradient in zip(group["params"], found, strict=True):
        weight.grad = gradient
    optimizer.step()


def test_gradients_are_those_of_autograd() -> None:
    leaves = [tensor.requires_grad_() for tensor in tensors(0)]

    def loss() -> Tensor:
        return (leaves[0].sum(0) * leaves[1]).tanh().sum()

    found, public = gradients(loss(), leaves), torch.autograd.grad(loss(), leaves[:2])
    assert all(torch.equal(a, b) for a, b in zip(found, public, strict=False))
    assert not found[2].any() and all(leaf.grad is None for leaf in leaves)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_that_of_torch_optim(kind: Any, decay: float) -> None:
    weights, (firsts, seconds), theirs = tensors(0), (tensors(1), [abs(x) for x in tensors(2)]), tensors(0)
    seconds[0][2] = torch.inf  # pruned weights: see lth.training.optimizers.Fused
    optimizer = kind(theirs, weight_decay=decay)
    for weight, first, second in zip(theirs, firsts, seconds, strict=True):
        optimizer.state[weight] = {"step": torch.zeros(()), "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
    steps = torch.zeros(())
    for number in range(1, 6):
        steps.add_(1)
        found, lr = tensors(number + 3), 0.01 * number
        adam_(weights, found, [firsts, seconds], steps, torch.tensor(lr), decay, kind is torch.optim.AdamW)
        step(optimizer, lr, found)
    torch.testing.assert_close(weights, theirs, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(firsts, [optimizer.state[weight]["exp_avg"] for weight in theirs])


@pytest.mark.parametrize("momentum, nesterov, decay", [(0.0, False, 0.1), (0.9, False, 0.0), (0.9, True, 0.1)])
def test_sgd_is_that_of_torch_optim(momentum: float, nesterov: bool, decay: float) -> None:
    weights, theirs = tensors(0), tensors(0)
    momenta = [torch.zeros_like(x) for x in weights] if momentum else []
    optimizer = torch.optim.SGD(theirs, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    for number in range(5):
        found, lr = tensors(number + 3), 0.01 * (number + 1)
        sgd_(weights, found, momenta, torch.tensor(lr), decay, momentum, nesterov)
        step(optimizer, lr, found)
    torch.testing.assert_close(weights, theirs, rtol=1e-6, atol=1e-7)
