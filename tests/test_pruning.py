"""Masks to the weight: counts, ties, nesting, rates by kind of layer, what is never pruned, the bridge to PyTorch."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from helpers import random_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import prune_lowest
from torch import Tensor, nn

from lth import prune, pruning
from lth.settings.config import Config

pytestmark = pytest.mark.versions

Shapes = list[tuple[int, ...]]
SHAPES = st.lists(
    st.sampled_from([(1, 1), (3, 2), (7, 5), (10, 10), (4, 3, 3, 3), (2, 1, 5, 5), (13,)]), min_size=1, max_size=4
)
PERCENTS = st.one_of(st.sampled_from([0.0, 10.0, 20.0, 50.0, 100.0]), st.floats(0, 100))
QUICK = settings(max_examples=60, deadline=None)


def scores_of(shapes: Shapes, seed: int, levels: int = 0) -> dict[str, Tensor]:
    """Random scores, of only so many different values if `levels` is given."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.rand(shape, generator=generator) for shape in shapes]
    return {f"layer{i}": (score * levels).floor() if levels else score for i, score in enumerate(drawn)}


@QUICK
@given(SHAPES, st.data(), st.sampled_from(["layer", "global"]), st.integers(0, 99), st.integers(0, 3))
def test_the_lowest_percentage_goes_in_every_round(
    shapes: Shapes, data: st.DataObject, scope: str, seed: int, levels: int
) -> None:
    masks = pruning.dense(scores_of(shapes, seed))
    one = data.draw(PERCENTS)
    percents = {name: one if scope == "global" else data.draw(PERCENTS) for name in masks}
    pools = [list(masks)] if scope == "global" else [[name] for name in masks]
    for number in range(8):
        before, scores = masks, scores_of(shapes, seed + number, levels)
        masks = prune_lowest(scores, before, percents, scope)
        assert not any((masks[name] & ~before[name]).any() for name in masks), "a pruned weight came back"
        for pool in pools:
            gone = torch.cat([scores[name][before[name] & ~masks[name]] for name in pool])
            left = torch.cat([scores[name][masks[name]] for name in pool])
            assert len(gone) == round((len(gone) + len(left)) * percents[pool[0]] / 100)
            assert not len(gone) or not len(left) or gone.max() <= left.min()


def test_globally_layers_of_another_percentage_keep_out_of_the_competition() -> None:
    scores = {"a": 1 + torch.arange(100.0), "b": torch.arange(100.0) / 1000, "output": torch.zeros(50)}
    masks = prune_lowest(scores, pruning.dense(scores), {"a": 20.0, "b": 20.0, "output": 0.0}, "global")
    assert pruning.survivors(masks) == {"a": 100, "b": 60, "output": 50}


def test_of_equal_scores_the_first_in_memory_order_goes_first() -> None:
    masks = prune_lowest({"w": torch.ones(2, 5)}, {"w": torch.ones(2, 5, dtype=torch.bool)}, {"w": 30.0})
    assert masks["w"].flatten().tolist() == [False] * 3 + [True] * 7


def test_masks_that_were_given_stay_and_share_no_memory() -> None:
    scores = scores_of([(7, 5), (4, 3)], 0)
    before = pruning.dense(scores)
    masks = prune_lowest(scores, before, dict.fromkeys(scores, 50.0), "global")
    masks["layer0"].fill_(False)
    assert pruning.remaining(before) == 100 and pruning.survivors(masks)["layer1"] > 0


class Kinds(nn.Module):
    """Two convolutions (one of them transposed), two hidden Linear layers and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.output_first = nn.Linear(7, 4)  # registered first: what matters is which Linear layer comes last
        self.conv, self.up = nn.Conv2d(1, 10, 3), nn.ConvTranspose2d(10, 3, 2)
        self.hidden, self.last = nn.Linear(50, 20), nn.Linear(20, 10)
        self.norm, self.layer_norm, self.embedding = nn.BatchNorm2d(10), nn.LayerNorm(20), nn.Embedding(6, 3)
        self.token = nn.Parameter(torch.ones(5, 5))
        self.gru = nn.GRU(3, 4)


def percents(**flags: float) -> dict[str, float]:
    return pruning.percents(Kinds(), Config(**{"prune_percent": 20.0, **flags}).rates())


@pytest.mark.parametrize(
    "flags, conv, fc, output",
    [
        ({"conv_percent": 10}, 10, 20, 20),
        ({"fc_percent": 30, "output_percent": 5}, 20, 30, 5),
        ({"conv_percent": 10, "prune_percent": 50}, 10, 50, 50),
    ],
)
def test_rates_by_kind_of_layer(flags: dict[str, float], conv: float, fc: float, output: float) -> None:
    expected = {"output_first.weight": fc, "conv.weight": conv, "up.weight": conv}
    expected |= {"hidden.weight": fc, "last.weight": output, "gru.weight_ih_l0": fc, "gru.weight_hh_l0": fc}
    found = percents(**flags)
    assert found == expected
    masks = pruning.dense(pruning.prunable(Kinds()))
    once = prune_lowest(pruning.random_scores(masks, torch.Generator()), masks, found)
    for name, mask in once.items():
        assert int(mask.sum()) == mask.numel() - round(mask.numel() * expected[name] / 100)


def test_only_weight_matrices_and_filters_are_prunable() -> None:
    names = ["output_first.weight", "conv.weight", "up.weight", "hidden.weight", "last.weight"]
    names += ["gru.weight_ih_l0", "gru.weight_hh_l0"]
    assert list(pruning.prunable(Kinds())) == names
    assert list(pruning.layer_kinds(Kinds()).values()) == ["fc", "conv", "conv", "fc", "output", "fc", "fc"]
    assert pruning.prunable(Kinds(), embeddings=True).keys() - names == {"embedding.weight"}
    assert pruning.layer_kinds(Kinds(), embeddings=True)["embedding.weight"] == "fc"


def test_an_output_layer_that_is_not_defined_last_is_said() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(64, 10), nn.Linear(784, 64)

    assert pruning.layer_kinds(HeadFirst())["body.weight"] == "output"
    told = pruning.output_layer_note(HeadFirst(), classes=10)
    assert "for body.weight" in told and "64 outputs, but head.weight has" in told
    assert pruning.output_layer_note(HeadFirst(), classes=64) == "" == pruning.output_layer_note(HeadFirst(), classes=7)


@pytest.mark.parametrize(
    "layer, count",
    [
        (nn.Conv2d(4, 4, 3, groups=4), 36),
        (nn.PReLU(), 0),
        (nn.LSTM(2, 3, num_layers=2, bidirectional=True), 2 * 4 * (6 + 9) + 2 * 4 * (18 + 9)),
        (nn.LSTM(2, 3, proj_size=2), 4 * (6 + 6) + 6),
        (nn.GRUCell(2, 3), 3 * (6 + 9)),
        (nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True), 2 * 16 + 12 + 20),
        (nn.TransformerEncoderLayer(4, 2, 6), 4 * 16 + 2 * 24),
    ],
)
def test_kinds_of_layer(layer: nn.Module, count: int) -> None:
    assert sum(weight.numel() for weight in pruning.prunable(nn.Sequential(layer)).values()) == count


@QUICK
@given(SHAPES, st.data(), st.sampled_from(["layer", "global"]), st.integers(0, 6), st.integers(0, 99))
def test_pruning_at_once_counts_as_round_by_round(
    shapes: Shapes, data: st.DataObject, scope: str, rounds: int, seed: int
) -> None:
    scores = scores_of(shapes, seed)
    masks = dense = pruning.dense(scores)
    percents = {name: data.draw(st.sampled_from([0.0, 20.0, 33.3])) for name in masks}
    for _ in range(rounds):
        masks = prune_lowest(scores, masks, percents, scope)
    quotas = pruning.quotas(dense, percents, scope, rounds)
    assert [quota.keep for quota in quotas] == [sum(int(masks[n].sum()) for n in q.layers) for q in quotas]
    at_once = pruning.keep_highest(scores, dense, quotas)
    assert all(torch.equal(at_once[name], masks[name]) for name in masks), "the same scores keep the same weights"
    joined = pruning.merge_quotas(quotas, percents)
    assert sum(quota.keep for quota in joined) == sum(pruning.survivors(masks).values())
    assert sorted(name for quota in joined for name in quota.layers) == sorted(masks)
    competing = [set(quota.layers) for quota in joined if any(percents[name] for name in quota.layers)]
    assert competing == ([{name for name in masks if percents[name]}] if any(percents.values()) else [])


@QUICK
@given(SHAPES, st.integers(1, 30), st.floats(0, 1), st.integers(0, 99))
def test_in_steps_survivors_shrink_by_one_factor(shapes: Shapes, steps: int, share: float, seed: int) -> None:
    scores, seen = scores_of(shapes, seed), []
    masks = pruning.dense(scores)
    total = sum(mask.numel() for mask in masks.values())
    quota = pruning.Quota(list(masks), round(total * share))

    def score(masks: pruning.Masks) -> pruning.Weights:
        seen.append(sum(pruning.survivors(masks).values()))
        return scores

    found, _ = pruning.keep_highest_in_steps(score, masks, [quota], steps)
    once = pruning.keep_highest(scores, masks, [quota])
    assert all(torch.equal(found[name], once[name]) for name in masks)
    assert seen == [total, *(round(total * (quota.keep / total) ** (step / steps)) for step in range(1, steps))]


@QUICK
@given(SHAPES, st.floats(0, 1))
def test_erdos_renyi_counts_follow_the_formula(shapes: Shapes, share: float) -> None:
    """Densities are proportional to (fan in + fan out + width + height) by their product, none above 1."""
    masks = pruning.dense(scores_of(shapes, 0))
    total = sum(mask.numel() for mask in masks.values())
    keep = round(total * share)
    found = {q.layers[0]: q.keep for q in pruning.erdos_renyi(masks, [pruning.Quota(list(masks), keep)])}
    assert list(found) == list(masks) and sum(found.values()) == keep
    assert all(0 <= found[name] <= mask.numel() for name, mask in masks.items())
    low, high = 0.0, float(total)  # of the one factor, found by bisection
    for _ in range(200):
        factor = (low + high) / 2
        wanted = {name: min(factor * sum(mask.shape), mask.numel()) for name, mask in masks.items()}
        low, high = (factor, high) if sum(wanted.values()) < keep else (low, factor)
    assert all(abs(found[name] - wanted[name]) < 1 + 1e-6 for name in masks)


DIRECT: dict[str, Callable[[float, float], float]] = {
    "magnitude": lambda initial, final: abs(final),
    "magnitude_increase": lambda initial, final: abs(final) - abs(initial),
    "movement": lambda initial, final: abs(final - initial),
    "large_init": lambda initial, final: abs(initial),
    "large_final_same_sign": lambda initial, final: final * ((initial > 0) - (initial < 0)),
}


@pytest.mark.parametrize("method", sorted(DIRECT))
def test_criteria_against_direct_computation(method: str) -> None:
    values = [-3.0, -1.0, -0.25, 0.0, 0.5, 2.0]
    initial, final = torch.tensor(list(itertools.product(values, values))).unbind(1)
    found = pruning.score(method, {"w": initial}, {"w": final, "unasked": final})
    assert list(found) == ["w"]
    pairs = zip(initial.tolist(), final.tolist(), strict=True)
    assert found["w"].tolist() == [DIRECT[method](w0, w1) for w0, w1 in pairs]


@QUICK
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.sampled_from([1e-25, 1.0, 3e4]))
def test_lamp_divides_by_all_that_are_at_least_as_large(values: list[int], scale: float) -> None:
    """Equal weights have equal scores, the largest have one divided by their number, zeros have none."""
    final = torch.tensor(values, dtype=torch.float32).mul(scale).view(-1, 1)
    found = pruning.score("lamp", {"w": torch.zeros_like(final)}, {"w": final})["w"]
    expected = [w * w / max(sum(v * v for v in values if abs(v) >= abs(w)), 1) for w in values]
    assert found.shape == final.shape and found.flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_lamp_keeps_the_largest_of_each_layer_where_magnitudes_over_all_empty_one() -> None:
    final = {"a": torch.tensor([5.0, 6, 7, 8]), "b": torch.tensor([0.1, 0.2, 0.3, 0.9])}
    masks, one = pruning.dense(final), dict.fromkeys(final, 50.0)
    magnitude, lamp = (
        prune_lowest(pruning.score(method, final, final), masks, one, "global") for method in ("magnitude", "lamp")
    )
    assert pruning.survivors(magnitude) == {"a": 4, "b": 0}
    # The scores of a are 25/174, 36/149, 49/113 and 1; those of b are 0.01/0.95, 0.04/0.94, 0.09/0.9 and 1.
    assert {name: mask.tolist() for name, mask in lamp.items()} == {
        "a": [False, True, True, True],
        "b": [False, False, False, True],
    }


@QUICK
@given(st.integers(0, 99), st.integers(1, 40), st.floats(0.01, 100))
def test_large_init_large_final_keeps_what_is_above_one_percentile_of_both(seed: int, keep: int, scale: float) -> None:
    """As Zhou et al. do, whatever the scale of the trained weights, among the survivors alone."""
    initial, final, mask = torch.randn(3, 60, generator=torch.Generator().manual_seed(seed)).unbind()
    masks = {"w": mask > mask.sort().values[19]}
    final = final * scale * masks["w"]
    found = pruning.keep_highest(
        pruning.score("large_init_large_final", {"w": initial}, {"w": final}), masks, [pruning.Quota(["w"], keep)]
    )["w"]
    both = [x.abs()[masks["w"]] for x in (initial, final)]
    counts = []
    for rank in range(41):  # the highest percentile above which enough are left in both
        lowest = [x.sort().values[rank] if rank < 40 else torch.inf for x in both]
        above = masks["w"] & (initial.abs() >= lowest[0]) & (final.abs() >= lowest[1])
        counts.append((int(above.sum()), above))
    enough = [above for count, above in counts if count >= keep][-1]
    fewer = next(above for count, above in counts if count <= keep)
    assert found.sum() == keep and (found <= enough).all() and (found >= fewer).all()


def test_shuffling_and_random_pruning_are_uniform_and_keep_the_counts() -> None:
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[:4] = True
    generator, hits, cut = torch.Generator().manual_seed(0), torch.zeros(20, 20), torch.zeros(20, 20)
    for _ in range(400):
        moved = pruning.shuffled({"w": mask}, generator)["w"]
        assert moved.sum() == mask.sum()
        hits += moved
        scores = pruning.random_scores({"w": mask}, generator)
        cut += prune_lowest(scores, {"w": torch.ones_like(mask)}, {"w": 20.0})["w"]
    assert abs(hits / 400 - 0.2).max() < 0.1
    assert cut.sum() == 400 * 320 and abs(cut / 400 - 0.8).max() < 0.1


@QUICK
@given(st.lists(st.integers(0, 9), max_size=4), st.integers(0, 99))
def test_packing_gives_the_same_mask_back(shape: list[int], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pruning.pack(mask)
    assert bits.dtype == torch.uint8 and bits.ndim == 1 and len(bits) == -(-mask.numel() // 8)
    back = pruning.unpack(bits, tuple(shape))
    assert back.dtype == torch.bool and back.shape == mask.shape and torch.equal(back, mask)


@pytest.mark.parametrize("embedding", [False, True])
def test_tied_weights_stay_tied_and_sparse_when_they_are_trained(embedding: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 5) if embedding else nn.Linear(5, 9), nn.Linear(5, 9))
    model[1].weight = model[0].weight
    masks = random_masks(model)
    twin, (name,) = copy.deepcopy(model), masks  # the weight comes once
    prune.attach(model, masks)
    assert model[0].weight_orig is model[1].weight_orig and len(list(model.parameters())) == 2 + (not embedding)
    x = torch.randint(9, (4,)) if embedding else torch.rand(4, 9) @ torch.rand(9, 5)

    def loss(net: nn.Module) -> Tensor:
        return net[1](net[0](x)[:, :5]).pow(2).sum()  # type: ignore[index]

    loss(model).backward()
    with torch.no_grad():
        twin[0].weight.mul_(masks[name])
    loss(twin).backward()
    torch.testing.assert_close(model[0].weight_orig.grad, twin[0].weight.grad * masks[name])  # of both of its uses
    torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()
    loss(model)
    for layer in model:
        assert not layer.weight[~masks[name]].any() and torch.equal(layer.weight, model[0].weight)
    found = prune.detach(model)
    assert found.keys() == masks.keys() and torch.equal(found[name], masks[name])
    assert model[0].weight is model[1].weight and not model[1].weight[~masks[name]].any()


def test_fetch_layers() -> None:
    model = Kinds()
    layers = prune.fetch_layers(model)
    plain = [model.output_first, model.conv, model.up, model.hidden, model.last]
    assert [module for module, _ in layers] == [*plain, model.gru, model.gru]
    names = [f"{kind}_{of}_l0" for kind in ("weight", "bias") for of in ("ih", "hh")]
    assert [name for _, name in prune.fetch_layers(model, biases=True)] == ["weight", "bias"] * 5 + names
    assert (model.embedding, "weight") in prune.fetch_layers(model, embeddings=True)
    prune.attach(model, random_masks(model))
    assert prune.fetch_layers(model) == layers, "layers that are pruned already were left out"
    torch_prune.identity(model.embedding, "weight")
    assert (model.embedding, "weight") in prune.fetch_layers(model), "an embedding with a mask is pruned too"
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not list"):
        prune.fetch_layers([])  # type: ignore[arg-type]


@pytest.mark.parametrize("amount", [1, "0.2", float("nan")])
def test_rules_refuse_what_is_no_fraction(amount: object) -> None:
    with pytest.raises(ValueError, match="amount must be a fraction"):
        prune.magnitude(amount)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scope must be"):
        prune.random(0.5, "layers")
