"""What fails in code of the user's own is said to be theirs: network, loss, rule or data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Mlp
from own import batches, find, seeded, tiny
from torch import Tensor, nn

import main
import utils
from lth.training.train import TrialError


class FailsLater(Mlp):
    """Works when it is tried out, and fails in its 9th forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == 9:
            raise KeyError("embedding")
        return super().forward(x)


class LossFailsLater(Mlp):
    def __init__(self) -> None:
        super().__init__()
        count = itertools.count()

        def criterion(outputs: Tensor, labels: Tensor) -> Tensor:
            if next(count) == 9:
                raise RuntimeError("no such label\nand more")
            return nn.functional.cross_entropy(outputs, labels)

        self.criterion = criterion


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (FailsLater, "FailsLater failed in round 0 with KeyError: 'embedding'"),
        (LossFailsLater, "LossFailsLater failed in round 0 with RuntimeError: no such label"),
    ],
)
def test_a_network_that_fails_is_named(net: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(TrialError) as caught:
        find(seeded(net))
    assert str(caught.value) == said and isinstance(caught.value.__cause__, (KeyError, RuntimeError))


def test_a_network_of_another_type_than_float32_is_named() -> None:
    with pytest.raises(ValueError, match=r"fc1\.weight is torch.bfloat16, but examples are float32: call \.float"):
        find(Mlp().to(torch.bfloat16))


@pytest.mark.parametrize("error", ["IndexError", "SystemExit", "GeneratorExit"])
def test_a_model_of_archs_that_fails_is_named(place: Path, capsys: pytest.CaptureFixture[str], error: str) -> None:
    (place / "archs" / "tiny" / "fails.py").write_text(
        "from torch import nn\n\n\nclass Fails(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(64, 4)\n\n    def forward(self, x):\n        if self.training and len(x) > 2:\n"
        f"            raise {error}('in training alone')\n        return self.fc(x.flatten(1))\n"
    )
    flags = f"--arch_type fails --dataset tiny --data {place / 'data'} --root {place} --gpu cpu --jobs 1 --quiet"
    assert utils.exit_code(main.main, [*flags.split(), "--batch_size", "10"]) == 1
    assert capsys.readouterr().err == f"error: fails failed in round 0 with {error}: in training alone\n"


def breaks(net: nn.Module) -> None:
    net.fc9.weight.zero_()  # type: ignore[operator, union-attr]


def replaces(net: nn.Module) -> None:
    net.fc1 = nn.Linear(64, 12)


def spoils(net: nn.Module) -> None:
    net.fc1.weight_orig.data[0, 0] = torch.nan  # type: ignore[index, union-attr]


def halves(net: nn.Module) -> None:
    net.fc1.weight_mask *= 0.5  # type: ignore[operator, union-attr]


@pytest.mark.parametrize(
    ("rule", "kind", "said"),
    [
        (breaks, RuntimeError, "prune_rule failed with AttributeError: 'Mlp' object has no attribute 'fc9'"),
        (replaces, ValueError, "prune_rule must prune the layers that are there, but has replaced or added fc1"),
        (spoils, ValueError, "prune_rule must leave finite weights, but leaves NaN or infinity in fc1.weight_orig"),
        (halves, ValueError, "prune_rule must leave masks of 0 and 1, but fc1.weight_mask has other values"),
    ],
)
def test_a_rule_that_fails_or_spoils_the_network_is_named(
    rule: Callable[[nn.Module], object], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=f"^{said}") as caught:
        find(seeded(), prune_rule=rule)
    assert isinstance(caught.value.__cause__, AttributeError) == (rule is breaks)


class Endless:
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from batches()


def test_training_data_without_an_end_are_streamed() -> None:
    given = {**tiny(), "train": Endless()}
    assert find(seeded(), given) == find(seeded(), given, in_memory=False)
