"""Surviving weights by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import MakeRuns
from drawn import legends_of, lines_in
from helpers import write_table
from matplotlib.figure import Figure

from lth.plots.layer_counts import layers
from lth.records import tables

Sheets = dict[str, Figure]
DEEP = {f"block{i}.conv.weight": (4, 2, 3, 3) for i in range(19)} | {"fc.weight": (10, 8)}
SOME = {"conv.weight": (40, 20), "fc1.weight": (40, 20), "fc2.weight": (30, 20)}


def test_layers_pruned_at_one_rate_are_left_out(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    assert layers(make_runs(rounds=12), tmp_path) == []  # 768 and 48 weights: they differ by rounding only
    assert layers(make_runs(tmp_path / "dense", rounds=1, scope="global"), tmp_path) == []
    assert not sheets


def test_few_layers_are_lines_and_arms_that_agree_share_a_panel(
    tmp_path: Path, make_runs: MakeRuns, sheets: Sheets
) -> None:
    shapes = {"_fc1.weight": (12, 64), "fc2.weight": (4, 12)}  # matplotlib leaves out names with an underscore
    runs = make_runs(rounds=5, arms=("lt", "reinit"), scope="global", shapes=shapes)
    assert layers(runs, tmp_path) == [tmp_path / "layers.png"]
    (axes,) = sheets["layers"].axes
    assert axes.get_title() == "lt, reinit"
    found = lines_in(axes)
    assert list(found) == [" _fc1 (768)", "fc2 (48)"]
    found_layers = [tables.table(run, "layers") for run in runs]
    kept = [table[table["layer"] == "_fc1.weight"]["remaining"] for table in found_layers]
    np.testing.assert_allclose(found[" _fc1 (768)"][1], np.mean(kept, axis=0))
    assert axes.get_yscale() == "log"


def test_a_line_means_the_same_layers_in_every_panel(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    runs = make_runs(arms=["lt", "reinit", "finetune", "random"], seeds=[0], rounds=4, shapes=SOME)
    for index, run in enumerate(runs):  # `conv` and `fc1` agree in some arms only
        table = tables.table(run, "layers")
        table.loc[table["layer"] == "fc2.weight", "remaining"] *= 0.5 + 0.01 * index
        if index == 1:
            table.loc[(table["layer"] == "fc1.weight") & (table["round"] > 0), "remaining"] *= 0.8
        write_table(run, "layers", table)
    layers(runs, tmp_path)
    panels = sheets["layers"].axes
    assert [axes.get_title() for axes in panels] == ["lt", "reinit", "finetune", "random"]
    names = ["conv (800)", "fc1 (800)", "fc2 (600)"]
    assert all(list(lines_in(axes)) == names for axes in panels)
    for name in names:
        looks = {
            (line.get_color(), line.get_marker()) for axes in panels for line in axes.lines if line.get_label() == name
        }
        assert len(looks) == 1
    assert legends_of(sheets["layers"]) == names


def test_many_layers_are_a_map(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    layers(make_runs(arms=["lt"], seeds=[0], rounds=7, shapes=DEEP, scope="global"), tmp_path)
    axes = sheets["layers"].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "block0.conv (72)"
    assert names[-1] == "fc (80)"
    assert len(names) == 20
    assert len(axes.texts) == 20 * 7
    steps = np.diff([float(tick) for tick in axes.get_xticks()])
    assert len(set(steps)) == 1
