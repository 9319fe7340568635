"""Going on with what an earlier call of iterative_pruning left, and never mixing results."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import Conv, Mlp
from own import (
    WithOptim,
    altered,
    batches,
    find,
    seeded,
    tiny,
)
from torch import Tensor, nn

import lth
from lth import pruning as lth_prune


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
        find(altered(criterion=breaks), save=tmp_path / "b")
    assert find(seeded(seed=4), save=tmp_path / "b") == find(seeded(seed=4))


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
