"""One training: what is pruned stays 0, the optimisers' arithmetic, the schedule, ES, failures, stops, stacks."""

import copy
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import CPU, Conv, Mlp, constant, equal, make_images, random_masks, training
from nets import Restless, Running, Squeezing, Table, TwoWeights, dropping
from torch import Tensor, nn

from lth import prune, pruning
from lth.models import building
from lth.settings.config import Config
from lth.training.network import Network
from lth.training.optimizers import Fused, Wrapped, gradients
from lth.training.schedule import Plan, make_plan
from lth.training.train import Stopped, Trained

pytestmark = pytest.mark.versions

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("adam", {"weight_decay": 0.1}),
    ("adamw", {"weight_decay": 0.1}),
    ("adam", {}),
    ("sgd", {}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
]
TORCH = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def network_of(model: nn.Module, masks: pruning.Masks | None = None) -> Network:
    weights = pruning.prunable(model)
    state, masks = building.state_of(model), masks or pruning.dense(weights)
    return Network(copy.deepcopy(model), [state], [masks], CPU, channels_last=True)


def same(one: Trained, other: Trained) -> bool:
    """Equal but for the seconds."""
    parts = all(equal(getattr(one, part), getattr(other, part)) for part in ("final", "best", "rewind", "extra"))
    return parts and (one.iteration, one.evals, one.failure) == (other.iteration, other.evals, other.failure)


@pytest.mark.parametrize("kind, options", OPTIMIZERS)
@pytest.mark.parametrize("keep", [None, 0.5], ids=["dense", "pruned"])
def test_steps_are_those_of_torch(keep: float | None, kind: str, options: dict[str, Any]) -> None:
    """20 steps with a changing learning rate; pruned, against torch.optim with gradients and weights masked by hand."""
    torch.manual_seed(0)
    theirs = Conv()
    masks = pruning.dense(pruning.prunable(theirs)) if keep is None else random_masks(theirs, keep)
    network = network_of(theirs, masks)
    mine = Fused(kind, network, 0.01, **options)
    other = TORCH[kind](theirs.parameters(), lr=0.01, **{"weight_decay": 0.0, **options})
    weights = pruning.prunable(theirs)

    def mask(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.mul_(masks[name])

    with torch.no_grad():
        mask(weights)
    for i in range(20):
        images, labels = torch.randn(10, 1, 8, 8), torch.arange(10) % 4
        mine.lr = lr = 0.01 / (1 + i)
        for group in other.param_groups:
            group["lr"] = lr
        mine.step(gradients(network.losses(images, labels), network.leaves))
        other.zero_grad()
        nn.functional.cross_entropy(theirs(images), labels).backward()
        with torch.no_grad():
            mask({name: weight.grad for name, weight in weights.items()})
            other.step()
            mask(weights)
    state = network.state(0)
    assert all(state[name].is_contiguous() and not state[name][~mask].any() for name, mask in masks.items())
    for name, expected in building.state_of(theirs).items():
        torch.testing.assert_close(state[name], expected, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n} {text}")


class Clipped(torch.optim.SGD):
    """Gradients of all weights together no longer than 1."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        super().step()


@pytest.mark.parametrize(
    "kind, options", [(Clipped, {}), (torch.optim.Adafactor, {}), (torch.optim.Adam, {"weight_decay": 0.1})]
)
def test_own_optimisers_train_as_with_masks(kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    masks = random_masks(Mlp(), 0.3)
    network = network_of(Mlp(), masks)
    masked = building.load_state(Mlp(), network.state(0))
    prune.attach(masked, masks)
    mine = Wrapped(kind(network.leaves, lr=0.05, **options), network)
    theirs = kind(masked.parameters(), lr=0.05, **options)
    for _ in range(4):
        images, labels = 10 * torch.randn(10, 1, 8, 8), torch.arange(10) % 4
        mine.step(gradients(network.losses(images, labels), network.leaves))
        theirs.zero_grad()
        nn.functional.cross_entropy(masked(images), labels).backward()
        theirs.step()
    state = network.state(0)
    for layer in ("fc1", "fc2"):
        expected = getattr(masked, layer).weight_orig.detach() * masks[f"{layer}.weight"]
        torch.testing.assert_close(state[f"{layer}.weight"], expected)


def test_weights_that_share_a_gradient_are_masked_each_by_its_own() -> None:
    model = TwoWeights()
    masks = random_masks(model, 0.5)
    network = network_of(model, masks)
    optimizer, before = Wrapped(torch.optim.SGD(network.leaves, lr=0.1), network), network.state(0)
    optimizer.step(gradients(network.losses(torch.randn(10, 1, 8, 8), torch.arange(10) % 4), network.leaves))
    after = network.state(0)
    for name in ("fc1.weight", "fc3.weight"):
        changed = (after[name] != before[name])[masks[name]]
        assert changed.float().mean() > 0.9, f"survivors of {name} do not move"


@pytest.mark.parametrize("trials", [1, 2])
def test_frozen_parameters_stay(trials: int) -> None:
    def frozen() -> nn.Module:
        model = Mlp()
        model.fc1.weight.requires_grad_(False)
        return model

    made = training(frozen, Plan(6, 3, constant()), seeds=tuple(range(trials)), keep=0.5)
    before = [made.network.state(trial) for trial in range(trials)]
    for start, trained in zip(before, made.run(), strict=True):
        assert torch.equal(trained.final["fc1.weight"], start["fc1.weight"])
        assert not torch.equal(trained.final["fc2.weight"], start["fc2.weight"])


def lr_of(epoch_steps: int = 10, **flags: Any) -> Callable[[int], float]:
    return make_plan(Config(lr=1.0, **flags), epoch_steps, "original", 0).lr


def test_warmup_rises_linearly_and_milestones_multiply_by_gamma_from_that_iteration_on() -> None:
    lr = lr_of(end_iter="20it", warmup="4it")
    assert [lr(i) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    lr = lr_of(end_iter="20it", lr_milestones=["5it", "1ep", "75%"], lr_gamma=0.5)
    assert [lr(i) for i in range(20)] == [1.0] * 5 + [0.5] * 5 + [0.25] * 5 + [0.125] * 5
    assert lr_of(end_iter="3ep", lr_milestones=["2"])(20) == pytest.approx(0.1)
    late = lr_of(end_iter="20it", lr_milestones=["2it"], warmup="4it", lr_gamma=0.5)
    assert [late(i) for i in range(5)] == [0.25, 0.5, 0.375, 0.5, 0.5]


def test_rewound_rounds_begin_at_that_iteration_of_the_schedule() -> None:
    config = Config(rewind="5it", end_iter="20it")
    plans = {number: make_plan(config, 10, "rewound", number) for number in range(2)}
    assert (plans[0].start, plans[0].rewind_at, plans[1].start, plans[1].rewind_at) == (0, 5, 5, None)
    assert make_plan(config, 10, "whole", 1).start == 0 and make_plan(config, 10, "final", 1).start == 0
    assert make_plan(Config(rewind="10%", end_iter="2ep"), 10, "rewound", 1).start == 2
    assert make_plan(Config(end_iter="2ep"), 10, "rewound", 0).rewind_at is None


def test_the_final_rate_is_that_of_the_last_step_and_the_dense_round_has_the_whole_schedule() -> None:
    config = Config(end_iter="9it", lr=0.8, lr_milestones=["4it", "6it"], lr_gamma=0.5, warmup="2it")
    dense, pruned = (make_plan(config, 10, "final", number) for number in range(2))
    assert [dense.lr(i) for i in range(9)] == pytest.approx([0.4, 0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.2])
    assert [pruned.lr(i) for i in range(9)] == pytest.approx([0.2] * 9)


def test_a_cosine_follows_its_formula_from_the_end_of_the_warm_up_to_0_at_the_end_of_the_round() -> None:
    lr = lr_of(end_iter="20it", lr_schedule="cosine", warmup="4it")
    falling = [(1 + math.cos(math.pi * t / 16)) / 2 for t in range(16)]
    assert [lr(i) for i in range(20)] == pytest.approx([0.25, 0.5, 0.75, 1.0, *falling])
    config = Config(lr=2.0, end_iter="20it", lr_schedule="cosine", rewind="7it")
    rewound, whole, final = (make_plan(config, 5, schedule, 1) for schedule in ("rewound", "whole", "final"))
    assert rewound.start == 7 and rewound.lr(7) == whole.lr(7) == pytest.approx(1 + math.cos(math.pi * 7 / 20))
    assert {final.lr(i) for i in range(20)} == {whole.lr(15)}, "fine-tuning has the rate that begins the last epoch"
    assert make_plan(config, 50, "final", 1).lr(0) == 2.0 and make_plan(config, 5, "final", 0).lr(3) == whole.lr(3)


@pytest.mark.parametrize(
    "every, start, expected", [(5, 0, [5, 10]), (4, 3, [4, 8, 10]), (4, 4, [8, 10]), (20, 9, [10])]
)
def test_evaluations_lie_on_a_grid_and_at_the_last_iteration(every: int, start: int, expected: list[int]) -> None:
    told: list[int] = []
    trained = training(Mlp, Plan(10, every, constant(), start)).run(lambda _, e: told.append(e.iteration))[0]
    assert [e.iteration for e in trained.evals] == told == expected and trained.iteration == 10


@pytest.mark.parametrize("make", [Mlp, Conv])
def test_evaluations_are_means_over_all_validation_and_test_images(make: Callable[[], nn.Module]) -> None:
    images = make_images(count=1600, tests=1300)  # more than one chunk of them
    made = training(make, Plan(6, 3, constant()), images=images)
    made.feed.__init__(images, (0,), 1250, 10, CPU)  # type: ignore[misc]
    trained = made.run()[0]
    model = building.load_state(make(), trained.final).eval()
    held = sorted(set(range(1600)) - set(made.feed.train_indices[0].tolist()))
    with torch.no_grad():
        valid = model(made.feed.normalise(images.train[held]))
        test = model(made.feed.normalise(images.test))
        labels = images.train_labels[held]
        last = trained.evals[-1]
        assert last.val_loss == pytest.approx(nn.functional.cross_entropy(valid, labels).item(), rel=1e-4)
        assert last.val == pytest.approx(100 * (valid.argmax(1) == labels).float().mean().item(), abs=1e-3)
        assert last.test == pytest.approx(100 * (test.argmax(1) == images.test_labels).float().mean().item(), abs=1e-3)


@pytest.mark.parametrize("trials", [1, 2])
def test_a_last_image_that_comes_alone_is_one_image(trials: int) -> None:
    def accuracies(make: Callable[[], nn.Module]) -> list[tuple[float, float]]:
        made = training(make, Plan(3, 3, constant()), seeds=tuple(range(trials)), images=make_images(tests=1001))
        assert [len(images) for images, _ in made.feed.test()][-1] == 1
        return [(trained.evals[-1].test, trained.evals[-1].val) for trained in made.run()]

    assert accuracies(Squeezing) == accuracies(Mlp)


@pytest.mark.parametrize("trials", [1, 2])
def test_the_test_images_can_be_left_out_and_nothing_else_changes(trials: int) -> None:
    def plan(test_every: int) -> Plan:
        return Plan(25, 2, lambda i: 0.02 if i < 8 else -0.02, test_every=test_every)  # downhill, then uphill

    options: dict[str, Any] = {"seeds": tuple(range(trials)), "kind": "sgd", "keep": 0.7}
    whole, thinned = (training(Mlp, plan(every), **options).run() for every in (1, 7))
    tested = {e.iteration for trained in thinned for e in trained.evals if not math.isnan(e.test)}
    best = set()  # evaluations of a loss lower than all before
    for trained in whole:
        lowest = itertools.accumulate((e.val_loss for e in trained.evals), min, initial=math.inf)
        best |= {e.iteration for e, before in zip(trained.evals, lowest, strict=False) if e.val_loss < before}
    assert tested == best | {8, 14, 22, 25} and {16, 24} & tested == set()
    for one, other in zip(thinned, whole, strict=True):
        for mine, theirs in zip(one.evals, other.evals, strict=True):
            assert mine == (theirs if mine.iteration in tested else replace(theirs, test=mine.test))
        assert equal(one.final, other.final) and equal(one.best, other.best)
        assert one.early_stop == other.early_stop
    saved: list[list[Trained]] = []
    training(Mlp, plan(7), **options).run(checkpoint=saved.append, checkpoint_every=0)
    for states in saved:  # what has been tested does not depend on stops
        resumed = training(Mlp, plan(7), resume=states, **options).run()
        assert repr([trained.evals for trained in resumed]) == repr([trained.evals for trained in thinned])


@pytest.mark.parametrize("replaced, trials", [(False, 1), (True, 1), (False, 2)])
def test_evaluations_leave_buffers_as_they_were(replaced: bool, trials: int) -> None:
    images = make_images()
    images.test.add_(100)  # of another mean
    ends = []
    for plan in (Plan(20, 2, constant()), Plan(20, 2, constant(), test_every=20), Plan(20, 20, constant())):
        made = training(lambda: Running(replaced), plan, images=images, seeds=tuple(range(trials)))
        ends.append(made.run())
        assert all(trained.final["mean"].abs() > 1e-3 for trained in ends[-1])
    for often, tested_once, once in zip(*ends, strict=True):
        assert equal(often.final, tested_once.final) and equal(often.final, once.final)
        assert equal(often.best, tested_once.best)
        assert [e.val_loss for e in often.evals] == [e.val_loss for e in tested_once.evals]
        assert often.evals[-1].val_loss == once.evals[-1].val_loss


def test_a_table_that_an_evaluation_has_filled_stays() -> None:
    (trained,) = training(Table, Plan(4, 2, constant())).run()
    assert trained.final["table"].eq(1).all() and trained.best["table"].eq(1).all()


def test_training_loss_is_the_mean_since_the_evaluation_before() -> None:
    made = training(Mlp, Plan(7, 3, constant()))
    losses: list[float] = []
    real = made.network.losses
    made.network.losses = lambda x, y: (losses.append((loss := real(x, y)).item()), loss)[1]  # type: ignore
    trained = made.run()[0]
    parts = (losses[:3], losses[3:6], losses[6:])
    assert [e.train_loss for e in trained.evals] == pytest.approx([sum(p) / len(p) for p in parts])


@pytest.mark.parametrize("trials", [1, 2])
def test_best_weights_are_those_of_the_early_stop_iteration(trials: int) -> None:
    plan = Plan(30, 2, lambda i: 0.02 if i < 12 else -0.02)  # downhill, then uphill
    made = training(Mlp, plan, seeds=tuple(range(trials)), kind="sgd", keep=0.7)
    seen: dict[tuple[int, int], dict[str, Tensor]] = {}
    trained = made.run(lambda t, e: seen.update({(t, e.iteration): made.network.state(t)}))
    for trial, result in enumerate(trained):
        assert result.early_stop.iteration == 12
        assert equal(result.best, seen[trial, result.early_stop.iteration])
        assert equal(result.final, seen[trial, 30])
        assert result.early_stop.val_loss == min(e.val_loss for e in result.evals)


def test_of_equal_losses_the_first_gives_the_weights() -> None:
    made = training(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False)), Plan(6, 2, constant()))
    black = [(torch.zeros_like(images), labels) for images, labels in made.feed.validation()]
    made.feed.validation = lambda: iter(black)  # type: ignore  # whatever the weights, each answer is as likely
    seen: dict[int, dict[str, Tensor]] = {}
    (trained,) = made.run(lambda _, e: seen.update({e.iteration: made.network.state(0)}))
    assert len({e.val_loss for e in trained.evals}) == 1 and not equal(seen[2], seen[4])
    assert trained.early_stop.iteration == 2 and equal(trained.best, seen[2])


def test_weights_to_rewind_to_are_those_before_that_step() -> None:
    rewind = training(Conv, Plan(10, 4, constant(), rewind_at=5)).run()[0].rewind
    assert equal(rewind, training(Conv, Plan(5, 4, constant())).run()[0].final)
    start = building.state_of(building.build(Conv, "glorot", 0))
    assert equal(training(Conv, Plan(3, 4, constant(), rewind_at=0)).run()[0].rewind, start)


@pytest.mark.parametrize("value, word", [(math.nan, "nan"), (1e38, "(nan|inf)")])
def test_a_loss_that_is_no_number_ends_the_training_at_the_next_evaluation(value: float, word: str) -> None:
    made = training(Mlp, Plan(20, 4, lambda i: value if i == 9 else 0.01), kind="sgd")
    trained = made.run()[0]
    assert [e.iteration for e in trained.evals] == [4, 8] and trained.iteration == 12
    assert trained.failure is not None
    assert torch.tensor([e.val_loss for e in trained.evals]).isfinite().all()
    assert re.fullmatch(rf"the loss became {word} by iteration 12 at learning rate 0.01", trained.failure)
    assert all(tensor.isfinite().all() for tensor in trained.best.values()), "the weights that were good are lost"


def test_one_trial_of_a_stack_ends_and_the_others_do_not_notice() -> None:
    usual, made = (training(Mlp, Plan(20, 4, constant()), seeds=(0, 1, 2), keep=0.6) for _ in range(2))
    step = made.step

    def spoil(batch: Tensor) -> None:
        step(batch)
        if made.iteration == 9:
            with torch.no_grad():
                made.network.tensors["fc1.weight"][1] = math.nan

    made._run_step = spoil
    for trial, (actual, expected) in enumerate(zip(made.run(), usual.run(), strict=True)):
        if trial == 1:
            assert actual.failure and "nan by iteration 12" in actual.failure and len(actual.evals) == 2
        else:
            assert actual.failure is None and actual.evals == expected.evals
            assert equal(actual.final, expected.final)


@pytest.mark.parametrize(
    "make, options",
    [
        (dropping, {"kind": "adam", "feed": {"augment": True}}),
        (dropping, {"kind": "adamw", "weight_decay": 0.1, "keep": 0.5, "seeds": (3, 4)}),
        (dropping, {"kind": "sgd", "momentum": 0.9, "seeds": (3, 4)}),
        (Restless, {"kind": "sgd", "momentum": 0.9, "nesterov": True, "keep": 0.5}),
    ],
)
def test_stopping_anywhere_changes_nothing(make: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    """Stop at every place where a training can stop (each batch, each chunk of an evaluation), go on from the
    checkpoint, and end with the same bits: weights, ES weights, weights to rewind to, moments, curves."""

    # Epochs are of 8 iterations. Downhill, then uphill: the weights at ES are found before most of the stops.
    plan = Plan(11, 4, lambda i: 0.01 / (1 + i) if i < 4 else -0.02, rewind_at=6)
    places = [0]

    def count() -> bool:
        places[0] += 1
        return False

    expected = training(make, plan, **options).run(stop=count)
    assert all(trained.early_stop.iteration == 4 for trained in expected)
    assert places[0] >= 11 + 3 * 2
    for place in range(places[0]):
        saved: list[list[Trained]] = []
        answers = iter([False] * place + [True])
        with pytest.raises(Stopped):
            training(make, plan, **options).run(checkpoint=saved.append, stop=lambda a=answers: next(a))
        assert len(saved) == 1
        torch.manual_seed(place)  # another process has another random state
        resumed = training(make, plan, resume=copy.deepcopy(saved[0]), **options).run()
        for actual, reference in zip(resumed, expected, strict=True):
            assert same(actual, reference), f"differs after a stop at place {place}, iteration {saved[0][0].iteration}"


SGD = {"kind": "sgd", "momentum": 0.9, "weight_decay": 0.01}


@pytest.mark.parametrize("make, options", [(Mlp, SGD), (Conv, {"kind": "adam"}), (Conv, {**SGD, "keep": 0.5})])
def test_stacked_trials_train_as_they_do_alone(make: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    plan = Plan(8, 3, constant(0.003), rewind_at=5)
    more: dict[str, Any] = {"lr": 0.003, **options}
    stacked = training(make, plan, seeds=(0, 1, 2), **more).run()
    for seed, together in enumerate(stacked):
        single = training(make, plan, seeds=(seed,), **more).run()[0]
        for part in ("final", "best", "rewind"):
            for name, tensor in getattr(single, part).items():
                torch.testing.assert_close(getattr(together, part)[name], tensor, rtol=1e-3, atol=2e-4)
        for one, other in zip(together.evals, single.evals, strict=True):
            assert vars(one) == pytest.approx(vars(other), rel=1e-3, abs=3)  # 2.5%: one of 40 images at the border
            assert one.val_loss == pytest.approx(other.val_loss, rel=1e-3)


def test_gradients_are_those_of_autograd_and_0_for_unused_weights() -> None:
    leaves = [tensor.requires_grad_() for tensor in torch.randn(3, 5, 5).unbind()]

    def loss() -> Tensor:
        return (leaves[0].sum(0) * leaves[1]).tanh().sum()

    grads, public = gradients(loss(), leaves), torch.autograd.grad(loss(), leaves[:2])
    assert all(torch.equal(a, b) for a, b in zip(grads, public, strict=False))
    assert not grads[2].any() and all(leaf.grad is None for leaf in leaves)
