"""The error between two trainings of a ticket, as a figure: barriers by sparsity, a line an arm or a rewind point."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import MakeRuns
from drawn import lines_in, panels
from matplotlib.figure import Figure

from lth.plots.barriers import FROM_BEFORE, LIMIT, connectivity
from lth.records import journal
from lth.records.tables import Run

Sheets = dict[str, Figure]


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


def test_a_line_an_arm_the_limit_and_the_errors_on_the_way(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    runs = make_runs(rounds=3, seeds=(0, 1), saves=False)
    assert connectivity(runs, tmp_path) == []  # nothing measured
    for run in runs:
        measured(run, test=run.seed + 3 * (run.arm == "reinit"))
    assert connectivity(runs, tmp_path) == [tmp_path / "connectivity.png"]
    test, train, along = panels(sheets["connectivity"])
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
