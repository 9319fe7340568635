"""Sparse products: the numbers of dense ones to rounding, the same files, chosen by settings and sparsity alone."""

from __future__ import annotations

import copy
import itertools
import json
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    CPU,
    Mlp,
    assert_same,
    constant,
    do,
    make_images,
    random_masks,
    results,
    settings,
    training,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from own import WithOptim, accuracy, batches, find, seeded, tiny
from torch import Tensor, nn

import lth
from lth import chance, prune
from lth.data.feed import Feed
from lth.data.loaders import take
from lth.pruning import Masks
from lth.records import tables, tickets
from lth.records.files import read_json
from lth.run import session
from lth.run.tasks import runs_of
from lth.settings.config import Config
from lth.training import kernels, models, sparse, sparse_linear
from lth.training.models import State
from lth.training.network import Network
from lth.training.schedule import Plan
from lth.training.sparse_linear import Places, SparseLinear, become_sparse
from lth.training.train import Stopped, Trained, Training

BOTH = ("fc1.weight", "fc2.weight")
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("adam", {}),
    ("adam", {"weight_decay": 0.05}),
    ("adamw", {"weight_decay": 0.05}),
    ("sgd", {}),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.01}),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
]
LARGE = 80  # hidden units of an Mlp with which its first layer is a large one

pytestmark = pytest.mark.skipif(not sparse.available(), reason="this PyTorch has no quick sparse products")


@pytest.fixture(autouse=True)
def without_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor without AMX: on one that has it, sparsity pays later."""
    monkeypatch.setattr(kernels, "amx", lambda: False)


every_kind = pytest.mark.parametrize("kind, options", KINDS, ids=["-".join([k, *o]) for k, o in KINDS])


@pytest.fixture
def none_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule for large layers holds for the tiny ones of tests too."""
    monkeypatch.setattr(sparse, "SMALL", 0)


tiny_layers = pytest.mark.usefixtures("none_is_small")


# Products


@hypothesis_settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.floats(0, 1), st.integers(0, 99))
def test_products_are_those_of_the_masked_weight(outputs: int, inputs: int, batch: int, keep: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, mask = torch.randn(outputs, inputs, generator=generator), torch.rand(outputs, inputs, generator=generator)
    x, above = torch.randn(inputs, batch, generator=generator), torch.randn(outputs, batch, generator=generator)
    places = Places(mask < keep)
    values, masked = places.survivors(weight), weight * (mask < keep)
    assert torch.equal(places.full(values), masked)
    assert torch.equal(places.survivors(places.full(values, 7.0)), values)
    assert (places.full(values, 7.0)[mask >= keep] == 7).all()
    torch.testing.assert_close(places.product(values, x), masked @ x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(places.transposed_product(values, above), masked.t() @ above, rtol=1e-4, atol=1e-5)
    expected = places.survivors(above @ x.t())
    places._gradient.values().fill_(torch.nan)  # what a step before has left
    first = places.gradient(above, x)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
    second = places.gradient(2 * above, x)
    torch.testing.assert_close(second, 2 * first, rtol=1e-4, atol=1e-5)  # and the first is not overwritten


def layer_pair(bias: bool = True, keep: float = 0.3) -> tuple[nn.Linear, SparseLinear]:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(11, 7, bias=bias))
    mask = torch.rand(7, 11) < keep
    with torch.no_grad():
        dense[0].weight.mul_(mask)
    return dense[0], become_sparse(copy.deepcopy(dense), {"0.weight": mask})["0.weight"]


@pytest.mark.parametrize("shape", [(5, 11), (11,), (2, 3, 11), (0, 11)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("of_input", [True, False])
def test_a_sparse_layer_gives_what_a_linear_one_gives(shape: tuple[int, ...], bias: bool, of_input: bool) -> None:
    dense, layer = layer_pair(bias)
    x = torch.randn(shape)
    xs = [x.clone().requires_grad_(of_input) for _ in range(2)]
    out = [module(each) for module, each in zip((dense, layer), xs, strict=True)]
    torch.testing.assert_close(out[1], out[0], rtol=1e-4, atol=1e-5)
    above = torch.randn_like(out[0])
    for each in out:
        each.backward(above)
    assert dense.weight.grad is not None and layer.values.grad is not None
    torch.testing.assert_close(layer.values.grad, layer.places.survivors(dense.weight.grad), rtol=1e-4, atol=1e-5)
    if bias:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad, rtol=1e-4, atol=1e-5)
    if of_input:
        torch.testing.assert_close(xs[1].grad, xs[0].grad, rtol=1e-4, atol=1e-5)
    assert isinstance(layer, nn.Linear)
    assert [name for name, _ in layer.named_parameters()] == ["bias"] * bias + ["values"]


def test_the_weight_of_a_sparse_layer_can_be_read_and_has_a_gradient() -> None:
    dense, layer = layer_pair()
    assert not layer.was_read
    for module in (dense, layer):
        (module.weight**2).sum().backward()
    assert torch.equal(layer.weight, dense.weight) and layer.was_read
    assert layer.values.grad is not None and dense.weight.grad is not None
    assert torch.equal(layer.values.grad, layer.places.survivors(dense.weight.grad))


# Trainings


@every_kind
def test_trainings_agree_with_dense_ones_to_rounding_over_hundreds_of_steps(kind: str, options: dict[str, Any]) -> None:
    def make() -> nn.Module:
        return Mlp(30)

    plan = Plan(300, 50, lambda i: 0.003 / (1 + i / 100))
    dense, found = (training(make, plan, kind=kind, keep=0.2, sparse=names, **options) for names in ((), BOTH))
    assert found.network.leaves[0].shape == (int(random_masks(make(), 0.2)["fc1.weight"].sum()),)
    one, other = dense.run()[0], found.run()[0]
    for part in ("final", "best"):
        for name, tensor in getattr(one, part).items():
            torch.testing.assert_close(getattr(other, part)[name], tensor, rtol=2e-3, atol=2e-4)
    for mine, theirs in zip(other.evals, one.evals, strict=True):
        assert mine.val_loss == pytest.approx(theirs.val_loss, rel=1e-3)
        assert mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)
    for name, mask in random_masks(make(), 0.2).items():
        assert (other.final[name][~mask] == 0).all()


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets how many layers are computed as one, each time that some are."""
    made: list[int] = []
    run = sparse_linear._run

    def noted(x: Tensor, layers: Any, how: Any) -> Tensor:
        made.append(len(how))
        return run(x, layers, how)

    monkeypatch.setattr(sparse_linear, "_run", noted)
    return made


def looks(state: State) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}


def sequence(*between: nn.Module) -> nn.Module:
    ends = (nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 4, bias=False))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), *between, *ends)


@pytest.mark.parametrize(
    "between, runs",
    [([], [3]), ([nn.Dropout(0.5)], [1, 2]), ([nn.BatchNorm1d(20)], [1, 2]), ([nn.Linear(20, 20)], [4])],
    ids=["plain", "dropout", "batch norm", "no ReLU"],
)
def test_layers_in_a_sequence_are_one_and_train_as_dense_ones(
    between: list[nn.Module], runs: list[int], joined: list[int]
) -> None:
    """Also under dropout, which draws the same, and whatever is a layer's neighbour."""

    def make() -> nn.Module:
        return sequence(*copy.deepcopy(between))

    names = [name for name, weight in make().named_parameters() if weight.ndim == 2]
    plan = Plan(60, 20, constant(0.003))
    one = training(make, plan, keep=0.2).run()[0]
    found = training(make, plan, keep=0.2, sparse=names)
    other = found.run()[0]
    assert joined[: len(runs)] == runs
    for part in ("final", "best"):
        assert looks(getattr(one, part)) == looks(getattr(other, part))
        for name, tensor in getattr(one, part).items():
            torch.testing.assert_close(getattr(other, part)[name], tensor, rtol=2e-3, atol=2e-4)


CHANCES: dict[str, Callable[[], float]] = {  # after the seed 0, all give less than 0.5
    "chance": lambda: float(torch.rand(())),
    "chance of Python": lambda: 1 - random.random(),
    "chance of NumPy": lambda: 1 - np.random.rand(),
}


class Looks(nn.Module):
    """Uses a sequence as a whole, in parts, one of its layers, or those that chance leaves; its head starts at 0."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.layers, self.head = way, sequence(), nn.Linear(4, 4)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "whole":
            return self.head(self.layers(x))
        if self.way == "parts":
            low = self.layers[:3](x)
            return self.head(self.layers[3:](low) + low.mean(1, keepdim=True))
        if self.way == "one":
            return self.head(self.layers(x)) + self.layers[1](x.flatten(1))[:, :4]
        for layer in self.layers:
            if isinstance(layer, nn.ReLU) and self.training and CHANCES[self.way]() < 0.3:
                continue
            x = layer(x)
        return self.head(x)


@tiny_layers
@pytest.mark.parametrize("way", ["whole", "parts", "one", *CHANCES])
def test_what_takes_parts_of_a_sequence_gets_the_layers_themselves(way: str) -> None:
    def make() -> nn.Module:
        return Looks(way)

    names = [f"layers.{i}.weight" for i in (1, 3, 5)]
    assert chosen(make, 0.2)[:3] == names
    plan, trained = Plan(40, 20, constant(0.003)), []
    for each in ((), names):
        chance.seed(0)
        trained.append(training(make, plan, keep=0.2, sparse=each).run()[0])
    one, other = trained
    for name, tensor in one.final.items():
        torch.testing.assert_close(other.final[name], tensor, rtol=2e-3, atol=2e-4)


class Penalised(nn.Module):
    """Looks at its matrices by their shape, behind a scale that starts at 0, or now and then."""

    def __init__(self, scale: float, way: str = "") -> None:
        super().__init__()
        self.layers, self.scale = sequence(), nn.Parameter(torch.tensor([scale]))
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        if self.way and CHANCES[self.way]() < 0.5:
            return out
        return out + self.scale * sum(p.sum() for p in self.parameters() if p.ndim == 2)


@tiny_layers
@pytest.mark.parametrize("scale, way", [(1.0, ""), (0.0, ""), *((1.0, way) for way in CHANCES)])
def test_a_model_that_computes_something_else_with_sparse_layers_has_none(scale: float, way: str) -> None:
    assert chosen(lambda: Penalised(scale, way), 0.2) == []


def normed(depth: int = 8, width: int = 200) -> nn.Module:
    sizes = itertools.pairwise([64] + depth * [width])
    layers = [layer for pair in sizes for layer in (nn.Linear(*pair), nn.BatchNorm1d(width), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 4))


@tiny_layers
@pytest.mark.parametrize("in_memory", [True, False])
def test_what_batch_norm_makes_of_rounding_is_no_other_function(in_memory: bool) -> None:
    """Two examples may differ by little more than that."""
    data = {part: batches(40, seed) for seed, part in enumerate(("train", "validation", "test"))}
    x = data["train"][0][0]
    x[1] = x[0]
    x[1, 0, 3, 3] += 0.01
    feed = take(data, CPU, in_memory=in_memory).source.feed([0], 40, 10, CPU)
    model, masks = seeded(normed), random_masks(normed(), 0.2)
    assert len(sparse.choose(model, [masks], sparse.limits(Config()), feed)) == 9


@tiny_layers
def test_a_layer_that_cannot_be_copied_as_it_is_leaves_others_sparse() -> None:
    def make() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return nn.Sequential(
                nn.Flatten(), nn.Linear(64, 20), nn.utils.weight_norm(nn.Linear(20, 20)), nn.Linear(20, 4)
            )

    assert chosen(make, {"1.weight": torch.arange(64 * 20).view(20, 64) % 10 == 0}) == ["1.weight"]


@tiny_layers
def test_layers_of_a_sequence_with_hooks_are_called() -> None:
    seen: list[Tensor] = []
    model = sequence()
    model[3].register_forward_hook(lambda module, inputs, output: seen.append(output))
    masks = random_masks(model, 0.2)
    become_sparse(model, masks)
    model(torch.randn(2, 1, 8, 8))
    assert [tensor.shape for tensor in seen] == [(2, 12)]


def same(one: Trained, other: Trained) -> bool:
    parts = ("final", "best", "kept", "extra")
    equal = all(
        getattr(one, part).keys() == getattr(other, part).keys()
        and all(torch.equal(tensor, getattr(other, part)[name]) for name, tensor in getattr(one, part).items())
        for part in parts
    )
    return equal and (one.iteration, one.evals) == (other.iteration, other.evals)


@every_kind
def test_a_sparse_training_goes_on_from_its_checkpoint_with_the_same_bits(kind: str, options: dict[str, Any]) -> None:
    plan, more = Plan(11, 4, constant(), keep_at=6), {"kind": kind, "keep": 0.2, "sparse": BOTH, **options}
    expected = training(Mlp, plan, **more).run()[0]
    assert same(training(Mlp, plan, **more).run()[0], expected), "the same training twice differs"
    for place in range(11):
        saved: list[list[Trained]] = []
        asked = iter([False] * place + [True])
        with pytest.raises(Stopped):
            training(Mlp, plan, **more).run(checkpoint=saved.append, stop=lambda a=asked: next(a))
        assert same(training(Mlp, plan, resume=saved[0], **more).run()[0], expected)


@every_kind
def test_checkpoints_look_dense_and_either_goes_on_from_the_others(kind: str, options: dict[str, Any]) -> None:
    plan = Plan(12, 4, constant(0.003))
    states: dict[tuple[str, ...], list[list[Trained]]] = {(): [], BOTH: []}
    ends = {}
    for names, saved in states.items():
        made = training(Mlp, plan, kind=kind, keep=0.2, sparse=names, **options)
        ends[names] = made.run(checkpoint=lambda s, to=saved: to.append(copy.deepcopy(s)), checkpoint_every=0)[0]
    (dense, *_), (found, *_) = (states[names][0] for names in states)
    places = {mask.shape: mask for mask in random_masks(Mlp(), 0.2).values()}
    for part in ("final", "best", "extra"):
        one, other = getattr(dense, part), getattr(found, part)
        assert looks(one) == looks(other)
        for name in one.keys() - {"random"}:  # an optimiser may hold anything for pruned weights
            kept = places.get(one[name].shape, torch.ones_like(one[name], dtype=torch.bool))
            torch.testing.assert_close(other[name][kept], one[name][kept], rtol=1e-3, atol=1e-4)
    for names, start in (((), found), (BOTH, dense)):
        crossed = training(Mlp, plan, kind=kind, keep=0.2, sparse=names, resume=[start], **options).run()[0]
        for name, tensor in ends[names].final.items():
            torch.testing.assert_close(crossed.final[name], tensor, rtol=1e-3, atol=1e-4)


# The choice


def chosen(make: Callable[[], nn.Module], keep: float | Masks = 0.05, trials: int = 1, **flags: Any) -> list[str]:
    masks = random_masks(make(), keep) if isinstance(keep, float) else keep
    feed = Feed(make_images(), [0] * trials, 40, 10, CPU)
    return sparse.choose(make(), [masks] * trials, sparse.limits(Config(**flags)), feed)


def large() -> nn.Module:
    return Mlp(LARGE)


def test_what_is_sparse_is_chosen_by_the_settings_and_the_share_of_survivors() -> None:
    assert chosen(large) == [*BOTH] and chosen(large, sparse="off") == [] and chosen(large, precision="bf16") == []
    assert chosen(Mlp) == [], "small layers alone do not pay"
    assert chosen(large, trials=2) == [] and chosen(large, stack=2) == [], "stacked trials have masks of their own"
    small, most = sparse.limits(Config()).values()
    masks = {"fc1.weight": torch.zeros(LARGE, 64), "fc2.weight": torch.zeros(4, LARGE)}
    for name, highest, other in (("fc1.weight", most, []), ("fc2.weight", small, ["fc1.weight"])):
        last = int(highest * masks[name].numel())
        for count in (1, last, last + 1):
            masks[name] = (torch.arange(masks[name].numel()) < count).float().view(masks[name].shape)
            assert chosen(large, masks) == [*other, *([name] if count <= last else [])], (name, count)
        masks[name] = (torch.arange(masks[name].numel()) < last).float().view(masks[name].shape)
    assert sparse.limits(Config(batch_size=1000))["more"] < most


def test_where_bfloat16_tiles_make_dense_products_quick_sparsity_pays_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def limits() -> list[float]:
        return [sparse.limits(Config(precision=precision))["more"] for precision in ("fast", "fp32")]

    fast, strict = limits()
    monkeypatch.setattr(kernels, "amx", lambda: True)
    assert 0 < limits()[0] < fast and limits()[1] == strict


class Reads(Mlp):
    """Looks at a weight itself, in one of the modes."""

    def __init__(self, training: bool) -> None:
        super().__init__()
        self.looks = training

    def forward(self, x: Tensor) -> Tensor:
        if self.training == self.looks:
            self.fc1.weight.data.clamp_(-1, 1)
        return super().forward(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat, self.one, self.two, self.out = nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(self.one(self.flat(x))))


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Others(nn.Module):
    """A layer of one's own kind, a frozen one, and one of double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.frozen, self.out = Own(64, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.precise = nn.Linear(16, 16, dtype=torch.float64)
        self.frozen.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.precise(self.frozen(self.own(x.flatten(1))).double()).float())


class Hooked(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.fc1.bias.register_hook(lambda gradient: 2 * gradient)


class Fails(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 10:
            raise ValueError("needs whole batches")
        return super().forward(x)


@tiny_layers
@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: Reads(True), ["fc2.weight"]),
        (lambda: Reads(False), ["fc2.weight"]),
        (Tied, ["out.weight"]),
        (Others, ["out.weight"]),
        (Hooked, ["fc2.weight"]),
        (Fails, []),
        (lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 4))), []),
        (lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(64, 4))), []),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 2, 16, batch_first=True), 1), []),
    ],
    ids=[
        "read in training",
        "read in evaluation",
        "tied",
        "others",
        "hooked",
        "fails",
        "weight_norm",
        "spectral_norm",
        "attention",
    ],
)
def test_only_layers_whose_weight_nothing_else_uses_are_sparse(
    make: Callable[[], nn.Module], expected: list[str]
) -> None:
    model = make()
    before = models.state_of(model)
    masks = {name: torch.arange(x.numel()).view(x.shape) % 20 == 0 for name, x in before.items() if x.ndim == 2}
    state, mode = chance.state(CPU), model.training
    assert sparse.choose(model, [masks], sparse.limits(Config()), Feed(make_images(), [0], 40, 10, CPU)) == expected
    assert all(torch.equal(now, state[name]) for name, now in chance.state(CPU).items()) and model.training == mode
    after = models.state_of(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), "the trial changed the model"


@tiny_layers
def test_a_pytorch_without_quick_sparse_products_trains_densely(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sparse.available()
    for name, fake in (("product", lambda self, values, x: 2 * x[:5]), ("gradient", None)):
        with monkeypatch.context() as patch:
            patch.setattr(Places, name, fake)
            sparse.available.cache_clear()
            assert not sparse.available() and chosen(Mlp) == []
    sparse.available.cache_clear()
    assert chosen(Mlp)


# Experiments

ROUNDS = {"prune_iterations": 5, "prune_percent": 50, "end_iter": "12it"}  # the last three are sparse


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of survivors of each sparse product that is made."""
    made: list[int] = []
    product = Places.product

    def noted(self: Places, values: Tensor, x: Tensor) -> Tensor:
        made.append(self.count)
        return product(self, values, x)

    monkeypatch.setattr(Places, "product", noted)
    return made


@tiny_layers
def test_experiments_are_sparse_where_the_table_says_and_their_files_look_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: list[int] = []
    run = Training.run

    def noted(self: Training, *args: Any, **options: Any) -> Any:
        layers.append(len(self.network.places))
        return run(self, *args, **options)

    monkeypatch.setattr(Training, "run", noted)
    found = do(settings(place, name="auto", **ROUNDS))[0]
    assert layers == [0, 0, 2, 2, 2]
    other = do(settings(place, name="off", sparse="off", **ROUNDS))[0]
    assert layers[5:] == [0] * 5
    for number in range(5):
        one, two = (
            tickets.load_tensors(each.saves / f"trained_{number:02d}.safetensors")[0] for each in (found, other)
        )
        assert {name: (x.shape, x.dtype) for name, x in one.items()} == {n: (x.shape, x.dtype) for n, x in two.items()}
        mask = tickets.read_ticket(found, number).masks["layers.1.weight"]
        assert (one["layers.1.weight"][~mask] == 0).all() and one["layers.1.weight"][mask].ne(0).any()
    for name in ("rounds", "evals", "layers"):
        one, two = ((each.dumps / f"{name}.csv").read_text().splitlines() for each in (found, other))
        assert one[0] == two[0] and len(one) == len(two)
    one, two = (tickets.read_checkpoint(each)[1] for each in (found, other))
    for name, tensor in two.final.items():
        torch.testing.assert_close(one.final[name], tensor, rtol=1e-2, atol=1e-3)


@tiny_layers
@pytest.mark.parametrize("arm", ["lt", "reinit", "finetune", "random"])
def test_the_same_command_gives_the_same_bytes_also_when_it_is_stopped_in_a_sparse_round(place: Path, arm: str) -> None:
    config = settings(place, checkpoint_every=0, prune_type=arm, rewind="3it", **ROUNDS)
    whole, again, stopped = (replace(config, root=place / name) for name in ("whole", "again", "stopped"))
    asked = itertools.count()
    with pytest.raises(Stopped):  # in the fourth round
        do(stopped, stop=lambda: next(asked) > 65)
    assert tables.finished_rounds(runs_of(stopped)[-1]) == 3
    for each in (whole, again, stopped):
        do(each)
    assert_same(results(again.root), results(whole.root))
    assert_same(results(stopped.root), results(whole.root))


@tiny_layers
def test_runs_of_before_sparse_training_go_on_densely(
    place: Path, monkeypatch: pytest.MonkeyPatch, products: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(place, quiet=False, **ROUNDS)
    with monkeypatch.context() as patch:
        patch.setattr(sparse, "limits", lambda config: {})
        (run,) = session.run(replace(config, prune_iterations=3))
    about = run.dumps / "config.json"
    written = read_json(about)
    del written["sparse_up_to"]
    about.write_text(json.dumps(written))
    capsys.readouterr()
    session.run(config)
    assert not products and "begun" in capsys.readouterr().out
    (dense,) = session.run(replace(config, sparse="off", root=place / "off"))
    for name in ("rounds", "evals", "layers"):
        assert (run.dumps / f"{name}.csv").read_bytes() == (dense.dumps / f"{name}.csv").read_bytes()
    session.run(replace(config, overwrite=True))
    assert products and read_json(about)["sparse_up_to"] == sparse.limits(config)


@tiny_layers
def test_a_run_goes_on_by_the_rule_it_began_with(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where machines with and without AMX share a folder: numbers must not depend on who goes on."""
    config = settings(place, **ROUNDS)
    with monkeypatch.context() as tiles:
        tiles.setattr(kernels, "amx", lambda: True)
        (whole,) = session.run(replace(config, root=place / "whole"))
        session.run(replace(config, prune_iterations=2))
    layers: list[int] = []
    trained = Training.run

    def noted(self: Training, *args: Any, **options: Any) -> Any:
        layers.append(len(self.network.places))
        return trained(self, *args, **options)

    monkeypatch.setattr(Training, "run", noted)
    (run,) = session.run(config)
    assert layers == [0, 2, 2], "without tiles the third round would be sparse too"
    for name in ("rounds", "evals", "layers"):
        assert (run.dumps / f"{name}.csv").read_bytes() == (whole.dumps / f"{name}.csv").read_bytes()


@tiny_layers
def test_config_json_says_from_where_on_and_tickets_are_evaluated_by_the_same_products(
    place: Path, products: list[int]
) -> None:
    (run,), (other,) = (session.run(settings(place, sparse=way, **ROUNDS)) for way in ("auto", "off"))
    said = [read_json(each.dumps / "config.json") for each in (run, other)]
    assert [about["sparse_up_to"] for about in said] == [sparse.limits(Config()), {}]
    assert [about["deciding"].get("sparse") for about in said] == [None, "off"] and run.dumps != other.dumps
    for each, number, sparsely in ((run, 0, False), (run, 4, True), (other, 4, False)):
        products.clear()
        ticket = lth.load_ticket(each.saves, round=number)
        assert float(f"{ticket.evaluate(place / 'data' / 'tiny.npz', device='cpu'):.10g}") == ticket.row["test"]
        assert bool(products) == sparsely


@tiny_layers
def test_missing_products_are_said_once_and_all_is_dense(
    place: Path, monkeypatch: pytest.MonkeyPatch, products: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sparse, "available", lambda: False)
    (run, _) = session.run(settings(place, quiet=False, trials=2, **ROUNDS))
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("no quick sparse products") == 1 and not products
    for net, often in ((Mlp(), 1), (WithOptim(), 0)):  # an optimiser of one's own never has sparse rounds
        find(net, quiet=False)
        assert " ".join(capsys.readouterr().out.split()).count("no quick sparse products") == often
    assert read_json(run.dumps / "config.json")["sparse_up_to"] == {}


@tiny_layers
def test_networks_of_the_users_own_are_sparse_too_but_for_their_own_optimisers(
    tmp_path: Path, products: list[int]
) -> None:
    rounds = {"rounds": 4, "prune_rule": prune.magnitude(0.5)}
    for name, make, more, sparsely in (
        ("own", Mlp, {}, True),
        ("off", Mlp, {"sparse": "off"}, False),
        ("optim", WithOptim, {}, False),  # which may look at whole matrices
    ):
        products.clear()
        net = seeded(make)
        history = find(net, save=tmp_path / name, **rounds, **more)
        assert bool(products) == sparsely, name
        assert accuracy(net, tiny()["test"]) == pytest.approx(history[-1]["test"])
        (config,) = (tmp_path / name).rglob("config.json")
        assert bool(read_json(config)["sparse_up_to"]) == sparsely


@tiny_layers
def test_streamed_data_train_sparsely_and_their_loaders_do_not_notice(products: list[int]) -> None:
    few = {"rounds": 3, "prune_rule": prune.magnitude(0.5), "iterations": 4}
    passes: list[int] = []

    class Counted(list[Any]):
        def __iter__(self) -> Any:
            passes.append(1)
            return super().__iter__()

    counts = []
    for way in ("auto", "off"):
        passes.clear()
        find(seeded(Mlp), {**tiny(), "validation": Counted(batches(40, 1))}, in_memory=False, sparse=way, **few)
        counts.append(len(passes))
    assert products and counts[0] == counts[1]


class Convolution(Mlp):
    """Takes tokens, and views what its convolution gives."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.conv = nn.Embedding(5, 8), nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.tokens(x)[:, None])
        return super().forward(x.view(len(x), -1)[:, :64])


@tiny_layers
def test_streamed_models_are_tried_on_examples_that_were_drawn(products: list[int]) -> None:
    """Zeros of floating point are no tokens: a trial with those would fail whatever is asked."""
    torch.manual_seed(0)
    data = {part: [(torch.randint(5, (10, 8)), torch.arange(10) % 4)] * 3 for part in ("train", "validation", "test")}
    few = {"rounds": 3, "prune_rule": prune.magnitude(0.5), "iterations": 4}
    remaining = []
    for in_memory in (False, True):
        products.clear()
        remaining.append([row["remaining"] for row in find(seeded(Convolution), data, in_memory=in_memory, **few)])
        assert products, f"in_memory={in_memory}"
    assert remaining[0] == remaining[1]


@tiny_layers
def test_a_layer_without_survivors_stays_dense() -> None:
    masks = random_masks(Mlp(), 0.1)
    masks["fc1.weight"][:] = False
    feed = Feed(make_images(), [0], 40, 10, CPU)
    names = sparse.choose(Mlp(), [masks], sparse.limits(Config()), feed)
    assert names == ["fc2.weight"]
    network = Network(Mlp(), [models.state_of(Mlp())], [masks], CPU, sparse=names)
    assert (network.state(0)["fc1.weight"] == 0).all()
