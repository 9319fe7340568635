"""Finding models under archs/, what counts as one, initial weights."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Capture, Conv, Patch, Told, add_model, do, settings
from torch import nn

from lth.commands import prepare, session
from lth.models import building
from lth.records import tables
from lth.settings import names
from lth.settings.config import ConfigError
from lth.training.problem import Problem, stackable

NET = """
from torch import nn


class {name}(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.fc = nn.Linear(4, num_classes)
        self.mark = "{mark}"

    def forward(self, x):
        return self.fc(x.flatten(1))
"""
Put = Callable[..., None]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: Patch) -> Put:
    """Writes a file under a fresh archs/: put("mnist/a", name="Net", mark="...") or put("mnist/a", text)."""
    monkeypatch.setattr(names, "ARCHS", [tmp_path])
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(place: str, text: str = NET, **given: str) -> None:
        file = tmp_path / f"{place}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text.format(**{"mark": place, **given}) if text is NET else text)

    yield write
    for name in [name for name in sys.modules if name.startswith("archs.")]:
        del sys.modules[name]


def find(arch_type: str, dataset: str = "mnist", classes: int | None = None) -> Any:
    return building.find(arch_type, dataset, classes)()


@pytest.mark.parametrize("asked", ["net", "NET", "file", "File"])
def test_by_its_name_or_that_of_its_file_ignoring_case(put: Put, asked: str) -> None:
    put("mnist/file", name="Net")
    put("mnist/other", name="Another")
    assert find(asked).mark == "mnist/file"


@pytest.mark.parametrize("signature, outputs", [("num_classes", 7), ("*, num_classes=3", 7), ("", 5), ("**more", 5)])
def test_num_classes_is_given_where_it_is_taken(put: Put, signature: str, outputs: int) -> None:
    value = "num_classes" if "num_classes" in signature else "5"
    put("mnist/made", f"from torch import nn\n\n\ndef made({signature}):\n    return nn.Linear(3, {value})\n")
    assert find("made", classes=7).out_features == outputs


HELPERS = """
from torch import nn
from torch.nn import Linear, Sequential
import torch.nn.functional as F

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()

class _Hidden(nn.Module):
    pass

class Settings:
    pass

def _private():
    return nn.Linear(1, 1)

def scale(width):
    return width * 2

def widths():
    return [4, 4]

LIMIT = 5

class Net(nn.Module):
    mark = "net"

alias = Net
"""


@pytest.mark.parametrize("asked", ["Net", "net", "helped"])
def test_helpers_and_imports_are_no_models(put: Put, asked: str) -> None:
    put("mnist/helped", HELPERS)
    assert find(asked).mark == "net"


def test_two_matches_are_an_error_that_names_both_files(put: Put) -> None:
    put("mnist/one", name="Net")
    put("mnist/two", name="net")
    with pytest.raises(ConfigError, match=r"ambiguous.*archs/mnist/one\.py \(Net\) and archs/mnist/two\.py \(net\)"):
        find("net")
    put("mnist/three", name="One")
    with pytest.raises(ConfigError, match=r"archs/mnist/one\.py \(Net\) and archs/mnist/three\.py \(One\)"):
        find("one")


def test_a_file_of_two_models_is_not_found_by_its_name(put: Put) -> None:
    put("mnist/pair", NET.format(name="First", mark="1") + NET.format(name="Second", mark="2"))
    assert find("second").mark == "2"
    with pytest.raises(ConfigError, match=r"archs/mnist/pair\.py must define one model .* defines First, Second"):
        find("pair")
    put("mnist/none", "VALUE = 5\n")
    with pytest.raises(ConfigError, match="it defines none"):
        find("none")


@pytest.mark.parametrize("dataset, fallback", [("fashionmnist", "mnist"), ("cifar100", "cifar10")])
def test_a_data_sets_own_folder_wins_over_its_fallback(put: Put, dataset: str, fallback: str) -> None:
    put(f"{fallback}/shared", name="Shared")
    put(f"{fallback}/net", name="Net")
    assert find("net", dataset, 100).mark == f"{fallback}/net" and find("net", dataset, 100).fc.out_features == 100
    put(f"{dataset}/net", name="Net")
    assert find("net", dataset).mark == f"{dataset}/net" and find("net", fallback).mark == f"{fallback}/net"
    assert find("shared", dataset).mark == f"{fallback}/shared"
    assert names.model_names(dataset) == ["net", "shared"]


@pytest.mark.parametrize(
    "text, problem",
    [
        ("import nothing_of_this_name\n", r"cannot be loaded: ModuleNotFoundError: No module named"),
        ("import sys\nsys.exit('no GPU')\n", r"cannot be loaded: SystemExit: no GPU"),
        ("def net():\n    return 5\n", r"net must return a torch.nn.Module, not <class 'int'>"),
        ("def net():\n    raise ValueError('no\\nluck')\n", r"net cannot be built: no"),
        ("\0", r"cannot be loaded"),
    ],
)
def test_a_broken_file_is_named_in_one_line(put: Put, text: str, problem: str) -> None:
    put("mnist/net", text)
    put("mnist/sound", name="Sound")
    with pytest.raises(ConfigError, match=rf"archs/mnist/net\.py.*{problem}") as caught:
        find("net")
    assert "\n" not in str(caught.value)
    assert find("sound").mark == "mnist/sound", "one broken file must not stop the others"


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv = nn.Linear(400, 200), nn.Conv2d(20, 40, 5)
        self.up, self.norm = nn.ConvTranspose2d(30, 10, 5), nn.BatchNorm2d(10)
        self.embedding = nn.Embedding(9, 3)


@pytest.mark.parametrize("init", ["glorot", "kaiming"])
def test_initial_weights_are_gaussian_with_zero_biases(init: str) -> None:
    model = building.build(Wide, init, 0)
    layers = [(model.fc, 400, 200), (model.conv, 20 * 25, 40 * 25), (model.up, 10 * 25, 30 * 25)]
    for layer, fan_in, fan_out in layers:
        deviation = (2 / (fan_in + fan_out) if init == "glorot" else 2 / fan_in) ** 0.5
        weight = layer.weight.detach().flatten()
        assert weight.mean().abs() < 3 * deviation / len(weight) ** 0.5
        assert weight.std().item() == pytest.approx(deviation, rel=0.02)
        share = (weight.abs() < deviation).float().mean().item()
        assert share == pytest.approx(0.6827, abs=0.02), "not Gaussian"
        assert (layer.bias == 0).all()
    assert (model.norm.weight == 1).all() and (model.norm.bias == 0).all()


@pytest.mark.parametrize("init", ["glorot", "kaiming", "own"])
def test_weights_follow_from_the_seed_alone(init: str) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    one, same, other = (building.state_of(building.build(Conv, init, seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before), "drawing weights must not disturb dropout"
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one[next(iter(one))], other[next(iter(one))])


@pytest.mark.parametrize(
    "way, stacked",
    [("", True), ("replaced buffer", False), ("hook on the gradient", False), ("hook on the stored gradient", None)],
)
def test_models_that_are_not_stacked(place: Path, way: str, stacked: bool | None) -> None:
    """Hooks that wait for stored gradients are refused: none are stored."""
    add_model(place, "model", f"nets.Hooked({way!r})")
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


def test_a_model_that_cannot_draw_its_weights_is_refused_at_once(place: Path) -> None:
    add_model(place, "biased", "nets.Biased()")
    with pytest.raises(ConfigError, match=r"Biased cannot draw its initial weights: its _initialize_weights\(\) fails"):
        session.run(settings(place, arch_type="biased"))
    assert not (place / "dumps").exists() and not (place / "saves").exists()


@pytest.mark.parametrize(("init", "told"), [("glorot", True), ("own", False)])
def test_pretrained_weights_that_are_drawn_over_are_said(place: Path, capsys: Capture, init: str, told: bool) -> None:
    add_model(place, "pretrained", "nets.Pretrained()")
    session.run(settings(place, arch_type="pretrained", init=init, prune_iterations=1, quiet=False))
    said = " ".join(capsys.readouterr().out.split())
    assert (f"--init {init} overwrites body.weight" in said) == told
    assert ("--init own keeps them" in said) == told


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_model_that_gives_pruned_weights_values_ends_with_a_sentence(place: Path, kind: str) -> None:
    layers = "nn.Flatten(), nets.Centring(64, 12), nn.ReLU(), nn.Linear(12, 4)"
    add_model(place, "centring", f"nn.Sequential({layers})")
    told = Told()
    (run,) = do(settings(place, arch_type="centring", optimizer=kind), told)
    assert "round 1 ended with pruned weights of 1.weight that are not 0: centring changes its weights" in told.notes
    assert tables.finished_rounds(run) == 1
