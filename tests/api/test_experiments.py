"""lth.run and lth.plot: main.py's experiments from Python, as a table, a verdict and a figure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_same, results, settings
from matplotlib.figure import Figure
from own import find, seeded, tiny

import lth
from lth.commands import session
from lth.settings.config import PROJECT

TINY: dict[str, Any] = {
    **{"arch_type": "mlp", "dataset": "tiny", "prune_iterations": 3, "prune_percent": 30, "end_iter": "8it"},
    **{"lr": 0.01, "valid_freq": "4it", "valid_size": 40, "batch_size": 10, "gpu": "cpu", "jobs": 1, "quiet": True},
}


def test_an_experiment_gives_its_table_verdict_and_figure_and_the_files_of_main(place: Path) -> None:
    told: list[dict[str, Any]] = []
    asked = TINY | {"data": place / "data", "root": place / "here"}
    made = lth.run(told.append, prune_type=["lt", "reinit"], trials=2, **asked)
    session.run(settings(place, prune_type=["lt", "reinit"], trials=2, root=place / "there"))
    assert_same(results(place / "here"), results(place / "there"))
    rounds = [one for one in told if one["event"] == "round"]
    assert len(made.table) == len(rounds) == 12 and len(told) - 12 == 10 * 2, "the dense rounds of reinit are lt's"
    for one in rounds:
        row = made.table.query("arm == @one['arm'] and seed == @one['seed'] and round == @one['round']").iloc[0]
        assert (row["test"], row["ES"]) == (one["test"], one["ES"])
    assert "Means of 2 trials" in made.verdict and isinstance(made.plot(), Figure)
    page = made._repr_html_()
    assert "<p>Means of 2 trials; ±:" in page and "data:image/png;base64," in page
    lth.run(**asked | {"prune_iterations": 2, "name": "short"})
    both = lth.plot(place / "here")
    assert [len(one.table) for one in both] == [12, 2] and len(both.plot().axes) == 4
    short = lth.plot(place / "here", name="short").verdict.splitlines()
    assert all(f"(short): {sentence}" in both.verdict for sentence in short)


def test_mistakes_name_the_setting_as_it_was_given(place: Path) -> None:
    asked = TINY | {"data": place / "data", "root": place}
    with pytest.raises(ValueError, match=r"^prune_percent must be a number .*\nlr must be a number above 0"):
        lth.run(**asked | {"prune_percent": 100, "lr": 0})
    with pytest.raises(TypeError, match=r"^lth\.run has no argument 'prune_rate': did you mean prune_percent\?"):
        lth.run(prune_rate=0.2)
    with pytest.raises(TypeError, match=r"^callback must be a function of a dict, not 3"):
        lth.run(3, **asked)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^root must be a folder with finished rounds"):
        lth.plot(place)


def test_iterative_pruning_tells_its_callback_the_history(place: Path) -> None:
    told: list[dict[str, Any]] = []
    history = find(seeded(), tiny(), callback=told.append)
    rounds = [one for one in told if one["event"] == "round"]
    assert [one["test"] for one in rounds] == pytest.approx([row["test"] for row in history])
    assert {one["round"] for one in told if one["event"] == "evaluation"} == {one["round"] for one in rounds}


@pytest.mark.slow
def test_a_script_without_a_guard_trains_in_processes(place: Path) -> None:
    flags = TINY | {"data": str(place / "data"), "root": str(place), "trials": 2, "jobs": 2}
    (place / "script.py").write_text(f"import lth\n\nprint(len(lth.run(**{flags!r}).table))\n")
    environment = {"PYTHONPATH": str(PROJECT), "PATH": "", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "script.py"], cwd=place, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (ended.stdout.strip(), ended.returncode) == ("6", 0), ended.stderr
