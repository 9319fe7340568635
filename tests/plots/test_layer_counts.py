"""Surviving weights by layer."""

from __future__ import annotations

from pathlib import Path

from conftest import MakeRuns
from helpers import write_table
from matplotlib.figure import Figure

from lth.analysis import labels
from lth.plots.layer_counts import layers
from lth.records import tables

Sheets = dict[str, Figure]
DEEP = {f"block{i}.conv.weight": (4, 2, 3, 3) for i in range(19)} | {"fc.weight": (10, 8)}


def test_layers_pruned_at_one_rate_are_left_out(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    assert layers(make_runs(rounds=12), tmp_path) == []  # 768 and 48 weights: they differ by rounding only
    assert layers(make_runs(tmp_path / "dense", rounds=1, scope="global"), tmp_path) == []
    assert not sheets


def test_a_row_per_layer_and_arms_that_agree_share_a_panel(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    runs = make_runs(rounds=5, arms=("lt", "reinit"), scope="global")
    assert layers(runs, tmp_path) == [tmp_path / "layers.png"]
    axes = sheets["layers"].axes[0]
    assert axes.get_title() == "lt, reinit"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fc1 (768)", "fc2 (48)"]
    kept = tables.lines(runs, "layers").groupby(["layer", "round"])["remaining"].mean()
    assert [text.get_text() for text in axes.texts] == [labels.percent(value) for value in kept]


def test_many_layers_and_arms_that_differ_have_panels_of_their_own(
    tmp_path: Path, make_runs: MakeRuns, sheets: Sheets
) -> None:
    runs = make_runs(arms=["lt", "random"], seeds=[0], rounds=7, shapes=DEEP, scope="global")
    table = tables.table(runs[1], "layers")
    table.loc[table["round"] > 0, "remaining"] *= 0.8
    write_table(runs[1], "layers", table)
    layers(runs, tmp_path)
    first, second, _ = sheets["layers"].axes
    assert (first.get_title(), second.get_title()) == ("lt", "random")
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names[0] == "block0.conv (72)" and names[-1] == "fc (80)" and len(names) == 20
