"""The error between two trainings of a ticket, and the overlap of masks, as figures."""

import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import MakeRuns
from drawn import lines_in, panels
from helpers import Capture

import combine_plots
import utils
from lth.analysis import overlap
from lth.plots.pairs import FROM_BEFORE, LIMIT, connectivity, masks
from lth.records import journal
from lth.records.tables import Run


def measured(run: Run, test: float) -> None:
    """Lines of three rounds of a run: errors of 4 and 6 percent at the ends, 7 and `test` more in the middle."""
    for number in range(3):
        errors = [4.0, 7.0 + test + number, 6.0]
        rows = [
            {"point": point, "train_error": error / 2, "test_error": error}
            for point, error in zip((0.0, 0.5, 1.0), errors, strict=True)
        ]
        rows += [{**row, "test_error": row["test_error"] * 2, "line": "rounds"} for row in rows if number]
        journal.write_connectivity(run, number, rows)


def test_a_line_per_arm_the_limit_and_the_errors_on_the_way(make_runs: MakeRuns) -> None:
    runs = make_runs(rounds=3, seeds=(0, 1), saves=False)
    assert connectivity(runs) is None, "nothing measured"
    for run in runs:
        measured(run, test=run.seed + 3 * (run.arm == "reinit"))
    test, train, along = panels(connectivity(runs))
    found = lines_in(test)
    before = {f"{arm}, {FROM_BEFORE}" for arm in ("lt", "reinit")}
    assert set(found) == {"lt", "reinit", LIMIT} | before and set(found[LIMIT][1]) == {2.0}
    assert found["lt"][0] == pytest.approx([100, 80, 64], rel=0.02)
    assert found["lt"][1] == pytest.approx([2.5, 3.5, 4.5]) and found["reinit"][1] == pytest.approx([5.5, 6.5, 7.5])
    assert found[f"lt, {FROM_BEFORE}"][1] == pytest.approx([7, 9]), "twice those of rounds 1 and 2"
    assert lines_in(train)["lt"][1] == pytest.approx([1.25, 1.75, 2.25])
    way = lines_in(along)
    assert list(way) == ["100%", "80%", "64%"] and way["80%"][1] == pytest.approx([4, 8.5, 6])
    assert [text.get_text() for text in along.get_legend().get_texts()] == list(way)


def test_a_matrix_of_all_pairs_and_lines_beside_random_masks(make_runs: MakeRuns) -> None:
    runs = make_runs(arms=("lt", "reinit"), seeds=(0, 1), rounds={"lt": 4, "reinit": 3})
    assert masks(runs) is None, "not asked for"
    overlap.write(runs, runs[0].plots)
    figure = masks(runs)
    table = pd.read_csv(runs[0].plots / "masks.csv").query("layer == 'all'")
    matrix, (lines,) = figure.axes[0], panels(figure)
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


def test_masks_are_compared_on_request_and_again_later(tmp_path: Path, make_runs: MakeRuns, capsys: Capture) -> None:
    runs, argv = make_runs(rounds=2, seeds=(0, 1)), ["--root", str(tmp_path), "--quiet"]
    assert utils.exit_code(combine_plots.main, [*argv, "--masks"]) == 0
    assert {"masks.csv", "masks.png", "report.html"} <= set(re.findall(r"^  (\S+)$", capsys.readouterr().out, re.M))
    assert "Overlap of masks" in (runs[0].plots / "report.html").read_text()
    make_runs(rounds=3, seeds=(0, 1))
    assert utils.exit_code(combine_plots.main, argv) == 0
    assert pd.read_csv(runs[0].plots / "masks.csv")["round"].max() == 2
