"""--ticket: experiments that start from the tickets of another one, on other data, with another optimiser."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    LAYERS,
    MODELS,
    Capture,
    Told,
    arrays,
    assert_same,
    do,
    equal,
    experiment,
    lay_out,
    results,
    settings,
    work,
)

import main
import utils
from lth import load_ticket, pruning
from lth.commands import session
from lth.records import identity as lth_same
from lth.records import tables
from lth.records.store import Store, Ticket
from lth.records.tables import Run, runs_of
from lth.settings import flags
from lth.settings.config import Config, ConfigError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tickets of two trials of lt on `tiny`."""
    with pytest.MonkeyPatch.context() as patch:
        place = lay_out(tmp_path_factory.mktemp("trained"), patch)
        do(settings(place, trials=2, name="source", prune_iterations=4))
    return place


@pytest.fixture
def other(place: Path, trained: Path) -> Path:
    """`place` with these tickets, and the data sets `other` (other images of the same classes), `three` (three classes)
    and `small` (images of another size), with models."""
    for kind in ("dumps", "saves"):
        shutil.copytree(trained / kind, place / kind)
    made = {"other": arrays(seed=5), "three": arrays(seed=6), "small": arrays(seed=7, shape=(8, 9))}
    for half in ("train", "test"):
        made["three"][f"y_{half}"] = made["three"][f"y_{half}"] % 3
    for name, content in made.items():
        np.savez(place / "data" / f"{name}.npz", **content)
        folder = place / "archs" / name
        folder.mkdir()
        for model in ("mlp", "conv"):
            layers = LAYERS[model].replace("64", "72") if name == "small" else LAYERS[model]
            (folder / f"{model}.py").write_text(MODELS.format(name=model.capitalize(), layers=layers))
    return place


def source(other: Path, seed: int | None = 0, arm: str = "lt") -> Path:
    folder = other / "saves" / "mlp" / "tiny" / "source" / arm
    return folder if seed is None else folder / f"seed{seed}"


def their_run(other: Path) -> Run:
    return Run(other, "mlp", "tiny", "source", "lt", 0)


def transferred(other: Path, ticket: str, **changes: Any) -> Config:
    return settings(other, **{"dataset": "other", "ticket": ticket, **changes})


def ticket_of(run: Run, number: int) -> Ticket:
    return Store(run).ticket(number)


def test_round_0_is_the_ticket_that_is_named_and_later_ones_prune_on(other: Path) -> None:
    (run,) = do(transferred(other, f"{source(other)}:2", optimizer="sgd", lr=0.1))
    saved, found = load_ticket(source(other), 2), ticket_of(run, 0)
    assert equal(found.masks, saved.masks) and 0 < saved.remaining < 60
    assert equal(
        {name: found.start[name] * mask for name, mask in found.masks.items()}, {n: saved.start[n] for n in found.masks}
    )
    assert tables.table(run, "rounds")["remaining"][0] == pytest.approx(saved.remaining, abs=1e-3)
    left = [pruning.survivors(ticket_of(run, number).masks) for number in range(3)]
    assert all(left[n + 1][name] == left[n][name] - round(0.3 * left[n][name]) for n in (0, 1) for name in left[0])
    masks = [ticket_of(run, number).masks for number in range(3)]
    assert all((masks[n + 1][name] <= masks[n][name]).all() for n in (0, 1) for name in masks[0])
    assert equal(ticket_of(run, 2).start, found.start), "reset to the weights of the ticket"
    dense = Store(run).weights("dense")
    assert all((dense[name][~mask] == 0).all() for name, mask in found.masks.items())


def test_tickets_of_wrapped_networks_fit_the_model(other: Path) -> None:
    """torch.compile puts a prefix before the names of the network that it wraps, as DataParallel does."""
    store, found = Store(their_run(other)), ticket_of(their_run(other), 2)

    def wrapped(tensors: Any) -> Any:
        return {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}

    store.write_weights("initial", wrapped(store.weights("initial")))
    store.write_ticket(Ticket(2, wrapped(found.masks), wrapped(found.start), found.origin))
    (run,) = do(transferred(other, f"{source(other)}:2"))
    assert equal(ticket_of(run, 0).masks, found.masks) and equal(ticket_of(run, 0).start, found.start)
    assert set(load_ticket(source(other), 2).masks) == set(wrapped(found.masks))


def test_every_arm_is_as_sparse_and_keeps_to_the_ticket(other: Path) -> None:
    """Pruning at once prunes what the ticket has left, to what lt has in that round."""
    arms = ("lt", "one_shot", "snip", "synflow", "random_init", "ticket_shuffle")
    short = {"end_iter": "2it", "valid_freq": "2it", "random_rates": "erk"}
    lt, *runs = do(transferred(other, f"{source(other)}:2", prune_type=arms, **short))
    for run in runs:
        assert tables.table(run, "rounds")["weights"].tolist() == tables.table(lt, "rounds")["weights"].tolist()
        if run.arm != "ticket_shuffle":
            assert all((ticket_of(run, 2).masks[name] <= mask).all() for name, mask in ticket_of(run, 0).masks.items())


def test_transfer_takes_over_every_round_and_has_controls(other: Path) -> None:
    arms = ("transfer", "transfer_shuffle", "transfer_reinit", "lt")
    runs = dict(zip(arms, do(transferred(other, f"{source(other)}:1", prune_type=arms)), strict=True))
    theirs = their_run(other)
    for number in range(3):
        wanted = ticket_of(theirs, number + 1)
        mine = {arm: ticket_of(run, number) for arm, run in runs.items()}
        assert equal(mine["transfer"].masks, wanted.masks) and equal(mine["transfer"].start, wanted.start)
        assert equal(mine["transfer_reinit"].masks, wanted.masks)
        assert pruning.survivors(mine["transfer_shuffle"].masks) == pruning.survivors(wanted.masks)
    assert not equal(ticket_of(runs["lt"], 2).masks, ticket_of(theirs, 3).masks)
    assert not equal(ticket_of(runs["transfer_reinit"], 2).start, ticket_of(theirs, 3).start)
    assert not equal(ticket_of(runs["transfer_shuffle"], 2).masks, ticket_of(theirs, 3).masks)


def test_a_config_repeats_a_run_with_its_own_ticket_or_not_at_all(other: Path, capsys: Capture) -> None:
    """The last finished round of the source may be a later one by now."""
    (run,) = session.run(transferred(other, str(source(other)), prune_iterations=1))
    again = ["--config", str(run.dumps / "config.json"), "--gpu", "cpu", "--data", str(other / "data")]
    again += ["--root", str(other / "again")]
    do(settings(other, trials=2, name="source", prune_iterations=5))
    assert utils.exit_code(main.main, again) == 2
    said = capsys.readouterr().err
    assert "began with round 3 of --ticket" in said and f"add --ticket {source(other)}:3" in said
    assert not (other / "again").exists()
    for seed in (0, 1):  # of a ticket of its own
        swept = [*again, "--sweep", f"ticket={source(other, seed)}", "--dry_run"]
        assert utils.exit_code(main.main, swept) == 0, capsys.readouterr().err
    assert utils.exit_code(main.main, [*again, "--ticket", f"{source(other)}:3"]) == 0
    (new,) = tables.find(other / "again")
    assert (new.dumps / "rounds.csv").read_bytes() == (run.dumps / "rounds.csv").read_bytes()


def test_tickets_of_one_name_in_two_places_are_two_experiments(other: Path) -> None:
    for kind in ("dumps", "saves"):
        shutil.copytree(other / kind / "mlp/tiny/source", other / "there" / kind / "mlp/tiny/source")
    asked = {transferred(other, str(source(place))): "" for place in (other, other / "there")}
    with pytest.raises(ConfigError, match="have one name, so that their results would be in one folder"):
        session.run(asked)


def test_which_ticket_for_which_trial(other: Path) -> None:
    """One run serves all trials; of an arm's folder each trial takes the run of its own seed."""
    alone = do(transferred(other, f"{source(other, 1)}:3", trials=2, prune_iterations=1))
    masks = [load_ticket(source(other, seed), 3).masks for seed in (0, 1)]
    assert all(equal(ticket_of(run, 0).masks, masks[1]) for run in alone)
    rounds = [(run.dumps / "evals.csv").read_bytes() for run in alone]
    assert rounds[0] != rounds[1], "other splits and orders"
    each = do(transferred(other, f"{source(other, None)}:3", trials=2, prune_iterations=1))
    assert [equal(ticket_of(run, 0).masks, mask) for run, mask in zip(each, masks, strict=True)] == [True, True]
    assert {run.settings for run in alone} != {run.settings for run in each}
    with pytest.raises(ConfigError, match=r"of the seeds 0, 1 and none for the trial of seed 2: each trial takes"):
        experiment(transferred(other, str(source(other, None)), trials=3))


def test_the_output_layer_is_new_where_classes_differ(other: Path) -> None:
    config = transferred(
        other, f"{source(other)}:2", dataset="three", prune_type=("transfer",), trials=2, prune_iterations=2
    )
    runs, theirs = do(config), ticket_of(their_run(other), 2)
    new = []
    for run in runs:
        found = ticket_of(run, 0)
        hidden = [name for name in found.start if "layers.3" not in name]
        assert len(hidden) == 2 and all(torch.equal(found.start[name], theirs.start[name]) for name in hidden)
        assert torch.equal(found.masks["layers.1.weight"], theirs.masks["layers.1.weight"])
        assert found.start["layers.3.weight"].shape == (3, 12) and found.masks["layers.3.weight"].all()
        assert torch.equal(ticket_of(run, 1).start["layers.3.weight"], found.start["layers.3.weight"])
        new.append(found.start["layers.3.weight"])
    assert not torch.equal(*new), "in every trial"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dataset": "small"}, r"is of mlp for tiny, where layers.1.weight is \(12, 64\), here \(12, 72\)"),
        ({"arch_type": "conv"}, r"does not fit conv for other: .* layers.0.weight is missing, here \(4, 1, 3, 3\)"),
        ({"ticket": ":9"}, r"has no ticket of round 9: in .*seed0 there are those of rounds 0 to 3"),
        ({"ticket": ":2", "prune_type": ("transfer",)}, "no ticket of round 4, which --prune_iterations 3"),
        ({"ticket": ":2", "target_remaining": 5, "prune_percent": 10}, "is reached from a dense network, but --ticket"),
    ],
)
def test_what_does_not_fit_is_one_clear_sentence(other: Path, changes: dict[str, Any], says: str) -> None:
    config = transferred(other, **{**changes, "ticket": str(source(other)) + changes.get("ticket", "")})
    with pytest.raises(ConfigError, match=says) as caught:
        session.run(config)
    assert len(caught.value.problems) == 1 and not (other / "dumps" / "mlp" / "other").exists()


def test_spoiled_tickets_and_wrong_names_are_said_before_anything_is_written(other: Path) -> None:
    file = source(other) / "ticket_02.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(ConfigError, match=r"--ticket .*seed0:2: .*ticket_02.safetensors is damaged"):
        session.run(transferred(other, f"{source(other)}:2"))
    file.write_bytes(whole)
    for wrong in (other / "nowhere", other, other / "saves", source(other).parent.parent):
        with pytest.raises(ConfigError, match="ticket must be the folder of an existing run, saves/<model>"):
            transferred(other, str(wrong))
    with pytest.raises(ConfigError, match="transfer_shuffle needs a ticket, which says whose"):
        settings(other, prune_type=("transfer_shuffle",))
    assert not (other / "dumps" / "mlp" / "other").exists()


def test_the_ticket_is_part_of_what_an_experiment_is(other: Path) -> None:
    """Its name and round in the folder's, its fingerprint in config.json; a changed one is refused."""
    config = transferred(other, f"{source(other)}:1", prune_iterations=2, quiet=True)
    session.run(config)
    (run,) = runs_of(config)
    about = tables.read_json(run.dumps / "config.json")
    assert about["deciding"]["ticket"] == "mlp/tiny/source/lt/seed0:1"
    assert Config(ticket=config.ticket).folder() == "ticket=mlp+tiny+source+lt+seed0+1"
    assert about["settings"]["ticket"] == f"{source(other)}:1" and "ticket_of_seed_0" in about["fingerprint"]
    assert flags.parse(["--config", str(run.dumps / "config.json"), "--root", str(other)]).ticket == config.ticket
    assert transferred(other, f"{source(other)}:2").folder() != config.folder() != settings(other).folder()
    elsewhere = other / "elsewhere"
    shutil.copytree(other / "saves" / "mlp" / "tiny", elsewhere / "saves" / "mlp" / "tiny")
    moved = transferred(other, f"{elsewhere / source(other).relative_to(other)}:1", prune_iterations=3)
    assert runs_of(moved) == [run]
    session.run(replace(moved, prune_iterations=2))  # the same ticket, wherever it lies
    do(settings(other, name="source", lr=0.1, root=other / "again", trials=1))
    shutil.rmtree(source(other))
    shutil.copytree(other / "again" / source(other).relative_to(other), source(other))
    before = results(other)
    for changed in (config, replace(config, prune_iterations=3)):
        with pytest.raises(ConfigError, match="holds results of a different ticket of seed 0"):
            session.run(changed)
    assert_same(results(other), before)


def test_further_trials_start_from_the_same_round_and_ticket(other: Path) -> None:
    """A run without a round means its last finished one, which is another one when the run has gone on."""
    named = transferred(other, str(source(other)), name="new", prune_iterations=1)
    each = transferred(other, str(source(other, None)), name="each", prune_iterations=1)
    (run,), _ = (session.run(config) for config in (named, each))
    assert {"ticket", "ticket_round", "ticket_of_seed_0"} < {*lth_same.read_fingerprints(run)}
    session.run(replace(each, seed=1))  # with its own
    do(settings(other, trials=2, name="source", prune_iterations=5))
    files = results(other)
    for config in (replace(named, seed=1), replace(named, prune_type=("reinit",)), replace(each, seed=1, trials=1)):
        with pytest.raises(ConfigError, match="holds results of a different round of the ticket"):
            session.run(config)
    copied = do(settings(other, name="source", root=other / "again", prune_iterations=4, lr=0.1))[0]
    with pytest.raises(ConfigError, match=r"holds results of a different ticket$"):
        session.run(replace(named, seed=1, ticket=f"{copied.saves}"))
    assert_same(results(other), files)


def test_a_run_that_changes_beneath_transfer_ends_it(other: Path) -> None:
    """Round 0 of two runs may be the same while later ones are not."""
    config = transferred(other, f"{source(other)}:0", prune_type=("transfer",), prune_iterations=3)
    do(replace(config, prune_iterations=2))
    theirs = Store(their_run(other))
    flipped = {name: mask.flip(0) for name, mask in theirs.masks(1).items()}
    theirs.write_ticket(replace(theirs.ticket(1), masks=flipped))
    told = Told()
    do(config, told)
    assert "--ticket has changed: its masks differ from those of round 1 here" in told.notes


def test_a_damaged_later_ticket_beneath_transfer_costs_that_run_alone(other: Path) -> None:
    (source(other) / "ticket_01.safetensors").write_bytes(b"spoiled")
    config = transferred(other, f"{source(other)}:0", prune_type=("transfer", "lt"), prune_iterations=2)
    made = experiment(config)
    work(made)
    (why,) = made.failed.values()
    assert [run.arm for run in made.failed] == ["transfer"] and "ticket_01.safetensors is damaged" in why
    assert [tables.finished_rounds(run) for run in runs_of(config)] == [1, 2]
