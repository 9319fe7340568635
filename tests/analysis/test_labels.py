"""Results in words."""

from pathlib import Path

import pytest
from conftest import MakeRuns

from lth.analysis import labels
from lth.records import files
from lth.records.tables import Run
from lth.settings.config import Config

CHANGED = {
    **{"conv_percent": "5.0", "fc_percent": "7.0", "output_percent": "10.0", "target_remaining": "3.6"},
    **{"prune_scope": "global", "prune_method": "magnitude_increase", "rewind": "500it", "draw_at": "1"},
    **{"init": "kaiming", "optimizer": "sgd", "lr": "0.1", "momentum": "0.9", "nesterov": "True"},
    **{"weight_decay": "0.0005", "batch_size": "64", "end_iter": "20", "lr_milestones": "50%+75%", "lr_gamma": "0.2"},
    **{"warmup": "1", "valid_freq": "100it", "valid_size": "1000", "pixels": "unit", "augment": "True"},
    **{"precision": "bf16", "ticket": "lt/seed0:2"},
}


def run_with(root: Path, name: str, arm: str = "lt", **deciding: str) -> Run:
    """A run that has recorded its settings."""
    run = Run(root, "fc1", "mnist", name, arm, 0)
    files.write_json(run.dumps / "config.json", {"deciding": {**Config().deciding(), **deciding}})
    return run


@pytest.mark.parametrize("name", sorted({*CHANGED, *Config().deciding()} - {"prune_percent", "prune_iterations"}))
def test_every_setting_has_words(tmp_path: Path, name: str) -> None:
    value = CHANGED.get(name, "something_else")  # a setting that is new here
    text = labels.settings(run_with(tmp_path, "a=b", **{name: value}))
    usual = labels.settings(run_with(tmp_path, "c=d"))
    assert text != usual
    assert "_" not in text and "True" not in text and "None" not in text


def test_settings_are_listed_with_what_is_pruned_and_how_long(tmp_path: Path) -> None:
    elsewhere = Run(Path("nowhere"), "fc1", "mnist", "end_iter=5,prune_percent=20", "lt", 0)
    assert labels.settings(elsewhere) == "end iter=5, prune percent=20"
    assert labels.settings(run_with(tmp_path, "mine")) == "mine: 10% pruned per round, 100 epochs per round"


def test_settings_are_those_of_the_arms_that_look_at_them(tmp_path: Path) -> None:
    """Under one name arms may differ in what one of them does not look at: SNIP prunes by its own scores."""
    snip = run_with(tmp_path, "mine", "snip", prune_method="large_init", score_batches="3")
    lt = run_with(tmp_path, "mine")
    for runs in ([snip, lt], [lt, snip]):
        assert labels.settings(*runs).endswith("per round, score batches 3")
        shared, own = labels.differing([runs, [run_with(tmp_path, "theirs", prune_method="large_init")]])
        assert "large" not in shared and own[lt.plots].startswith("mine: the smallest weights pruned")
    assert labels.settings(run_with(tmp_path, "lone", prune_method="large_init")).endswith("pruned by large init")


def test_what_differs_is_told_apart_from_what_is_shared(tmp_path: Path) -> None:
    first = run_with(tmp_path, "a=1", end_iter="5", lr="0.1", prune_scope="global")
    second = run_with(tmp_path, "a=2", end_iter="5", lr="0.1")
    shared, own = labels.differing([[first], [second]])
    assert shared == "10% pruned per round, 5 epochs per round, learning rate 0.1"
    assert own == {first.plots: "compared over all layers", second.plots: "compared within layers"}
    third = run_with(tmp_path, "a=3", pixels="unit")
    assert list(labels.differing([[third], [run_with(tmp_path, "a=4")]])[1].values()) == [
        *("pixels from 0 to 1", "pixels standardised")
    ]
    named = [run_with(tmp_path, "one", end_iter="5"), run_with(tmp_path, "two", end_iter="5")]
    assert list(labels.differing([[run] for run in named])[1].values()) == ["one", "two"]
    assert labels.differing([[third]])[1] == {third.plots: ""}


def test_verdicts_are_told_apart_by_model_data_and_settings(make_runs: MakeRuns) -> None:
    def run(**what: str) -> Run:
        return make_runs(arms=["lt"], seeds=[0], rounds=1, saves=False, **what)[0]

    runs = [[run(settings="lr=0.1")], [run(settings="lr=0.2")], [run(arch_type="lenet5")]]
    assert [settings for _, settings in labels.names_and_settings(runs)][:2] == [
        "10% pruned per round, 100 epochs per round"
    ] * 2
    assert labels.distinct_names(runs) == [
        *("fc1 on MNIST (learning rate 0.1)", "fc1 on MNIST (learning rate 0.2)", "lenet5 on MNIST")
    ]
    same = [[run(settings="default")], [run(settings="mine")]]
    assert labels.distinct_names(same) == ["fc1 on MNIST (default)", "fc1 on MNIST (mine)"]
