"""Fingerprints of models and rules: which edits give another one, and which do not."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune as torch_prune
from helpers import Patch
from torch import nn

from lth import prune
from lth.models import building as models
from lth.models import fingerprints as identity

Text = Callable[..., str]

MODEL = '''"""A model."""
import torch
from torch import nn
import shared
from shared import WIDTH, squash

SLOPE = 0.2


class Net(nn.Module):
    """A network."""

    def __init__(self, num_classes=4, p: float = 0.3):
        super().__init__()
        # layers
        self.fc1, self.fc2 = nn.Linear(64, WIDTH), nn.Linear(WIDTH, num_classes)
        self.drop, self.slope = nn.Dropout(p), SLOPE
        self.noise = torch.randn(3)
        self.register_buffer("table", torch.arange(12) * 2)

    def forward(self, x):
        """Its logits."""
        from lazily import scaled

        return self.fc2(self.drop(scaled(squash(self.fc1(x.flatten(1))))))


class Other(nn.Linear):
    def __init__(self):
        super().__init__(64, 4)
'''
SHARED = """WIDTH = 12


def squash(x):
    return x.tanh()
"""
LAZILY = """FACTOR = 3


def scaled(x):
    return x * FACTOR
"""


@pytest.fixture
def model(place: Path, monkeypatch: Patch) -> Text:
    """The fingerprint of MODEL after replacements in its text, or in that of the files that it imports."""
    monkeypatch.syspath_prepend(place)

    def of(*changes: tuple[str, str], name: str = "net") -> str:
        texts = [MODEL, SHARED, LAZILY]
        for old, new in changes:
            assert sum(old in text for text in texts) == 1, old
            texts = [text.replace(old, new) for text in texts]
        sys.modules.pop("shared", None)
        for file, text in zip(("archs/tiny/net", "shared", "lazily"), texts, strict=True):
            (place / f"{file}.py").write_text(text)
        for cached in place.rglob("__pycache__/*"):
            cached.unlink()  # of files of the same size written within a second
        return identity.fingerprint_model(models.find(name, "tiny", 4))

    return of


def test_edits_that_may_change_numbers_change_the_fingerprint_of_a_model(model: Text) -> None:
    changes = [
        ("SLOPE = 0.2", "SLOPE = 0.1"),
        ("WIDTH = 12", "WIDTH = 13"),  # in a file that it imports
        ("x.tanh()", "x.sigmoid()"),
        ("FACTOR = 3", "FACTOR = 4"),  # in one that it imports when it is called
        ("p: float = 0.3", "p: float = 0.4"),
        ("torch.arange(12) * 2", "torch.arange(12) * 3"),
        ("nn.Linear(WIDTH, num_classes)", "nn.Linear(WIDTH, num_classes, bias=False)"),
        (
            "        from lazily import scaled\n\n        return",
            "        from lazily import scaled\n        x = -x\n        return",
        ),
    ]
    found = [model(), model(name="other"), *map(model, changes)]
    assert len(set(found)) == len(found)


def test_draws_comments_docstrings_and_empty_lines_do_not(model: Text) -> None:
    before = model()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    assert model() == before, "draws of the constructor count"
    assert torch.equal(torch.rand(3), expected), "the caller's random numbers are disturbed"
    for change in [
        ('"""A network."""', '"""The network.\n\n    It has two layers.\n    """'),
        ('"""Its logits."""', ""),
        ("        # layers\n", "\n\n        # two layers, one\n        # after the other\n"),
        ('"""A model."""', "# no docstring"),
        ("torch.randn(3)", "torch.randn(3)  # noise"),
        ("return x.tanh()", '"""Squashed."""\n    return x.tanh()'),
    ]:
        assert model(change) == before, change


AMOUNT = 0.1


def fixed(net: nn.Module) -> None:
    prune.magnitude(AMOUNT)(net)


def closing(amount: float, name: str = "weight") -> Callable[[nn.Module], None]:
    def prunes(net: nn.Module) -> None:
        for layer, _ in prune.fetch_layers(net):
            torch_prune.l1_unstructured(layer, name=name, amount=amount)

    return prunes


class Ruling:
    """A rule that is an object."""

    def __init__(self, amount: float, other: float = 0.5) -> None:
        self.amount, self.other = amount, other

    def __call__(self, net: nn.Module) -> None:
        prune.magnitude(self.amount)(net)

    def scaled(self, net: nn.Module) -> None:
        prune.magnitude(self.amount / 2)(net)


RULES: list[Callable[[], Any]] = [
    lambda: prune.magnitude(0.2),
    lambda: prune.magnitude(0.3),
    lambda: prune.magnitude(0.2, "global"),
    lambda: prune.random(0.2),
    lambda: closing(0.2),
    lambda: closing(0.3),
    lambda: closing(0.2, "bias"),
    lambda: Ruling(0.2),
    lambda: Ruling(0.2, 0.1),
    lambda: Ruling(0.2).scaled,
    lambda: functools.partial(torch_prune.l1_unstructured, name="weight", amount=0.2),
    lambda: functools.partial(torch_prune.l1_unstructured, name="weight", amount=0.3),
    lambda: lambda net: torch_prune.l1_unstructured(net, "weight", 1),
    lambda: lambda net: torch_prune.l1_unstructured(net, "weight", 2),
    lambda: fixed,
    lambda: nn.CrossEntropyLoss(),
    lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
    lambda: torch.optim.SGD,
    lambda: torch.tensor([1.0, 2.0]),
    lambda: np.array([1.0, 3.0]),
]


def test_rules_losses_and_values_differ_by_code_and_settings(monkeypatch: Patch) -> None:
    found = [identity.fingerprint_objects(make()) for make in RULES]
    assert found == [identity.fingerprint_objects(make()) for make in RULES]
    monkeypatch.setattr(sys.modules[__name__], "AMOUNT", 0.4)  # a constant that a rule uses
    assert len({*found, identity.fingerprint_objects(fixed)}) == len(RULES) + 1


def test_networks_given_from_python_differ_by_settings_and_not_by_weights() -> None:
    def net(slope: float = 0.1, heads: int = 2, **attributes: Any) -> nn.Module:
        layers = nn.Linear(4, 4), nn.LeakyReLU(slope), nn.BatchNorm1d(4), nn.MultiheadAttention(4, heads)
        made = nn.Sequential(*layers)
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    of, first = identity.fingerprint_network, identity.fingerprint_network(net())
    tied, frozen, hooked = net(), net(), net()
    frozen[0].weight.requires_grad_(False)
    tied[2].weight = tied[0].bias
    hooked[1].register_forward_hook(lambda module, inputs, output: output + 1)
    others = [net(0.2), net(heads=1), net(forward=lambda x: x), net(scale=2), tied, frozen, hooked]
    assert first == of(net()) == of(net(optim=SimpleNamespace(lr=1)), without=("optim",)) == of(net().eval())
    assert len({first, *map(of, others)}) == 1 + len(others)


@pytest.mark.parametrize(
    "place, own", [("/me/my-packages", True), ("/v/lib/site-packages", False), ("/usr/lib/dist-packages", False)]
)
def test_code_of_installed_packages_counts_by_its_name_only(place: str, own: bool) -> None:
    assert identity._is_own("shared", f"{place}/shared.py") == own
