"""The rounds: what each arm is, what is reset, what a trial depends on, and going on after stops and damage."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch
from helpers import Told, assert_same, do, experiment, killed_at, results, settings
from torch import Tensor

from lth import jobs, models, prune, records, session, tickets
from lth.arms import ARMS
from lth.config import Config, ConfigError, derive_seed
from lth.experiment import Evaluated, Experiment, Problem, RoundDone
from lth.files import RecordError
from lth.jobs import runs_of
from lth.models import State
from lth.records import Run
from lth.tickets import numbered
from lth.train import Stopped

EVERY_ARM = {"prune_type": tuple(ARMS)}


def identity(config: Config, run: Run) -> str:
    return tickets.identity(config.deciding(), run)


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained(run: Run, number: int) -> State:
    return tickets.read_state(run, numbered("trained", number))


def rounds(run: Run) -> pd.DataFrame:
    return records.table(run, "rounds")


class Ends:
    """Notes the weights at the end of every round, as record() gets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.final: dict[tuple[str, int], State] = {}
        self.kept: dict[str, State] = {}
        self.plans: dict[tuple[str, int], list[int]] = {}
        record = Experiment.record

        def noted(this: Experiment, run: Run, ticket: Any, result: Any) -> None:
            self.final[run.arm, ticket.round] = result.final
            self.plans[run.arm, ticket.round] = [e.iteration for e in result.evals]
            if result.kept:
                self.kept[run.arm] = result.kept
            record(this, run, ticket, result)

        monkeypatch.setattr(Experiment, "record", noted)


# The arms, exactly


@pytest.fixture(params=["drop", "conv"])
def all_arms(request: pytest.FixtureRequest, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Every arm, three rounds, of a network with batch norm: the runs by arm, and their weights at the rounds' ends."""
    config = settings(place, arch_type=request.param, output_percent=10, **EVERY_ARM)
    ends = Ends(monkeypatch)
    runs = {run.arm: run for run in do(config)}
    assert list(runs) == list(ARMS)
    yield config, runs, ends


def tickets_of(run: Run) -> list[tickets.Ticket]:
    return [tickets.read_ticket(run, number) for number in range(3)]


def test_masks_of_every_arm(all_arms: Any) -> None:
    config, runs, ends = all_arms
    problem = experiment(config).problem
    kinds = prune.layer_kinds(problem.make())
    rates = {name: 10 if kind == "output" else 30 for name, kind in kinds.items()}
    lt = tickets_of(runs["lt"])
    for name, run in runs.items():
        own, arm = tickets_of(run), ARMS[name]
        assert all(mask.all() for mask in own[0].masks.values()), "round 0 is dense"
        for number in (1, 2):
            before, after = own[number - 1].masks, own[number].masks
            for layer, count in prune.survivors(before).items():
                assert int(after[layer].sum()) == count - round(count * rates[layer] / 100)
                if arm.mask == "own":
                    gone = before[layer] & ~after[layer]
                    assert not (after[layer] & ~before[layer]).any()
                    weights = (ends.final.get((name, number - 1)) or ends.final["lt", 0])[layer].abs()
                    ordered = weights[gone].max() <= weights[after[layer]].min()
                    assert ordered != (arm.scores == "random"), "magnitudes at the round's end decide, but at random"
                elif arm.mask == "lt":
                    assert torch.equal(after[layer], lt[number].masks[layer])
                else:
                    assert not torch.equal(after[layer], lt[number].masks[layer])


def test_start_values_of_every_arm(all_arms: Any) -> None:
    """Biases, norm parameters and running statistics included, bit for bit."""
    config, runs, ends = all_arms
    initial = tickets.read_state(runs["lt"], "initial")
    fresh = {n: experiment(config).problem.fresh(derive_seed(0, "weights", n)) for n in (1, 2)}
    for name, run in runs.items():
        own = tickets_of(run)
        assert equal(own[0].start, initial)
        for number in (1, 2):
            before = ends.final.get((name, number - 1)) or ends.final["lt", 0]
            assert not equal(before, initial), "the training changed nothing"
            expected = {"original": initial, "fresh": fresh[number], "trained": before}[ARMS[name].start]
            assert equal(own[number].start, expected)
    assert not any(torch.equal(fresh[1][name], fresh[2][name]) for name in prune.prunable(experiment(config).problem.make()))
    assert any("running_mean" in name for name in initial)
    assert all((initial[name] == 0).all() for name in initial if "running_mean" in name)


def test_a_round_trains_the_survivors_of_its_ticket(all_arms: Any) -> None:
    config, runs, ends = all_arms
    for name, run in runs.items():
        for number in (1, 2):
            ticket = tickets.read_ticket(run, number)
            for layer, mask in ticket.masks.items():
                for state in (ends.final[name, number], trained(run, number)):
                    assert (state[layer][~mask] == 0).all() and (state[layer] != ticket.start[layer])[mask].any()


def test_the_dense_round_is_trained_once_a_trial(place: Path) -> None:
    told = Told()
    runs = do(settings(place, trials=2, **EVERY_ARM), told)
    dense = [event.run for event in told if isinstance(event, Evaluated) and event.round == 0]
    assert {(run.arm, run.seed) for run in dense} == {("lt", 0), ("lt", 1)}
    first = {run.seed: rounds(run).iloc[0].to_dict() for run in runs if run.arm == "lt"}
    assert first[0] != first[1]
    for run in runs:
        assert rounds(run).iloc[0].to_dict() == first[run.seed]
        assert equal(trained(run, 0), trained(replace(run, arm="lt"), 0))
    shared = [event for event in told if isinstance(event, RoundDone) and not event.seconds]
    assert len(shared) == 2 * (len(ARMS) - 1)


@pytest.mark.parametrize("arm", ["ticket_reinit", "ticket_shuffle"])
def test_controls_run_lt_first_or_take_its_rounds_from_disk(place: Path, arm: str) -> None:
    asked = settings(place, prune_type=arm)
    assert [run.arm for run in runs_of(asked)] == ["lt", arm]
    do(settings(place, prune_type="lt"))
    before, told = results(place), Told()
    do(asked, told)
    assert {event.run.arm for event in told if isinstance(event, Evaluated)} == {arm}
    after = results(place)
    assert {name: after[name] for name in before} == before


# What is reset, rewinding, rates


def test_reset_restores_initial_weights_bit_for_bit_and_saves_them_once(place: Path) -> None:
    (run,) = do(settings(place, arch_type="conv"))
    initial = tickets.read_state(run, "initial")
    for number in range(3):
        ticket = tickets.read_ticket(run, number)
        assert ticket.origin == "initial" and equal(ticket.start, initial)
    sizes = [(run.saves / f"ticket_{n:02d}.safetensors").stat().st_size for n in range(3)]
    assert max(sizes) < 1500, "a ticket of lt holds its mask alone"


def test_rewinding_resets_to_that_iteration_of_round_0_and_goes_on_from_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = Ends(monkeypatch)
    config = settings(place, arch_type="drop", rewind="3it", prune_type=("lt", "reinit", "random", "finetune"))
    runs = {run.arm: run for run in do(config)}
    short = settings(place, arch_type="drop", end_iter="3it", root=place / "short")
    do(replace(short, prune_iterations=1))
    expected = tickets.read_state(runs_of(short)[0], "dense")  # round 0, ended at iteration 3
    for arm in ("lt", "random"):
        assert equal(tickets.read_state(runs[arm], "rewind"), expected)
        for number in (1, 2):
            ticket = tickets.read_ticket(runs[arm], number)
            assert ticket.origin == "rewind" and equal(ticket.start, expected)
    assert ends.plans["lt", 0] == ends.plans["lt", 1] == [4, 8]
    assert tickets.read_ticket(runs["reinit"], 1).origin == "own"
    times = records.table(runs["lt"], "evals")
    assert times["iteration"].tolist() == [4, 8] * 3


def test_rewound_training_takes_the_rates_of_its_iterations(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[int, list[float]] = {}
    config = settings(place, rewind="3it", lr_milestones=["6it"], warmup="2it", lr=0.01)
    made = experiment(config)
    optimizer = made.problem.optimizer

    def watched(network: Any) -> Any:
        found = optimizer(network)
        step, rates = found.step, used.setdefault(len(used), [])
        found.step = lambda gradients: (rates.append(round(found.lr, 6)), step(gradients))
        return found

    made.problem = replace(made.problem, optimizer=watched)
    made.run(runs_of(config), 2)
    assert used[0] == [0.005, 0.01, 0.01, 0.01, 0.01, 0.01, 0.001, 0.001]
    assert used[1] == used[0][3:]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_target_remaining_is_reached_in_the_last_round(place: Path, scope: str) -> None:
    (run,) = do(settings(place, prune_percent=10, target_remaining=5, prune_iterations=6, prune_scope=scope))
    assert rounds(run)["remaining"].iloc[-1] == pytest.approx(5, abs=100 * 0.5 * 2 * 6 / 816)
    assert rounds(run)["remaining"].iloc[-2] > 8


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_counts_in_the_tables_are_the_arithmetic_ones(place: Path, scope: str) -> None:
    (run,) = do(settings(place, prune_percent=20, output_percent=0, prune_scope=scope, prune_iterations=5))
    hidden, expected = 64 * 12, []
    for _ in range(5):
        expected.append(hidden)
        hidden -= round(hidden * 20 / 100)
    layers = records.table(run, "layers").pivot(index="round", columns="layer", values="weights")
    assert layers["layers.1.weight"].tolist() == expected and layers["layers.3.weight"].tolist() == [48] * 5
    assert rounds(run)["weights"].tolist() == [count + 48 for count in expected]
    assert rounds(run)["remaining"].tolist() == pytest.approx([100 * (n + 48) / 816 for n in expected], abs=1e-4)


def test_pruning_looks_at_the_end_of_training_and_reporting_at_es(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate that drives the loss up after the first evaluation, both differ."""
    ends = Ends(monkeypatch)
    (run,) = do(settings(place, optimizer="sgd", lr=1.5, momentum=0.9, end_iter="24it", valid_freq="2it"))
    table = records.table(run, "evals")
    early = 0
    for number, group in table.groupby("round"):
        row = rounds(run).iloc[number]
        best = group.loc[group["val_loss"].idxmin()]  # the first of the lowest
        assert (row["ES"], row["val"], row["test"]) == (best["iteration"], best["val"], best["test"])
        early += row["ES"] < 24
        assert equal(trained(run, number), ends.final["lt", number]) == (row["ES"] == 24)
    assert early, "choose other settings: ES was always the end"
    before, after = tickets.read_ticket(run, 0).masks, tickets.read_ticket(run, 1).masks
    for layer in before:
        weights = ends.final["lt", 0][layer].abs()
        assert weights[~after[layer]].max() <= weights[after[layer]].min()


def test_layers_without_weights_are_said_and_the_run_goes_on(place: Path) -> None:
    told = Told()
    (run,) = do(settings(place, prune_percent=100, output_percent=0), told)
    assert len(rounds(run)) == 3
    assert [event.empty for event in told if isinstance(event, RoundDone)] == [(), *[("layers.1.weight",)] * 2]


@pytest.mark.parametrize("keep, expected", [("all", ["00", "01", "02"]), ("last", ["02"]), ("none", [])])
def test_keep_weights(place: Path, keep: str, expected: list[str]) -> None:
    for run in do(settings(place, prune_type=("lt", "reinit"), keep_weights=keep)):
        assert sorted(file.stem[-2:] for file in run.saves.glob("trained_*")) == expected
        assert len(list(run.saves.glob("ticket_*"))) == 3
        for number in map(int, expected):
            assert rounds(run)["test"][number] == pytest.approx(accuracy(place, trained(run, number)), abs=1e-4)


def accuracy(place: Path, state: State) -> float:
    """Percent of the test images that the tiny network with these weights gets right."""
    made = experiment(settings(place))
    model = models.load_state(made.problem.make(), state).eval()
    (images, labels), *_ = made._feed([Run(place, "mlp", "tiny", "", "lt", 0)]).test()
    with torch.no_grad():
        return 100 * (model(images).argmax(1) == labels).float().mean().item()


# What a trial's numbers depend on


def test_a_trial_alone_equals_the_same_trial_among_others(place: Path) -> None:
    do(settings(place, arch_type="drop", trials=3, prune_type=("lt", "reinit", "random", "ticket_shuffle")))
    among = results(place)
    config = settings(place, arch_type="drop", seed=1, prune_type=("ticket_shuffle", "reinit"), root=place / "alone")
    do(config)
    alone = results(place / "alone")
    assert_same({name: among[name] for name in alone}, alone)
    assert any("/lt/seed1/" in name for name in alone) and not any("seed0" in name for name in alone)


def test_trials_have_their_own_weights_splits_and_orders(place: Path) -> None:
    runs = do(settings(place, trials=2, prune_type="lt"))
    weights = [tickets.read_state(run, "initial")["layers.1.weight"] for run in runs]
    assert not torch.equal(*weights)
    made = experiment(settings(place))
    splits = [made._feed([run]).train_indices[0].tolist() for run in runs]
    assert sorted(splits[0]) != sorted(splits[1])
    feed = made._feed(runs[:1])
    orders = [feed.epoch([(0, "order", number)], 0).flatten().tolist() for number in (0, 1)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]), "each round has its own order"


def test_stacked_runs_find_what_single_ones_find(place: Path) -> None:
    many = {"trials": 3, "prune_type": ("lt", "reinit", "ticket_reinit"), "optimizer": "sgd", "lr": 0.1}
    single = do(settings(place, arch_type="conv", **many))
    told = Told()
    config = settings(place, arch_type="conv", root=place / "stacked", stack=4, **many)
    do(config, told)
    for run in single:
        one, other = rounds(run), rounds(replace(run, root=place / "stacked"))
        assert one["weights"].tolist() == other["weights"].tolist()
        assert other["val_loss"].tolist() == pytest.approx(one["val_loss"].tolist(), rel=0.02)


@pytest.mark.parametrize("arch", ["drop", "conv"])
def test_more_rounds_extend_a_run_as_if_they_had_been_asked_for_at_once(place: Path, arch: str) -> None:
    config = settings(place, arch_type=arch, prune_iterations=5, **EVERY_ARM)
    do(replace(config, root=place / "once"))
    for count in (1, 2, 5):
        do(replace(config, prune_iterations=count))
    assert_same(results(place, ("dumps", "saves")), results(place / "once"))


def test_finished_rounds_are_not_trained_again(place: Path) -> None:
    config = settings(place, **EVERY_ARM)
    do(config)
    before, told = results(place), Told()
    do(config, told)
    assert told == [] and results(place) == before
    do(replace(config, prune_iterations=1), told)  # fewer are no reason to lose any
    assert told == [] and results(place) == before


# Stops


def test_stopping_at_any_batch_of_any_round_changes_nothing(place: Path) -> None:
    config = settings(place, arch_type="drop", prune_type=("lt", "finetune"), prune_iterations=2, checkpoint_every=0)
    turns = itertools.count()
    do(replace(config, root=place / "whole"), stop=lambda: next(turns) < 0)
    expected = results(place / "whole")
    for turn in range(0, next(turns), 3):
        root, turns = place / f"stopped{turn}", itertools.count()
        with pytest.raises(Stopped):
            do(replace(config, root=root), stop=lambda turns=turns, turn=turn: next(turns) == turn)
        do(replace(config, root=root))
        assert_same(results(root), expected)


def test_a_run_stopped_at_every_turn_gets_there(place: Path) -> None:
    config = settings(place, arch_type="conv", prune_type=("lt", "ticket_reinit"), rewind="3it")
    do(replace(config, root=place / "whole"))
    for _ in range(200):
        turns = iter(range(3))
        try:
            do(config, stop=lambda turns=turns: next(turns, None) is None)
        except Stopped:
            continue
        break
    assert_same(results(place), results(place / "whole"))


@pytest.mark.parametrize(
    "changes",
    [
        {"prune_type": ("lt", "reinit"), "checkpoint_every": 0},
        {"prune_type": ("lt", "ticket_shuffle"), "keep_weights": "last", "rewind": "2it", "prune_iterations": 4},
        {"prune_type": ("finetune",), "trials": 2, "keep_weights": "none", "arch_type": "drop"},
    ],
    ids=["plain", "last", "none"],
)
def test_being_killed_between_any_two_changes_of_files_changes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config = settings(place, **changes)
    with killed_at(10**9, monkeypatch) as operations:
        do(replace(config, root=place / "whole"))
    expected, count = results(place / "whole"), operations[0]
    assert count > 30
    for operation in range(count):
        root = place / f"killed{operation}"
        with killed_at(operation, monkeypatch):
            do(replace(config, root=root))
        for file in root.rglob("*.csv"):
            assert file.read_bytes().endswith(b"\n")
        do(replace(config, root=root))
        assert_same(results(root), expected)
        shutil.rmtree(root)
