"""channels_last for the models that compute in it, the usual layout for those whose own code needs that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import Conv, Mlp, make_images, settings
from torch import Tensor, nn

import lth
from lth import rng
from lth.commands import session
from lth.models import building
from lth.records import tables
from lth.training.hardware import channels_last

VIEWING = """
from torch import nn


class viewing(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 64, num_classes)

    def forward(self, x):
        x = self.conv(x).relu()
        return self.fc(x.view(x.size(0), -1))
"""
EXAMPLE = torch.randn(2, 1, 8, 8)


class Deep(Conv):
    """With a convolution of three dimensions beside that of two."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.deep(x[:, None])[:, 0])


class Views(Conv):
    """Needs the usual layout in one mode alone."""

    training_only = True

    def forward(self, x: Tensor) -> Tensor:
        if self.training == self.training_only:
            self.conv(x).view(len(x), -1)
        return super().forward(x)


class ViewsInEvaluation(Views):
    training_only = False


@pytest.mark.parametrize(
    "make, expected",
    [(Conv, True), (Mlp, False), (Deep, False), (Views, False), (ViewsInEvaluation, False)],
)
def test_it_is_the_layout_of_all_convolutions_that_run_in_it(make: type[nn.Module], expected: bool) -> None:
    assert channels_last(make, EXAMPLE) is expected


@pytest.mark.parametrize("name", ["lenet5", "conv2"])
def test_the_models_that_come_with_the_program_have_it(name: str) -> None:
    dataset, example = (
        ("mnist", torch.zeros(2, 1, 28, 28)) if name == "lenet5" else ("cifar10", torch.zeros(2, 3, 32, 32))
    )
    assert channels_last(building.find(name, dataset), example)


def test_asking_disturbs_no_draws_and_no_example() -> None:
    torch.manual_seed(0)
    before, example = rng.state(EXAMPLE.device), EXAMPLE.clone()
    channels_last(lambda: Conv(dropout=0.5), example)
    assert all(torch.equal(one, before[name]) for name, one in rng.state(EXAMPLE.device).items())
    assert torch.equal(example, EXAMPLE)


@pytest.mark.parametrize("augment", [False, True])
def test_a_model_that_views_what_convolutions_give_is_trained_and_evaluated(place: Path, augment: bool) -> None:
    (place / "archs" / "tiny" / "viewing.py").write_text(VIEWING)
    (run,) = session.run(settings(place, arch_type="viewing", prune_iterations=2, connectivity=True, augment=augment))
    assert len(tables.table(run, "connectivity")) == (2 + 1) * 30  # a line per round, and one between both
    ticket, images = lth.load_ticket(run.dumps, round=1), make_images()
    test = (images.test.float() - images.train.float().mean()) / images.train.float().std()
    for data in (place / "data" / "tiny.npz", [(test, images.test_labels)]):
        assert ticket.evaluate(data, device="cpu") == pytest.approx(ticket.row["test"], abs=2.6)
