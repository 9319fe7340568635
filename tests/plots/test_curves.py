"""Test accuracy during training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MakeRuns
from drawn import caption_of, lines_in
from matplotlib.figure import Figure

from lth.analysis import labels
from lth.plots.comparison import thinned, training
from lth.records import tables

Sheets = dict[str, Figure]


def test_training_has_a_panel_an_arm_and_a_line_a_sparsity(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    runs = make_runs(arms=("reinit", "lt", "ticket_reinit", "random"), rounds=12, seeds=(0, 1), saves=False)
    training(runs, tmp_path)
    panels = sheets["training"].axes
    assert [axes.get_title() for axes in panels] == ["lt", "reinit", "random", "ticket_reinit"]
    assert {axes.get_xlabel() for axes in panels} == {"iteration"}
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1
    found = lines_in(sheets["training"].axes[0])
    chosen = labels.spread(range(12), 6)
    rounds = tables.table(runs[2], "rounds")
    assert runs[2].arm == "lt"
    assert list(found) == [f"{labels.percent(rounds['remaining'][number])}%" for number in chosen]
    evals = [tables.table(run, "evals") for run in runs if run.arm == "lt"]
    last = [table[table["round"] == 11] for table in evals]
    iterations, means = list(found.values())[-1]
    assert iterations.tolist() == last[0]["iteration"].tolist()
    np.testing.assert_allclose(means, np.mean([table["test"] for table in last], axis=0))


def test_long_training_curves_are_means_over_windows(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    runs = make_runs(arms=["lt"], seeds=[0], rounds=1, evaluations=250, saves=False)
    training(runs, tmp_path)
    evals = tables.table(runs[0], "evals")
    (x, y) = lines_in(sheets["training"].axes[0])["100%"]
    assert len(x) == 83  # of three evaluations each; one that is left over at the end would be a hook
    assert (x[0], y[0]) == pytest.approx((evals["iteration"][:3].mean(), evals["test"][:3].mean()))
    assert (x[-1], y[-1]) == pytest.approx((evals["iteration"][246:249].mean(), evals["test"][246:249].mean()))
    assert "each point that of 3 evaluations" in caption_of(sheets["training"])


def test_a_last_evaluation_that_comes_early_is_no_hook() -> None:
    assert [*thinned(pd.Series([1.0, 2, 3, 4], index=[300, 600, 900, 980]), 1)] == [1, 2, 3]
    assert [*thinned(pd.Series([1.0, 2, 3], index=[300, 600, 900]), 1)] == [1, 2, 3]
