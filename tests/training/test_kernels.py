"""PyTorch's private functions against the public ones, and the program without them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import Conv, constant, training
from torch import Tensor, nn

from lth.training import kernels
from lth.training.schedule import Plan

pytestmark = pytest.mark.versions

QUICK = {name: thing for name, thing in vars(kernels).items() if isinstance(thing, kernels.Quick)}
GONE = {"adam_": ["_fused_adam_", "_fused_adamw_"], "sgd_": ["_fused_sgd_"]}


@pytest.fixture(autouse=True)
def tried_anew() -> Iterator[None]:
    yield
    for quick in QUICK.values():
        vars(quick).pop("works", None)


def tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((7, 5), (5,), (3, 2, 2, 2))]


def close(one: Any, other: Any) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_this_pytorch_has_all_of_them() -> None:
    """Else the program is slower than it says; look for what took their place."""
    assert QUICK.keys() == {"_gradients", *GONE} and all(quick.works for quick in QUICK.values())


def test_gradients_are_those_of_autograd() -> None:
    leaves = [tensor.requires_grad_() for tensor in tensors(0)]

    def loss() -> Tensor:
        return (leaves[0].sum(0) * leaves[1]).tanh().sum()

    quick, public = kernels._gradients.private(loss(), leaves), kernels._gradients.public(loss(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(quick[:2], public[:2], strict=True))
    assert quick[2] is None and public[2] is None and all(leaf.grad is None for leaf in leaves)


@pytest.mark.parametrize("adamw", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_that_of_torch_optim(adamw: bool, decay: float) -> None:
    found = [(tensors(0), [tensors(1), [abs(x) for x in tensors(2)]]) for _ in range(2)]
    found[0][1][1][0][2] = found[1][1][1][0][2] = torch.inf  # pruned weights: see lth.training.optimizers.Fused
    for weights, form in zip(found, (kernels.adam_.private, kernels.adam_.public), strict=True):
        for step in range(1, 6):
            counted = torch.tensor(float(step))
            form(weights[0], tensors(step + 3), weights[1], counted, torch.tensor(0.01 * step), decay, adamw)
            assert counted == step
    close(found[0][0], found[1][0])
    for moment, same in zip(found[0][1], found[1][1], strict=True):
        close(moment, same)


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_is_that_of_torch_optim(momentum: float, nesterov: bool, decay: float) -> None:
    buffers = [[torch.zeros_like(x) for x in tensors(0)] if momentum else [] for _ in range(2)]
    found = [(tensors(0), buffer) for buffer in buffers]
    for (weights, buffer), form in zip(found, (kernels.sgd_.private, kernels.sgd_.public), strict=True):
        for step in range(5):
            form(weights, tensors(step + 3), buffer, torch.tensor(0.01 * (step + 1)), decay, momentum, nesterov)
    close(found[0][0], found[1][0])
    close(buffers[0], buffers[1])


def refuse(*args: object, **kwargs: object) -> None:
    raise TypeError("unexpected keyword argument")


@pytest.mark.parametrize("way", ["gone", "other arguments"])
@pytest.mark.parametrize("kind, options", [("adam", {}), ("adamw", {"weight_decay": 0.1}), ("sgd", {"momentum": 0.9})])
def test_a_pytorch_without_them_costs_speed_and_not_the_program(
    monkeypatch: pytest.MonkeyPatch, way: str, kind: str, options: dict[str, Any]
) -> None:
    def make() -> nn.Module:
        return Conv(dropout=0.3)

    plan = Plan(12, 4, constant(0.005))
    expected = training(make, plan, kind=kind, keep=0.5, **options).run()[0]
    for quick in QUICK.values():
        vars(quick).pop("works", None)
    for name in itertools.chain(*GONE.values()):
        if way == "gone":
            monkeypatch.delattr(torch, name)
        else:
            monkeypatch.setattr(torch, name, refuse)
    monkeypatch.setattr(kernels._gradients, "private", refuse)  # the public form has the same engine inside
    made = training(make, plan, kind=kind, keep=0.5, **options)
    assert not any(quick.works for quick in QUICK.values()) and not made.optimizer.capturable
    states = []
    made.run(checkpoint=lambda state: states.append(copy.deepcopy(state)), checkpoint_every=0)
    found = training(make, plan, kind=kind, keep=0.5, resume=states[0], **options).run()[0]
    for name, tensor in expected.final.items():
        torch.testing.assert_close(found.final[name], tensor, rtol=1e-3, atol=1e-4)
