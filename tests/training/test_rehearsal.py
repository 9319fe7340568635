"""The GPU path on a pretended GPU: the CPU's bits, a CUDA graph that is replayed, and few waits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU, Conv, Mlp, assert_same, do, results, settings, training
from own import WithOptim, find, seeded
from pretended_gpu import CUDA, gpu
from torch import Tensor, nn

from lth.training.schedule import Plan
from lth.training.train import Stopped, Trained, Training

PLAN = Plan(40, 10, lambda iteration: 0.01 / (1 + iteration // 15), keep_at=3)


class Attention(nn.Module):
    """Reads the rows of an image as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0]
        return self.fc((rows + self.attention(rows, rows, rows, need_weights=False)[0]).flatten(1))


def dropping() -> nn.Module:
    return Conv(dropout=0.4)


@pytest.fixture(autouse=True)
def one_attention() -> Iterator[None]:
    """Attention of the CPU takes another way in evaluation, and other last bits, where nobody watches."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def made(make: Callable[[], nn.Module], device: torch.device, **options: Any) -> Training:
    return training(make, PLAN, device=device, **options)


def assert_equal(found: list[Trained], expected: list[Trained]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.evals == other.evals
        for part in ("final", "best", "kept"):
            mine, theirs = getattr(one, part), getattr(other, part)
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs), part


CASES: list[tuple[Callable[[], nn.Module], dict[str, Any]]] = [
    (Mlp, {}),
    (Mlp, {"kind": "adamw", "weight_decay": 0.1, "keep": 0.5}),
    (Mlp, {"autocast": True, "keep": 0.5}),
    (Mlp, {"seeds": (0, 1, 2), "keep": 0.5}),
    (Conv, {"kind": "sgd", "momentum": 0.9, "keep": 0.5, "feed": {"augment": True}}),
    (Conv, {"kind": "sgd", "momentum": 0.9, "keep": 0.5, "seeds": (0, 1, 2)}),
    (dropping, {"keep": 0.5}),
    (dropping, {"autocast": True, "seeds": (0, 1, 2), "feed": {"augment": True}}),
    (Attention, {"keep": 0.5}),
]
each_case = pytest.mark.parametrize("make, options", CASES, ids=[f"{m.__name__}-{'-'.join(o)}" for m, o in CASES])


@each_case
def test_forty_steps_give_the_bits_of_the_cpu(make: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    """Also after a stop and a resume. The learning rate changes; each step is a replay of one graph."""
    expected = made(make, CPU, **options).run()
    saved: list[list[Trained]] = []
    with gpu() as machine:
        assert_equal(made(make, CUDA, **options).run(), expected)
        assert [graph.replays for graph in machine.graphs] == [40]
        stopped = made(make, CUDA, **options)
        with pytest.raises(Stopped):
            stopped.run(checkpoint=saved.append, stop=lambda: stopped.iteration == 25)
        torch.manual_seed(99)  # another process has another random state
        assert_equal(made(make, CUDA, resume=copy.deepcopy(saved[0]), **options).run(), expected)
        assert [graph.replays for graph in machine.graphs] == [40, 25, 15]


def test_no_step_waits_for_the_device() -> None:
    with gpu() as machine:
        made_ = made(dropping, CUDA, keep=0.5, seeds=(0, 1))
        epoch = made_.feed.epoch(made_.order_seeds, 0)
        for run_step in (made_._run_step, made_.step):
            before = machine.waits.copy()
            for batch in epoch:
                made_.optimizer.lr *= 0.9
                run_step(batch)
            assert machine.waits == before


EXPERIMENTS: list[dict[str, Any]] = [
    {"rewind": "3it", "prune_type": ["lt", "reinit", "lr_rewind"]},
    {"prune_type": ["snip", "synflow"], "score_batches": 2, "arch_type": "conv", "prune_iterations": 2},
    {"connectivity": True, "prune_iterations": 2, "arch_type": "drop"},
]


@pytest.mark.parametrize("changes", EXPERIMENTS, ids=lambda changes: "-".join(changes))
def test_experiments_write_the_files_of_the_cpu(place: Path, changes: dict[str, Any]) -> None:
    configs = [settings(place, root=place / where, sparse="off", stack=1, **changes) for where in ("cpu", "gpu")]
    do(configs[0])
    with gpu() as machine:
        do(configs[1], device=CUDA)
        assert machine.graphs and all(graph.replays for graph in machine.graphs)
    assert_same(results(configs[1].root), results(configs[0].root))


def test_a_network_of_ones_own_comes_back_as_on_the_cpu() -> None:
    for make in (Mlp, WithOptim):
        nets = [seeded(make) for _ in range(2)]
        history = find(nets[0], sparse="off")
        with gpu() as machine:
            assert find(nets[1], device="cuda", sparse="off") == history
            assert not any(map(machine.has, nets[1].parameters()))
        for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            assert torch.equal(one, other)
