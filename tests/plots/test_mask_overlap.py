"""The overlap of masks as a figure: the matrix of the last round that all have, lines of trials and of arms."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import MakeRuns
from drawn import lines_in, panels
from matplotlib.figure import Figure

import combine_plots
import utils
from lth.analysis import overlap
from lth.plots.mask_overlap import masks


def test_a_matrix_of_all_pairs_and_lines_beside_random_masks(
    tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]
) -> None:
    runs = make_runs(arms=("lt", "reinit"), seeds=(0, 1), rounds={"lt": 4, "reinit": 3})
    assert masks(runs, tmp_path) == []  # not asked for
    overlap.write(runs, runs[0].plots)
    assert masks(runs, tmp_path) == [tmp_path / "masks.png"]
    table = pd.read_csv(runs[0].plots / "masks.csv").query("layer == 'all'")
    matrix, (lines,) = sheets["masks"].axes[0], panels(sheets["masks"])
    assert [tick.get_text() for tick in matrix.get_yticklabels()] == ["lt 0", "lt 1", "reinit 0", "reinit 1"]
    last = table.query("round == 2").set_index(["arm_a", "seed_a", "arm_b", "seed_b"])["jaccard"]
    shown = matrix.collections[0].get_array().reshape(4, 4)
    assert shown[0, 3] == shown[3, 0] == pytest.approx(last["lt", 0, "reinit", 1])
    assert "63.8% of the weights" in matrix.get_title()
    found = lines_in(lines)
    assert list(found) == ["trials of lt", "trials of reinit", "lt and reinit"]
    own = table.query("arm_a == 'lt' and arm_b == 'lt'")
    assert found["trials of lt"][1] == pytest.approx(own["jaccard"] / own["jaccard_chance"])
    both = table.query("arm_a != arm_b and seed_a == seed_b").assign(ratio=lambda it: it.jaccard / it.jaccard_chance)
    assert found["lt and reinit"][1] == pytest.approx(both.groupby("round")["ratio"].mean())


def test_masks_are_compared_when_asked_and_again_where_they_were(
    tmp_path: Path, make_runs: MakeRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, argv = make_runs(rounds=2, seeds=(0, 1)), ["--root", str(tmp_path), "--quiet"]
    assert utils.exit_code(combine_plots.main, argv) == 0
    assert "masks.csv" not in capsys.readouterr().out
    assert utils.exit_code(combine_plots.main, [*argv, "--masks"]) == 0
    assert {"masks.csv", "masks.png", "report.html"} <= set(re.findall(r"^  (\S+)$", capsys.readouterr().out, re.M))
    assert "Overlap of masks" in (runs[0].plots / "report.html").read_text()
    make_runs(rounds=3, seeds=(0, 1))
    assert utils.exit_code(combine_plots.main, argv) == 0
    assert pd.read_csv(runs[0].plots / "masks.csv")["round"].max() == 2
    assert utils.exit_code(combine_plots.main, [*argv, "--masks"]) == 0
    assert "up to date" in capsys.readouterr().out
