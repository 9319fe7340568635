"""Masks that are learned over fixed weights: the gradient of the scores, counts, what stays, stops, stacks."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    CLASSES,
    CPU,
    Conv,
    Mlp,
    assert_same,
    constant,
    do,
    do_in_pieces,
    make_images,
    random_masks,
    results,
    settings,
)
from torch import nn

import lth
from lth import pruning
from lth.data.images import Feed
from lth.models import building
from lth.records import tables
from lth.records.store import Store
from lth.training.learned import LEARNED, LearnedMasks, first_scores, highest
from lth.training.optimizers import Fused, gradients
from lth.training.schedule import Plan
from lth.training.train import Training

ARMS = tuple(LEARNED)


def network(kind: str, make: Any = Mlp, seeds: tuple[int, ...] = (0,), keep: float = 0.4) -> LearnedMasks:
    states = [building.state_of(building.build(make, "glorot", seed)) for seed in seeds]
    masks = [random_masks(make(), keep) for _ in seeds]
    return LearnedMasks(make(), states, masks, CPU, how=LEARNED[kind], seeds=seeds)


@pytest.mark.parametrize("kind", ARMS)
def test_scores_get_the_gradient_that_goes_straight_through_the_mask(kind: str) -> None:
    """Of a layer's effective weights, by the chain rule written down."""
    torch.manual_seed(0)
    model, images, labels = nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), torch.randn(9, 1, 2, 3), torch.arange(9) % 4
    fixed, mask = model[1].weight.detach().clone(), torch.rand(4, 6) < 0.5
    made = LearnedMasks(model, [building.state_of(model)], [{"1.weight": mask}], CPU, how=LEARNED[kind], seeds=[3])
    before, count = made.leaves[0].detach().clone().view(4, 6), int(mask.sum())
    order = before.abs() if kind == "edge_popup" else before + made.noise["1.weight"].view(4, 6)
    assert order[mask].min() > order[~mask].max(), "scores begin with the ticket's mask"
    torch.manual_seed(5)
    (grad,) = gradients(made.losses(images, labels), made.leaves)
    scores, effective = made.leaves[0].detach().view(4, 6), mask * 1.0
    slope = scores.sign()
    if kind == "supermask":
        chance = scores.sigmoid()
        torch.manual_seed(5)
        effective, slope = (torch.rand(1, 24).view(4, 6) < chance) * 1.0, chance * (1 - chance)
        assert chance.sum().item() == pytest.approx(count, abs=0.01), "the density is that of the mask"
    else:
        assert torch.equal(scores, before)
    weight = (fixed * effective).requires_grad_()
    nn.functional.cross_entropy(images.flatten(1) @ weight.t() + model[1].bias.detach(), labels).backward()
    assert weight.grad is not None
    assert torch.allclose(grad.view(4, 6), weight.grad * fixed * slope, atol=1e-6)


def test_exactly_as_many_are_kept_also_of_equal_scores() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0], [1.0, 5.0, 4.0, 3.0, 2.0, 0.0]])
    mask = highest(values, 3)
    assert mask.sum(1).tolist() == [3, 3] and mask[0, 0] == 1 and mask[1].tolist() == [0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("kind", ARMS)
@pytest.mark.parametrize("make", [Mlp, Conv])
def test_weights_never_change_and_counts_stay(kind: str, make: Any) -> None:
    made = network(kind, make)
    begin, masks = made.state(0), made.masks_of(0)
    assert all(torch.equal(masks[name], mask) for name, mask in random_masks(make(), 0.4).items())
    feed, plan = Feed(make_images(), (0,), 40, 10, CPU), Plan(30, 10, constant(0.05))
    optimizer = Fused("sgd", made, 0.05, momentum=0.9)
    (trained,) = Training(made, optimizer, feed, replace(plan, lr=constant(1.0)), [(0, "order", 0)], 7).run()
    fixed = building.state_of(building.build(make, "glorot", 0))
    for state in (trained.best, trained.final):
        assert state.keys() == begin.keys()
        for name, tensor in state.items():
            if name in masks:
                survives = state[name] != 0
                assert int(survives.sum()) == int(masks[name].sum()) and torch.equal(
                    tensor[survives], fixed[name][survives]
                )
            elif "running" not in name and "num_batches" not in name:
                assert torch.equal(tensor, fixed[name]), "biases and norm parameters are not trained"
    assert any(not torch.equal(trained.masks[name], mask) for name, mask in masks.items()), "nothing was learned"
    assert all(torch.equal(trained.masks[name], trained.best[name] != 0) for name in masks)


@pytest.mark.parametrize("kind", ARMS)
def test_stacked_trials_begin_as_each_alone(kind: str) -> None:
    stacked, images, labels = network(kind, seeds=(0, 1)), torch.randn(20, 1, 8, 8), torch.arange(20) % CLASSES
    stacked.model.eval()
    losses = stacked.losses(images, labels)
    for trial in (0, 1):
        single = network(kind, seeds=(trial,))
        single.model.eval()
        part = slice(10 * trial, 10 * trial + 10)
        assert torch.allclose(losses[trial], single.losses(images[part], labels[part]), atol=1e-6)
        assert all(torch.equal(value, single.mask_state(0)[name]) for name, value in stacked.mask_state(trial).items())


@pytest.mark.parametrize("kind", ARMS)
def test_first_scores_are_uniform_whatever_the_mask(kind: str) -> None:
    mask = torch.arange(40_000).view(100, 400) < 10_000
    scores, noise = first_scores(LEARNED[kind], mask, 1)
    ranked = scores.abs() if kind == "edge_popup" else scores + noise
    assert torch.equal(highest(ranked[None], 10_000)[0].bool(), mask.flatten())
    scores = scores - scores.mean()
    assert scores.abs().max() <= 1.01 / 20 and scores.std() == pytest.approx((1 / 20) / 3**0.5, rel=0.02)
    if kind == "supermask":  # the standard deviation of logistic noise
        assert noise.std() == pytest.approx(math.pi / 3**0.5, rel=0.02)


@pytest.mark.parametrize("arch_type, stack", [("mlp", None), ("conv", None), ("drop", 2)])
def test_rounds_controls_tickets_and_audit(place: Path, arch_type: str, stack: int | None) -> None:
    arms = (*ARMS, "edge_popup_reinit", "supermask_shuffle")
    config = settings(place, arch_type=arch_type, prune_type=arms, stack=stack, trials=stack or 1, lr=0.05)
    runs = {run.arm: run for run in do(config)}
    for run in runs.values():
        table = tables.table(run, "rounds")
        assert (
            len(table) == 3
            and table["weights"].tolist() == tables.table(runs["edge_popup"], "rounds")["weights"].tolist()
        )
        for number in (1, 2):
            ticket = lth.load_ticket(run.saves, number)
            model = building.deterministic(building.find(arch_type, "tiny", 4))()
            assert ticket.evaluate(str(place / "data" / "tiny.npz"), model, device="cpu") == pytest.approx(
                ticket.row["test"]
            )
            assert sum(pruning.survivors(ticket.masks).values()) == ticket.row["weights"]
        lth.audit(ticket.trained, ticket, trained=True, remaining=ticket.row["remaining"])
    for arm, control in (("edge_popup", "edge_popup_reinit"), ("supermask", "supermask_shuffle")):
        learned, taken = (lth.load_ticket(runs[name].saves, 2) for name in (arm, control))
        assert learned.trained is not None
        start = Store(runs[arm]).ticket(2).start
        for name, mask in learned.masks.items():
            (value,) = start[name].abs().unique()  # signed constants: Kaiming's of the weights that are kept
            inputs = mask[0].numel() * mask.double().mean().item()
            assert value.item() == pytest.approx((2 / inputs) ** 0.5)
            assert torch.equal(learned.trained[name], start[name] * mask)
            assert torch.equal(taken.masks[name], mask) == (control == "edge_popup_reinit")


def test_a_stop_within_a_round_changes_nothing(place: Path) -> None:
    config = settings(place, arch_type="drop", prune_type=ARMS, checkpoint_every=0)
    do(replace(config, root=place / "whole"))
    do_in_pieces(config, 3)
    assert_same(results(place), results(place / "whole"))
