"""Models that are legal PyTorch and unlike most: what they do to their own tensors counts, and is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import Told, do, settings
from torch import nn

import main
import utils
from lth.commands import prepare
from lth.models import building
from lth.records import tables
from lth.settings.config import ConfigError
from lth.training.problem import Problem, stackable

MODEL = """import torch
from torch import nn


class model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 4)
        self.register_buffer("mean", torch.zeros(1))
        {constructor}

    def forward(self, x):
        {forward}
        return self.fc((x - self.mean).flatten(1))
"""


@pytest.mark.parametrize(
    "constructor, forward, stacked",
    [
        ("", "", True),
        ("", "self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()", False),
        ("self.fc.bias.register_hook(lambda gradient: 2 * gradient)", "", False),
        ("self.fc.bias.register_post_accumulate_grad_hook(lambda bias: None)", "", None),
    ],
)
def test_models_that_replace_buffers_or_have_hooks_on_gradients_are_not_stacked(
    place: Path, constructor: str, forward: str, stacked: bool | None
) -> None:
    """Hooks that wait for stored gradients are refused: none are stored."""
    text = MODEL.format(constructor=constructor or "pass", forward=forward or "pass")
    (place / "archs" / "tiny" / "model.py").write_text(text)
    config = settings(place, arch_type="model")
    if stacked is None:
        with pytest.raises(ConfigError, match=r"without register_post_accumulate_grad_hook, which fc\.bias has"):
            prepare.prepare(config)
    else:
        assert stackable(Problem.of(config, prepare.prepare(config)[0])) == stacked


def test_a_constructor_that_seeds_makes_no_two_trials_alike(place: Path) -> None:
    def seeding() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    first, second, again = (building.state_of(building.build(seeding, "glorot", seed)) for seed in (3, 4, 3))
    assert not torch.equal(first["1.weight"], second["1.weight"]) and torch.equal(first["1.weight"], again["1.weight"])


HEAD = "import os, torch\nfrom torch import nn\n"


def ran(place: Path, name: str, code: str, *more: str) -> int:
    """The exit code of main.py with this model file."""
    (place / "archs" / "tiny" / f"{name}.py").write_text(HEAD + code)
    words = "--dataset tiny --gpu cpu --jobs 1 --prune_iterations 2 --end_iter 4it --valid_size 40 --batch_size 10"
    where = ["--root", str(place), "--data", str(place / "data"), "--arch_type", name]
    return utils.exit_code(main.main, [*words.split(), *where, *more])


BAD_START = """

class Biased(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def _initialize_weights(self):
        for parameter in self.parameters():
            nn.init.kaiming_normal_(parameter)  # biases are no matrices

    def forward(self, x):
        return self.layers(x)
"""


def test_a_model_that_cannot_draw_its_weights_is_refused_before_anything_is_written(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(place, "biased", BAD_START) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Biased cannot draw its initial weights: its _initialize_weights() fails with ValueError" in said
    assert not (place / "dumps").exists() and not (place / "saves").exists()


PRETRAINED = """

class pretrained(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.body, self.head = nn.Linear(64, 12), nn.Linear(12, num_classes)
        self.zero, self.norm = nn.Linear(12, 12, bias=False), nn.BatchNorm1d(12)
        nn.init.zeros_(self.zero.weight)
        self.body.load_state_dict({"weight": torch.arange(768.0).view(12, 64).sin() / 8, "bias": torch.zeros(12)})

    def forward(self, x):
        x = self.norm(self.body(x.flatten(1))).relu()
        return self.head(x + self.zero(x))
"""


@pytest.mark.parametrize(("init", "told"), [("glorot", True), ("kaiming", True), ("own", False)])
def test_pretrained_weights_that_are_drawn_over_are_said(
    place: Path, capsys: pytest.CaptureFixture[str], init: str, told: bool
) -> None:
    assert ran(place, "pretrained", PRETRAINED, "--init", init) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (f"--init {init} draws over body.weight" in said) == told
    assert ("--init own keeps them" in said) == told


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_model_that_gives_pruned_weights_values_ends_with_a_sentence(place: Path, kind: str) -> None:
    (place / "archs" / "tiny" / "centring.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass _Centring(nn.Linear):\n"
        "    def __init__(self, *sizes):\n        super().__init__(*sizes)\n"
        "        self.register_buffer('calls', torch.zeros(()))\n\n    def forward(self, x):\n        self.calls += 1\n"
        "        if self.calls > 8:  # later than any trial of the model before training\n"
        "            self.weight.data.sub_(self.weight.data.mean(1, keepdim=True))\n"
        "        return super().forward(x)\n\n\n"
        "def centring():\n    return nn.Sequential(nn.Flatten(), _Centring(64, 12), nn.ReLU(), nn.Linear(12, 4))\n"
    )
    told = Told()
    (run,) = do(settings(place, arch_type="centring", optimizer=kind), told)
    assert "round 1 ended with pruned weights of 1.weight that are not 0: centring changes its weights" in told.notes
    assert tables.finished_rounds(run) == 1
