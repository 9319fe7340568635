"""The CUDA graph path without a GPU: the graph is replaced by one that runs the step it was given again."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lth import data, pruning
from lth.training import models, train
from lth.training.capture import captured as capture_step
from lth.training.network import Fused, Network
from lth.training.schedule import Plan


def small_training(kind: str) -> train.Training:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (300, 1, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (300,), generator=generator)
    images = data.Images("tiny", pixels[:200], labels[:200], pixels[200:], labels[200:], 3)

    def make() -> nn.Module:
        layers = (nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        return nn.Sequential(*layers)

    states = [models.state_of(models.build(make, "glorot", seed)) for seed in (0, 1)]
    masks = pruning.dense(pruning.prunable(make()))
    masks = pruning.prune_lowest({name: states[0][name].abs() for name in masks}, masks, dict.fromkeys(masks, 50.0))
    feed = data.Feed(images, (0, 1), 50, 10, torch.device("cpu"))
    network = Network(make(), states, [masks, masks], torch.device("cpu"))
    optimizer = Fused(kind, network, 0.01, momentum=0.9 if kind == "sgd" else 0.0)
    plan = Plan(steps=40, evaluate_every=7, lr=lambda iteration: 0.01 / (1 + iteration // 10))
    return train.Training(network, optimizer, feed, plan, [(0, "order"), (1, "order")], random_seed=3)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_captured_training_equals_a_plain_one(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Warm-up and capture leave no trace, batches reach the graph's memory, learning rates reach its kernels."""
    plain = small_training(kind).run()

    captured = small_training(kind)
    graphs = []

    class Graph:
        def __init__(self) -> None:
            graphs.append(self)

        def replay(self) -> None:
            captured.step(self.batch)  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def capture(graph: Graph):
        step = captured.step

        def recorded(batch: torch.Tensor) -> None:
            graph.batch = batch  # type: ignore[attr-defined]
            step(batch)

        captured.step = recorded  # type: ignore[method-assign]
        yield
        captured.step = step  # type: ignore[method-assign]

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda entered: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": capture,
        "get_rng_state": lambda device: torch.get_rng_state(),
        "set_rng_state": lambda state, device: torch.set_rng_state(state),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    captured._run_step = capture_step(captured)
    replayed = captured.run()

    assert len(graphs) == 1
    for trained, expected in zip(replayed, plain, strict=True):
        assert trained.evals == expected.evals
        assert all(torch.equal(trained.final[name], expected.final[name]) for name in expected.final)
        assert all(torch.equal(trained.best[name], expected.best[name]) for name in expected.best)
