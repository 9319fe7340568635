"""Scores before training against finite differences and sums that can be written down."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from helpers import Conv, Mlp, make_images, random_masks
from nets import Attending, Failing
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lth import pruning
from lth.experiment.scores import SCORES, TEMPERATURE, scored
from lth.models import building

pytestmark = pytest.mark.versions


def batches(count: int = 3, size: int = 12) -> list[tuple[Tensor, Tensor]]:
    images = make_images()
    x, y = images.train.float() / 255, images.train_labels
    return [(x[i * size : (i + 1) * size], y[i * size : (i + 1) * size]) for i in range(count)]


def built(make: Any) -> nn.Module:
    return building.build(make, "glorot", 3)


def loss(model: nn.Module, scale: float = 1.0) -> Tensor:
    """The mean loss over the batches, in double precision."""
    parts = [cross_entropy(model(x.double()) / scale, y) for x, y in batches()]
    return torch.stack(parts).mean()


def everything(model: nn.Module) -> pruning.Masks:
    return pruning.dense(pruning.prunable(model))


def slopes(exact: nn.Module, names: Iterable[str], of: Callable[[], float]) -> Iterator[tuple[str, int, float]]:
    """How fast `of` changes when single weights of each layer are scaled, by finite differences."""
    step = 1e-5
    for name in names:
        weight = exact.get_parameter(name).data.view(-1)
        for place in range(0, weight.numel(), max(weight.numel() // 9, 1)):
            value, ends = weight[place].item(), []
            for factor in (1 + step, 1 - step):
                weight[place] = value * factor
                ends.append(of())
            weight[place] = value
            yield name, place, (ends[0] - ends[1]) / (2 * step)


def test_snip_is_how_fast_the_loss_changes_when_a_weight_is_scaled() -> None:
    model, exact = built(Mlp), built(Mlp).double()
    masks = everything(model)
    found = scored("snip", model, masks, batches(), cross_entropy)
    for name, place, slope in slopes(exact, masks, lambda: loss(exact).item()):
        assert found[name].view(-1)[place].item() == pytest.approx(abs(slope), rel=1e-5)


@pytest.mark.parametrize("pruned", [False, True])
def test_grasp_is_what_a_weight_adds_to_the_gradients_norm(pruned: bool) -> None:
    """w Hg is half the derivative of the squared norm of the survivors' gradient when the weight is scaled."""
    model, exact = built(Mlp), built(Mlp).double()
    masks = random_masks(model) if pruned else everything(model)
    for net in (model, exact):
        with torch.no_grad():
            for name, mask in masks.items():
                net.get_parameter(name).mul_(mask)
    found = scored("grasp", model, masks, batches(), cross_entropy)

    def norm() -> float:
        slopes = torch.autograd.grad(loss(exact, TEMPERATURE), [exact.get_parameter(name) for name in masks])
        return sum(float((slope[mask] ** 2).sum()) for slope, mask in zip(slopes, masks.values(), strict=True))

    for name, place, slope in slopes(exact, masks, norm):
        assert found[name].view(-1)[place].item() == pytest.approx(slope / 2, rel=1e-4, abs=1e-12)


class Straight(nn.Module):
    """Four layers without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, bias=False)
        self.fc1, self.fc2 = nn.Linear(3 * 36, 20, bias=False), nn.Linear(20, 15, bias=False)
        self.fc3 = nn.Linear(15, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.fc2(self.fc1(self.conv(x).relu().flatten(1)).relu()).relu())


def test_synflow_conserves_the_flow() -> None:
    """The scores of every layer sum up to the same, and into a unit flows what flows out (Tanaka et al., Theorem 1)."""
    model = built(Straight)
    masks = {name: torch.rand(weight.shape) < 0.6 for name, weight in pruning.prunable(model).items()}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    found, other = (scored("synflow", model, masks, parts, cross_entropy) for parts in (batches(1), batches(3)[1:]))
    assert all(torch.equal(found[name], other[name]) for name in masks), "it needs no data"
    sums = [score.sum().item() for score in found.values()]
    assert sums == pytest.approx([sums[0]] * 4, rel=1e-12) and sums[0] > 0
    assert torch.allclose(found["fc1.weight"].sum(1), found["fc2.weight"].sum(0), rtol=1e-12)
    assert torch.allclose(found["fc2.weight"].sum(1), found["fc3.weight"].sum(0), rtol=1e-12)
    assert all((score[~masks[name]] == 0).all() and (score >= 0).all() for name, score in found.items())


@pytest.mark.parametrize("name", list(SCORES))
def test_scores_leave_the_model_as_it_was_and_do_not_depend_on_its_mode(name: str) -> None:
    model = building.build(lambda: Conv(dropout=0.5), "glorot", 0)
    before = building.state_of(model)
    masks = everything(model)
    results = []
    for training in (True, False):
        model.train(training)
        results.append(scored(name, model, masks, batches(), cross_entropy))
        assert model.training == training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(results[0][each], results[1][each]) for each in masks)
    after = building.state_of(model)
    assert all(torch.equal(before[each], after[each]) for each in before), "batch norm's statistics too"
    assert {score.dtype for score in results[0].values()} == {torch.float64}
    assert [score.shape for score in results[0].values()] == [before[each].shape for each in masks]


class Recurrent(nn.Module):
    """With a first state of its own, in float32 where it is made here."""

    def __init__(self, given: bool = True) -> None:
        super().__init__()
        self.given, self.lstm, self.out = given, nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        begin = torch.zeros(1, len(x), 6)
        return self.out(self.lstm(x[:, 0], (begin, begin) if self.given else None)[0][:, -1])


@pytest.mark.parametrize("name", list(SCORES))
def test_attention_is_scored_in_double_precision_without_dropout(name: str) -> None:
    models = [built(Attending), built(lambda: Attending(dropout=0.5))]
    still, dropping = (scored(name, model, everything(model), batches(), cross_entropy) for model in models)
    assert all(torch.equal(still[each], dropping[each]) for each in still)
    assert models[1].encoder.self_attn.dropout == 0.5, "in a copy"
    assert all(score.dtype == torch.float64 and score.isfinite().all() for score in still.values())
    unused = "lstm.weight_hh_l1_reverse"  # the last word's state in the other direction is the first one
    assert [each for each, score in still.items() if not score.any()] == [unused]
    assert torch.backends.cudnn.enabled and torch.backends.mkldnn.enabled  # as before


@pytest.mark.parametrize("says", ["DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory"])
def test_short_memory_decides_no_score(says: str) -> None:
    model = Failing([says])
    with pytest.raises(torch.OutOfMemoryError, match=says):
        scored("snip", model, everything(model), batches(), cross_entropy)


def test_another_precision_is_said_and_the_first_failure_if_all_fail() -> None:
    model = Failing(["no doubles", "still none"])
    with pytest.warns(UserWarning, match="in the model's own precision, .* because of RuntimeError: no doubles"):
        found = scored("snip", model, everything(model), batches(), cross_entropy)
    assert {score.dtype for score in found.values()} == {torch.float32}
    model = Failing(["the cause", "another", "and another"])
    with pytest.raises(RuntimeError, match="the cause"):
        scored("snip", model, everything(model), batches(), cross_entropy)


def test_scores_that_are_no_numbers_are_a_failure() -> None:
    model = built(Mlp)
    with torch.no_grad():
        model.fc1.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        scored("snip", model, everything(model), batches(), cross_entropy)


@pytest.mark.parametrize("name", list(SCORES))
def test_a_model_that_takes_float32_alone_is_scored_in_that(name: str) -> None:
    found, exact = (
        scored(name, model, everything(model), batches(), cross_entropy)
        for model in (built(Recurrent), built(lambda: Recurrent(given=False)))
    )
    assert {score.dtype for score in found.values()} == {torch.float32}
    for each, score in exact.items():
        torch.testing.assert_close(found[each].double(), score, rtol=1e-3, atol=1e-4 * float(score.abs().max()))
