"""Masks that change during a training: what is removed and added, when, and what rounds and files say about it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Capture, Conv, Mlp, assert_same, constant, do, experiment, results, settings, training, work
from torch import Tensor, nn

import lth
from lth import pruning
from lth.api import audit_files
from lth.models import building
from lth.pruning import Masks, Quota
from lth.records import tables
from lth.records.store import Store
from lth.records.tables import runs_of
from lth.settings.config import ConfigError
from lth.settings.values import TicketName
from lth.training import sparse
from lth.training.schedule import Plan, check_plan, make_plan
from lth.training.train import Stopped, Training
from lth.training.updates import Updates

ARMS = ("set", "rigl", "gmp")
CHANGES: dict[str, Any] = {"end_iter": "24it", "update_freq": "4it", "update_end": "75%", "lr": 0.05}


def plan(kind: str, steps: int = 7, every: int = 3, end: int = 6, fraction: float = 0.5) -> Plan:
    """One update, before the step after iteration 3."""
    return Plan(steps, 1, constant(0.02), updates=Updates(kind, every, 0, end, fraction))


def goals(keep: int) -> list[list[tuple[Quota, Quota]]]:
    """Of an Mlp, whose layers compete."""
    names = ["fc1.weight", "fc2.weight"]
    return [[(Quota(names, 64 * 12 + 12 * 4), Quota(names, keep))]]


def before_and_after(made: Training, stop: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """A training's weights and masks before and right after its update, and the batch of the step that follows."""
    batches = made.feed.epoch(made.order_seeds, 0)
    for batch in batches[:stop]:
        made._run_step(batch)
        made.iteration += 1
    before = made.network.state(0) | {f"mask/{n}": m for n, m in made.network.masks_of(0).items()}
    made._update_masks(batches[stop])
    return before, made.network.state(0) | {f"mask/{n}": m for n, m in made.network.masks_of(0).items()}, batches[stop]


@pytest.mark.parametrize("make", [Mlp, Conv])
@pytest.mark.parametrize("optimizer", [{"kind": "adam"}, {"kind": "sgd", "momentum": 0.9}])
@pytest.mark.parametrize("kind", ["set", "rigl"])
def test_smallest_survivors_are_replaced(kind: str, optimizer: dict[str, Any], make: Callable[[], nn.Module]) -> None:
    made = training(make, plan(kind), keep=0.4, **optimizer)
    before, after, batch = before_and_after(made)
    model = building.load_state(make(), {n: x for n, x in before.items() if not n.startswith("mask/")})
    nn.functional.cross_entropy(model(made.feed.fetch(batch)[0]), made.feed.fetch(batch)[1]).backward()
    share = 0.5 / 2 * (1 + math.cos(math.pi * 3 / 6))
    state = made.optimizer.state(0)
    for name, weight in pruning.prunable(model).items():
        had, has = before[f"mask/{name}"].numpy(), after[f"mask/{name}"].numpy()
        values, count = before[name].numpy(), int(share * had.sum())
        assert has.sum() == had.sum() and count > 0
        smallest = np.argsort(np.where(had, abs(values), np.inf), axis=None)[:count]
        unchanged = had.copy()
        unchanged.flat[smallest] = False
        assert (has & unchanged).sum() == unchanged.sum()  # what is large stays
        if kind == "rigl":
            grown = np.argsort(np.where(unchanged, -1, abs(weight.grad.numpy())), axis=None)[-count:]
            assert set(np.flatnonzero(has & ~unchanged)) == set(grown)
        new, gone = has & ~had, had & ~has
        assert new.any() and (after[name].numpy()[new | gone] == 0).all()
        assert np.array_equal(after[name].numpy()[has & had], values[has & had])
        place = made.network.learning.index(name)
        first, second = (state.get(f"{m}/{place}") for m in (0, 1))
        assert (first.numpy()[~has | new] == 0).all() and (first.numpy()[has & had] != 0).mean() > 0.5
        if second is not None:
            assert (second.numpy()[new] == 0).all() and np.isposinf(second.numpy()[~has]).all()
    made._run_step(batch)
    for name in pruning.prunable(model):
        left = made.network.state(0)[name].numpy()
        assert (left[~after[f"mask/{name}"].numpy()] == 0).all()
        if kind == "rigl":  # where the gradient is large, the first step moves a new weight
            assert (left[after[f"mask/{name}"].numpy() & ~before[f"mask/{name}"].numpy()] != 0).all()


def test_gmp_prunes_by_the_cubic_schedule() -> None:
    """Every 2 of 12 iterations until 9: at 2, 4, 6 and 8, the last of which reaches the goal."""
    made = training(Mlp, plan("gmp", 12, 2, 9), lr=0.05)
    made.goals, total, left = goals(100), 64 * 12 + 12 * 4, {}
    for iteration in range(1, 12):
        made._run_step(made.feed.epoch(made.order_seeds, 0)[iteration % 8])
        made.iteration = iteration
        if made.plan.updates and made.plan.updates.due(iteration):
            before = made.network.state(0)
            made._update_masks(made.feed.epoch(made.order_seeds, 0)[0])
            masks = made.network.masks_of(0)
            left[iteration] = sum(pruning.survivors(masks).values())
            sizes = torch.cat([before[name].abs().flatten() for name in masks])
            kept = torch.cat([mask.flatten() for mask in masks.values()])
            assert sizes[kept].min() >= sizes[~kept].max()  # over all layers, as these goals say
    assert left == {t: 100 + round((total - 100) * (1 - t / 8) ** 3) for t in (2, 4, 6, 8)}


def test_updates_come_when_they_are_due(place: Path) -> None:
    config = settings(place, end_iter="1000it", rewind="100it", prune_type=["rigl"])
    of_round = [make_plan(config, 50, "rewound", number, "rigl") for number in (0, 1)]
    assert of_round[0].updates is None and of_round[0].settled == 0
    updates = of_round[1].updates
    assert updates == Updates("rigl", 100, 100, 750, 0.3) and of_round[1].settled == 700
    assert [t for t in range(1000) if updates.due(t)] == [200, 300, 400, 500, 600, 700]
    assert updates.annealed(375) == pytest.approx(0.15) and updates.progress(700) == 1
    late = replace(config, update_freq="750it")
    assert "update_freq" in str(ConfigError(*check_plan(late, 50))) and not check_plan(config, 50)
    assert not check_plan(replace(late, prune_type=("lt",)), 50)


def test_draws_of_an_update_are_the_seeds_own() -> None:
    """Dropout draws as without it, and two trials are trained together as alone."""
    usual, other = (training(lambda: Conv(0.5), plan(kind), keep=0.4) for kind in ("set", "rigl"))
    for made in (usual, other):
        before_and_after(made)
    assert torch.equal(usual.state()[0].extra["random"], other.state()[0].extra["random"])
    for kind in ARMS:
        options: dict[str, Any] = {} if kind == "gmp" else {"keep": 0.4}
        made = [training(Mlp, plan(kind), seeds=seeds, **options) for seeds in ((0,), (1,), (0, 1))]
        for each in made:
            each.goals = goals(100) * 2
        (one,), (two,), both = (each.run() for each in made)
        for single, stacked in zip((one, two), both, strict=True):
            assert all(torch.equal(single.masks[name], mask) for name, mask in stacked.masks.items()) and stacked.masks


# Sparse products between updates


def first_layer(masks: Sequence[Masks]) -> list[str]:
    """Trained sparsely below 30%."""
    return ["fc1.weight"] * bool(masks[0]["fc1.weight"].float().mean() < 0.3)


@pytest.mark.skipif(not sparse.available(), reason="this PyTorch has no quick sparse products")
@pytest.mark.parametrize("optimizer", [{"kind": "adam"}, {"kind": "sgd", "momentum": 0.9, "weight_decay": 0.05}])
@pytest.mark.parametrize("kind", ARMS)
def test_sparse_products_find_what_dense_ones_find(kind: str, optimizer: dict[str, Any]) -> None:
    """Masks, weights and moments after each of four updates and at the end."""
    options = {**optimizer, **({} if kind == "gmp" else {"keep": 0.25})}
    dense, sparse = (training(Mlp, plan(kind, 14, 3, 13), choose=c, **options) for c in (lambda masks: (), first_layer))
    forms, batches = list[int](), dense.feed.epoch(dense.order_seeds, 0)
    for iteration in range(14):
        for made in (dense, sparse):
            made.goals, made.iteration, batch = goals(100), iteration, batches[iteration % 8]
            if made.plan.updates and made.plan.updates.due(iteration):
                made._update_masks(batch)
            made._run_step(batch)
        masks, others = dense.network.masks_of(0), sparse.network.masks_of(0)
        assert list(masks) == list(others) and all(torch.equal(masks[name], others[name]) for name in masks)
        torch.testing.assert_close(sparse.network.state(0), dense.network.state(0), rtol=1e-3, atol=1e-5)
        moments = dense.optimizer.state(0)
        for m, place in ((0, 0), (0, 2), *(((1, 0), (1, 2)) if kind == "adam" else ())):
            name = dense.network.learning[place]
            survivors = moments[f"{m}/{place}"][masks[name]], sparse.optimizer.state(0)[f"{m}/{place}"][masks[name]]
            torch.testing.assert_close(*survivors, rtol=1e-3, atol=1e-6)
        forms.append(len(sparse.network.places))
    assert not dense.network.places and sparse.network.leaves[0].shape == (int(masks["fc1.weight"].sum()),)
    assert forms == ([0] * 6 + [1] * 8 if kind == "gmp" else [1] * 14)


# Early stop, stops, rounds


@pytest.mark.parametrize("choose", [lambda masks: (), first_layer], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", ARMS)
def test_early_stop_is_after_the_last_update_and_a_stop_changes_no_bit(kind: str, choose: Any) -> None:
    def made(resume: Any = None) -> Training:
        options = {"resume": resume, "lr": 0.3, "choose": choose, **({} if kind == "gmp" else {"keep": 0.25})}
        begun = training(Mlp, plan(kind, 12, 2, 7), **options)
        begun.goals = goals(12)
        return begun

    (whole,) = made().run()
    assert whole.settled == 6 and whole.early_stop.iteration > 6
    assert min(one.val_loss for one in whole.evals) < whole.early_stop.val_loss or kind != "gmp"
    assert all(not whole.best[name][~mask].any() for name, mask in whole.masks.items())
    for stop in range(1, 12):
        checkpoints: list[Any] = []
        answers = iter([False] * 10_000)
        begun = made()
        with pytest.raises(Stopped):
            begun.run(checkpoint=checkpoints.append, stop=lambda: next(answers) or begun.iteration == stop)  # noqa: B023
        (again,) = made(checkpoints[-1]).run()
        for part in ("final", "best", "extra", "masks"):
            one, other = getattr(whole, part), getattr(again, part)
            assert one.keys() == other.keys()
            assert [name for name in one if not torch.equal(one[name], other[name])] == [], (stop, part)
        assert again.evals == whole.evals


def test_rounds_are_as_sparse_as_in_other_arms_and_controls_take_the_final_masks(place: Path, capsys: Capture) -> None:
    controls = ("rigl_reinit", "gmp_shuffle")
    config = settings(place, prune_type=[*ARMS, *controls, "random_init"], **CHANGES)
    runs = {run.arm: run for run in do(config)}
    rounds = {arm: tables.table(run, "rounds") for arm, run in runs.items()}
    for arm, table in rounds.items():
        assert table["weights"].equals(rounds["random_init"]["weights"]), arm
        assert not (arm in ARMS and (table["ES"][1:] <= 16).any())
    layers = {
        arm: tables.table(run, "layers").groupby(["round", "layer"])["weights"].sum() for arm, run in runs.items()
    }
    pd.testing.assert_series_equal(layers["rigl"], layers["set"])
    pd.testing.assert_series_equal(layers["rigl"], layers["random_init"])
    for number in (1, 2):
        tickets = {arm: lth.load_ticket(run.dumps, round=number) for arm, run in runs.items()}
        assert all(tickets["gmp"].start_masks[name].all() for name in tickets["gmp"].masks)
        for name, mask in tickets["rigl"].masks.items():
            assert torch.equal(tickets["rigl"].start_masks[name], tickets["random_init"].masks[name])
            assert torch.equal(tickets["rigl_reinit"].masks[name], mask)
            assert not torch.equal(mask, tickets["rigl"].start_masks[name])
            assert tickets["gmp_shuffle"].masks[name].sum() == tickets["gmp"].masks[name].sum()
        for arm in ARMS:
            row = rounds[arm].iloc[number]
            given = place / "data" / "tiny.npz", experiment(config).trainer.problem.make()
            assert tickets[arm].evaluate(*given) == pytest.approx(row["test"]) and tickets[arm].remaining < 75
            assert tickets[arm].evaluate(*given, weights="start") == pytest.approx(row["supermask"])
    assert audit_files.main([str(place)]) == 0, capsys.readouterr().out
    ticket = lth.load_ticket(runs["rigl"].dumps, round=2)
    with pytest.raises(lth.AuditError, match="not 0"):
        lth.audit({name: x + 1 for name, x in ticket.trained.items()}, ticket, trained=True)


def test_a_stopped_run_and_a_stacked_one_give_the_same(place: Path) -> None:
    changes = {"prune_type": ["rigl", "gmp", "rigl_reinit"], "trials": 2, **CHANGES}
    config = settings(place, **changes, checkpoint_every=0)
    do(replace(config, root=place / "whole"))
    cut = replace(config, root=place / "cut")
    for pause in (40, 61, 90, 150, 260, 10**6):
        polls = iter(range(10**7))
        made = experiment(cut, stop=lambda: next(polls) > pause)  # noqa: B023
        try:
            work(made)
        except Stopped:
            continue
    assert_same(results(place / "cut"), results(place / "whole"))
    Store(runs_of(cut)[0]).file("masks_01").unlink()  # without which nothing can be built upon that round
    for config in (cut, replace(cut, root=place / "whole")):
        do(replace(config, prune_iterations=4))
    assert_same(results(place / "cut"), results(place / "whole"))


def test_gmp_compares_weights_of_all_layers_where_the_settings_say_so(place: Path) -> None:
    (run,) = do(settings(place, prune_type=["gmp"], prune_scope="global", arch_type="conv", **CHANGES))
    counts = tables.table(run, "layers").pivot(index="round", columns="layer", values="remaining")
    assert counts.loc[1].nunique() == 2


def test_other_experiments_take_the_final_masks(place: Path) -> None:
    """--ticket, with the original weights, and --connectivity, whose second training ends with masks of its own."""
    config = settings(place, prune_type=["rigl"], connectivity=True, prune_iterations=2, **CHANGES)
    (run,) = do(config)
    ends = tables.table(run, "connectivity").query("round == 1 and line == 'orders' and point == 0")["test_error"]
    assert ends.item() == pytest.approx(100 - tables.table(run, "evals").query("round == 1")["test"].iloc[-1])
    source = TicketName.parse(f"{run.saves}:1")
    (other,) = do(replace(config, root=place / "other", ticket=source, prune_type=("lt",), prune_iterations=1))
    taken, initial = Store(other).ticket(0), Store(run).weights("initial")
    for name, mask in Store(run).masks(1).items():
        assert torch.equal(taken.masks[name], mask) and torch.equal(taken.start[name], initial[name])
