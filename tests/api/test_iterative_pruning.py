"""Networks, optimisers, losses and pruning rules of the user's own."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.utils.prune as torch_prune
from helpers import Capture, Conv, Patch, do, settings
from own import Rule, WithOptim, accuracy, batches, examples, find, nothing, seeded, tiny
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import combine_plots
import lth
import utils
from lth import data
from lth import prune as lth_prune
from lth.models import building
from lth.records import tables
from lth.records.store import Store, load_tensors
from lth.settings.config import PROJECT


def test_the_code_in_the_docs_runs_as_written(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"(?s)```python\n([^`]*class CustomModel[^`]*)```", (PROJECT / "docs/python.md").read_text())
    names: dict[str, Any] = {}
    exec(code.replace("1200, 15", "40, 2"), names)
    net, history = names["net"], names["history"]
    assert [row["round"] for row in history] == [0, 1, 2]
    assert list(pd.DataFrame(history))[:5] == ["round", "remaining", "ES", "val", "test"]
    assert history[-1]["remaining"] == pytest.approx(100 * 0.89**2, abs=0.01)
    zeros = sum(int((p == 0).sum()) for p in net.parameters() if p.ndim == 2)
    assert zeros == 200 * 784 + 100 * 200 + 10 * 100 - history[-1]["weights"]
    assert "100.00%" in capsys.readouterr().out and len(lth.results("results/mine")) == 3


def test_a_net_of_ones_own_gives_the_numbers_of_the_built_in_experiment(place: Path) -> None:
    config = settings(place, valid_size=20, prune_percent=30, precision="fp32")
    (run,) = do(config)
    make = building.find("mlp", "tiny", 4)
    start = Store(run).weights("initial")
    images = data.load("tiny", place / "data")
    options = {"lr": 0.01, "batch_size": 10, "valid_size": 20, "valid_freq": "4it", "precision": "fp32"}
    history = find(building.load_state(make(), start), images, iterations=8, **options)
    assert history == tables.table(run, "rounds").to_dict("records")


@pytest.mark.parametrize("keep", ["all", "none"])
def test_the_returned_net_has_the_weights_at_early_stop_not_the_last_ones(tmp_path: Path, keep: str) -> None:
    x, y = examples(40, 1)
    wrong = [(x, (y + 1) % 4)]  # what is learned of the training labels makes the validation loss rise
    net = seeded()
    given = {**tiny(), "validation": wrong}
    history = find(
        net, given, rounds=1, save=tmp_path, iterations=30, valid_freq="3it", keep_weights=keep, precision="fp32"
    )
    assert history[-1]["ES"] < 30
    (folder,) = tmp_path.glob("saves/*/*/*/*/seed0")
    last = Store(tables.Run(tmp_path, *folder.parts[-5:-1], 0)).read_checkpoint()[1].final  # type: ignore[arg-type]
    assert not net.get_parameter("fc2.weight").equal(last["fc2.weight"])
    net.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(net(x), wrong[0][1]).item()
    assert loss == pytest.approx(history[-1]["val_loss"], rel=1e-5)
    assert accuracy(net, batches(60, 2)) == pytest.approx(history[-1]["test"])
    masks = lth.load_ticket(tmp_path).masks
    assert all(not net.get_parameter(name)[~mask].any() for name, mask in masks.items())
    assert history[-1]["weights"] == sum(int(mask.sum()) for mask in masks.values()) and not torch_prune.is_pruned(net)


def structured(net: nn.Module) -> None:
    torch_prune.ln_structured(net.fc1, "weight", amount=0.25, n=2, dim=0)  # type: ignore[arg-type]


def with_biases(net: nn.Module) -> None:
    for layer, name in lth_prune.fetch_layers(net, biases=True):
        torch_prune.l1_unstructured(layer, name, amount=0.25)


def by_hand(net: nn.Module) -> None:
    weight = net.fc1.weight  # type: ignore[union-attr]
    small = weight.abs() <= weight.abs()[weight != 0].quantile(0.2)  # type: ignore[operator, union-attr]
    torch_prune.remove(net.fc1, "weight")  # type: ignore[arg-type]
    with torch.no_grad():
        net.fc1.weight[small] = 0  # type: ignore[union-attr, operator]


def in_place(net: nn.Module) -> None:
    """Biases too, as a rule does that knows nothing of masks."""
    for parameter in net.parameters():
        parameter.data[parameter.abs() < parameter.abs()[parameter != 0].quantile(0.25)] = 0


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (structured, [12, 9, 7]),  # rows of fc1
        (with_biases, [816, 624, 468]),
        (by_hand, [816, 662, 539]),
        (in_place, [816, 612, 459]),
        (nothing, [816, 816, 816]),
        (lth_prune.magnitude(np.float32(0.25), scope="global"), [816, 612, 459]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_rules_prune_what_they_say_and_nothing_comes_back(rule: Rule, kept: list[int], tmp_path: Path) -> None:
    net = seeded()
    history = find(net, prune_rule=rule, save=tmp_path)
    found = [lth.load_ticket(tmp_path, number).masks for number in range(3)]
    assert history[0]["remaining"] == 100
    weights = [sum(int(mask.sum()) for name, mask in masks.items() if name.endswith("weight")) for masks in found]
    if rule is structured:
        assert [int(masks["fc1.weight"].any(1).sum()) for masks in found] == kept
    elif rule in (with_biases, in_place):
        assert found[2].keys() == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
        assert int(found[2]["fc1.bias"].sum()) == 7 and not net.fc1.bias[~found[2]["fc1.bias"]].any()
        assert utils.exit_code(combine_plots.main, ["--root", str(tmp_path)]) == 0  # they have a line in the report
    else:
        assert weights == kept
    for before, after in itertools.pairwise(found):
        assert all(not (after[name] & ~mask).any() for name, mask in before.items())


def test_a_rule_sees_the_trained_weights_and_earlier_masks() -> None:
    seen: list[tuple[bool, int]] = []
    net = seeded()
    start = net.fc1.weight.detach().clone()

    def rule(given: nn.Module) -> None:
        assert given is not net and not given.fc1.weight.equal(start)  # type: ignore[union-attr, operator]
        seen.append((torch_prune.is_pruned(given), int((given.fc1.weight == 0).sum())))  # type: ignore
        lth_prune.magnitude(0.5)(given)

    find(net, prune_rule=rule)
    assert seen == [(True, 0), (True, 384)]


class Odd(nn.Module):
    """A matrix that nothing can draw anew."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(64, 8) / 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.flatten(1) @ self.weight).relu())


def test_fresh_weights_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    for options in ({"random": True}, {"trials": 2}):
        with pytest.raises(ValueError, match=r"^random=True and trials above 1 need .* draws weight again: give its"):
            find(seeded(Odd), save=tmp_path / "results", **options)
    assert not (tmp_path / "results").exists()
    assert find(seeded(Odd), rounds=1)[1]["weights"] == 358 + 22
    spectral = seeded(lambda: nn.Sequential(nn.Flatten(), parametrizations.spectral_norm(nn.Linear(64, 4))))
    with pytest.raises(ValueError, match=r"nothing draws 1\.parametrizations\.weight\.original again"):
        find(spectral, random=True)


def test_parameter_groups_keep_their_options(monkeypatch: Patch) -> None:
    net = seeded(WithOptim)
    groups = [
        {"params": [net.fc1.weight], "lr": 0.0},
        {"params": [net.fc1.bias, net.fc2.bias], "momentum": 0.5, "note": "mine"},
        {"params": [net.fc2.weight], "weight_decay": 0.1, "nesterov": True, "lr": 0.05},
    ]
    net.optim = torch.optim.SGD(groups, lr=0.1, momentum=0.9)  # type: ignore[assignment]
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    plain, used = torch.optim.SGD.step, []

    def options(optim: Any) -> list[dict[str, Any]]:
        return [{**group, "params": [tuple(x.shape) for x in group["params"]]} for group in optim.param_groups]

    def step(self: torch.optim.SGD, *arguments: Any) -> Any:
        used.append(options(self))
        return plain(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    find(net, prune_rule=nothing)
    assert len(used) == 36 and all(groups == options(net.optim) for groups in used)
    changed = {name for name, value in net.named_parameters() if not value.equal(before[name])}
    assert changed == {"fc2.weight", "fc1.bias", "fc2.bias"}


def test_the_own_loss_is_what_is_lowered() -> None:
    net = seeded(WithOptim)
    history = find(net, rounds=0, iterations=60)
    x, y = examples(40, 1)
    with torch.no_grad():
        assert net.criterion(net(x), y).item() == pytest.approx(history[0]["val_loss"], rel=1e-3)  # type: ignore[operator]


def test_random_draws_fresh_weights_as_the_net_does_in_every_round(tmp_path: Path) -> None:
    net = seeded(WithOptim)
    start = net.fc1.weight.detach().clone()
    find(net, random=True, save=tmp_path)
    starts = [lth.load_ticket(tmp_path, number).start for number in range(3)]
    assert starts[0]["fc1.weight"].equal(start)
    for number in (1, 2):
        values = starts[number]["fc1.weight"]
        assert values[values != 0].std() == pytest.approx(0.01, rel=0.2)
        assert (starts[number]["fc1.bias"] == 0.25).all()
        assert not (values == starts[number - 1]["fc1.weight"])[values != 0].any()


def normed(kind: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A net that holds a weight that it has computed, which copy.deepcopy refuses."""
    net = nn.Sequential(nn.Flatten(), kind(nn.Linear(64, 12)), nn.ReLU(), nn.Linear(12, 4))
    net(torch.ones(2, 64))
    return net


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_net_that_holds_what_it_has_computed_is_trained_and_pruned(kind: Callable[[nn.Module], nn.Module]) -> None:
    net = seeded(lambda: normed(kind))
    history = find(net, rounds=3)
    assert history[-1]["weights"] < 48 and accuracy(net, tiny()["test"]) == pytest.approx(history[-1]["test"])
    with pytest.raises(ValueError, match=r"nothing draws 1\.weight_"):
        find(seeded(lambda: normed(kind)), random=True)


def test_rewinding_is_to_an_iteration_or_a_fraction(tmp_path: Path) -> None:
    histories = {
        rewind: find(seeded(), rewind=rewind, iterations=20, save=tmp_path / str(i), valid_freq="4it")
        for i, rewind in enumerate((8, 0.4, 0))
    }
    assert histories[8] == histories[0.4] != histories[0]
    evals = pd.read_csv(next(tmp_path.glob("0/**/evals.csv")))
    assert evals[evals["round"] == 1]["iteration"].tolist() == [12, 16, 20]
    kept = lth.load_ticket(tmp_path / "0", 1)
    find(seeded(), iterations=8, rounds=0, save=tmp_path / "early")  # the same order of data
    (dense,) = (tmp_path / "early").rglob("dense.safetensors")
    reached = load_tensors(dense)[0]["fc1.weight"]
    assert kept.start["fc1.weight"].equal(reached * kept.masks["fc1.weight"]) and reached.ne(seeded().fc1.weight).any()


def test_calls_repeat_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two = seeded(lambda: Conv(dropout=0.4)), seeded(lambda: Conv(dropout=0.4))
    first = find(one, prune_rule=lth_prune.random(0.3))
    assert torch.get_rng_state().equal(state)
    assert find(two, prune_rule=lth_prune.random(0.3)) == first
    assert all(a.equal(b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert find(seeded(lambda: Conv(dropout=0.4)), prune_rule=lth_prune.random(0.3), seed=1) != first


def test_tied_weights_are_pruned_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 4)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.two(self.one(x.flatten(1)).relu()))

    assert find(seeded(Tied))[-1]["weights"] == 2007 + 125  # 0.7 twice of 64 * 64 and of 256, rounded

    def in_the_second(net: nn.Module) -> None:
        torch_prune.l1_unstructured(net.two, "weight", amount=0.3)  # type: ignore[arg-type]

    assert find(seeded(Tied), prune_rule=in_the_second)[-1]["weights"] == 2007 + 256


def test_masks_on_the_net_are_the_ticket_that_training_starts_from(tmp_path: Path, capsys: Capture) -> None:
    net, other = seeded(WithOptim), seeded(WithOptim)
    torch_prune.random_unstructured(net.fc1, "weight", amount=0.5)  # type: ignore[arg-type]
    mask = net.fc1.weight_mask.bool()  # type: ignore[operator, union-attr]
    history = find(net, rounds=2, save=tmp_path, quiet=False)
    assert "will be trained" not in capsys.readouterr().out
    assert [row["weights"] for row in history][:2] == [384 + 48, 269 + 34]
    assert history[0]["remaining"] == pytest.approx(100 * 432 / 816, abs=0.001)
    assert lth.load_ticket(tmp_path, 0).masks["fc1.weight"].equal(mask)
    assert not net.get_parameter("fc1.weight")[~mask].any() and not torch_prune.is_pruned(net)
    again = seeded(WithOptim)
    with pytest.raises(ValueError, match="recover must hold results of the same"):
        find(again, rounds=3, recover=tmp_path)
    torch_prune.custom_from_mask(again.fc1, "weight", mask)
    assert find(again, rounds=3, recover=tmp_path)[:3] == history
    torch_prune.custom_from_mask(other.fc1, "weight", mask)
    trials = find(building.copy_model(other), rounds=1, trials=2)
    assert [row["weights"] for row in trials] == 2 * [384 + 48, 269 + 34], "in every trial"
    torch_prune.remove(other.fc1, "weight")  # type: ignore[arg-type]
    assert find(other, quiet=False)[0]["weights"] == 816
    assert "weights of net are 0 and will be trained: 384 of 768 in fc1.weight" in capsys.readouterr().out
