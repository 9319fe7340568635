"""Linear mode connectivity: the line, barriers that are known, both trainings, and going on after kills."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import CPU, Patch, Told, assert_kills_change_nothing, assert_same, do, experiment, results, settings
from torch import Tensor, nn

from lth.commands import session
from lth.experiment import mode_connectivity as line
from lth.experiment.mode_connectivity import Errors
from lth.experiment.trainer import BarriersMeasured, Evaluated, Stepped, Trainer
from lth.models import building
from lth.models.building import State
from lth.records import tables
from lth.records.store import Store
from lth.records.tables import Run, runs_of
from lth.training.network import Network
from lth.training.train import Stopped


def state(value: float, count: int = 7) -> State:
    return {"w": torch.full((3,), value), "norm.num_batches_tracked": torch.tensor(count)}


def test_the_barrier_of_a_known_quadratic_is_exact() -> None:
    """Errors 10 + 8 x on the way from x = -1 to 2, less (x + 1) (x - 2) times 4: known at each of the 30 points."""

    def errors(found: State) -> Errors:
        x = float(found["w"][0].double())
        return Errors(train_error=10 + 8 * x, test_error=10 + 8 * x - 4 * (x + 1) * (x - 2))

    found = pd.DataFrame(line.along(state(-1.0), state(2.0), errors))
    assert found["point"].tolist() == pytest.approx([n / 29 for n in range(30)])
    at = [-1 + 3 * n / 29 for n in range(30)]
    direct = max(10 + 8 * x - 4 * (x + 1) * (x - 2) for x in at) - (2 + 26) / 2
    assert tables.barrier(found["test_error"].tolist()) == pytest.approx(direct, abs=1e-4)
    assert tables.barrier(found["train_error"].tolist()) == pytest.approx(26 - 14), "ends that differ count"


def test_identical_ends_have_no_barrier(place: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(line, "POINTS", 4)
    (run,) = do(settings(place, prune_iterations=2))
    trainer, trained = experiment(settings(place)).trainer, Store(run).weights("trained_01")
    masks, feed = Store(run).ticket(1).masks, trainer.feed([run])

    def errors(found: State) -> Errors:
        return line.measure(Network(trainer.problem.make(), [found], [masks], CPU), feed, 0)

    found = pd.DataFrame(line.along(trained, trained, errors))
    assert (found[["train_error", "test_error"]].nunique() == 1).all() and len(found) == 4
    model, indices = building.load_state(trainer.problem.make(), trained).eval(), feed.train_indices[0]
    wrong = (model(feed.normalise(feed.images[indices])).argmax(1) != feed.labels[indices]).float().mean()
    assert found["train_error"][0] == pytest.approx(100 * wrong.item()), "on the trial's own training images"


def test_batch_norm_gets_statistics_of_its_own_at_every_point(place: Path) -> None:
    """As in a forward pass with the statistics of all batches, and not those that came with the weights."""
    config = settings(place, arch_type="conv")
    (run,) = do(replace(config, prune_iterations=1))
    made, trained = experiment(config), Store(run).weights("dense")
    feed, ticket = made.trainer.feed([run]), Store(run).ticket(0)
    spoiled = trained | {name: x + 3 for name, x in trained.items() if "running_" in name}
    for start in (trained, spoiled):
        network = Network(made.trainer.problem.make(), [start], [ticket.masks], CPU)
        found = line.measure(network, feed, run.seed)
        batches = [feed.fetch(batch)[0] for batch in feed.epoch([(run.seed, "statistics")], 0)]
        first = network.model.layers[0](torch.cat(batches))  # type: ignore[operator, index]
        assert network.tensors["layers.1.running_mean"].tolist() == pytest.approx(
            first.mean((0, 2, 3)).tolist(), abs=1e-5
        )
        assert found == line.measure(
            Network(made.trainer.problem.make(), [trained], [ticket.masks], CPU), feed, run.seed
        )


class Normed(nn.Module):
    """Running statistics of instance norm, spectral norm of both makes, and batch norm that is kept in evaluation mode
    by either of two ways; functional dropout."""

    def __init__(self, within: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True)
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(4 * 36, 12))
        self.second = nn.utils.spectral_norm(nn.Linear(12, 4))
        self.frozen, self.within = nn.BatchNorm1d(12), within

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.frozen.train(mode and self.within)
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.frozen.eval()
        x = self.first(self.norm(self.conv(x)).flatten(1)).relu()
        return self.second(self.frozen(nn.functional.dropout(x, 0.3, self.training)))


@pytest.mark.parametrize("within", [False, True])
def test_other_statistics_are_those_of_every_point_and_frozen_ones_stay(place: Path, within: bool) -> None:
    feed = experiment(settings(place)).trainer.feed(runs_of(settings(place)))
    torch.manual_seed(0)
    start = building.state_of(Normed())
    start |= {"frozen.running_mean": torch.full((12,), 2.0), "frozen.running_var": torch.full((12,), 9.0)}
    spoiled = start | {name: torch.ones_like(x) for name, x in start.items() if name.endswith(("_u", "_v"))}
    spoiled |= {name: x + 3 for name, x in start.items() if name.startswith("norm.running_")}
    ends, errors = [], []
    for number, state in enumerate((start, spoiled)):
        torch.manual_seed(number)  # whatever has been drawn before
        network = Network(Normed(within), [state], [{}], CPU)
        for _ in range(4):  # as many passes as a training set of some size has
            found = line.measure(network, feed, 0)
        layers = (network.model.first, network.model.second)
        norms = [torch.linalg.matrix_norm(layer.weight, 2).item() for layer in layers]
        assert norms == pytest.approx([1, 1], abs=0.02)
        ends.append({name: x for name, x in network.state(0).items() if "running_" in name})
        errors.append(found)
    assert all(ends[1][name].equal(start[name]) for name in ends[1] if name.startswith("frozen"))
    assert len(ends[0]) == 4 and all(torch.allclose(ends[1][name], x, atol=1e-5) for name, x in ends[0].items())
    assert errors[0] == pytest.approx(errors[1]), "what the model draws depends on what was drawn before"


def noted(monkeypatch: Patch) -> dict[tuple[str, int, str], State]:
    """The last weights of every training."""
    ends: dict[tuple[str, int, str], State] = {}
    train = Trainer.train

    def watched(this: Trainer, stack: Any, started: Any, again: str = "") -> Any:
        found = train(this, stack, started, again)
        for run, ticket, trained in zip(stack, started, found, strict=True):
            ends[run.arm, ticket.round, again] = trained.final
        return found

    monkeypatch.setattr(Trainer, "train", watched)
    return ends


def test_every_ticket_is_trained_twice_in_different_orders(place: Path, monkeypatch: Patch) -> None:
    ends, told = noted(monkeypatch), Told()
    config = settings(place, prune_type=("lt", "ticket_shuffle"), connectivity=True)  # whose masks are not nested
    runs = do(config, told)
    do(replace(config, connectivity=False, root=place / "usual"))
    found, usual = results(place), results(place / "usual")
    assert {name: found[name] for name in usual} == usual, "the rounds themselves are as without it"
    measured = {("lt", 0), *((run.arm, n) for n in (1, 2) for run in runs)}
    assert sorted(name[:2] for name in ends if name[2]) == sorted(measured), "the dense round once"
    for run in runs:
        both = tables.table(run, "connectivity")
        table = both[both["line"] == "orders"].reset_index()
        assert table["round"].tolist() == [n for n in range(3) for _ in range(30)] and table["average"].isna().all()
        assert table["point"].tolist() == pytest.approx([n / 29 for n in range(30)] * 3)
        for number in range(3):
            masks, arm = Store(run).ticket(number).masks, run.arm if number else "lt"
            one, other = ends[arm, number, ""], ends[arm, number, "second"]
            assert any(not torch.equal(one[name], other[name]) for name in one)
            assert all((other[name][~mask] == 0).all() for name, mask in masks.items())
            assert set(table["remaining"][table["round"] == number]) == {
                tables.table(run, "rounds")["remaining"][number]
            }
            model, made = experiment(config).trainer.problem.make(), experiment(config)
            for point in (0, 11, 29):
                middle = {name: one[name] + (other[name] - one[name]) * point / 29 for name in one}
                (images, labels), *_ = made.trainer.feed([run]).test()
                wrong = building.load_state(model, middle).eval()(images).argmax(1) != labels
                row = table[table["round"] == number].iloc[point]
                assert row["test_error"] == pytest.approx(100 * wrong.float().mean().item())
            if number:
                before = ends[run.arm if number > 1 else "lt", number - 1, ""]
                line = both[(both["line"] == "rounds") & (both["round"] == number)].reset_index()
                assert len(line) == 30 and set(line["remaining"]) == set(row[["remaining"]])
                for point in (0, 11, 29):
                    state = {name: before[name] + (one[name] - before[name]) * point / 29 for name in one}
                    wrong = building.load_state(model, state).eval()(images).argmax(1) != labels
                    assert line["test_error"][point] == pytest.approx(100 * wrong.float().mean().item())
                state = {name: (before[name] + one[name]) / 2 * masks.get(name, 1) for name in one}
                right = building.load_state(model, state).eval()(images).argmax(1) == labels
                assert line["average"].tolist() == pytest.approx([100 * right.float().mean().item()] * 30)
        assert set(both["line"][both["round"] == 0]) == {"orders"}
        heights = tables.barriers([run])
        test = table[table["round"] == 1]["test_error"].tolist()
        assert heights["test"][1] == pytest.approx(max(test) - (test[0] + test[-1]) / 2)
    assert not list(place.rglob("second.safetensors")) and not list(place.rglob("first.safetensors"))
    lines = [event for event in told if isinstance(event, BarriersMeasured)]
    assert {(event.run.arm, event.round) for event in lines} == measured
    assert all((event.from_last is None) == (event.round == 0) for event in lines)
    assert all(event.round < 3 for event in told if isinstance(event, Evaluated))
    assert {event.repeat for event in told if isinstance(event, Stepped)} == {"", "second"}


def test_second_trainings_differ_in_the_order_only(place: Path, monkeypatch: Patch) -> None:
    """With the same order the second training ends where the first one did, to the bit; with dropout and rewinding."""
    monkeypatch.setattr(line, "POINTS", 5)
    config = settings(place, arch_type="drop", rewind="3it", prune_type=("lt", "finetune"), connectivity=True)
    with monkeypatch.context() as patch:
        patch.setattr("lth.experiment.mode_connectivity.ENDS", ("first", "first"))
        for run in do(replace(config, root=place / "same")):
            assert (tables.barriers([run])[["train", "test"]] == 0).all(axis=None)
    ends = noted(monkeypatch)
    plans: list[tuple[int, str, int]] = []
    plan = Trainer.plan

    def seen(this: Trainer, run: Run, number: int, again: str = "") -> Any:
        found = plan(this, run, number, again)
        plans.append((number, again, found.start))
        return found

    monkeypatch.setattr(Trainer, "plan", seen)
    do(replace(config, prune_iterations=2))
    assert {("lt", 0, ""), ("lt", 0, "first"), ("lt", 0, "second"), ("finetune", 1, "second")} <= set(ends)
    assert ("lt", 1, "first") not in ends and ("finetune", 0, "second") not in ends
    assert {start for number, again, start in plans if not number and again} == {3}
    assert {start for number, again, start in plans if not number and not again} == {0}


def test_finished_rounds_get_their_lines_later(place: Path, monkeypatch: Patch) -> None:
    """Where the last weights of a round are gone, it is trained again, to the same end."""
    monkeypatch.setattr(line, "POINTS", 5)
    config = settings(place, prune_type=("lt", "snip_shuffle"), connectivity=True, rewind="2it")
    do(replace(config, root=place / "whole"))
    session.run(replace(config, connectivity=False, gpu="cpu", jobs=1, quiet=True))
    runs = runs_of(config)
    assert {tables.done_rounds(run, True) for run in runs} == {0} and {
        tables.done_rounds(run, False) for run in runs
    } == {3}
    told = Told()
    do(config, told)
    again = {(event.run.arm, event.round, event.repeat) for event in told if isinstance(event, Stepped)}
    assert ("lt", 1, "first") in again and ("lt", 2, "first") not in again
    assert not any(isinstance(event, Evaluated) for event in told), "no round is trained anew"
    assert_same(results(place, ("dumps", "saves")), results(place / "whole"))
    assert {tables.done_rounds(run, True) for run in runs} == {3}


def test_stacked_runs_are_measured_too(place: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(line, "POINTS", 5)
    arms = {"trials": 2, "prune_type": ("lt", "reinit"), "prune_iterations": 2}
    config = settings(place, connectivity=True, precision="fp32", **arms)
    do(config)
    do(replace(config, stack=4, root=place / "stacked"))
    for run in runs_of(config):
        one, other = (tables.table(each, "connectivity") for each in (run, replace(run, root=place / "stacked")))
        assert (one["test_error"] - other["test_error"]).abs().max() < 100 * 3 / 40
        assert len(one) == 3 * 5  # of round 0 one line, of round 1 two


def test_a_second_training_that_fails_ends_its_run(place: Path) -> None:
    config, told = settings(place, prune_type=("lt", "reinit"), connectivity=True), Told()
    made = experiment(config, told)
    optimizer, count = made.trainer.problem.optimizer, itertools.count()

    def broken(network: Any) -> Any:
        found = optimizer(network)
        if next(count) == 1:
            found.step = lambda gradients: [leaf.detach().fill_(float("nan")) for leaf in network.leaves]
        return found

    made.trainer.problem = replace(made.trainer.problem, optimizer=broken)
    lt, _ = runs_of(config)
    made.run([lt], 3)
    assert list(made.failed) == [lt] and "round 0, trained again, ended: the loss became nan" in told.notes
    assert len(tables.table(lt, "rounds")) == 1 and tables.table(lt, "connectivity").empty


def test_kills_between_file_changes_change_nothing(place: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(line, "POINTS", 5)
    config = settings(place, connectivity=True, checkpoint_every=0, rewind="2it", prune_iterations=2, end_iter="4it")
    assert_kills_change_nothing(config, monkeypatch)


@pytest.mark.parametrize("name", ["second", "first"])
def test_damaged_files_are_got_over(place: Path, name: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(line, "POINTS", 5)
    config = settings(place, connectivity=True, checkpoint_every=0, rewind="2it", prune_iterations=2)
    do(replace(config, root=place / "whole"))
    (run,) = runs_of(config)
    store, number, turns = Store(run), 0 if name == "first" else 1, itertools.count()
    with pytest.raises(Stopped):
        do(
            config,
            stop=lambda: store.has("second") and store.read_checkpoint("second")[0] == number and next(turns) == 4,
        )
    file = store.file(name)
    file.write_bytes(file.read_bytes()[:200])
    told = Told()
    do(config, told)
    assert str(file) in told.notes
    assert_same(results(place, ("dumps", "saves")), results(place / "whole"))
