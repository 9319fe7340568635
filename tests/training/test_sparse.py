"""Sparse products: the numbers of dense ones to rounding, the same files, chosen by settings and sparsity alone."""

import contextlib
import copy
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    CPU,
    Capture,
    Mlp,
    Patch,
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
from nets import TakesParts, UsesWeight
from own import WithOptim, accuracy, find, seeded, tiny
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

import lth
from lth import prune, rng
from lth.api import audit_files
from lth.commands import session
from lth.data.images import Feed
from lth.models import building
from lth.pruning import Masks
from lth.records import tables
from lth.records.store import Store, numbered
from lth.records.tables import runs_of
from lth.settings.config import Config
from lth.training import hardware, sparse
from lth.training.network import Network
from lth.training.schedule import Plan
from lth.training.sparse import Places, SparseLinear, become_sparse
from lth.training.train import Stopped, Trained

DECAY, BOTH = {"weight_decay": 0.05}, ("fc1.weight", "fc2.weight")
EXAMPLE = Feed(make_images(), [0], 40, 10, CPU).example()
large = partial(Mlp, 80)  # whose first layer is a large one

pytestmark = [
    pytest.mark.versions,
    pytest.mark.skipif(not sparse.available(), reason="this PyTorch has no quick sparse products"),
]


@pytest.fixture(autouse=True)
def tiny_layers_without_tiles(monkeypatch: Patch) -> None:
    """The rule for large layers holds for those of tests too, as it is on a processor without AMX."""
    monkeypatch.setattr(sparse, "SMALL", 0)
    monkeypatch.setattr(hardware, "has_amx", lambda: False)


@pytest.fixture
def sparse_layers(monkeypatch: Patch) -> list[int]:
    """Gets the number of sparse layers of each network that is trained or evaluated."""
    made: list[int] = []
    init = Network.__init__

    def noted(self: Network, *args: Any, **options: Any) -> None:
        made.append(len(options.get("sparse", ())))
        init(self, *args, **options)

    monkeypatch.setattr(Network, "__init__", noted)
    return made


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
    places._gradient.values().fill_(torch.nan)  # what a step before has left
    first = places.gradient(above, x)
    torch.testing.assert_close(first, places.survivors(above @ x.t()), rtol=1e-4, atol=1e-5)
    second = places.gradient(2 * above, x)
    torch.testing.assert_close(second, 2 * first, rtol=1e-4, atol=1e-5)  # and the first is not overwritten


@pytest.mark.parametrize("shape", [(5, 11), (11,), (2, 3, 11), (0, 11)])
@pytest.mark.parametrize("bias, of_input", [(True, True), (False, True), (True, False)])
def test_a_sparse_layer_gives_what_a_linear_one_gives(shape: tuple[int, ...], bias: bool, of_input: bool) -> None:
    torch.manual_seed(0)
    dense, mask = nn.Linear(11, 7, bias=bias), torch.rand(7, 11) < 0.3
    with torch.no_grad():
        dense.weight.mul_(mask)
    layer: SparseLinear = become_sparse(nn.Sequential(copy.deepcopy(dense)), {"0.weight": mask})["0.weight"]
    xs = [torch.linspace(-1, 2, math.prod(shape)).sin().view(shape).requires_grad_(of_input) for _ in range(2)]
    out = [module(each) for module, each in zip((dense, layer), xs, strict=True)]
    torch.testing.assert_close(out[1], out[0], rtol=1e-4, atol=1e-5)
    for each in out:
        each.pow(2).sum().backward()
    pairs: list[tuple[Any, Any]] = [(layer.values.grad, layer.places.survivors(dense.weight.grad))]  # type: ignore[arg-type]
    pairs += [(layer.bias.grad, dense.bias.grad)] if bias else []
    for actual, expected in [*pairs, *([(xs[1].grad, xs[0].grad)] if of_input else [])]:
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in layer.named_parameters()] == ["bias"] * bias + ["values"]
    assert torch.equal(layer.eval().weight, dense.weight)


def agree(one: Trained, other: Trained) -> None:
    for part in ("final", "best"):
        state, like = getattr(one, part), getattr(other, part)
        assert state.keys() == like.keys() and all(x.shape == like[name].shape for name, x in state.items())
        for name, tensor in state.items():
            torch.testing.assert_close(like[name], tensor, rtol=2e-3, atol=2e-4)
    losses = [[loss for each in of.evals for loss in (each.val_loss, each.train_loss)] for of in (one, other)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def sequence(*between: nn.Module) -> nn.Module:
    ends = (nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 4, bias=False))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), *between, *ends)


def hooked() -> nn.Module:
    model = sequence()
    model[3].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)  # which evaluates by a quick path of its own
    return nn.Sequential(nn.Flatten(1, 2), nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(64, 4))


@pytest.mark.parametrize(
    "make, runs",
    [
        (sequence, [3]),
        (lambda: sequence(nn.Dropout(0.5)), [1, 2]),
        (lambda: TakesParts(sequence(), "parts"), [1, 2, 1]),
        (lambda: TakesParts(sequence(), "one"), [3, 1, 1]),
        (lambda: TakesParts(sequence(), "chance"), [1, 1, 1, 1]),
        (hooked, [1, 1, 1]),
        (attention, [1]),
    ],
)
def test_sparse_networks_train_as_dense(make: Callable[[], nn.Module], runs: list[int], monkeypatch: Patch) -> None:
    """Also under dropout, which draws the same, and whatever is a layer's neighbour or takes parts of the sequence."""
    names, joined = chosen(make, 0.2), list[int]()
    assert len(names) == sum(type(module) is nn.Linear for module in make().modules())
    apply = sparse._apply
    monkeypatch.setattr(sparse, "_apply", lambda x, layers, specs: joined.append(len(specs)) or apply(x, layers, specs))
    trained = []
    for each in ((), names):
        rng.seed(0)
        made = training(make, Plan(40, 20, constant(0.1)), kind="sgd", keep=0.2, sparse=each)
        trained.append(made.run()[0])
    assert joined[: len(runs)] == runs
    agree(*trained)


@pytest.mark.parametrize("kind, options", [("adam", DECAY), ("adamw", DECAY), ("sgd", {**DECAY, "momentum": 0.9})])
def test_trainings_agree_and_continue_from_checkpoints(kind: str, options: dict[str, Any]) -> None:
    """Dense and sparse ones agree to rounding, a sparse one continues to the same bits, either from the other's."""
    plan = Plan(110, 40, lambda i: 0.003 / (1 + i / 100), rewind_at=60)
    more, masks = {"kind": kind, "keep": 0.2, **options}, random_masks(Mlp(), 0.2)
    ends: dict[tuple[str, ...], Trained] = {}
    saved: dict[tuple[str, ...], list[list[Trained]]] = {(): [], BOTH: []}
    for names, states in saved.items():
        made = training(Mlp, plan, sparse=names, **more)
        ends[names] = made.run(checkpoint=lambda s, to=states: to.append(copy.deepcopy(s)), checkpoint_every=0)[0]
    assert made.network.leaves[0].shape == (int(masks["fc1.weight"].sum()),)
    dense, sparse_end = ends.values()
    agree(dense, sparse_end)
    assert all((sparse_end.final[name][~mask] == 0).all() for name, mask in masks.items())
    for state in saved[BOTH]:
        continued = training(Mlp, plan, sparse=BOTH, resume=state, **more).run()[0]
        for part in ("final", "best", "rewind", "extra"):
            actual, reference = getattr(continued, part), getattr(sparse_end, part)
            assert actual.keys() == reference.keys() and all(
                torch.equal(actual[name], reference[name]) for name in actual
            )
        assert (continued.iteration, continued.evals) == (sparse_end.iteration, sparse_end.evals)
    for names, start in (((), saved[BOTH][0]), (BOTH, saved[()][0])):
        agree(ends[names], training(Mlp, plan, sparse=names, resume=start, **more).run()[0])


def chosen(make: Callable[[], nn.Module], keep: float | Masks = 0.05, trials: int = 1, **flags: Any) -> list[str]:
    masks = random_masks(make(), keep) if isinstance(keep, float) else keep
    return sparse.choose(make(), [masks] * trials, sparse.limits(Config(**flags)), EXAMPLE)


def test_what_is_sparse_is_chosen_by_the_settings_and_the_share_of_survivors(monkeypatch: Patch) -> None:
    monkeypatch.setattr(sparse, "SMALL", 4096)
    assert chosen(large) == [*BOTH] and chosen(large, sparse="off") == [] and chosen(large, precision="bf16") == []
    assert chosen(Mlp) == [], "small layers alone do not pay"
    assert chosen(large, trials=2) == [] and chosen(large, stack=2) == [], "stacked trials have masks of their own"
    small, most = sparse.limits(Config()).values()
    masks = {"fc1.weight": torch.zeros(80, 64), "fc2.weight": torch.zeros(4, 80)}
    for name, highest, other in (("fc1.weight", most, []), ("fc2.weight", small, ["fc1.weight"])):
        last = int(highest * masks[name].numel())
        for count, is_sparse in ((0, False), (1, True), (last + 1, False), (last, True)):
            masks[name] = (torch.arange(masks[name].numel()) < count).float().view(masks[name].shape)
            assert chosen(large, masks) == [*other, *([name] if is_sparse else [])], (name, count)
    assert sparse.limits(Config(batch_size=1000))["more"] < most
    strict = sparse.limits(Config(precision="fp32"))
    monkeypatch.setattr(hardware, "has_amx", lambda: True)  # dense products are quicker, by --precision fast
    assert 0 < sparse.limits(Config())["more"] < most and sparse.limits(Config(precision="fp32")) == strict


def weights(*places: int) -> list[str]:
    return [f"{place}.weight" for place in places]


TOUCHES = ("clips in training", "clips in evaluation", "multiplies", "replaces", "hook")


def others() -> nn.Module:
    """A layer whose gradient is watched, one with the old weight norm, two that share a weight, a frozen one, a last
    one: the only one to be sparse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = [nn.Linear(64, 16), weight_norm(nn.Linear(16, 16)), *(nn.Linear(16, 16) for _ in range(3))]
    layers[0].bias.register_hook(lambda gradient: 2 * gradient)
    layers[1](torch.zeros(2, 16))  # after which PyTorch copies none
    layers[3].weight = layers[2].weight
    layers[4].weight.requires_grad_(False)
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(16, 4))


@pytest.mark.parametrize(
    "make, expected",
    [
        *((lambda way=way: UsesWeight(way), ["fc2.weight"]) for way in TOUCHES),
        (lambda: UsesWeight("asks for the device"), [*BOTH]),
        *((lambda of=of: UsesWeight(f"penalises {of}"), []) for of in ("plain layers", "matrices", "vectors")),
        (others, weights(6)),
        (lambda: sequence(nn.Linear(7, 7)), []),  # which fails
        (lambda: sequence(nn.BatchNorm1d(20), nn.Linear(20, 20), nn.LayerNorm(20)), weights(1, 4, 6, 8)),
        (lambda: sequence(parametrizations.spectral_norm(nn.Linear(20, 20))), weights(1, 4, 6)),
    ],
)
def test_only_layers_that_own_their_weight_are_sparse(make: Callable[[], nn.Module], expected: list[str]) -> None:
    model = seeded(make)
    before = building.state_of(model)
    masks = {name: torch.arange(x.numel()).view(x.shape) % 20 == 0 for name, x in before.items() if x.ndim == 2}
    state = rng.state(CPU)
    assert sparse.choose(model, [masks], sparse.limits(Config()), EXAMPLE) == expected
    assert all(torch.equal(now, state[name]) for name, now in rng.state(CPU).items())
    assert all(map(torch.equal, building.state_of(model).values(), before.values())), "the trial changed the model"


def test_a_model_that_uses_a_weight_in_later_passes_only_ends_with_a_reason() -> None:
    make = partial(UsesWeight, "clips in training", range(4, 5))
    assert chosen(make, 0.2) == [*BOTH]
    with pytest.raises(RuntimeError, match="--sparse off"):
        training(make, Plan(10, 10, constant(0.003)), keep=0.2, sparse=BOTH).run()


@pytest.mark.parametrize("name", ["product", "gradient"])
def test_a_pytorch_without_quick_products_trains_densely(name: str, monkeypatch: Patch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Places, name, None)
        sparse.available.cache_clear()
        assert not sparse.available() and chosen(Mlp) == []
    sparse.available.cache_clear()
    assert chosen(Mlp)


ROUNDS = {"prune_iterations": 5, "prune_percent": 50, "end_iter": "12it"}  # the last three are sparse


@pytest.mark.parametrize("arm", ["lt", "finetune"])
def test_sparse_experiments_continue_with_the_same_bytes(place: Path, arm: str, sparse_layers: list[int]) -> None:
    config = settings(place, checkpoint_every=0, prune_type=arm, rewind="3it", name="x", **ROUNDS)
    off, whole, stopped = (replace(config, root=place / name) for name in ("off", "whole", "stopped"))
    polls = itertools.count()
    with pytest.raises(Stopped):  # in the fourth round
        do(stopped, stop=lambda: next(polls) > 65)
    assert tables.finished_rounds(runs_of(stopped)[-1]) == 3
    do(stopped)
    sparse_layers.clear()
    found, other = do(whole)[0], do(replace(off, sparse="off"))[0]
    assert sparse_layers == [0, 0, 2, 2, 2] + [0] * 5
    assert_same(results(stopped.root), results(whole.root))
    assert results(off.root).keys() == results(whole.root).keys()
    for number in range(5):
        one, two = (Store(run).weights(numbered("trained", number)) for run in (found, other))
        for name, tensor in two.items():
            torch.testing.assert_close(one[name], tensor, rtol=2e-3, atol=2e-4)
        assert torch.equal(one["layers.1.weight"] != 0, Store(found).ticket(number).masks["layers.1.weight"])


def test_a_run_continues_by_the_rule_it_began_with(place: Path, monkeypatch: Patch, sparse_layers: list[int]) -> None:
    """As where machines with and without AMX share a folder: numbers must not depend on who continues."""
    config = settings(place, **ROUNDS)
    monkeypatch.setattr(hardware, "uses_amx", lambda: False)  # only the choice of layers is pretended
    with monkeypatch.context() as tiles:
        tiles.setattr(hardware, "has_amx", lambda: True)
        (whole,) = session.run(replace(config, root=place / "whole"))
        session.run(replace(config, prune_iterations=2))
    sparse_layers.clear()
    (run,) = session.run(config)
    assert sparse_layers == [0, 2, 2], "without tiles the third round would be sparse too"
    assert_same(results(run.root, ("dumps",)), results(whole.root, ("dumps",)))


def test_with_bfloat16_tiles_evaluations_are_dense_and_trainings_sparse(monkeypatch: Patch) -> None:
    """The same logits, by the weight as a whole."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5)), torch.randn(7, 30)
    masks = {"0.weight": torch.rand(20, 30) < 0.2, "2.weight": torch.rand(5, 20) < 0.3}
    sparse.become_sparse(model, masks)
    with torch.no_grad():
        expected = model.eval()(x)
        calls = list[str]()
        product = sparse.sparse_product
        monkeypatch.setattr(hardware, "uses_amx", lambda: True)
        monkeypatch.setattr(sparse, "sparse_product", lambda *a: (calls.append("sparse"), product(*a))[1])
        torch.testing.assert_close(model(x), expected)
        assert not calls
    model.train()(x).sum().backward()
    assert calls


@pytest.mark.parametrize("arch_type", ["mlp", "drop"])
def test_tickets_are_evaluated_as_they_were_trained(place: Path, arch_type: str, sparse_layers: list[int]) -> None:
    """In every round, and from a loader too."""
    (run,) = session.run(settings(place, arch_type=arch_type, **ROUNDS))
    feed = lth.data.load("tiny", place / "data").feed([0], 1, 1, CPU)
    for data in (place / "data" / "tiny.npz", [*feed.test()]):
        sparse_layers.clear()
        for number in range(5):
            ticket = lth.load_ticket(run.saves, round=number)
            assert float(f"{ticket.evaluate(data, device='cpu'):.10g}") == ticket.row["test"], number
        assert sparse_layers == [0, 0, 2, 2, 2]


def test_masks_that_change_are_sparse_between_updates(place: Path, sparse_layers: list[int], capsys: Capture) -> None:
    """Stopped anywhere, continued, evaluated and audited as all others."""
    arms = ("set", "rigl", "gmp")
    config = settings(place, checkpoint_every=0, prune_type=arms, update_freq="2it", name="x", **ROUNDS)
    whole, stopped = (replace(config, root=place / name) for name in ("whole", "stopped"))
    for pause in (70, 95, 120, 10**6):
        polls = itertools.count()
        with contextlib.suppress(Stopped):
            do(stopped, stop=lambda: next(polls) > pause)  # noqa: B023
    do(whole)
    assert_same(results(stopped.root), results(whole.root))
    for run in session.run(replace(config, root=place / "run")):
        for number in range(5):
            sparse_layers.clear()
            ticket = lth.load_ticket(run.saves, round=number)
            for weights, column in (("trained", "test"), ("start", "supermask")):
                accuracy = ticket.evaluate(place / "data" / "tiny.npz", weights=weights, device="cpu")
                assert float(f"{accuracy:.10g}") == ticket.row[column], (run.arm, number, column)
            at_end = 2 * (number > 1)
            assert sparse_layers == [at_end, 0 if run.arm == "gmp" else at_end]
    assert audit_files.main([str(place / "run")]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("make, in_memory, layers", [(Mlp, True, 2), (Mlp, False, 2), (WithOptim, True, 0)])
def test_own_networks_are_sparse_too(make: Any, in_memory: bool, layers: int, sparse_layers: list[int]) -> None:
    """Which may look at whole matrices. Also on data that is streamed."""
    net = seeded(make)
    history = find(net, rounds=4, iterations=4, prune_rule=prune.magnitude(0.5), in_memory=in_memory)
    assert sparse_layers == [0, 0, layers, layers, layers][: len(sparse_layers)]
    assert accuracy(net, tiny()["test"]) == pytest.approx(history[-1]["test"])
