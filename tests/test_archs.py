"""The model files: shapes, sizes as in the paper, gradients, and training stacked networks as one."""

import copy
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lth.models import building
from lth.training.network import Network
from lth.training.optimizers import gradients

ARCHS = Path(__file__).parents[1] / "archs"
IMAGES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
MODELS = [(dataset, path.stem) for dataset in IMAGES for path in sorted((ARCHS / dataset).glob("*.py"))]
HEAVY = {"AlexNet", "vgg16", "vgg19", "resnet18", "densenet121"}

every_model = pytest.mark.parametrize("dataset, name", MODELS)
every_model_heavy_ones_slow = pytest.mark.parametrize(
    "dataset, name", [pytest.param(*model, marks=[pytest.mark.slow] if model[1] in HEAVY else []) for model in MODELS]
)


def build(dataset: str, name: str, num_classes: int = 10, device: str = "cpu", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    with torch.device(device):
        return getattr(importlib.import_module(f"archs.{dataset}.{name}"), name)(num_classes=num_classes)


def weights(model: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)) -> int:
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, kinds))


@every_model
def test_a_file_defines_one_model_and_states_its_size(dataset: str, name: str) -> None:
    """The meta device computes the shapes alone."""
    module = importlib.import_module(f"archs.{dataset}.{name}")
    functions = [thing for thing in vars(module).values() if inspect.isfunction(thing) or inspect.isclass(thing)]
    assert [thing.__name__ for thing in functions if thing.__module__ == module.__name__] == [name]
    channels, side, _ = IMAGES[dataset]
    wide = build(dataset, name, 100, device="meta")
    assert wide(torch.empty(2, *IMAGES[dataset], device="meta")).shape == (2, 100)
    model, text = build(dataset, name, device="meta"), inspect.getdoc(getattr(module, name)) or ""
    assert f"{channels}x{side}x{side}" in text and f"Weights, with 10 classes: {weights(model):,}" in text
    if stated := re.search(r"\(([\d,]+) of them in convolutions\)", text):
        assert stated[1] == f"{weights(model, (nn.Conv2d,)):,}"


def test_data_sets_have_the_same_models() -> None:
    names = [{name for dataset, name in MODELS if dataset == wanted} for wanted in IMAGES]
    assert names[0] == names[1] and len(names[0]) == 12


@pytest.mark.parametrize(
    "dataset, name, paper",  # all weights / those in convolutions
    [
        ("mnist", "fc1", "266K/0K"),
        ("mnist", "lenet5", "61K/3K"),
        ("cifar10", "conv2", "4.3M/39K"),  # paper: 38K, cut off
        ("cifar10", "conv4", "2.4M/260K"),
        ("cifar10", "conv6", "2.3M/1.1M"),  # paper: 1.7M/1.1M
        ("cifar10", "resnet20", "271K/270K"),  # paper: 274K, with what is no weight
        ("cifar10", "vgg19", "20.0M/20.0M"),
    ],
)
def test_weights_are_those_of_figure_2(dataset: str, name: str, paper: str) -> None:
    model = build(dataset, name, device="meta")
    for count, said in zip((weights(model), weights(model, (nn.Conv2d,))), paper.split("/"), strict=True):
        assert said == (f"{count / 1e6:.1f}M" if "M" in said else f"{count / 1e3:.0f}K")


@every_model
def test_a_step_reaches_every_weight(dataset: str, name: str) -> None:
    model = build(dataset, name)
    images, labels = torch.randn(2, *IMAGES[dataset]), torch.tensor([0, 1])
    F.cross_entropy(model(images), labels).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@every_model_heavy_ones_slow
def test_stacked_networks_train_as_they_do_alone(dataset: str, name: str) -> None:
    models = [build(dataset, name, seed=seed) for seed in range(2)]
    for module in (m for model in models for m in model.modules() if isinstance(m, nn.Dropout)):
        module.p = 0.0  # nothing random, to compare
    states = [building.state_of(model) for model in models]
    stacked = Network(copy.deepcopy(models[0]), states, [{}, {}], torch.device("cpu"))
    images, labels = torch.randn(6, *IMAGES[dataset]), torch.randint(10, (6,))
    losses = stacked.losses(images, labels)
    found = dict(zip(stacked.learning, gradients(losses.sum(), stacked.leaves), strict=True))
    for i, model in enumerate(models):
        loss = F.cross_entropy(model(images[3 * i : 3 * i + 3]), labels[3 * i : 3 * i + 3])
        loss.backward()
        torch.testing.assert_close(losses[i], loss, rtol=1e-3, atol=1e-4)
        for key, parameter in model.named_parameters():
            error = found[key][i] - parameter.grad
            assert error.norm() <= 1e-2 * parameter.grad.norm() + 1e-6, key
        for key, buffer in model.named_buffers():  # running statistics
            torch.testing.assert_close(stacked.tensors[key][i], buffer, rtol=1e-3, atol=1e-4)
    # Images that are not stacked are where an operation in place would fail.
    assert stacked.logits(images, shared=True).shape == (2, 6, 10)
