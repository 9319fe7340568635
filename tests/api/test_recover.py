"""Going on with what an earlier call of iterative_pruning left, and never mixing results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from helpers import Conv, Mlp
from own import WithOptim, batches, find, seeded, tiny
from torch import nn

import lth
from lth import prune as lth_prune
from lth.records import identity
from lth.records.files import read_json

CALLS: list[int] = []  # of a rule or a loss, whose own values would make it another one


def test_recover_goes_on_as_if_there_had_been_no_stop(tmp_path: Path) -> None:
    whole = find(seeded(), rounds=4)
    find(seeded(), rounds=2, save=tmp_path)
    net = seeded(seed=9)  # another process draws other weights: those of the first call count
    assert find(net, rounds=4, recover=tmp_path) == whole
    assert find(seeded(), rounds=1, recover=tmp_path) == whole[:2]
    run_folder = next(tmp_path.glob("saves/*/*/*/*/seed0"))
    assert find(seeded(), rounds=4, recover=run_folder) == whole


def test_recover_after_a_crash_within_a_round(tmp_path: Path) -> None:
    CALLS.clear()

    def breaks(net: nn.Module) -> None:
        CALLS.append(1)
        if len(CALLS) == 2:
            raise KeyboardInterrupt
        lth_prune.magnitude(0.3)(net)

    with pytest.raises(KeyboardInterrupt):
        find(seeded(WithOptim), prune_rule=breaks, rounds=3, save=tmp_path)
    resumed = find(seeded(WithOptim), prune_rule=breaks, rounds=3, recover=tmp_path)
    assert resumed == find(seeded(WithOptim), rounds=3)


def test_results_are_never_mixed(tmp_path: Path) -> None:
    find(seeded(), save=tmp_path)
    with pytest.raises(ValueError, match=r"save must be a folder without results.*recover=.*continues"):
        find(seeded(), save=tmp_path)
    other_folder = r"recover must hold results of these settings and this seed, in .*, not only\n  .*seed0$"
    for changes in ({"iterations": 13}, {"seed": 1}, {"random": True}):
        with pytest.raises(ValueError, match=other_folder):
            find(seeded(), recover=tmp_path, **changes)
    with pytest.raises(ValueError, match=other_folder):
        find(seeded(Conv), recover=tmp_path)
    with pytest.raises(ValueError, match=r"holds results of a different model"):
        find(seeded(lambda: Mlp(13)), recover=tmp_path)
    # The same settings and seed, another arm: the dense round of another net must not be taken over.
    other = find(seeded(seed=3), random=True, save=tmp_path)
    assert other[0] == find(seeded(seed=3), random=True)[0]
    assert lth.results(tmp_path).groupby("arm").size().to_dict() == {"lt": 3, "reinit": 3}


def test_another_name_is_not_gone_on_with_by_beginning_anew(tmp_path: Path) -> None:
    find(seeded(), save=tmp_path, name="mine", rounds=1)
    for changes in ({}, {"name": "other"}, {"seed": 1}):
        with pytest.raises(ValueError, match=r"in .*, not only\n  .*mine/lt/seed0$"):
            find(seeded(seed=9), recover=tmp_path, rounds=2, **changes)
    assert find(seeded(seed=9), recover=tmp_path, rounds=2, name="mine") == find(seeded(), rounds=2)


def test_other_settings_of_the_same_name_are_refused_also_with_another_seed_or_arm(tmp_path: Path) -> None:
    find(seeded(), save=tmp_path, name="mine", rounds=1)
    for changes in ({"seed": 1}, {"random": True}):
        with pytest.raises(ValueError, match=r"save must be .*seed0, beside these runs, .*\(lr 0\.0012, now 0\.1\)$"):
            find(seeded(), save=tmp_path, name="mine", rounds=1, lr=0.1, **changes)
        find(seeded(), save=tmp_path, name="mine", rounds=2, **changes)
    assert len(lth.results(tmp_path)) == 8


def adam(sign: int) -> Callable[..., torch.optim.Optimizer]:
    """Optimisers that print alike."""

    class Adam(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["lr"] = abs(group["lr"]) * sign
            return super().step(closure)

    return Adam


def pruned(amount: float) -> Callable[[nn.Module], None]:
    def rule(net: nn.Module) -> None:
        for layer, name in lth_prune.fetch_layers(net):
            torch_prune.l1_unstructured(layer, name=name, amount=amount)

    return rule


def test_recover_goes_on_with_the_same_network_rule_optimiser_loss_and_data_only(tmp_path: Path) -> None:
    def go_on(act: Any = torch.tanh, sign: int = 1, amount: float = 0.3, smooth: float = 0.0, **more: Any) -> Any:
        net = seeded(lambda: Mlp(act=act))
        net.optim = adam(sign)(net.parameters(), lr=0.01)
        net.criterion = nn.CrossEntropyLoss(label_smoothing=smooth)
        return find(net, more.pop("given", None), prune_rule=pruned(amount), **more)

    whole = go_on(rounds=2, save=tmp_path)
    data = {**tiny(), "train": batches(seed=5)}
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"amount": 0.4}, "a different pruning rule"),
        ({"act": torch.relu}, "a different model"),
        ({"act": lambda x: x.tanh()}, "a different model"),
        ({"sign": -1}, "a different optimiser"),
        ({"given": data}, "different data"),
        (
            {"amount": 0.4, "act": torch.relu, "given": data},
            "a different model, different data and a different pruning rule",
        ),
    )
    for change, words in changes:
        with pytest.raises(ValueError, match=f"recover must hold .* the same experiment, but .* results of {words}$"):
            go_on(**change, recover=tmp_path, rounds=3)
        with pytest.raises(ValueError, match=f"save must be a folder without .* another experiment.* of {words}$"):
            go_on(**change, save=tmp_path, random=True)
    with pytest.raises(ValueError, match=r"holds results of a different loss"):
        go_on(smooth=0.1, recover=tmp_path, rounds=3)
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    (config,) = tmp_path.glob("dumps/**/config.json")
    prints = set(read_json(config)["fingerprint"])
    assert prints == {"model", "data", "rule", "optimizer", "loss"} and prints <= set(identity.PHRASES)
    assert go_on(recover=tmp_path, rounds=3)[:3] == whole
