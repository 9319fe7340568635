"""Tickets brought back, and the table of all results."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.utils.prune as torch_prune
from helpers import Conv, Mlp, Patch, arrays, do, settings
from own import batches, find, loader, runner, seeded, tiny
from torch import nn

import lth
from lth import data
from lth.commands import session
from lth.models import building
from lth.records import tables

pytestmark = pytest.mark.versions


@pytest.mark.parametrize("arch, pixels", [("mlp", "norm"), ("drop", "unit"), ("conv", "standard")])
def test_a_ticket_evaluates_to_the_digits_of_rounds_csv(place: Path, arch: str, pixels: str) -> None:
    (run,) = session.run(settings(place, arch_type=arch, pixels=pixels, end_iter="20it"))
    table = tables.table(run, "rounds")
    for number in range(3):
        ticket = lth.load_ticket(run.saves, round=number)
        for given in (place / "data" / "tiny.npz", data.load("tiny", place / "data")):
            assert float(f"{ticket.evaluate(given, device='cpu'):.10g}") == table["test"][number]
        assert ticket.row["ES"] == table["ES"][number]
        assert ticket.remaining == pytest.approx(ticket.row["remaining"])
    assert lth.load_ticket(run.dumps).round == 2


def test_a_ticket_is_not_evaluated_by_another_model(place: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (run,) = session.run(settings(place, prune_iterations=1))
    ticket, images, file = lth.load_ticket(run.saves), place / "data" / "tiny.npz", place / "archs/tiny/mlp.py"
    text = file.read_text()
    file.write_text(text.replace("nn.ReLU()", "nn.Tanh()"))
    with pytest.raises(ValueError, match=r"^model must be given, since mlp under archs/ has changed since"):
        ticket.evaluate(images)
    file.write_text(f"# Mine.\n{text}")
    assert float(f"{ticket.evaluate(images, device='cpu'):.10g}") == ticket.row["test"]
    file.unlink()
    with pytest.raises(ValueError, match=r"^model must be given, since mlp is not found under archs/ \("):
        ticket.evaluate(images)


def test_a_name_means_the_images_that_the_run_had(place: Path) -> None:
    (run,) = session.run(settings(place, prune_iterations=1))
    ticket, file = lth.load_ticket(run.saves), place / "data" / "tiny.npz"
    assert float(f"{ticket.evaluate('Tiny', device='cpu'):.10g}") == ticket.row["test"]
    np.savez(file, **arrays(seed=1))
    with pytest.raises(ValueError, match=r"^data must be the images of the run, but tiny here differs"):
        ticket.evaluate("tiny")
    assert ticket.evaluate(file) >= 0


def test_a_ticket_of_an_own_net_evaluates_on_the_users_loaders(tmp_path: Path) -> None:
    history = find(seeded(Conv), save=tmp_path, iterations=30)
    ticket = lth.load_ticket(tmp_path, 2)
    other = seeded(Conv, seed=5)
    before = [parameter.detach().clone() for parameter in other.parameters()]
    for given in (batches(60, 2), loader(60, 2), tiny(), tuple(tiny().values()), SimpleNamespace(**tiny())):
        assert float(f"{ticket.evaluate(given, other):.10g}") == history[2]["test"]
    assert all(a.equal(b) for a, b in zip(before, other.parameters(), strict=True))
    with pytest.raises(ValueError, match="model must be given, since Conv is a network of your own"):
        ticket.evaluate(batches(60, 2))


def test_apply_puts_plain_weights_or_masks_on_a_model(place: Path) -> None:
    (run,) = do(settings(place, arch_type="conv"))
    ticket = lth.load_ticket(run.saves, 2)
    make = building.find("conv", "tiny", 4)
    model = make()
    assert ticket.apply(model) is model and not torch_prune.is_pruned(model)
    state = building.state_of(model)
    assert all(state[name].equal(value) for name, value in ticket.start.items())
    assert all((state[name][~mask] == 0).all() for name, mask in ticket.masks.items())
    ticket.apply(model, as_pruned=True)
    assert torch_prune.is_pruned(model)
    assert model.layers[0].weight_mask.bool().equal(ticket.masks["layers.0.weight"])
    model(torch.zeros(2, 1, 8, 8)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1).step()
    assert (model.layers[0].weight[~ticket.masks["layers.0.weight"]] == 0).all()
    ticket.apply(model, as_pruned=True, weights="trained")  # once more on a model that has masks
    assert ticket.trained is not None and ticket.trained["layers.0.weight"].equal(model.layers[0].weight)
    for wrong, kind, words in (
        ("fc1", TypeError, "model must be a torch.nn.Module, not 'fc1'"),
        (Mlp(), ValueError, "model must have the parameters and shapes of the ticket"),
        (building.find("conv", "tiny", 5)(), ValueError, r"of the ticket; layers.5.weight, layers.5.bias differ"),
    ):
        with pytest.raises(kind, match=words):
            ticket.apply(wrong)  # type: ignore[arg-type]


def test_a_ticket_of_a_wrapped_network_fits_the_network_and_the_other_way_round(tmp_path: Path) -> None:
    wrapped = nn.DataParallel(seeded())
    test = find(wrapped, save=tmp_path)[2]["test"]
    ticket = lth.load_ticket(tmp_path, 2)
    assert ticket.masks.keys() == {"module.fc1.weight", "module.fc2.weight"}
    net = ticket.apply(seeded(seed=1), as_pruned=True, weights="trained")
    assert net.fc1.weight_mask.bool().equal(ticket.masks["module.fc1.weight"])  # type: ignore[union-attr, operator]
    assert float(f"{ticket.evaluate(batches(60, 2), seeded(seed=1)):.10g}") == test
    assert not torch_prune.is_pruned(ticket.apply(wrapped)) and wrapped.module.fc1.weight.equal(
        ticket.apply(seeded(seed=1)).get_parameter("fc1.weight")
    )


def test_load_ticket_says_what_there_is(place: Path) -> None:
    runs = session.run(settings(place, prune_type=("lt", "reinit"), keep_weights="last"))
    for folder, number, kind, words in (
        (place / "nowhere", 0, ValueError, "folder must be .*there is no folder"),
        (place / "data", 0, ValueError, "folder must be a run's folder.*in which there is none"),
        (place, 0, ValueError, "which has several"),
        (runs[0].saves, 7, ValueError, "round must be one of 0 to 2, .*not 7"),
    ):
        with pytest.raises(kind, match=words):
            lth.load_ticket(folder, number)  # type: ignore[arg-type]
    ticket = lth.load_ticket(place / "saves" / "mlp" / "tiny" / runs[0].settings / "reinit", 1)
    assert ticket.run.arm == "reinit" and ticket.trained is None
    with pytest.raises(ValueError, match="weights must be 'start': the trained weights of round 1 were not kept"):
        ticket.evaluate(place / "data" / "tiny.npz")
    assert ticket.evaluate(place / "data" / "tiny.npz", weights="start") < 100
    for given, kind, words in (
        (3, TypeError, "data must be a DataLoader or other batches"),
        ([], ValueError, "data must give"),
        ([(torch.zeros(4, 3), torch.zeros(4).long())], ValueError, "data must be such as mlp takes"),
        (place / "no.npz", ValueError, "no readable .npz"),
    ):
        with pytest.raises(kind, match=words):
            ticket.evaluate(given, weights="start")


def test_results_is_a_tidy_table(place: Path) -> None:
    for rate in (0.01, 0.02):
        folder = runner(place, learning_rate=rate).run().runner.config.root
    table = lth.results(folder)
    assert len(table) == 6 and set(table["lr"]) == {"0.01", "0.02"}
    with pytest.raises(ValueError, match=r"root must be the folder .*there is no folder"):
        lth.results(place / "nowhere")
