"""The rounds: what each arm is, what is reset, what a trial depends on, and going on after stops and damage."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch
from helpers import (
    EXHAUSTIVE,
    Capture,
    Patch,
    Told,
    assert_kills_change_nothing,
    assert_released,
    assert_same,
    do,
    do_in_pieces,
    equal,
    experiment,
    results,
    settings,
    work,
)

from lth import pruning
from lth.analysis import sentences
from lth.commands import session
from lth.experiment import Experiment, next_ticket
from lth.experiment.scores import scored
from lth.experiment.trainer import Evaluated, RoundDone
from lth.models import building
from lth.models.building import State
from lth.records import tables
from lth.records.files import RecordError
from lth.records.store import Store, Ticket, numbered
from lth.records.tables import Run, runs_of
from lth.rng import derive_seed
from lth.settings.arms import ARMS, CRITERIA
from lth.settings.config import Config, ConfigError
from lth.training.train import Evaluation, Stopped, Trained

FOUND_HERE = tuple(
    arm
    for arm in ARMS
    if ARMS[arm].masks != "of_ticket" and not ARMS[arm].changes_masks  # which have tests of their own
)
EVERY_ARM = (*FOUND_HERE, "one_shot_shuffle", "one_shot_reinit")
SOME_ARMS = ("lt", "finetune", "reinit", "one_shot", "snip", "ticket_shuffle", "ticket_reinit")


def trained(run: Run, number: int) -> State:
    return Store(run).weights(numbered("trained", number))


def rounds(run: Run) -> pd.DataFrame:
    return tables.table(run, "rounds")


class Ends:
    """Notes the weights at the end of every round, as record() gets them."""

    def __init__(self, monkeypatch: Patch) -> None:
        self.final: dict[tuple[str, int], State] = {}
        self.plans: dict[tuple[str, int], list[int]] = {}
        record = Experiment.record

        def noted(this: Experiment, run: Run, ticket: Any, result: Any) -> None:
            self.final[run.arm, ticket.round] = result.final
            self.plans[run.arm, ticket.round] = [e.iteration for e in result.evals]
            record(this, run, ticket, result)

        monkeypatch.setattr(Experiment, "record", noted)


def test_every_arm_by_its_masks_starts_and_survivors(place: Path, monkeypatch: Patch) -> None:
    """Three rounds of a network with batch norm: biases, norm parameters and running statistics are reset too."""
    config = settings(place, arch_type="conv", output_percent=10, prune_type=EVERY_ARM)
    ends = Ends(monkeypatch)
    runs = {run.arm: run for run in do(config)}
    assert runs.keys() == set(EVERY_ARM)
    problem = experiment(config).trainer.problem
    kinds = pruning.layer_kinds(problem.make())
    rates = {name: 10 if kind == "output" else 30 for name, kind in kinds.items()}
    initial = Store(runs["lt"]).weights("initial")
    assert any("running_mean" in name for name in initial)
    fresh = {n: problem.fresh(derive_seed(0, "weights", n)) for n in (1, 2)}
    assert not any(torch.equal(fresh[1][name], fresh[2][name]) for name in pruning.prunable(problem.make()))
    lt = tickets_of(runs["lt"])
    assert max((runs["lt"].saves / f"ticket_{n:02d}.safetensors").stat().st_size for n in range(3)) < 1500
    for name, run in runs.items():
        own, arm = tickets_of(run), ARMS[name]
        assert all(mask.all() for mask in own[0].masks.values()) and equal(own[0].start, initial)
        for number in (1, 2):
            before, after = own[number - 1].masks, own[number].masks
            totals = [sum(pruning.survivors(masks).values()) for masks in (after, lt[number].masks)]
            assert totals[0] == totals[1], "a round is as sparse in every arm"
            final = ends.final.get((name, number - 1)) or ends.final["lt", 0]
            assert not equal(final, initial), "the training changed nothing"
            if "sign" not in arm.start:  # see test_starts_of_signs_have_the_original_ones
                starts = {"original": initial, "fresh": fresh[number], "trained": final}
                assert equal(own[number].start, starts[arm.start])
            for layer, mask in after.items():
                for state in (ends.final[name, number], trained(run, number)):
                    assert (state[layer][~mask] == 0).all() and (state[layer] != own[number].start[layer])[mask].any()
                if arm.masks == "before_training":
                    continue  # which weights these keep is in test_pruning_before_training
                count = int(before[layer].sum())
                assert int(mask.sum()) == count - round(count * rates[layer] / 100)
                if arm.mask_of:
                    taken = Store(runs[arm.mask_of]).masks(number)[layer]
                    assert torch.equal(mask, taken) != arm.shuffled
                    continue
                gone = before[layer] & ~mask
                assert not (mask & ~before[layer]).any()
                weights = (final if arm.masks == "iterative" else ends.final["lt", 0])[layer].abs()
                ordered = weights[gone].max() <= weights[mask].min()
                assert ordered != (arm.scores == "random"), "magnitudes at the round's end decide, but at random"


def tickets_of(run: Run) -> list[Ticket]:
    return [Store(run).ticket(number) for number in range(3)]


def test_the_dense_round_is_trained_once_a_trial(place: Path) -> None:
    told = Told()
    schedule = {"lr_milestones": ["4it"], "rewind": "2it"}  # of which finetune takes another part than lt later
    runs = do(settings(place, trials=2, prune_iterations=2, prune_type=SOME_ARMS, **schedule), told)
    dense = [event.run for event in told if isinstance(event, Evaluated) and event.round == 0]
    assert {(run.arm, run.seed) for run in dense} == {("lt", 0), ("lt", 1)}
    first = {run.seed: rounds(run).iloc[0].to_dict() for run in runs if run.arm == "lt"}
    assert first[0] != first[1]
    for run in runs:
        assert rounds(run).iloc[0].to_dict() == first[run.seed]
        assert equal(trained(run, 0), trained(replace(run, arm="lt"), 0))
    shared = [event for event in told if isinstance(event, RoundDone) and not event.seconds]
    assert len(shared) == 2 * (len(SOME_ARMS) - 1)


def test_controls_run_lt_first_or_take_its_rounds_from_disk(place: Path) -> None:
    asked = settings(place, prune_type="ticket_reinit")
    assert [run.arm for run in runs_of(asked)] == ["lt", "ticket_reinit"]
    do(settings(place, prune_type="lt"))
    before, told = results(place), Told()
    do(asked, told)
    assert {event.run.arm for event in told if isinstance(event, Evaluated)} == {"ticket_reinit"}
    after = results(place)
    assert {name: after[name] for name in before} == before


def test_controls_take_no_masks_of_another_lt_than_before(place: Path) -> None:
    """As when it has been trained again on another kind of machine."""
    arms = ("lt", "ticket_shuffle", "ticket_reinit")
    lt, *controls = do(settings(place, prune_type=arms, prune_iterations=2))
    do(settings(place, prune_type="lt"))
    made = experiment(settings(place, prune_type=arms))
    for ticket in [Store(lt).ticket(number) for number in (1, 2)]:
        flipped = {name: mask.flip(0) for name, mask in ticket.masks.items()}
        made.trainer.store(lt).write_ticket(replace(ticket, masks=flipped))
    work(made)
    assert made.failed.keys() == set(controls) and [len(rounds(run)) for run in controls] == [2, 2]
    assert "lt has been trained again: its mask of round 1 is not the one" in made.failed[controls[0]]
    (lt.saves / "ticket_01.safetensors").unlink()  # what they had cannot be told any more
    do(settings(place, prune_type=arms))
    assert [len(rounds(run)) for run in controls] == [3, 3]


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("ticket_02", b"spoiled", r"ticket_02\.s.* is damaged.*; --overwrite trains lt and ticket_reinit again"),
        ("ticket_02", None, "round 2 has no ticket of lt to take its mask from"),
        ("initial", b"spoiled", ""),  # only masks are needed
    ],
)
def test_lost_files_of_lt_cost_its_controls_only(place: Path, name: str, content: bytes | None, says: str) -> None:
    lt, control = runs_of(settings(place, prune_type="ticket_reinit"))
    do(settings(place))
    file = Store(lt).file(name)
    file.write_bytes(content) if content else file.unlink()
    made = experiment(settings(place, prune_type=("ticket_reinit", "random")))
    work(made)
    assert made.failed.keys() == ({control} if says else set()) and len(rounds(control)) == (2 if says else 3)
    assert re.search(says, made.failed.get(control, ""))
    assert len(rounds(replace(lt, arm="random"))) == 3


def test_rewinding_resets_to_that_iteration_of_round_0_and_goes_on_from_there(place: Path, monkeypatch: Patch) -> None:
    ends = Ends(monkeypatch)
    config = settings(place, arch_type="drop", rewind="3it", prune_type=("lt", "reinit", "random", "finetune"))
    runs, plans = {run.arm: run for run in do(config)}, dict(ends.plans)
    short = settings(place, arch_type="drop", end_iter="3it", root=place / "short")
    do(replace(short, prune_iterations=1))
    expected = Store(runs_of(short)[0]).weights("dense")  # round 0, ended at iteration 3
    for arm in ("lt", "random"):
        assert equal(Store(runs[arm]).weights("rewind"), expected)
        for number in (1, 2):
            ticket = Store(runs[arm]).ticket(number)
            assert ticket.origin == "rewind" and equal(ticket.start, expected)
    assert plans["lt", 0] == plans["lt", 1] == [4, 8]
    assert Store(runs["reinit"]).ticket(1).origin == "own"
    times = tables.table(runs["lt"], "evals")
    assert times["iteration"].tolist() == [4, 8] * 3


@pytest.mark.parametrize("rewind", ["0", "2it"])
def test_masks_drawn_early_are_those_of_a_round_that_ends_there(place: Path, monkeypatch: Patch, rewind: str) -> None:
    arms, ends = ("lt", "one_shot", "lr_rewind"), Ends(monkeypatch)
    config = settings(place, arch_type="drop", draw_at="5it", rewind=rewind, prune_type=arms)
    runs = {run.arm: run for run in do(replace(config, root=place / "early"))}
    ended, plain = dict(ends.final), {run.arm: rounds(run) for run in do(replace(config, draw_at=None))}
    short = {run.arm: run for run in do(replace(config, draw_at=None, end_iter="5it", root=place / "short"))}
    for arm, run in runs.items():
        for number in (1, 2) if arm != "lr_rewind" else (1,):
            assert equal(Store(run).ticket(number).masks, Store(short[arm]).ticket(number).masks)
        assert rounds(run).iloc[0].equals(plain[arm].iloc[0]) and rounds(run)["ES"].max() == 8
    start = Store(runs["lr_rewind"]).ticket(2).start
    assert equal(start, ended["lr_rewind", 1]), "survivors continue from the end of the round"


def test_the_rates_of_rewound_and_of_trained_survivors(place: Path) -> None:
    """Rewound training takes the rates of its iterations; fine-tuning takes the last one for a whole round."""
    used: list[list[float]] = []
    arms = ("lt", "lr_rewind", "finetune")
    config = settings(place, rewind="3it", lr_milestones=["6it"], warmup="2it", lr=0.01, prune_type=arms)
    made = experiment(config)
    optimizer = made.trainer.problem.optimizer

    def watched(network: Any) -> Any:
        found = optimizer(network)
        step, rates = found.step, list[float]()
        used.append(rates)
        found.step = lambda gradients: (rates.append(round(found.lr, 6)), step(gradients))
        return found

    made.trainer.problem = replace(made.trainer.problem, optimizer=watched)
    made.run(runs_of(config), 2)
    dense, lt, lr_rewind, finetune = used
    assert dense == [0.005, 0.01, 0.01, 0.01, 0.01, 0.01, 0.001, 0.001]
    assert lt == lr_rewind == dense[3:] and finetune == [0.001] * 8


BEFORE = ("magnitude_init", "random_init", "snip", "grasp", "synflow")


@pytest.mark.parametrize("changes", [{}, {"rewind": "3it", "prune_scope": "global", "output_percent": 0}])
def test_pruning_before_training(place: Path, changes: dict[str, Any]) -> None:
    """At once, from the weights that training starts from; all layers are compared that are pruned at all."""
    config = settings(place, prune_type=("lt", *BEFORE), score_batches=3, **changes)
    runs = {run.arm: run for run in do(config)}
    start = Store(runs["lt"]).weights("rewind" if "rewind" in changes else "initial")
    hidden, output = "layers.1.weight", "layers.3.weight"
    compared = [hidden] if "output_percent" in changes else [hidden, output]
    made = experiment(config)
    feed = made.trainer.feed([runs["snip"]])
    batches = [feed.fetch(batch) for batch in feed.epoch([(0, "scores")], 0)[:3]]
    held_out = {tuple(x.flatten().tolist()) for chunk, _ in feed.validation() for x in chunk}
    assert [len(x) for x, _ in batches] == [10] * 3
    assert not held_out & {tuple(x.flatten().tolist()) for chunk, _ in batches for x in chunk}
    model = building.load_state(made.trainer.problem.make(), start)
    scores = {
        name: scored(name, model, pruning.dense(pruning.prunable(model)), batches, torch.nn.functional.cross_entropy)
        for name in ("snip", "grasp")
    }
    scores["magnitude_init"] = {name: start[name].abs() for name in compared}
    for arm in BEFORE:
        assert rounds(runs[arm])["weights"].tolist() == rounds(runs["lt"])["weights"].tolist()
        for number in (1, 2):
            ticket = Store(runs[arm]).ticket(number)
            assert equal(ticket.start, start)
            assert output in compared or ticket.masks[output].all()
            if arm in scores:
                flat = [(scores[arm][name].flatten(), ticket.masks[name].flatten()) for name in compared]
                score, kept = map(torch.cat, zip(*flat, strict=True))
                assert score[~kept].max() <= score[kept].min()
    first, second = (start[name].double().abs() for name in (hidden, output))
    bias = start["layers.1.bias"].double().abs()
    masks = {hidden: torch.ones_like(first).bool(), output: torch.ones_like(second).bool()}
    total = sum(masks[name].numel() for name in compared)
    left = int(rounds(runs["lt"])["weights"][2]) - (0 if output in compared else second.numel())
    for step in range(1, 101):  # SynFlow on two layers, where the sums can be written down
        first, second = first * masks[hidden], second * masks[output]
        flow = {hidden: first * second.sum(0)[:, None], output: second * (first.sum(1) + bias)}
        lowest = torch.cat([flow[name].flatten() for name in compared]).sort().values
        count = total - round(total * (left / total) ** (step / 100))
        masks |= {name: flow[name] > lowest[count - 1] for name in compared if count}
    assert equal(Store(runs["synflow"]).ticket(2).masks, masks)


def test_a_model_that_cannot_be_scored_ends_the_runs_that_score_it_alone(place: Path, monkeypatch: Patch) -> None:
    def failing(*arguments: Any) -> None:
        raise RuntimeError("not so")

    monkeypatch.setattr(next_ticket, "scored", failing)
    told = Told()
    found = do(settings(place, prune_type=("lt", "grasp"), trials=2, stack=4), told)
    assert [(run.arm, len(rounds(run))) for run in found] == [("lt", 3), ("grasp", 1)] * 2
    for seed in (0, 1):
        why = "mlp failed in the scores of grasp before round 1 with RuntimeError: not so"
        assert f"grasp seed{seed}: {why}" in told.notes


@pytest.mark.parametrize("rates", ["uniform", "erk"])
def test_random_pruning_before_training_by_layer(place: Path, rates: str) -> None:
    config = settings(place, prune_type="random_init", random_rates=rates, prune_percent=60)
    (run,) = do(config)
    counts = [tuple(pruning.survivors(Store(run).ticket(number).masks).values()) for number in (1, 2)]
    # 64 x 12 and 12 x 4: of 326 weights ERK would give the second layer 326 * 16 / 92 = 56.7, but it has 48.
    assert counts == ([(307, 19), (123, 8)] if rates == "uniform" else [(278, 48), (108, 23)])
    assert config.folder().count("random_rates") == (rates == "erk")


def test_starts_of_signs_have_the_original_ones(place: Path) -> None:
    arms = ("sign", "shuffled_signs", "ticket_sign", "one_shot_sign")
    runs = {run.arm: run for run in do(settings(place, prune_type=arms, rewind="3it"))}
    assert set(runs) == {*arms, "lt", "one_shot"}
    rewound = Store(runs["lt"]).weights("rewind")
    for arm in arms:
        for number in (1, 2):
            ticket = Store(runs[arm]).ticket(number)
            for name, weight in rewound.items():
                start, mask = ticket.start[name], ticket.masks.get(name)
                if mask is None:
                    assert torch.equal(start, weight), "biases are as they were"
                    continue
                assert start.abs().unique().tolist() == pytest.approx([weight.std(correction=0).item()])
                assert torch.equal(start.sign(), weight.sign()) == (arm != "shuffled_signs")
                assert (start[mask] > 0).sum() == (weight[mask] > 0).sum()
    assert equal(*(Store(runs[arm]).ticket(2).masks for arm in ("ticket_sign", "lt")))
    assert equal(*(Store(runs[arm]).ticket(2).masks for arm in ("one_shot_sign", "one_shot")))


@pytest.mark.parametrize("stack", [None, 2])
def test_the_supermask_column_is_the_accuracy_of_the_ticket_before_training(place: Path, stack: int | None) -> None:
    config = settings(place, prune_type=("sign", "lt"), prune_method="large_final_same_sign", stack=stack)
    for run in do(config):
        for number, found in enumerate(rounds(run)["supermask"]):
            ticket = Store(run).ticket(number)
            start = {name: x * ticket.masks[name] if name in ticket.masks else x for name, x in ticket.start.items()}
            assert found == pytest.approx(accuracy(place, start), abs=1e-4)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_target_remaining_is_reached_in_the_last_round(place: Path, scope: str) -> None:
    (run,) = do(settings(place, prune_percent=10, target_remaining=5, prune_iterations=6, prune_scope=scope))
    assert rounds(run)["remaining"].iloc[-1] == pytest.approx(5, abs=100 * 0.5 * 2 * 6 / 816)
    assert rounds(run)["remaining"].iloc[-2] > 8


def test_scope_erk_gives_layers_its_shares_and_keeps_the_largest_of_each(place: Path, monkeypatch: Patch) -> None:
    ends = Ends(monkeypatch)
    (run,) = do(settings(place, prune_scope="erk", prune_percent=60, prune_iterations=4))
    for number in (1, 2, 3):
        before, after = (Store(run).ticket(count).masks for count in (number - 1, number))
        keep = sum(pruning.survivors(before).values())
        keep -= sum(round(count * 0.6) for count in pruning.survivors(before).values())
        shares = pruning.erdos_renyi(pruning.dense(after), [pruning.Quota(list(after), keep)])
        assert pruning.survivors(after) == {share.layers[0]: share.keep for share in shares}
        for name, mask in after.items():
            final, gone = ends.final["lt", number - 1][name].abs(), before[name] & ~mask
            assert not gone.any() or final[gone].max() <= final[mask].min()


def test_pruning_looks_at_the_end_of_training_and_reporting_at_es(place: Path, monkeypatch: Patch) -> None:
    """At a rate that drives the loss up after the first evaluation, both differ; also where rounds are added later."""
    ends = Ends(monkeypatch)
    config = settings(place, seed=4, optimizer="sgd", lr=1.5, momentum=0.9, end_iter="24it", valid_freq="2it")
    for count in (1, 3):
        (run,) = do(replace(config, prune_iterations=count))
    table = tables.table(run, "evals")
    early = better = 0
    for number, group in table.groupby("round"):
        row = rounds(run).iloc[number]
        best = group.loc[group["val_loss"].idxmin()]  # the first of the lowest
        assert (row["ES"], row["val"], row["test"]) == (best["iteration"], best["val"], best["test"])
        early += row["ES"] < 24
        better += row["test"] < group["test"].max()
        assert equal(trained(run, number), ends.final["lt", number]) == (row["ES"] == 24)
    assert early and better, "choose other settings: ES was always the end, or the best on the test images"
    for number in (1, 2):  # every mask is that of the magnitudes at the end of the round before, not those at ES
        before, after = Store(run).masks(number - 1), Store(run).masks(number)
        others = 0
        for layer in before:
            gone = before[layer] & ~after[layer]
            final, best = ends.final[run.arm, number - 1][layer].abs(), trained(run, number - 1)[layer].abs()
            assert final[gone].max() <= final[after[layer]].min()
            others += int(best[gone].max() > best[after[layer]].min())
        assert others, "choose other settings: the weights at ES would have given the same mask"


def test_layers_without_weights_are_said_and_the_run_goes_on(place: Path) -> None:
    told = Told()
    (run,) = do(settings(place, prune_percent=99.99, output_percent=0), told)
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
    model = building.load_state(made.trainer.problem.make(), state).eval()
    (images, labels), *_ = made.trainer.feed([Run(place, "mlp", "tiny", "", "lt", 0)]).test()
    with torch.no_grad():
        return 100 * (model(images).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("method", list(CRITERIA))
def test_criteria_compare_true_initial_and_final_weights(place: Path, method: str, monkeypatch: Patch) -> None:
    """In every round and arm, also where survivors start from later weights; fresh ones are initial in their round."""
    ends = Ends(monkeypatch)
    arms = ("lt", "finetune", "reinit")
    config = settings(place, prune_method=method, prune_type=arms, rewind="6it", lr=0.1)
    for run in do(config):
        original = Store(run).weights("initial")
        for number in (1, 2):
            before, after = Store(run).ticket(number - 1), Store(run).ticket(number)
            initial = before.start if run.arm == "reinit" else original
            final = ends.final.get((run.arm, number - 1)) or ends.final["lt", 0]
            others = 0
            for layer, mask in after.masks.items():
                gone = before.masks[layer] & ~mask
                found = {name: score(initial[layer], final[layer]) for name, score in CRITERIA.items()}
                assert found[method][gone].max() <= found[method][mask].min(), (run.arm, number)
                others += sum(bool(score[gone].max() > score[mask].min()) for score in found.values())
            assert others > len(CRITERIA) // 2, "choose other settings: other criteria give the same mask"


def test_ties_are_broken_at_random_by_the_seed_and_reported(place: Path) -> None:
    """A head of zeros gives all weights a score of 0: the order in memory must decide nothing."""
    config, told = settings(place, prune_type="snip", trials=2), Told()

    def train(config: Config) -> list[Run]:
        made = experiment(config, told)
        initial = made.trainer.problem.initial
        zero = {"layers.3.weight": torch.zeros(4, 12)}
        made.trainer.problem = replace(made.trainer.problem, initial=lambda seed: initial(seed) | zero)
        work(made)
        return runs_of(config)

    runs = train(config)
    masks = [Store(run).ticket(1).masks["layers.1.weight"] for run in runs]
    assert not torch.equal(*masks), "the seed decides"
    for mask in masks:
        shares = [part.float().mean().item() for part in mask.flatten().chunk(4)]
        assert min(shares) > 0.5, "no part in memory survives more than the others"
    done = [event for event in told if isinstance(event, RoundDone) and event.run == runs[0]]
    assert [event.at_random for event in done] == [0, *rounds(runs[0])["weights"][1:]]
    (sentence,) = sentences.about_ties(runs)
    assert sentence in sentences.of_runs(runs), "part of the verdict, also of a sweep's"
    assert sentence.startswith("snip, round 1: 572 of the 572 surviving weights (100.0%) were drawn at random among")
    train(replace(config, root=place / "again"))
    assert_same(results(place / "again"), {k: v for k, v in results(place).items() if not k.startswith("again")})


def test_a_trial_alone_equals_the_same_trial_among_others(place: Path) -> None:
    do(settings(place, arch_type="drop", trials=3, prune_type=("lt", "reinit", "random", "ticket_shuffle")))
    among = results(place)
    config = settings(place, arch_type="drop", seed=1, prune_type=("ticket_shuffle", "reinit"), root=place / "alone")
    do(config)
    alone = results(place / "alone")
    assert_same({name: among[name] for name in alone}, alone)
    assert any("/lt/seed1/" in name for name in alone) and not any("seed0" in name for name in alone)


def test_trials_have_their_own_weights(place: Path) -> None:
    runs = do(settings(place, trials=2, prune_type=("reinit", "ticket_reinit")))
    drawn = {(run.seed, number, run.arm): Store(run).ticket(number).start for run in runs for number in range(3)}
    for one, other in itertools.combinations([key for key in drawn if key[2] == "reinit"], 2):
        for name in ("layers.1.weight", "layers.3.weight"):
            assert not torch.equal(drawn[one][name], drawn[other][name]), (one, other)
    for seed, number in itertools.product((0, 1), (0, 1, 2)):  # arms differ by their masks alone
        assert equal(drawn[seed, number, "reinit"], drawn[seed, number, "ticket_reinit"])


def test_every_round_of_every_trial_has_random_draws_of_its_own(place: Path, monkeypatch: Patch) -> None:
    config = settings(place, trials=2, prune_type=("random", "ticket_shuffle", "random_shuffle"))
    streams: dict[str, list[list[float]]] = {}

    def watched(name: str) -> None:
        plain = getattr(pruning, name)

        def draws(masks: Any, generator: torch.Generator) -> Any:
            ahead = torch.Generator().set_state(generator.get_state())
            streams.setdefault(name, []).append(torch.rand(3, generator=ahead).tolist())
            return plain(masks, generator)

        monkeypatch.setattr(pruning, name, draws)

    watched("random_scores")
    watched("shuffled")
    runs = {(run.arm, run.seed): run for run in do(config)}
    assert len(streams["random_scores"]) == 4
    assert len(streams["shuffled"]) == 8 + 4, "and once more those of round 1, to be compared with what was taken then"
    assert len(set(map(tuple, streams["random_scores"]))) == 4
    assert len(set(map(tuple, streams["shuffled"]))) == 4, "two arms that shuffle draw alike in a round of a trial"
    masks = {(seed, n): Store(runs["random", seed]).ticket(n).masks for seed in (0, 1) for n in (1, 2)}
    at_once = do(settings(place, prune_type=("random",), prune_percent=51.1, root=place / "once"))[0]
    for layer, once in Store(at_once).ticket(1).masks.items():
        assert not torch.equal(masks[0, 1][layer], masks[1, 1][layer])
        assert layer == "layers.3.weight" or (once & ~masks[0, 2][layer]).any(), "the second goes on as the first"


@pytest.mark.parametrize(
    "changes",
    [
        {"arch_type": "conv", "trials": 2, "prune_type": ("lt", "reinit", "ticket_reinit")},
        {"prune_type": ("finetune", "lt"), "lr_milestones": "4it", "lr_gamma": 0.001},
    ],
)
def test_stacked_runs_find_what_single_ones_find(place: Path, changes: dict[str, Any]) -> None:
    """Each at the rates of its own arm."""
    single = do(settings(place, precision="fp32", **changes))
    do(settings(place, precision="fp32", root=place / "stacked", stack=4, **changes))
    for run in single:
        one, other = rounds(run), rounds(replace(run, root=place / "stacked"))
        assert one["weights"].tolist() == other["weights"].tolist()
        assert other["val_loss"].tolist() == pytest.approx(one["val_loss"].tolist(), rel=1e-3), run.arm


def test_more_rounds_extend_a_run_as_if_they_had_been_asked_for_at_once(place: Path) -> None:
    config = settings(place, arch_type="drop", prune_type=FOUND_HERE if EXHAUSTIVE else SOME_ARMS)
    do(replace(config, root=place / "once"))
    for count in (1, 3):
        do(replace(config, prune_iterations=count))
    assert_same(results(place, ("dumps", "saves")), results(place / "once"))


def test_finished_rounds_are_not_trained_again(place: Path) -> None:
    config = settings(place, prune_type=("lt", "one_shot", "ticket_reinit"))
    for run in do(config):
        with safetensors.safe_open(run.saves / "checkpoint.safetensors", framework="np") as opened:
            kept = {name.partition("/")[0] for name in opened.keys()}  # noqa: SIM118
        assert kept == {"final", "best", "evals"}, "what only a stopped round needs"
    before, told = results(place), Told()
    do(config, told)
    assert told == [] and results(place) == before
    do(replace(config, prune_iterations=1), told)  # fewer are no reason to lose any
    assert told == [] and results(place) == before


def test_a_run_stopped_at_every_turn_gets_there(place: Path) -> None:
    arms = ("lt", "finetune", "ticket_reinit")
    config = settings(place, arch_type="drop", prune_type=arms, rewind="3it", draw_at="5it", valid_freq="3it")
    do(replace(config, root=place / "whole"))
    do_in_pieces(config, 5)
    assert_same(results(place), results(place / "whole"))


KILLED: list[dict[str, Any]] = [
    {"prune_type": ("lt", "ticket_shuffle"), "keep_weights": "last", "rewind": "2it", "checkpoint_every": 0},
    {"prune_type": ("lt", "reinit"), "checkpoint_every": 0},
    {"prune_type": ("finetune",), "trials": 2, "keep_weights": "none", "arch_type": "drop"},
]


@pytest.mark.parametrize("changes", KILLED if EXHAUSTIVE else KILLED[:1])
def test_kills_between_file_changes_change_nothing(place: Path, monkeypatch: Patch, changes: dict[str, Any]) -> None:
    assert_kills_change_nothing(settings(place, end_iter="4it", **changes), monkeypatch)


@pytest.mark.parametrize("finished", [1, 2])
def test_damaged_files_are_named_and_set_aside_and_the_results_are_the_same(place: Path, finished: int) -> None:
    config = settings(place, prune_percent=50, root=place / "run", rewind="3it", draw_at="5it")
    (run,) = runs_of(config)
    do(replace(config, root=place / "whole"))
    expected, turns = results(place / "whole"), itertools.count()
    with pytest.raises(Stopped):
        do(config, stop=lambda: tables.finished_rounds(run) == finished and next(turns) == 5)
    shutil.copytree(place / "run", place / "stopped")
    for name, kind in itertools.product(sorted(file.stem for file in run.saves.iterdir()), ("flipped", "missing")):
        file, told = Store(run).file(name), Told()
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.unlink()  # its other names keep their content
        if kind == "flipped":
            file.write_bytes(content)
        do(config, told)
        if kind == "flipped":
            assert f"{file} is damaged" in told.notes
            assert file.with_name(f"{file.name}.damaged").exists()
        needless = name in ("dense", "drawn") or name.startswith("trained")  # nothing is built on it
        kept = {key: value for key, value in expected.items() if not needless or name not in key}
        found = {key: value for key, value in results(place / "run").items() if not needless or name not in key}
        assert_same(found, kept)
        again = [event.row["round"] for event in told if isinstance(event, RoundDone)]
        assert not needless or again == list(range(finished, 3)), f"{kind}: finished rounds were lost"
        shutil.rmtree(place / "run")
        shutil.copytree(place / "stopped", place / "run")


@pytest.mark.parametrize("arm, finished, again", [("one_shot", 2, [0, 1, 2]), ("lt", 1, [1, 2])])
def test_pruning_survives_the_loss_of_the_dense_network(place: Path, arm: str, finished: int, again: list[int]) -> None:
    """The checkpoint has the same weights at first."""
    config, told = settings(place, prune_type=arm), Told()
    do(replace(config, root=place / "whole"))
    (run,) = do(replace(config, prune_iterations=finished))
    Store(run).file("dense").unlink()
    do(config, told)
    assert [event.row["round"] for event in told if isinstance(event, RoundDone)] == again
    kept = [{k: v for k, v in results(root).items() if "dense" not in k} for root in (place, place / "whole")]
    assert_same(*kept)


def test_an_arm_takes_no_damaged_dense_round_over(place: Path) -> None:
    config = settings(place, prune_type=("lt", "random"), rewind="3it", prune_iterations=2)
    do(replace(config, root=place / "whole"))
    expected = {key: value for key, value in results(place / "whole").items() if "/random/" in key}
    for name, content in (("dense", None), ("rewind", b"spoiled"), ("initial", None), ("ticket_00", b"spoiled")):
        root = place / name
        (run,) = do(replace(config, root=root, prune_type=("lt",)))
        Store(run).file(name).unlink()
        if content is not None:
            Store(run).file(name).write_bytes(content)
        do(replace(config, root=root, prune_type=("random",)))
        assert_same({key: value for key, value in results(root).items() if "/random/" in key}, expected)


@pytest.mark.parametrize("name", ["checkpoint", "ticket_01", "initial", "rewind"])
def test_a_file_vanishing_midway_is_one_clear_line_and_costs_nothing(place: Path, name: str) -> None:
    config = settings(place, rewind="3it")
    do(replace(config, root=place / "whole"))
    (run,) = runs_of(config)

    def tell(event: Any) -> None:
        if isinstance(event, RoundDone) and event.row["round"] == 1:
            (run.saves / f"{name}.safetensors").unlink()

    if name in ("checkpoint", "ticket_01"):  # the next pruning has them in memory
        do(config, tell)
    else:
        with pytest.raises(RecordError, match=r"is gone: the same command again continues") as caught:
            do(config, tell)
        assert name in str(caught.value) and "\n" not in str(caught.value)
        do(config)
    kept = {key: value for key, value in results(place / "whole").items() if name not in key}
    assert_same({key: value for key, value in results(place).items() if name not in key}, kept)
    assert len(rounds(run)) == 3


@pytest.mark.parametrize("stack", [None, 3])
def test_a_trial_whose_loss_is_no_number_ends_and_the_others_do_not(place: Path, stack: int | None) -> None:
    config, told = settings(place, trials=3, stack=stack, precision="fp32"), Told()
    made = experiment(config, told)
    initial = made.trainer.problem.initial

    def spoiled(seed: int) -> State:
        state = initial(seed)
        if seed == derive_seed(1, "weights", 0):
            state["layers.1.weight"][0, 0] = float("nan")
        return state

    made.trainer.problem = replace(made.trainer.problem, initial=spoiled)
    runs = runs_of(config)
    made.run(runs, 3)
    assert [len(rounds(run)) for run in runs] == [3, 0, 3] and made.failed.keys() == {runs[1]}
    assert "lt seed1: round 0 ended: the loss became nan by iteration 4 at learning rate 0.01" in told.notes


def test_a_later_round_that_fails_keeps_the_earlier_ones(place: Path) -> None:
    config = settings(place, prune_type=("lt", "reinit", "ticket_reinit"), prune_iterations=3)
    made, told = experiment(config), Told()
    trainer, fresh = made.trainer, made.trainer.problem.fresh
    trainer.tell = told
    trainer.problem = replace(trainer.problem, fresh=lambda seed: {k: v * float("nan") for k, v in fresh(seed).items()})
    work(made)
    lt, reinit, control = runs_of(config)
    assert [len(rounds(run)) for run in (lt, reinit, control)] == [3, 1, 1]
    assert made.failed.keys() == {reinit, control} and "reinit seed0: round 1 ended: the loss became nan" in told.notes


def test_trials_of_which_one_was_evaluated_before_the_stop_are_no_stack(place: Path) -> None:
    """As after Ctrl-C within an evaluation, and a kill between the next checkpoints of the two."""
    config = settings(place, stack=2, trials=2)
    (one, other), trainer = runs_of(config), experiment(config).trainer
    for run, evals in ((one, [Evaluation(4, 0.1, 0.1, 90.0, 90.0)]), (other, [])):
        trainer.store(run).write_checkpoint(0, Trained(4, evals, final={}, best={}))
    assert trainer.stackable([one, other], 0) == [one] and trainer.stackable([one, other], 1) == [one, other]


def test_a_session_writes_what_it_was_and_a_finished_one_says_so(place: Path, capsys: Capture) -> None:
    config = settings(place, trials=2, quiet=False)
    runs = session.run(config, command=["--trials", "2"])
    assert runs == runs_of(config)
    about = json.loads((runs[1].dumps / "config.json").read_text())
    assert (about["arm"], about["seed"], about["command"]) == ("lt", 1, ["--trials", "2"])
    assert about["versions"]["torch"] == torch.__version__.split("+")[0] and about["device"].startswith("cpu")
    assert about["settings"]["end_iter"] == "8it" and "root" not in about["settings"]
    assert_released(place)
    assert not list(place.rglob("*.partial"))
    capsys.readouterr()
    before = results(place)
    session.run(config)
    assert "all rounds are finished" in capsys.readouterr().out
    assert results(place) == before


def test_more_trials_leave_what_a_finished_run_was_trained_with(place: Path) -> None:
    config = settings(place)
    (run,) = session.run(config, command=["first"])
    file = run.dumps / "config.json"
    before = {**json.loads(file.read_text()), "device": "another GPU", "git_commit": "aaaa"}
    file.write_text(json.dumps(before))
    session.run(replace(config, trials=2), command=["second"])
    after = json.loads(file.read_text())
    assert after == before
    session.run(replace(config, prune_iterations=4), command=["third"])
    assert json.loads(file.read_text())["command"] == ["third"]


def test_other_settings_are_refused_in_a_named_folder_and_overwrite_moves_old_results_aside(place: Path) -> None:
    config = settings(place, name="mine")
    (run,) = session.run(config)
    table, before = run.dumps / "rounds.csv", results(place)
    first = table.read_bytes()
    with pytest.raises(ConfigError, match=r"holds results of different settings \(lr 0\.01, now 0\.02\)"):
        session.run(replace(config, lr=0.02))
    with pytest.raises(ConfigError, match=r"different settings \(pixels standard, now unit\)"):
        session.run(replace(config, pixels="unit"))
    assert results(place) == before
    session.run(replace(config, lr=0.02, pixels="norm", overwrite=True))
    with pytest.raises(ConfigError, match=r"different settings \(pixels norm, now standard\)"):
        session.run(replace(config, lr=0.02))
    assert table.read_bytes() != first and tables.find(place) == [run]
    (old,) = run.dumps.parent.glob("seed0.old-*")
    assert (old / "rounds.csv").read_bytes() == first
    assert len(list(run.saves.parent.glob("seed0.old-*"))) == 1


def test_without_its_config_json_a_run_is_not_continued(place: Path) -> None:
    config = settings(place, name="mine")
    (run,) = session.run(config)
    file, before = run.dumps / "config.json", results(place)
    for content in (b'{,"deciding": {}}', b"[1]", b"", None):
        file.write_bytes(content) if content is not None else file.unlink()
        for asked in (config, replace(config, prune_iterations=4), replace(config, lr=0.02)):
            with pytest.raises(ConfigError, match=r"overwritten, since .*config\.json is missing or damaged"):
                session.run(asked)
    assert results(place) == before and not list(place.rglob("*.damaged"))
    session.run(replace(config, overwrite=True))


def test_weights_of_other_settings_left_in_the_folder_are_set_aside(place: Path) -> None:
    """As when the tables were deleted by hand, but not the weights."""
    session.run(settings(place, name="mine"))
    shutil.rmtree(place / "dumps")
    config = settings(place, name="mine", lr=0.02)
    session.run(config)
    session.run(replace(config, root=place / "whole"))
    assert_same(results(place), results(place / "whole"))


def test_all_problems_of_data_and_model_come_at_once(place: Path) -> None:
    (place / "archs/tiny/big.py").write_text("from torch import nn\n\n\ndef big():\n    return nn.Linear(3, 4)\n")
    with pytest.raises(ConfigError) as caught:
        session.run(settings(place, arch_type="big", valid_size=100))
    assert len(caught.value.problems) == 2 and not (place / "dumps").exists()
    with pytest.raises(ConfigError) as caught:
        session.run(settings(place, rewind="8it", warmup="9it", lr_milestones=["2ep"], draw_at="8it"))
    assert len(caught.value.problems) == 5 and not (place / "dumps").exists()
