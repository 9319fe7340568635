"""Results that no training was needed for: dumps/ and saves/ as runs write them, with invented numbers."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from nets import prune_lowest

from lth import pruning
from lth.models.probe import Cost
from lth.records import files, journal
from lth.records.store import Store, Ticket
from lth.records.tables import Run
from lth.settings.arms import ARMS
from lth.settings.config import Config
from lth.training.train import Evaluation, Trained

pytest.register_assert_rewrite("helpers", "own")
pytest_plugins = ["helpers"]  # its fixtures
FC = {"fc1.weight": (12, 64), "fc2.weight": (4, 12)}  # reads images of 8 x 8
SETTINGS = "end_iter=5,prune_percent=20"
Accuracy = Callable[[str, int, int], float]  # of an arm, a round and a seed
MakeRuns = Callable[..., list[Run]]


def invented_accuracy(arm: str, number: int, seed: int) -> float:
    """As in the paper: tickets gain before they lose, reinitialised ones only lose."""
    sparsity = 1 - 0.8**number
    gain = 0.35 * math.sin(2.2 * sparsity) if ARMS[arm].start == "original" else 0.0
    loss = 0.004 * number**2.4 * (0.35 if arm == "lt" else 1.0 if not ARMS[arm].mask_of else 0.7)
    place = [*ARMS, arm].index(arm) if number else 0  # the dense round is that of all arms
    noise = math.sin(37.0 * number + 11 * seed + 3 * place) * 0.08
    return round(max(98.1 + gain - loss + noise, 9.8), 2)


def write_runs(
    root: Path,
    arms: Sequence[str] = ("lt", "reinit"),
    seeds: Sequence[int] = (0, 1, 2),
    rounds: int | Mapping[str, int] = 6,
    shapes: Mapping[str, tuple[int, ...]] = FC,
    saves: bool = True,
    accuracy: Accuracy = invented_accuracy,
    arch_type: str = "fc1",
    dataset: str = "mnist",
    settings: str = SETTINGS,
    steps: int = 4500,
    evaluations: int = 9,
    scope: str = "layer",
    percent: float = 20.0,
    cost: Cost | None = None,
    ticket: bool = False,
) -> list[Run]:
    """Write runs of these arms and seeds under `root`: their tables and, if asked, initial weights and tickets. Round 0
    is the dense network, or has been pruned already, as by --ticket, if `ticket`."""
    runs = [Run(root, arch_type, dataset, settings, arm, seed) for arm in arms for seed in seeds]
    for run in runs:
        count = rounds if isinstance(rounds, int) else rounds[run.arm]
        generator = torch.Generator().manual_seed(run.seed)
        weights = {
            name: torch.randn(shape, generator=generator) * (2 / (shape[0] + math.prod(shape[1:]))) ** 0.5
            for name, shape in shapes.items()
        }
        scores = {name: _trained(weight, generator) for name, weight in weights.items()}
        deciding = dict(part.split("=") for part in run.settings.split(",") if "=" in part)
        first = next(iter(shapes.values()))
        side = math.isqrt(first[1]) if len(first) == 2 else 8
        image = [1 if len(first) == 2 else first[1], side, side]
        facts = {"deciding": {**Config().deciding(), **deciding}, "image_shape": image}
        files.write_json(run.dumps / "config.json", facts)
        if saves:
            Store(run, "test").write_weights("initial", weights)
        masks = pruning.dense(weights)
        for number in range(count):
            if number or ticket:
                masks = prune_lowest(scores, masks, dict.fromkeys(masks, percent), scope)
            if saves:
                Store(run, "test").write_ticket(Ticket(number, masks, weights))
            best = accuracy(run.arm, number, run.seed)
            stop = min(evaluations - 1, round(evaluations * (0.8 - 0.4 * (1 - 0.85**number) * (run.arm == "lt"))))
            evals = [
                Evaluation(
                    iteration=steps * (i + 1) // evaluations,
                    train_loss=0.3 / (i + 1),
                    val_loss=0.1 + 0.01 * abs(i - stop),
                    val=best,
                    test=best if i == stop else best - 2.5 * math.exp(-i) - 0.03 * abs(i - stop),
                )
                for i in range(evaluations)
            ]
            trained = Trained(
                steps, evals, final={}, best={}, seconds={"training": 1.0, "evaluation": 0.1}, supermask=10.0 + number
            )
            journal.write_round(run, number, masks, trained, cost)
    return runs


def _trained(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Scores that favour large weights and, where inputs are a square image, those of its middle."""
    scores = weight.abs() * (1 + 0.2 * torch.randn(weight.shape, generator=generator))
    side = math.isqrt(weight[0].numel())
    if weight.ndim == 2 and side * side == weight.shape[1]:
        place = torch.linspace(-1, 1, side)
        scores = scores * (0.4 + (-2 * (place[:, None] ** 2 + place**2)).exp()).flatten()
    return scores


@pytest.fixture
def make_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRuns:
    """`write_runs` under tmp_path (another `root=` may be given)."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and no one pulls the plug here

    def make(root: Path = tmp_path, **settings: object) -> list[Run]:
        return write_runs(root, **settings)  # type: ignore[arg-type]

    return make
