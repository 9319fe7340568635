"""Fingerprints: what counts as another model, rule or data, and what does not."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune as torch_prune
from helpers import make_images
from torch import Tensor, nn

from lth import data
from lth import prune as lth_prune
from lth.data import prints
from lth.data.loaders import take
from lth.settings.config import PROJECT
from lth.training import fingerprint, models, source

Text = Callable[..., str]

MODEL = '''"""A model."""
import random
import torch
from torch import nn
from torch.nn import functional as F
import shared
from shared import WIDTH, squash

SLOPE = 0.2
DEVICE = "cpu"


def noted(module, inputs, output):
    return output * 2


class Net(nn.Module):
    """A network."""

    gain = 1.5

    def __init__(self, num_classes=4, p: float = 0.3):
        super().__init__()
        # layers
        self.fc1, self.fc2 = nn.Linear(64, WIDTH), nn.Linear(WIDTH, num_classes)
        self.drop = nn.Dropout(p)
        self.device = DEVICE
        self.act = lambda x: F.leaky_relu(x, SLOPE)
        self.noise = torch.randn(3)
        self.chance = random.random()
        self.register_buffer("order", torch.randperm(12))
        self.register_buffer("table", torch.arange(12) * 2)
        self.register_forward_hook(noted)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = self.act(self.fc1(x.flatten(1)))
        return self.fc2(self.drop(shared.scaled(squash(x)))) * self.gain

    def _initialize_weights(self):
        nn.init.normal_(self.fc1.weight, std=0.01)

    def extra_repr(self):
        return "mine"
'''
SHARED = """WIDTH = 12
FACTOR = 3


def squash(x):
    return inner(x)


def inner(x):
    return x.tanh()


def scaled(x):
    return x * FACTOR


def unused(x):
    return x
"""


@pytest.fixture
def model(place: Path, monkeypatch: pytest.MonkeyPatch) -> Text:
    """The fingerprint of MODEL with some of its text (or of what it imports) replaced."""
    monkeypatch.syspath_prepend(place)

    def of(*changes: tuple[str, str], name: str = "net") -> str:
        texts = [MODEL, SHARED]
        for old, new in changes:
            assert sum(old in text for text in texts) == 1, old
            texts = [text.replace(old, new) for text in texts]
        sys.modules.pop("shared", None)
        (place / "shared.py").write_text(texts[1])
        (place / "archs/tiny/net.py").write_text(texts[0])
        for cached in place.rglob("__pycache__/*"):
            cached.unlink()  # files of the same size written within a second
        return fingerprint.of_model(models.find(name, "tiny", 4))

    return of


def test_what_changes_numbers_changes_the_fingerprint_of_a_model(model: Text) -> None:
    changes = [
        ("F.leaky_relu", "F.elu"),
        ("SLOPE = 0.2", "SLOPE = 0.1"),
        ("WIDTH = 12", "WIDTH = 13"),
        ("p: float = 0.3", "p: float = 0.4"),
        ("* 2\n\n\nclass", "* 4\n\n\nclass"),  # a hook
        ("self.register_forward_hook(noted)", "self.register_forward_pre_hook(noted)"),
        ("std=0.01", "std=0.02"),
        ("gain = 1.5", "gain = 1.25"),
        ("torch.arange(12) * 2", "torch.arange(12) * 3"),
        ("x.tanh()", "x.sigmoid()"),  # reached through another module, and a function there
        ("FACTOR = 3", "FACTOR = 4"),
        ("x = self.act", "x = -self.act"),
        ("nn.Dropout(p)", "nn.AlphaDropout(p)"),
        ("nn.Linear(WIDTH, num_classes)", "nn.Linear(WIDTH, num_classes, bias=False)"),
    ]
    found = {change: model(change) for change in changes}
    assert len({model(), *found.values()}) == len(changes) + 1, found


def test_what_changes_no_number_does_not(model: Text) -> None:
    before = model()
    assert model() == before, "random draws in the constructor count"
    for change in [
        ('"""A network."""', '"""The network."""'),
        ("        # layers\n", "\n\n        # two layers, one\n        # after the other\n"),
        ('"""A model."""', ""),
        ("num_classes=4, p: float = 0.3", "num_classes: int = 4, p=0.3"),
        ('DEVICE = "cpu"', 'DEVICE = "cuda:0"'),
        ('return "mine"', 'return "yours"'),
        ("return self.fc2(self.drop", "return (\n            self.fc2)(self.drop"),
        ("def unused(x):\n    return x", "def unused(x):\n    return -x"),
        ("torch.randn(3)", "torch.randn(3)  # noise"),
    ]:
        assert model(change) == before, change


def test_a_model_built_by_a_function_and_decorated_methods_are_read(model: Text) -> None:
    built = (
        "\n\ndef built(num_classes=4):\n    from shared import WIDTH as w\n    net = nn.Sequential(nn.Linear(4, w))\n"
    )
    text = built + "    nn.init.normal_(net[0].weight, std=0.5)\n    return net\n"
    with_function = ('return "mine"\n', f'return "mine"\n{text}')
    before = model(with_function, name="built")
    assert before != model((with_function[0], with_function[1].replace("0.5", "0.4")), name="built")
    assert before != model(with_function, ("WIDTH = 12", "WIDTH = 13"), name="built")
    assert before == model(with_function, ("x.tanh()", "x.cos()"), name="built"), "what it does not use counts"
    wrapped = ("    def forward", "    @torch.enable_grad()\n    def forward")
    assert model(wrapped) != model(wrapped, ("x = self.act", "x = -self.act"))


def test_a_fingerprint_is_the_same_in_other_processes(model: Text, tmp_path: Path) -> None:
    expected = [model(), fingerprint.of(lth_prune.magnitude(0.2)), prints.of_arrays(make_images().tensors())]
    program = f"""
import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(PROJECT)!r}, {str(PROJECT / "tests")!r}]
from pathlib import Path
from lth.settings import names
names.ARCHS = [Path({str(tmp_path / "archs")!r})]
from lth import prune
from lth.data import prints
from lth.training import fingerprint, models
from helpers import make_images
print(fingerprint.of_model(models.find("net", "tiny", 4)), fingerprint.of(prune.magnitude(0.2)),
      prints.of_arrays(make_images().tensors()))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == expected, done.stderr


def test_source_that_is_no_longer_what_was_loaded_is_not_believed(tmp_path: Path) -> None:
    """As in a notebook, where a module is edited but not loaded again."""
    file = tmp_path / "edited.py"
    file.write_text("def rule(net):\n    return 1\n")
    space: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec", dont_inherit=True), space)
    before = fingerprint.of(space["rule"])
    assert source.definitions(space["rule"])
    file.write_text("def rule(net):\n    return 22\n")
    assert not source.definitions(space["rule"]) and fingerprint.of(space["rule"]) != before


def test_a_tree_is_the_same_from_every_version_of_python() -> None:
    """Python 3.12.1 ends the format in an f-string with an empty text, and others do not."""
    tree = ast.parse("def f(x: int, k=3) -> str:\n    return f'{x:>{k}}'\n")
    before = source.text(tree)
    (form,) = [node.format_spec for node in ast.walk(tree) if isinstance(node, ast.FormattedValue) and node.format_spec]
    assert isinstance(form, ast.JoinedStr)
    form.values.append(ast.Constant(""))
    assert source.text(tree) == before


def test_drawing_a_fingerprint_disturbs_no_random_numbers(model: Text) -> None:
    model()
    torch.manual_seed(3)
    expected = torch.rand(3), np.random.default_rng(0).random()
    torch.manual_seed(3)
    model()
    assert torch.equal(torch.rand(3), expected[0])


# Rules, losses, optimisers


def rule(amount: float, names: list[str], seen: list[int]) -> Callable[[nn.Module], None]:
    def prunes(net: nn.Module) -> None:
        seen.append(len(seen))
        for layer, name in lth_prune.fetch_layers(net):
            if name in names:
                torch_prune.l1_unstructured(layer, name=name, amount=amount)

    return prunes


class Ruling:
    """A rule that counts."""

    def __init__(self, amount: float, other: float = 0.5) -> None:
        self.amount, self.other, self.calls, self.history = amount, other, 0, [0.0]

    def __call__(self, net: nn.Module) -> None:
        self.calls += 1
        self.history.append(self.amount)

    def scaled(self, net: nn.Module) -> None:
        lth_prune.magnitude(self.amount)(net)


def test_rules_are_told_apart_by_code_and_settings_and_not_by_their_state() -> None:
    first, of = fingerprint.of(rule(0.2, ["weight"], [])), fingerprint.of
    assert of(rule(0.2, ["weight"], [1, 2, 3])) == first
    assert len({first, of(rule(0.3, ["weight"], [])), of(rule(0.2, ["bias"], []))}) == 3
    used = Ruling(0.2)
    used(nn.Linear(1, 1))
    assert of(used) == of(Ruling(0.2)) != of(Ruling(0.3)) != of(Ruling(0.3, 0.1))
    assert of(used.scaled) != of(used), "a method is not the object"
    part = functools.partial(torch_prune.l1_unstructured, name="weight", amount=0.2)
    assert of(part) != of(functools.partial(torch_prune.l1_unstructured, name="weight", amount=0.3))
    assert of(lth_prune.magnitude(0.2)) != of(lth_prune.random(0.2)) != of(lth_prune.magnitude(0.2, "global"))
    assert of(lambda net: torch_prune.l1_unstructured(net, "weight", 1)) != of(
        lambda net: torch_prune.l1_unstructured(net, "weight", 2)
    )


def test_a_network_of_ones_own_is_what_it_does_not_what_it_weighs() -> None:
    def net(slope: float = 0.1, **attributes: Any) -> nn.Module:
        made = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(slope), nn.BatchNorm1d(4))
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    of = fingerprint.of_network
    first = of(net())
    assert first == of(net()) and first != of(net(0.2))
    assert first != of(net(forward=lambda x: x)) and first != of(net(scale=SimpleNamespace(a=1)))
    tied, frozen, hooked = net(), net(), net()
    frozen[0].weight.requires_grad_(False)
    tied[2].weight = tied[0].bias
    hooked[1].register_forward_hook(lambda module, inputs, output: output + 1)
    assert len({first, of(tied), of(frozen), of(hooked)}) == 4
    assert of(net(optim=1), without=("optim",)) == first
    weighted = [nn.CrossEntropyLoss(weight=torch.tensor(w)) for w in ([1.0, 2.0], [1.0, 3.0])]
    assert (
        len({fingerprint.of_loss(loss) for loss in (nn.functional.cross_entropy, nn.CrossEntropyLoss(), *weighted)})
        == 4
    )


# Data


class Randomly:
    """Batches of the same examples in another order every time, or of others."""

    def __init__(self, x: Tensor, y: Tensor, noise: float = 0.0) -> None:
        self.x, self.y, self.noise = x, y, noise

    def __iter__(self) -> Any:
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(time.monotonic_ns() % 2**40))
        for part in order.split(10):
            yield self.x[part] + self.noise * torch.rand(1), self.y[part]


def test_data_are_told_apart_by_their_arrays() -> None:
    images = make_images()
    same = make_images()
    assert images.fingerprint == same.fingerprint
    for name in ("train", "train_labels", "test", "test_labels"):
        other = make_images()
        getattr(other, name).view(-1)[5] += 1
        assert other.fingerprint != images.fingerprint
    x, y = images.train.float(), images.train_labels
    rest = {"validation": [(x[:10], y[:10])], "test": [(x[:10], y[:10])]}

    def of(train: Any, **options: Any) -> str:
        return take({"train": train, **rest}, torch.device("cpu"), **options).fingerprint

    changed = x.clone()
    changed[7] = 0
    assert of(Randomly(x, y)) == of(Randomly(x, y)) != of(Randomly(changed, y)), "the order of reading counts"
    assert of(Randomly(x, y, 1.0), in_memory=True) == of(Randomly(x, y, 1.0), in_memory=True)
    assert of([(x, y)]) == of([(x, y)]) != of([(x.flip(0), y.flip(0))]), "in a list the order is the data's"
    assert of([(x, y)], in_memory=False) == of([(x, y)], in_memory=False) != of([(changed, y)], in_memory=False)
    assert of(Randomly(x, y, 1.0), in_memory=False) == of(Randomly(x, y, 1.0), in_memory=False)


def test_the_check_sums_of_a_file_tell_its_content(tmp_path: Path) -> None:
    for number, content in enumerate(([1, 2], [1, 2], [1, 3])):
        np.savez_compressed(tmp_path / f"{number}.npz", x_train=np.array(content))
    same, again, other = (prints.of_file(tmp_path / f"{number}.npz") for number in range(3))
    assert same == again != other and prints.of_file(tmp_path / "none.npz") is None


def test_mnist_takes_a_tenth_of_a_second() -> None:
    images = data.load("mnist", PROJECT / "data")
    took = []
    for _ in range(3):  # of the processor, whatever else is at work
        began = time.process_time()
        found = prints.of_arrays(images.tensors())
        took.append(time.process_time() - began)
    plain = time.process_time()
    hashlib.sha256(bytes(images.train.nbytes + images.test.nbytes))
    plain = time.process_time() - plain
    assert min(took) < max(0.2, 3 * plain) and found == images.fingerprint
