"""The CUDA graph path without a GPU: the graph is replaced by one that runs the step it was given again."""

from __future__ import annotations

import contextlib
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from helpers import CPU
from nets import prune_lowest
from torch import Tensor, nn

from lth import data, pruning, rng
from lth.training import capture as capturing
from lth.training import models, train
from lth.training.capture import captured as capture_step
from lth.training.network import Fused, Network
from lth.training.schedule import Plan


class Net(nn.Sequential):
    """Draws on the GPU alone, and remembers activations, which are the same when a step is done again."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.calls, self.noise, self.seen = 0, np.random.default_rng(0), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach().mean()
        return super().forward(x * self.factor())

    def factor(self) -> float:
        return 1.0


class Depth(Net):
    def factor(self) -> float:
        return float(random.random() < 0.5)


class NumpyNoise(Net):
    def factor(self) -> float:
        return np.random.rand()


class Generator(Net):
    def factor(self) -> float:
        return self.noise.random()


class Annealed(Net):
    def factor(self) -> float:
        self.calls += self.training
        return 1 / (1 + self.calls)


class Begins(Net):
    """Sets its weights by the first batch."""

    def factor(self) -> float:
        if not self.calls:
            self[1].bias.data.fill_(0.5)
            self.calls = 1
        return 1.0


class TorchNoise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * torch.rand(1).item())


class Normed(Net):
    """Holds a weight that it has computed, which copy.deepcopy refuses."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.weight_norm(self[1])


class NoCopy(Net):
    def __deepcopy__(self, memo: object) -> NoReturn:
        raise RuntimeError("no copy")


def small_training(kind: str = "adam", make: Callable[[], nn.Module] = Net, trials: int = 2) -> train.Training:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (300, 1, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (300,), generator=generator)
    images = data.Images("tiny", pixels[:200], labels[:200], pixels[200:], labels[200:], 3)

    states = [models.state_of(models.build(make, "glorot", seed)) for seed in range(trials)]
    masks = pruning.dense(pruning.prunable(make()))
    masks = prune_lowest({name: states[0][name].abs() for name in masks}, masks, dict.fromkeys(masks, 50.0))
    feed = data.Feed(images, range(trials), 50, 10, CPU)
    network = Network(make(), states, [masks] * trials, CPU)
    optimizer = Fused(kind, network, 0.01, momentum=0.9 if kind == "sgd" else 0.0)
    plan = Plan(steps=40, evaluate_every=7, lr=lambda iteration: 0.01 / (1 + iteration // 10))
    return train.Training(network, optimizer, feed, plan, [(trial, "order") for trial in range(trials)], random_seed=3)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A GPU that is not the current one, played by the CPU; the graphs captured on it."""
    made: list[Any] = []
    entered: list[object] = []
    recording: list[Any] = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    step = train.Training.step

    class Graph:
        def __init__(self) -> None:
            made.append(self)

        def replay(self) -> None:
            step(*self.step)  # type: ignore[attr-defined]

    def recorded(self: train.Training, batch: Tensor) -> None:
        for graph in recording:
            graph.step = self, batch
        step(self, batch)

    @contextlib.contextmanager
    def capture(graph: Graph, stream: object) -> Iterator[None]:
        assert (entered, stream) == ([CPU], side), "on another device than the training's"
        recording.append(graph)
        yield
        recording.clear()

    @contextlib.contextmanager
    def on(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield
        entered.pop()

    side = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(train.Training, "step", recorded)
    for name, fake in {
        "Stream": lambda device: side,
        "current_stream": lambda device: stream,
        "stream": lambda entered: contextlib.nullcontext(),
        "device": on,
        "CUDAGraph": Graph,
        "graph": capture,
        "get_rng_state": lambda device: torch.get_rng_state(),
        "set_rng_state": lambda state, device: torch.set_rng_state(state),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return made


@pytest.fixture
def gpu_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch draws is drawn on the GPU that the CPU plays."""
    monkeypatch.setattr(capturing, "_cpu_state", lambda: pickle.dumps(rng.on_cpu()[1:]))


def same(one: Sequence[train.Trained], other: Sequence[train.Trained]) -> bool:
    return all(
        trained.evals == expected.evals
        and all(torch.equal(trained.final[name], expected.final[name]) for name in expected.final)
        and all(torch.equal(trained.best[name], expected.best[name]) for name in expected.best)
        for trained, expected in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_captured_training_equals_a_plain_one(graphs: list[Any], gpu_draws: None, kind: str) -> None:
    """Warm-up and capture leave no trace, batches reach the graph's memory, learning rates reach its kernels."""
    plain = small_training(kind).run()
    captured = small_training(kind)
    captured._run_step = capture_step(captured)
    assert same(captured.run(), plain)
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_step_of_a_model_that_holds_what_it_has_computed_is_captured(graphs: list[Any], gpu_draws: None) -> None:
    plain = small_training(make=Normed, trials=1).run()
    captured = small_training(make=Normed, trials=1)
    captured._run_step = capture_step(captured)
    assert same(captured.run(), plain) and len(graphs) == 1


@pytest.mark.parametrize("make", [Depth, NumpyNoise, Generator, Annealed, Begins, NoCopy])
def test_what_python_decides_in_every_step_is_not_frozen(
    graphs: list[Any], gpu_draws: None, make: Callable[[], nn.Module]
) -> None:
    """Nor has what the model draws, counts or sets gone on when its training begins."""
    check_not_frozen(graphs, make)


def test_what_is_drawn_on_the_cpu_is_not_frozen(graphs: list[Any]) -> None:
    check_not_frozen(graphs, TorchNoise)


def check_not_frozen(graphs: list[Any], make: Callable[[], nn.Module]) -> None:
    plain = small_training(make=make, trials=1).run()
    captured = small_training(make=make, trials=1)
    with pytest.warns(UserWarning, match="no CUDA graph of this model's step, which is slower: it draws"):
        captured._run_step = capture_step(captured)
    assert same(captured.run(), plain)
    assert not graphs
