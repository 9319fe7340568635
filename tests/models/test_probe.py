"""What no forward pass uses, or changes before it multiplies, is reported and left out of pruning and percentages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Conv, Mlp, settings
from torch import Tensor, nn
from torch.nn import functional

from lth import pruning
from lth.commands import session
from lth.models import building, prunable
from lth.models.probe import left_out
from lth.models.prunable import CHANGED, UNUSED
from lth.records import tables


class Standardised(nn.Conv2d):
    """As in BiT and NFNet."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (f(self.weight, dim=(1, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
        return functional.conv2d(x, (self.weight - mean) / (std + 1e-5), self.bias, padding=1)


class Scaled(nn.Linear):
    """Changes its weight, but leaves zeros as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, functional.normalize(self.weight) * 2, self.bias)


class LowRank(nn.Linear):
    """Adds a product that starts at 0, as adapters do."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.up, self.down = nn.Parameter(torch.zeros(outputs, 2)), nn.Parameter(torch.randn(2, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight + self.up @ self.down, self.bias)


def network(conv: nn.Module, head: nn.Module) -> nn.Module:
    return nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), head)


EXAMPLES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("conv", "head", "expected"),
    [
        (lambda: Standardised(1, 4, 3), lambda: nn.Linear(16, 4), ["0.weight"]),
        (lambda: nn.Conv2d(1, 4, 3, padding=1), lambda: LowRank(16, 4), ["4.weight"]),
        (lambda: nn.Conv2d(1, 4, 3, padding=1), lambda: Scaled(16, 4), []),
    ],
)
def test_weights_that_lose_their_zeros_before_a_product_are_found(conv: Any, head: Any, expected: list[str]) -> None:
    assert left_out(lambda: network(conv(), head()), EXAMPLES) == dict.fromkeys(expected, CHANGED)


class Heads(nn.Module):
    """One old head, one that only training uses, a stem without gradients and a branch that few examples take."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.beside = nn.Linear(64, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.old, self.rare = nn.Linear(16, 20), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.stem(x.flatten(1)).relu()
        if len(x) > 2:
            return self.head(h) + self.rare(h)
        return self.head(h) + self.beside(h) if self.training else self.head(h)


def test_what_no_pass_uses_is_no_part_of_pruning_and_percentages() -> None:
    model = prunable.leave_out(Heads(), left_out(Heads, EXAMPLES))
    assert vars(model)["_left_out"] == {"old.bias": UNUSED, "old.weight": UNUSED}
    assert list(pruning.prunable(model)) == [f"{name}.weight" for name in ("stem", "head", "beside", "rare")]
    (told,) = prunable.left_out(model)
    assert told.startswith("no forward pass uses old.bias, old.weight (21.5% of all parameters), in training or in")
    assert "old" not in prunable.left_alone(building.copy_of(model))


def test_attention_recurrent_and_plain_layers_are_used_and_keep_their_zeros() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.layer = nn.LSTM(8, 16, batch_first=True), nn.TransformerEncoderLayer(16, 2, 32)
            self.out = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.layer(self.lstm(x[:, 0])[0])[:, -1])

    for make in (Sequence, Conv, Mlp):
        assert left_out(make, EXAMPLES) == {}


SOURCE = """
import torch
from torch import nn


class Standard(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight - self.weight.mean(), self.bias)


class Odd(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(64, 12), Standard(12, 12), nn.Linear(12, num_classes)
        self.old = nn.Linear(12, 100)

    def forward(self, x):
        return self.out(self.second(self.first(x.flatten(1)).relu()).relu())
"""


def test_an_experiment_reports_both_at_its_start_and_prunes_neither(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "archs" / "tiny" / "Odd.py").write_text(SOURCE)
    (run,) = session.run(settings(place, arch_type="Odd", prune_iterations=2, prune_percent=50, quiet=False))
    said = capsys.readouterr().out
    assert "no forward pass uses old.bias, old.weight (56.8% of" in said.replace("\n", " ")
    assert "the model changes second.weight (6.3% of all" in said.replace("\n", " ")
    assert set(tables.table(run, "layers")["layer"]) == {"first.weight", "out.weight"}
    assert tables.table(run, "rounds")["remaining"].tolist() == [100, 50]
