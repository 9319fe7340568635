"""The front doors: own networks, data and rules; the runner; tickets brought back; `python lth`."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.utils.prune as torch_prune
from helpers import Conv, Mlp, do, make_images, settings
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

import lth
from lth import data
from lth import pruning as lth_prune
from lth.__main__ import main as short_main
from lth.__main__ import parse
from lth.data import loaders, stream
from lth.records import tables, tickets
from lth.run import session
from lth.run.jobs import runs_of
from lth.settings.config import PROJECT, Config, ConfigError, Duration
from lth.training import models

ISSUE = """
import torch, torch.nn as nn, torch.nn.utils.prune as prune
import lth

data = lth.data.load_MNIST("./datasets/mnist")

class CustomModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(784, 200), nn.Linear(200, 100), nn.Linear(100, 10))
        self.optim = torch.optim.Adam(self.parameters(), lr=0.05)
        self.optim.name = "adam"
        self._initialize_weights()
        self.criterion = nn.CrossEntropyLoss()
    def forward(self, x): return self.net(x.flatten(1))
    def _initialize_weights(self):
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0, 0.01); nn.init.constant_(m.bias, 0)

def prune_rule(net):
    for layer, name in lth.prune.fetch_layers(net):
        prune.l1_unstructured(layer, name=name, amount=0.11)
    return net

net = CustomModel()
found = lth.iterative_pruning(net, data, 1200, 15, prune_rule)
"""

Rule = Callable[[nn.Module], object]


def examples(count: int = 120, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float images (N, 1, 8, 8) and labels of four classes."""
    images = make_images(count=count, seed=seed)
    return images.train.float().div(128).sub(0.5), images.train_labels


def batches(count: int = 120, seed: int = 0, size: int = 10) -> list[tuple[Tensor, Tensor]]:
    x, y = examples(count, seed)
    return list(zip(x.split(size), y.split(size), strict=True))


def tiny() -> dict[str, Any]:
    return {"train": batches(), "validation": batches(40, 1), "test": batches(60, 2)}


def loader(count: int = 120, seed: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*examples(count, seed)), batch_size=10, **options)


def seeded(make: Callable[[], nn.Module] = Mlp, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def find(net: nn.Module, given: Any = None, **changes: Any) -> list[dict[str, Any]]:
    """The history of a very short iterative_pruning of `net`, in place."""
    usual = {"iterations": 12, "rounds": 2, "prune_rule": lth_prune.magnitude(0.3), "quiet": True, "device": "cpu"}
    trained, history = lth.iterative_pruning(net, tiny() if given is None else given, **(usual | changes))
    assert trained is net
    return history


def accuracy(net: nn.Module, parts: list[tuple[Tensor, Tensor]]) -> float:
    net.eval()
    with torch.no_grad():
        right = sum(int((net(x).argmax(1) == y).sum()) for x, y in parts)
    return 100 * right / sum(len(y) for _, y in parts)


class WithOptim(Mlp):
    """Brings everything along; counts the optimisers made and what the loss was asked."""

    made: list[torch.optim.Optimizer]

    def __init__(self, optim: Callable[..., torch.optim.Optimizer] = torch.optim.Adam, **options: Any) -> None:
        super().__init__()
        self._initialize_weights()
        self.optim = optim(self.parameters(), **(options or {"lr": 0.01}))
        self.optim.name = "whatever"  # type: ignore[attr-defined]
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def _initialize_weights(self) -> None:
        for layer in (self.fc1, self.fc2):
            nn.init.normal_(layer.weight, 0, 0.01)
            nn.init.constant_(layer.bias, 0.25)


# ------------------------------------------------------------------------------------------- own nets and rules


def run_issue(iterations: int, rounds: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    names: dict[str, Any] = {}
    exec(ISSUE.replace("1200, 15", f"{iterations}, {rounds}"), names)
    return names["found"]


def test_the_code_of_the_issue_runs_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    net, history = run_issue(40, 2)
    assert [row["round"] for row in history] == [0, 1, 2]
    assert list(pd.DataFrame(history))[:5] == ["round", "remaining", "ES", "val", "test"]
    assert history[-1]["remaining"] == pytest.approx(100 * 0.89**2, abs=0.01)
    zeros = sum(int((p == 0).sum()) for p in net.parameters() if p.ndim == 2)
    assert zeros == 200 * 784 + 100 * 200 + 10 * 100 - history[-1]["weights"]
    assert "100.00%" in capsys.readouterr().out


@pytest.mark.slow
def test_the_literal_code_of_the_issue_finds_tickets() -> None:
    _, history = run_issue(1200, 15)
    assert len(history) == 16
    assert history[-1]["remaining"] == pytest.approx(100 * 0.89**15, abs=0.01)
    assert min(row["test"] for row in history) > 80


def test_a_net_of_ones_own_gives_the_numbers_of_the_built_in_experiment(place: Path) -> None:
    config = settings(place, valid_size=20, prune_percent=30, precision="fp32")
    (run,) = do(config)
    make = models.find("mlp", "tiny", 4)
    start = tickets.read_state(run, "initial")
    images = data.load("tiny", place / "data")
    options = {"lr": 0.01, "batch_size": 10, "valid_freq": "4it", "precision": "fp32"}
    history = find(models.load_state(make(), start), images, iterations=8, **options)
    assert history == tables.table(run, "rounds").to_dict("records")


def test_the_returned_net_is_what_the_last_line_of_the_history_tells_of(tmp_path: Path) -> None:
    net = seeded(Conv)
    history = find(net, rounds=1, save=tmp_path, iterations=30)
    assert accuracy(net, batches(60, 2)) == pytest.approx(history[-1]["test"])
    ticket = lth.load_ticket(tmp_path)
    assert ticket.round == 1
    for name, mask in ticket.masks.items():
        weight = net.get_parameter(name)
        assert not weight[~mask].any() and weight[mask].all()
    assert history[-1]["weights"] == sum(int(mask.sum()) for mask in ticket.masks.values())
    assert not torch_prune.is_pruned(net)


def structured(net: nn.Module) -> None:
    torch_prune.ln_structured(net.fc1, "weight", amount=0.25, n=2, dim=0)  # type: ignore[arg-type]


def over_all(net: nn.Module) -> nn.Module:
    torch_prune.global_unstructured(lth_prune.fetch_layers(net), torch_prune.L1Unstructured, amount=0.2)
    return net


def with_biases(net: nn.Module) -> None:
    for layer, name in lth_prune.fetch_layers(net, biases=True):
        torch_prune.l1_unstructured(layer, name, amount=0.25)


def made_permanent(net: nn.Module) -> None:
    torch_prune.l1_unstructured(net.fc1, "weight", amount=0.2)  # type: ignore[arg-type]
    torch_prune.remove(net.fc1, "weight")  # type: ignore[arg-type]


def by_hand(net: nn.Module) -> None:
    weight = net.fc1.weight  # type: ignore[union-attr]
    small = weight.abs() <= weight.abs()[weight != 0].quantile(0.2)  # type: ignore[operator, union-attr]
    torch_prune.remove(net.fc1, "weight")  # type: ignore[arg-type]
    with torch.no_grad():
        net.fc1.weight[small] = 0  # type: ignore[union-attr, operator]


def at_random(net: nn.Module) -> None:
    torch_prune.random_unstructured(net.fc1, "weight", amount=0.5)  # type: ignore[arg-type]


def nothing(net: nn.Module) -> None:
    return None


def masks_off(net: nn.Module) -> nn.Module:
    for layer, name in lth_prune.fetch_layers(net):
        torch_prune.remove(layer, name)
    return net


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (structured, [12, 9, 7]),  # rows of fc1
        (over_all, [816, 653, 522]),
        (with_biases, [816, 624, 468]),
        (made_permanent, [816, 662, 539]),
        (by_hand, [816, 662, 539]),
        (at_random, [816, 432, 240]),
        (nothing, [816, 816, 816]),
        (masks_off, [816, 816, 816]),
        (lth_prune.magnitude(0.25, scope="global"), [816, 612, 459]),
        (lth_prune.random(0.25), [816, 612, 459]),
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
    elif rule is with_biases:
        assert found[2].keys() == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
        assert int(found[2]["fc1.bias"].sum()) == 7 and not net.fc1.bias[~found[2]["fc1.bias"]].any()
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


def test_no_pruning_round_is_one_training() -> None:
    assert len(find(seeded(), rounds=0)) == 1


@pytest.mark.parametrize(
    ("optim", "options"),
    [
        (torch.optim.Adam, {"lr": 0.01}),
        (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (torch.optim.RMSprop, {"lr": 0.01}),
        (torch.optim.Adagrad, {"lr": 0.01}),
        (torch.optim.NAdam, {"lr": torch.tensor(0.01)}),
    ],
)
def test_own_optimisers_train_and_are_new_in_every_round(
    optim: Callable[..., Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh: list[int] = []
    plain = optim.step  # type: ignore[attr-defined]

    def step(self: torch.optim.Optimizer, *arguments: Any) -> Any:
        if not any(state.get("seen") for state in self.state.values()):
            fresh.append(id(self))
            assert all(float(state.get("step", 0)) == 0 for state in self.state.values())
        result = plain(self, *arguments)
        self.state[self.param_groups[0]["params"][0]]["seen"] = True
        return result

    net = seeded(lambda: WithOptim(optim, **options))
    plain(net.optim)  # type: ignore[attr-defined]
    monkeypatch.setattr(optim, "step", step)
    history = find(net, iterations=40, precision="fp32")
    assert len(fresh) == 3
    assert history[0]["test"] > 50
    assert net.optim.name == "whatever"  # type: ignore[union-attr]


def test_parameter_groups_keep_their_options() -> None:
    net = seeded(WithOptim)
    groups = [{"params": [net.fc1.weight], "lr": 0.0}, {"params": list(net.fc2.parameters())}]
    net.optim = torch.optim.SGD(groups, lr=0.1)  # type: ignore[assignment]
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    find(net, prune_rule=nothing)
    changed = {name for name, value in net.named_parameters() if not value.equal(before[name])}
    assert changed == {"fc2.weight", "fc2.bias"}


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


def test_random_without_an_own_initialisation_resets_every_module(tmp_path: Path) -> None:
    net = seeded(Conv)
    find(net, random=True, rounds=1, save=tmp_path)
    dense, ticket = (lth.load_ticket(tmp_path, number) for number in (0, 1))
    kept = ticket.masks["conv.weight"]
    assert not (dense.start["conv.weight"] == ticket.start["conv.weight"])[kept].any()
    assert (ticket.start["norm.running_mean"] == 0).all()


def test_without_random_survivors_start_from_the_weights_the_net_had(tmp_path: Path) -> None:
    net = seeded()
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    find(net, save=tmp_path)
    ticket = lth.load_ticket(tmp_path, 2)
    for name, value in before.items():
        assert ticket.start[name].equal(value * ticket.masks.get(name, torch.ones(())))


def test_rewinding_is_to_an_iteration_or_a_fraction(tmp_path: Path) -> None:
    histories = {
        rewind: find(seeded(), rewind=rewind, iterations=20, save=tmp_path / str(i), valid_freq="4it")
        for i, rewind in enumerate((8, 0.4, 0))
    }
    assert histories[8] == histories[0.4] != histories[0]
    evals = pd.read_csv(next(tmp_path.glob("0/**/evals.csv")))
    assert evals[evals["round"] == 1]["iteration"].tolist() == [12, 16, 20]
    early, kept = seeded(), lth.load_ticket(tmp_path / "0", 1)
    find(early, iterations=8, rounds=0)  # the same order of data; the last evaluation is the end
    assert not kept.start["fc1.weight"].equal(seeded().fc1.weight * kept.masks["fc1.weight"])


def test_calls_repeat_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two = seeded(lambda: Conv(dropout=0.4)), seeded(lambda: Conv(dropout=0.4))
    first = find(one, prune_rule=lth_prune.random(0.3))
    assert torch.get_rng_state().equal(state)
    assert find(two, prune_rule=lth_prune.random(0.3)) == first
    assert all(a.equal(b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert find(seeded(lambda: Conv(dropout=0.4)), prune_rule=lth_prune.random(0.3), seed=1) != first


def test_recover_goes_on_as_if_there_had_been_no_stop(tmp_path: Path) -> None:
    whole = find(seeded(), rounds=4)
    find(seeded(), rounds=2, save=tmp_path)
    net = seeded(seed=9)  # another process draws other weights: those of the first call count
    assert find(net, rounds=4, recover=tmp_path) == whole
    assert find(seeded(), rounds=1, recover=tmp_path) == whole[:2]
    run_folder = next(tmp_path.glob("saves/*/*/*/*/seed0"))
    assert find(seeded(), rounds=4, recover=run_folder) == whole


def test_recover_after_a_crash_within_a_round(tmp_path: Path) -> None:
    calls: list[int] = []

    def breaks(net: nn.Module) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        lth_prune.magnitude(0.3)(net)

    with pytest.raises(KeyboardInterrupt):
        find(seeded(WithOptim), prune_rule=breaks, rounds=3, save=tmp_path)
    resumed = find(seeded(WithOptim), prune_rule=breaks, rounds=3, recover=tmp_path)
    assert resumed == find(seeded(WithOptim), rounds=3)


def test_after_a_crash_in_the_first_round_another_net_can_begin(tmp_path: Path) -> None:
    calls: list[int] = []

    def breaks(logits: Tensor, labels: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(logits, labels)

    with pytest.raises(KeyboardInterrupt):
        find(altered(criterion=breaks), save=tmp_path)
    assert find(altered(criterion=breaks), recover=tmp_path) == find(seeded())
    with pytest.raises(KeyboardInterrupt):
        calls.clear()
        find(altered(criterion=breaks), save=tmp_path, seed=1)
    assert find(seeded(seed=4), save=tmp_path, seed=1) == find(seeded(seed=4), seed=1)


def test_results_are_never_mixed(tmp_path: Path) -> None:
    find(seeded(), save=tmp_path)
    with pytest.raises(ValueError, match=r"save must be a folder without results.*recover=.*goes on"):
        find(seeded(), save=tmp_path)
    for changes, words in (
        ({"iterations": 13}, "iterations was 12it, is 13it"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"random": True}, "arm was lt, is reinit"),
        ({"given": {**tiny(), "train": batches(100)}}, "data was 120 training"),
    ):
        given = changes.pop("given", None)
        with pytest.raises(ValueError, match=f"recover must hold results of the same settings: .*{words}"):
            find(seeded(), given, recover=tmp_path, **changes)
    with pytest.raises(ValueError, match=r"net was Mlp .*is Mlp"):
        find(seeded(lambda: Mlp(13)), recover=tmp_path)
    with pytest.raises(ValueError, match="recover must hold results of Conv"):
        find(seeded(Conv), recover=tmp_path)
    # The same settings and seed, another arm: the dense round of another net must not be taken over.
    other = find(seeded(seed=3), random=True, save=tmp_path)
    assert other[0] == find(seeded(seed=3), random=True)[0]
    assert lth.results(tmp_path).groupby("arm").size().to_dict() == {"lt": 3, "reinit": 3}


def test_a_loss_that_is_not_finite_ends_it_with_a_sentence() -> None:
    with pytest.raises(session.TrialsFailed, match="round 0 ended: the loss became"):
        find(altered(criterion=lambda logits, labels: nn.functional.cross_entropy(logits, labels) * torch.nan))


# ------------------------------------------------------------------------------------------------------ own data


class Augmented(Dataset[Any]):
    """Examples with other noise each time."""

    def __len__(self) -> int:
        return 120

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = EXAMPLES
        return x[index] + 0.1 * torch.randn(1, 8, 8), int(y[index])


class Rows(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        x, y = EXAMPLES
        return iter([(a, int(b)) for a, b in zip(x, y, strict=True)])


class Repeats:
    """A re-iterable without a length, in another order each time."""

    def __iter__(self) -> Iterator[Any]:
        return iter(DataLoader(TensorDataset(*EXAMPLES), batch_size=10, shuffle=True))


class Noisy(Repeats):
    def __iter__(self) -> Iterator[Any]:
        return iter(DataLoader(Augmented(), batch_size=10))


EXAMPLES = examples()
REST = {"validation": batches(40, 1), "test": batches(60, 2)}


@pytest.mark.parametrize(
    "given",
    [
        {"train": loader(shuffle=True), **REST},
        {"train": loader(shuffle=True, drop_last=True), **REST},
        {"train": loader(sampler=SubsetRandomSampler(range(120))), **REST},
        {"train": DataLoader(Subset(TensorDataset(*EXAMPLES), range(120)), batch_size=10, shuffle=True), **REST},
        {"train": DataLoader(Rows(), batch_size=10), **REST},
        (batches(), REST["validation"], REST["test"]),
        SimpleNamespace(**tiny()),
        {**tiny(), "train": [(x.numpy(), y.numpy()) for x, y in batches()]},
    ],
    ids=["loader", "drop_last", "subset_sampler", "subset", "iterable", "tuple", "object", "numpy"],
)
def test_the_same_examples_give_the_same_numbers_whatever_they_come_in(given: Any) -> None:
    assert find(seeded(), given) == find(seeded())


@pytest.mark.parametrize(
    ("train", "streamed"),
    [
        (batches(), False),
        (loader(shuffle=True), False),
        (Repeats(), False),
        (Noisy(), True),
        (DataLoader(Augmented(), batch_size=10), True),
    ],
    ids=["list", "loader", "repeats", "noisy", "augmented"],
)
def test_data_that_change_are_streamed(train: Any, streamed: bool) -> None:
    taken = loaders.take({"train": train, **REST}, torch.device("cpu"))
    assert isinstance(taken.source, stream.Stream) == streamed
    assert not isinstance(loaders.take({"train": train, **REST}, torch.device("cpu"), True).source, stream.Stream)
    assert isinstance(loaders.take({"train": train, **REST}, torch.device("cpu"), False).source, stream.Stream)


def test_what_does_not_fit_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_free", lambda device: 100_000)
    taken = loaders.take(tiny(), torch.device("cpu"))
    assert isinstance(taken.source, stream.Stream) and "streamed" in taken.about


def test_a_stream_gives_full_batches_epoch_after_epoch_and_goes_on_anywhere() -> None:
    source = loaders.take({"train": loader(125, shuffle=True), **REST}, torch.device("cpu"), False).source
    feed = source.feed([0], 1, 10, torch.device("cpu"))
    assert feed.epoch_steps == 12

    def labels(epoch: int, start: int = 0) -> list[list[int]]:
        feed.epoch([(0, "again")], 99)  # so that the pass begins anew
        return [feed.fetch(batch)[1].tolist() for batch in feed.epoch([(0, "order")], epoch)[start:]]

    assert len(labels(0)) == 12 and {len(batch) for batch in labels(0)} == {10}
    assert labels(0) == labels(0) != labels(1)
    assert labels(1, 7) == labels(1)[7:]


@pytest.mark.parametrize("train", [loader(shuffle=True), DataLoader(Augmented(), batch_size=10, shuffle=True), Noisy()])
def test_streams_train_and_go_on_by_whole_rounds(train: Any, tmp_path: Path) -> None:
    given = {"train": train, **REST}
    whole = find(seeded(), given, in_memory=False, iterations=30, rewind=5)
    assert whole[0]["test"] > 60
    find(seeded(), given, in_memory=False, iterations=30, rewind=5, rounds=1, save=tmp_path)
    assert find(seeded(), given, in_memory=False, iterations=30, rewind=5, recover=tmp_path) == whole


def test_examples_of_any_type_reach_the_net_as_they_are() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc = nn.Embedding(50, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.int64
            return self.fc(self.embed(x).mean(1))

    generator = torch.Generator().manual_seed(0)
    words = [
        (torch.randint(0, 50, (10, 6), generator=generator), torch.randint(0, 3, (10,), generator=generator))
        for _ in range(6)
    ]
    assert len(find(seeded(Words), (words, words, words))) == 3
    assert len(find(seeded(Words), (words, words, words), in_memory=False)) == 3


def test_load_MNIST_serves_the_projects_file_where_the_folder_has_none(tmp_path: Path) -> None:
    parts = lth.data.load_MNIST(tmp_path / "nothing", batch_size=100)
    assert [len(part) for part in parts] == [550, 50, 100]
    x, y = next(iter(parts.train))
    assert x.shape == (100, 1, 28, 28) and x.dtype == torch.float32 and y.dtype == torch.int64
    everything = torch.cat([x for x, _ in parts.train])
    assert abs(float(everything.mean())) < 0.01 and abs(float(everything.std()) - 1) < 0.01
    assert not torch.equal(next(iter(parts.train))[1], y), "a new order each pass"
    assert parts.train is parts[0] and parts._fields == ("train", "validation", "test")


def test_loaders_of_the_library_train_as_their_batches_do() -> None:
    images = make_images()
    scaling = data.normalisation(images.train)
    parts = [
        data.Loader("tiny", x, y, 10, False, *scaling)
        for x, y in ((images.train, images.train_labels), (images.test, images.test_labels))
    ]
    given = data.Loaders(parts[0], parts[1], parts[1])
    assert find(seeded(), given, precision="fp32") == find(seeded(), tuple(map(list, given)), precision="fp32")
    assert len(find(seeded(), given, in_memory=False)) == 3


# ----------------------------------------------------------------------------------------------------- bad input


class NoGrad(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


def altered(**attributes: Any) -> nn.Module:
    net = seeded()
    for name, value in attributes.items():
        setattr(net, name, value)
    return net


def pruned_net() -> nn.Module:
    net = seeded()
    torch_prune.l1_unstructured(net.fc1, "weight", amount=0.1)
    return net


def other_net_returned(net: nn.Module) -> nn.Module:
    return seeded()


WRONG = [
    ({"net": "lenet"}, TypeError, "net must be a torch.nn.Module, not 'lenet'"),
    ({"net": nn.Sequential(nn.Flatten(), nn.LazyLinear(4))}, ValueError, "net must know its shapes"),
    ({"net": nn.Sequential(nn.Flatten())}, ValueError, "net must have parameters"),
    ({"net": nn.BatchNorm2d(1)}, ValueError, "net must have a Linear or Conv layer"),
    ({"net": NoGrad()}, ValueError, "net must have parameters that require gradients"),
    ({"net": nn.Sequential(nn.Flatten(), nn.Linear(60, 4))}, ValueError, r"net must take .* \(B, 1, 8, 8\)"),
    ({"net": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}, ValueError, "net must give a logit .* 4 classes"),
    ({"net": nn.Conv2d(1, 4, 3)}, ValueError, r"net must give one row of logits .*not \(2, 4, 6, 6\)"),
    ({"net": pruned_net()}, ValueError, "net must come without masks"),
    ({"net": altered(optim="adam")}, TypeError, "net.optim must be a torch.optim.Optimizer, not 'adam'"),
    ({"net": altered(optim=torch.optim.SGD(Mlp().parameters(), lr=1))}, ValueError, "net.optim must hold parameters"),
    ({"net": WithOptim(torch.optim.LBFGS, lr=1)}, ValueError, "net.optim must step without a closure"),
    ({"net": altered(criterion=3)}, TypeError, "net.criterion must be a function"),
    ({"net": altered(criterion=nn.CrossEntropyLoss(reduction="none"))}, ValueError, "net.criterion must give one"),
    ({"net": altered(criterion=lambda logits: logits.sum())}, ValueError, "net.criterion must take"),
    ({"data": None}, TypeError, "data must be the name of a data set"),
    ({"data": loader()}, TypeError, "data must be .* train, validation and test"),
    ({"data": {"train": batches()}}, TypeError, "its validation is missing"),
    ({"data": {**tiny(), "train": iter(batches())}}, TypeError, "data.train must give its batches again and again"),
    ({"data": {**tiny(), "test": 3}}, TypeError, "data.test must be a DataLoader .*not 3"),
    ({"data": {**tiny(), "test": []}}, ValueError, "data.test must give at least one batch"),
    ({"data": {**tiny(), "train": [examples()[0]]}}, TypeError, "data.train must give batches"),
    ({"data": {**tiny(), "train": TensorDataset(*examples())}}, TypeError, "data.train must be .*not a TensorDataset"),
    ({"data": {**tiny(), "train": list(TensorDataset(*examples()))}}, ValueError, "data.train must give examples"),
    ({"data": {**tiny(), "train": [("a", "b")]}}, TypeError, "data.train must give batches of tensors, not str"),
    ({"data": {**tiny(), "train": [(torch.ones(3, 2), torch.ones(2).long())]}}, ValueError, "one label each"),
    ({"data": {**tiny(), "train": [(torch.ones(3, 2), torch.ones(3))]}}, ValueError, "labels 0, 1, ... as whole"),
    ({"data": {**tiny(), "train": [(torch.ones(3, 2), -torch.ones(3).long())]}}, ValueError, "labels 0, 1, ..."),
    ({"data": {**tiny(), "test": [(torch.ones(3, 9), torch.ones(3).long())]}}, ValueError, "data.test .* shape"),
    ({"data": {**tiny(), "test": [*batches(), (torch.ones(3, 9), torch.ones(3).long())]}}, ValueError, "one shape"),
    ({"data": "mnits"}, ValueError, "must be one of mnist"),
    ({"iterations": 0}, ValueError, "iterations must be a whole number of at least 1, not 0"),
    ({"iterations": 2.5}, TypeError, "iterations must be a whole number of at least 1, not 2.5"),
    ({"iterations": True}, TypeError, "iterations must be .*not True"),
    ({"iterations": "12"}, TypeError, "iterations must be .*not '12'"),
    ({"rounds": -1}, ValueError, "rounds must be a whole number of at least 0"),
    ({"rounds": None}, TypeError, "rounds must be .*not None"),
    ({"prune_rule": 0.2}, TypeError, "prune_rule must be a function of the network .*not 0.2"),
    ({"prune_rule": lambda: None}, TypeError, "prune_rule .*cannot be called with one argument"),
    ({"prune_rule": other_net_returned}, TypeError, "prune_rule must prune the network that it is given"),
    ({"random": 1}, TypeError, "random must be True or False, not 1"),
    ({"rewind": -1}, ValueError, "rewind must be"),
    ({"rewind": 12}, ValueError, "rewind must be a number of iterations below 12"),
    ({"rewind": 1.5}, ValueError, "rewind must be .*not 1.5"),
    ({"rewind": "5"}, TypeError, "rewind must be .*not '5'"),
    ({"rewind": 5, "random": True}, ValueError, "rewind must be 0 with random=True"),
    ({"seed": -1}, ValueError, "seed must be a whole number"),
    ({"save": 3}, TypeError, "save must be a path, not 3"),
    ({"recover": "/no/such/folder"}, ValueError, "recover must be a folder with results"),
    ({"device": "gpu"}, ValueError, "device must be None, 'cpu', 'cuda'"),
    ({"device": 1.5}, TypeError, "device must be"),
    ({"in_memory": "yes"}, TypeError, "in_memory must be True or False"),
    ({"quiet": 1}, TypeError, "quiet must be True or False"),
    ({"batchsize": 3}, TypeError, "no argument 'batchsize': did you mean batch_size?"),
    ({"batch_size": 0}, ValueError, "batch_size must be a whole number at least 1, not 0"),
    ({"batch_size": 121}, ValueError, "batch_size must be at most 120"),
    ({"batch_size": 5, "in_memory": False}, ValueError, "batch_size must be that of the streamed batches, 10"),
    ({"valid_freq": "often"}, ValueError, "valid_freq must be a duration"),
    ({"lr": -1}, ValueError, "lr must be a number above 0"),
    ({"net": WithOptim(), "lr": 0.1}, ValueError, "lr must be left to net.optim"),
    ({"momentum": 0.9}, ValueError, "^momentum belongs to optimizer sgd"),
]


@pytest.mark.parametrize(("changes", "kind", "words"), WRONG, ids=[f"{words[:40]}" for _, _, words in WRONG])
def test_bad_input_is_named(changes: dict[str, Any], kind: type[Exception], words: str, tmp_path: Path) -> None:
    arguments = {"net": seeded(), "data": tiny(), "iterations": 12, "rounds": 1, "prune_rule": nothing, "quiet": True}
    with pytest.raises(kind, match=words):
        lth.iterative_pruning(**{"save": tmp_path / "results", **arguments, **changes})  # type: ignore[arg-type]
    if changes.get("prune_rule") is not other_net_returned:
        assert not (tmp_path / "results").exists()


def test_tied_weights_are_pruned_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 4)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.two(self.one(x.flatten(1)).relu()))

    assert find(seeded(Tied))[-1]["weights"] == 2007 + 125  # 0.7 twice of 64 * 64 and of 256, rounded

    def twice(net: nn.Module) -> None:
        for layer in (net.one, net.two):
            torch_prune.l1_unstructured(layer, "weight", amount=0.1)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="prune_rule must prune tied weights once"):
        find(seeded(Tied), prune_rule=twice)


def test_load_MNIST_names_bad_arguments() -> None:
    for arguments, kind, words in (
        ({"folder": 3}, TypeError, "folder must be a path, not 3"),
        ({"folder": "x", "valid_size": 50000}, ValueError, "valid_size must be .*at most 30000, not 50000"),
        ({"folder": "x", "batch_size": 0}, ValueError, "batch_size must be"),
        ({"folder": "x", "seed": None}, TypeError, "seed must be"),
    ):
        with pytest.raises(kind, match=words):
            lth.data.load_MNIST(**arguments)


# ---------------------------------------------------------------------------------------------------- the runner


def runner(place: Path, **changes: Any) -> lth.ExperimentRunner:
    usual: dict[str, Any] = {
        **{"dataset": "tiny", "model_name": "mlp", "data": place / "data", "valid_size": 40, "quiet": True},
        **{"num_rounds": 3, "iterations": 8, "batch_size": 10, "pruning_rate": 0.3, "device": "cpu"},
        **{"learning_rate": 0.01, "results_dir": place / "results" / "here"},
    }
    return lth.ExperimentRunner(**(usual | changes))


@pytest.mark.parametrize("scope", ["layerwise", "global"])
def test_every_combination_of_the_runner_runs_and_differs(place: Path, scope: str) -> None:
    lasts = {}
    for kind in ("magnitude", "random"):
        for method in ("rewind", "random", "none"):
            made = runner(place, pruning_type=kind, reinit_method=method, pruning_scope=scope).run()
            assert made.results.shape == (3, 5)
            ticket = lth.load_ticket(made.folder, 2)
            lasts[kind, method] = ticket.start["layers.1.weight"][:, :5].sum().item()
            dense, first = lth.load_ticket(made.folder, 0), lth.load_ticket(made.folder, 1)
            kept = first.masks["layers.1.weight"]
            same = (first.start["layers.1.weight"] == dense.start["layers.1.weight"])[kept]
            assert bool(same.all()) == (method == "rewind") and bool(same.any()) == (method == "rewind")
            scores = made.config.prune_scope
            assert scores == ("global" if scope == "global" else "layer")
    assert len(set(lasts.values())) == 6


def test_the_runner_saves_its_table(place: Path, tmp_path: Path) -> None:
    made = runner(place)
    with pytest.raises(RuntimeError, match="call run"):
        made.save_results("early.csv")
    file = made.run().save_results("name.csv")
    assert file == place / "results" / "here" / "name.csv"
    table = pd.read_csv(file)
    assert list(table) == ["round", "remaining", "ES", "val", "test"] and len(table) == 3
    assert table.equals(tables.table(runs_of(made.config)[0], "rounds")[list(table)])
    assert runner(place, num_rounds=2).run().results.equals(made.results.head(2))
    assert len(runner(place, num_rounds=4).run().results) == 4
    for name, kind in ((3, TypeError), ("../x.csv", ValueError), ("x.txt", ValueError), ("a/b.csv", ValueError)):
        with pytest.raises(kind, match="name must be the name of a"):
            made.save_results(name)  # type: ignore[arg-type]


def test_the_runners_defaults() -> None:
    assert lth.ExperimentRunner().config == Config(
        prune_percent=20, prune_iterations=16, end_iter="50000it", root=Path("results")
    )


def test_the_runner_knows_the_other_names() -> None:
    made = lth.ExperimentRunner(
        dataset="mnist", model_name="lenet_conv", pruning_type="magnitude", pruning_scope="layerwise",
        reinit_method="rewind", pruning_rate=0.3, num_rounds=16, iterations=40000, learning_rate=0.0012,
        batch_size=60, device="cuda:1", results_dir="results/mnist_conv",
    ).config  # fmt: skip
    assert (made.arch_type, made.dataset, made.prune_type) == ("lenet5", "mnist", ("lt",))
    assert (made.prune_percent, made.prune_iterations, made.end_iter) == (30, 16, Duration(40000, "it"))
    assert (made.gpu, made.root, made.lr, made.batch_size) == ("1", Path("results/mnist_conv"), 0.0012, 60)
    assert lth.ExperimentRunner("fashion", "LENET_FC").config.dataset == "fashionmnist"
    for given, meant in ((None, "0"), ("cpu", "cpu"), (torch.device("cuda"), "0"), (torch.device("cpu"), "cpu")):
        assert lth.ExperimentRunner(device=given).config.gpu == meant


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"dataset": "tinny"}, ValueError, "dataset must be one of tiny, .*not 'tinny': did you mean tiny?"),
        ({"dataset": 3}, TypeError, "dataset must be a name, not 3"),
        ({"model_name": "mpl"}, ValueError, "model_name must be one of .*mlp.*not 'mpl': did you mean mlp?"),
        ({"pruning_type": "magnitud"}, ValueError, "pruning_type must be one of .*did you mean magnitude?"),
        ({"pruning_scope": "layer"}, ValueError, "pruning_scope must be one of layerwise, global, not 'layer'"),
        ({"reinit_method": None}, TypeError, "reinit_method must be one of rewind, random, none, not None"),
        ({"pruning_rate": 30}, ValueError, "pruning_rate must be a fraction .*not 30: 30 percent is 0.3"),
        ({"pruning_rate": "0.3"}, TypeError, "pruning_rate must be a fraction"),
        ({"num_rounds": 0}, ValueError, "num_rounds must be a whole number of at least 1"),
        ({"iterations": 1.5}, TypeError, "iterations must be a whole number"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be a number above 0, not 0"),
        ({"batch_size": -1}, ValueError, "batch_size must be"),
        ({"device": "cuda:x"}, ValueError, "device must be"),
        ({"results_dir": None}, TypeError, "results_dir must be a path"),
        ({"seed": 0.5}, TypeError, "seed must be"),
        ({"bath_size": 3}, TypeError, "ExperimentRunner has no argument 'bath_size'"),
        ({"momentum": 0.9}, ValueError, "^momentum belongs to optimizer sgd"),
        ({"pruning_method": "l1"}, TypeError, "no argument 'pruning_method'"),
    ],
)
def test_the_runner_names_bad_arguments(
    place: Path, changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        runner(place, **changes)


def test_what_only_the_data_tell_is_said_in_the_runners_words(place: Path) -> None:
    for changes, words in (
        ({"batch_size": 100}, "^batch_size must be at most 80"),
        ({"valid_size": 90}, "^valid_size"),
    ):
        with pytest.raises(ValueError, match=words):
            runner(place, **changes).run()
    assert not (place / "results").exists()


# ------------------------------------------------------------------------------------------------------- tickets


def test_a_ticket_evaluates_to_the_digits_of_rounds_csv(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arch in ("mlp", "drop", "conv"):
        (run,) = do(settings(place, arch_type=arch, end_iter="20it"))
        table = tables.table(run, "rounds")
        for number in range(3):
            ticket = lth.load_ticket(run.saves, round=number)
            for given in (place / "data" / "tiny.npz", data.load("tiny", place / "data")):
                assert float(f"{ticket.evaluate(given):.10g}") == table["test"][number]
            assert ticket.row["ES"] == table["ES"][number] and ticket.remaining == pytest.approx(
                ticket.row["remaining"]
            )
    assert lth.load_ticket(run.dumps).round == 2


def test_a_ticket_is_evaluated_on_pixels_scaled_as_its_run_had_them(place: Path) -> None:
    (run,) = session.run(settings(place, pixels="norm"))
    ticket, tests = lth.load_ticket(run.saves), data.load("tiny", place / "data")
    for given in (place / "data" / "tiny.npz", tests):
        assert float(f"{ticket.evaluate(given):.10g}") == ticket.row["test"]
    with torch.no_grad():  # and not because the scaling makes no difference
        model, x = ticket.apply(models.find("mlp", "tiny", 4)(), weights="trained"), tests.test.flatten(1).float()
        answers = [model(pixels).argmax(1) for pixels in (x / x.norm(dim=1, keepdim=True), x / 255)]
    found, other = (100 * (given == tests.test_labels).float().mean().item() for given in answers)
    assert found == pytest.approx(ticket.row["test"]) != other


def test_a_ticket_of_an_own_net_evaluates_on_the_users_loaders(tmp_path: Path) -> None:
    history = find(seeded(Conv), save=tmp_path, iterations=30)
    ticket = lth.load_ticket(tmp_path, 2)
    other = seeded(Conv, seed=5)
    before = [parameter.detach().clone() for parameter in other.parameters()]
    for given in (batches(60, 2), loader(60, 2), tiny(), tuple(tiny().values()), SimpleNamespace(**tiny())):
        assert float(f"{ticket.evaluate(given, other):.10g}") == history[2]["test"]
    assert all(a.equal(b) for a, b in zip(before, other.parameters(), strict=True))
    with pytest.raises(ValueError, match="model must be given, since Conv is no model under archs/"):
        ticket.evaluate(batches(60, 2))


def test_apply_puts_plain_weights_or_masks_on_a_model(place: Path) -> None:
    (run,) = do(settings(place, arch_type="conv"))
    ticket = lth.load_ticket(run.saves, 2)
    make = models.find("conv", "tiny", 4)
    model = make()
    assert ticket.apply(model) is model and not torch_prune.is_pruned(model)
    state = models.state_of(model)
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
        (Mlp(), ValueError, "model must have the parameters of conv"),
        (models.find("conv", "tiny", 5)(), ValueError, r"layers.5.bias has the shape \(4,\) there, in model \(5,\)"),
    ):
        with pytest.raises(kind, match=words):
            ticket.apply(wrong)  # type: ignore[arg-type]


def test_load_ticket_says_what_there_is(place: Path) -> None:
    runs = do(settings(place, prune_type=("lt", "reinit"), keep_weights="last"))
    for folder, number, kind, words in (
        (place / "nowhere", 0, ValueError, "folder must be .*there is no folder"),
        (place / "data", 0, ValueError, "folder must be a run's folder.*in which there is none"),
        (place, 0, ValueError, "which has several"),
        (3, 0, TypeError, "folder must be a path, not 3"),
        (runs[0].saves, 7, ValueError, "round must be one of 0 to 2, .*not 7"),
        (runs[0].saves, "1", TypeError, "round must be a whole number"),
        (runs[0].saves, -1, ValueError, "round must be a whole number of at least 0"),
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
        ([], TypeError, "data must"),
        ([(torch.zeros(4, 3), torch.zeros(4).long())], ValueError, "data must be such as mlp takes"),
        (place / "no.npz", ValueError, "no readable .npz"),
    ):
        with pytest.raises(kind, match=words):
            ticket.evaluate(given, weights="start")


def test_results_is_a_tidy_table(place: Path) -> None:
    for rate in (0.01, 0.02):
        folder = runner(place, learning_rate=rate).run().config.root
    table = lth.results(folder)
    assert len(table) == 6 and set(table["lr"]) == {"0.01", "0.02"}
    with pytest.raises(TypeError, match="root must be a path, not 3"):
        lth.results(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"root must be the folder .*there is no folder"):
        lth.results(place / "nowhere")


# ---------------------------------------------------------------------------------------------------- python lth


def test_python_lth_runs_from_the_projects_root(tmp_path: Path) -> None:
    save = str(tmp_path / "out")
    flags = ["-i", "6", "-s", save, "--gpu", "cpu", "-p", str(tmp_path)]
    command = [sys.executable, "lth", "lenet", "mnist", "--rounds", "1", "--prune_rate", "0.2", *flags]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").glob("dumps/fc1/mnist/*/lt/seed0/rounds.csv")
    assert pd.read_csv(file)["remaining"].tolist() == [100, 80]
    assert str(tmp_path / "out" / "plots") in done.stdout


@pytest.mark.parametrize("how", [["lth"], ["-m", "lth"]])
def test_python_lth_refuses_mistakes_with_code_2(how: list[str]) -> None:
    command = [sys.executable, *how, "lenat", "mnist", "-pr", "20", "--round", "3"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and not done.stdout
    assert "--round is no flag of this program: did you mean --rounds?" in done.stderr
    assert "--prune_rate must be" in done.stderr and "Traceback" not in done.stderr
    assert "not 'lenat': did you mean lenet?" in done.stderr


def test_python_lth_means_the_settings_of_main_py(tmp_path: Path) -> None:
    assert parse(["lenet", "mnist"]) == Config(
        prune_percent=20, prune_iterations=27, end_iter="50000it", root=Path("experiments")
    )
    text = (
        "VGG fashion --batch_size 64 -o SGD -lr 0.1 -i 300 -r 4 -es 50 -rw 0.1 -pr 0.3 -fc 0.5 -s out -rs 7 "
        f"--prune_global --quiet --gpu -p {tmp_path}"
    )
    assert parse(text.split()) == Config(
        **{"arch_type": "vgg16", "dataset": "fashionmnist", "batch_size": 64, "optimizer": "sgd", "lr": 0.1},
        **{"end_iter": "300it", "prune_iterations": 5, "valid_freq": "50it", "rewind": "30it", "prune_percent": 30},
        **{"fc_percent": 50, "root": "out", "seed": 7, "prune_scope": "global", "quiet": True, "data": tmp_path},
    )
    assert parse(["--random", "--gpu", "lenet", "mnist"]).prune_type == ("reinit",)
    assert parse(["resnet", "cifar10", "-es", "-1"]).arch_type == "resnet20"
    assert parse(["lenet5", "mnist", "--gpu", "cpu"]).gpu == "cpu"
    (tmp_path / "MNIST").mkdir()
    assert parse(["lenet", "mnist", "-p", str(tmp_path)]).data == tmp_path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lenet mnst", "dataset must be one of .*did you mean mnist?"),
        ("lenet", "the following arguments are required: dataset"),
        ("lenet mnist more", "'more' does not belong to any flag"),
        ("lenet mnist -o adan", "--optim must be one of adam, adamw, sgd, not 'adan'"),
        ("lenet mnist -lr 0", "--learn_rate must be a number above 0, not '0'"),
        ("lenet mnist -i 0", "--iter must be a whole number at least 1"),
        ("lenet mnist -r -1", "--rounds must be a whole number at least 0"),
        ("lenet mnist -es 0", "--step must be a whole number of at least 1, or -1"),
        ("lenet mnist -rw 2.5", "--rewind must be a number of iterations"),
        ("lenet mnist -rw 50000", "--rewind must be a number of iterations below 50000"),
        ("lenet mnist -rw x", "--rewind must be a number of iterations.*not 'x'"),
        ("lenet mnist -rw 5 --random", "leave out one"),
        ("lenet mnist -s here --recover there", "leave out --save"),
        ("lenet mnist -pr 1", "--prune_rate must be"),
        ("lenet mnist -fc 20", "--fc_rate must be"),
        ("lenet mnist -rs x", "--seed must be a whole number"),
        ("lenet mnist --recover /no/such", "--recover must be a folder with results"),
        ("lenet mnist --recover .", "--recover must hold results of these settings"),
        ("lenet mnist -i", "-i: expected one argument"),
    ],
)
def test_python_lth_names_mistakes(text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words):
        parse(text.split())
    assert not list(tmp_path.iterdir())


def test_python_lth_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import utils

    concluded: list[Any] = []
    monkeypatch.setattr(utils, "conclude", lambda runs, *rest: concluded.append(runs) or [])
    monkeypatch.chdir(place)
    archs = place / "archs" / "tiny" / "mlp.py"
    (place / "archs" / "mnist").mkdir()
    (place / "archs" / "mnist" / "mlp.py").write_text(archs.read_text().replace("64", "784"))
    flags = ["mlp", "mnist", "-i", "4", "--quiet", "--gpu", "cpu", "--batch_size", "100"]
    assert short_main([*flags, "-r", "1"]) == 0
    assert short_main([*flags, "-r", "2", "--recover", "experiments"]) == 0
    table = lth.results(place / "experiments")
    assert table["round"].tolist() == [0, 1, 2] and len(concluded) == 2
    with pytest.raises(ConfigError, match="--batch_size must be at most 55000"):
        short_main(["mlp", "mnist", "-i", "4", "--quiet", "--gpu", "cpu", "--batch_size", "60000"])


def test_nothing_loads_torch_before_it_is_needed() -> None:
    code = "import sys, lth; dir(lth); from lth import Config; print('torch' in sys.modules, lth.prune.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["False", "lth.pruning"], done.stderr
    for words in (["main.py"], ["lth"], ["-m", "lth"]):
        command = [sys.executable, "-X", "importtime", *words, "--help"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0 and "usage:" in done.stdout and "| torch" not in done.stderr.replace("|   ", "| ")


def test_every_public_name_is_there() -> None:
    assert set(lth.__all__) <= set(dir(lth))
    assert all(getattr(lth, name) is not None for name in lth.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lth.nonsense
