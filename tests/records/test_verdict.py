"""The verdict: intervals, the paper's definition of a winning ticket, the sentence and the table as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MakeRuns
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lth.records import tables, verdict
from lth.records.tables import Run
from lth.settings.arms import ARMS


def lines(
    accuracy: Mapping[str, Sequence[float]], ES: Mapping[str, Sequence[float]] | None = None, trials: int = 3
) -> pd.DataFrame:
    """A table as verdict.table gives it, made of each arm's mean test accuracy and ES ratio a round, round 0 first."""
    rows = []
    for number in range(max(map(len, accuracy.values()))):
        for arm, values in accuracy.items():
            if number < len(values):
                ratio = (ES or {}).get(arm, [1.0] * len(values))[number]
                difference = round(values[number] - values[0], 9)
                half = 0.25 if trials > 1 else math.nan
                rows.append(
                    {
                        **{"round": number, "remaining": 100 * 0.8**number, "arm": arm, "trials": trials},
                        **{"test": values[number], "difference": difference},
                        **{"low": difference - half, "high": difference + half},
                        **{"ES": 1000 * ratio, "ES_ratio": ratio, "ES_dense": 1000.0},
                        "winning": number >= 1 and difference >= 0 and ratio <= 1,
                    }
                )
    return pd.DataFrame(rows, columns=list(verdict.COLUMNS))


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=12))
def test_interval_is_that_of_scipy(pairs: list[tuple[float, float]]) -> None:
    test, dense = np.array(pairs).T
    low, high = verdict.interval(test - dense)
    if np.ptp(test - dense) < 1e-6:  # scipy warns of lost precision and gives no interval where all are the same
        assert low == pytest.approx(high, abs=1e-4)
        return
    expected = stats.ttest_rel(test, dense).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("values", [[], [0.3]])
def test_there_is_no_interval_of_fewer_than_two(values: list[float]) -> None:
    assert all(math.isnan(bound) for bound in verdict.interval(values))


def test_table_pairs_each_trial_with_its_own_dense_round(make_runs: MakeRuns) -> None:
    accuracies = {0: [97.0, 97.4, 97.1], 1: [98.0, 98.1, 97.7], 2: [96.0, 96.7, 95.0]}
    runs = make_runs(arms=["lt"], rounds=3, accuracy=lambda arm, number, seed: accuracies[seed][number], saves=False)
    found = verdict.table(runs)
    assert list(found) == list(verdict.COLUMNS)
    assert found["round"].tolist() == [0, 1, 2]
    for number, line in found.iterrows():
        values = np.array([accuracies[seed][number] for seed in accuracies])
        dense = np.array([accuracies[seed][0] for seed in accuracies])
        stops = [tables.table(run, "rounds")["ES"] for run in runs]
        assert line["trials"] == 3
        assert line["test"] == pytest.approx(values.mean())
        assert line["difference"] == pytest.approx((values - dense).mean())
        assert line["ES"] == pytest.approx(np.mean([stop[number] for stop in stops]))
        assert line["ES_ratio"] == pytest.approx(sum(stop[number] for stop in stops) / sum(stop[0] for stop in stops))
        if number:
            expected = stats.ttest_rel(values, dense).confidence_interval(0.95)
            assert (line["low"], line["high"]) == pytest.approx((expected.low, expected.high))


def test_only_trials_that_have_the_round_count(make_runs: MakeRuns) -> None:
    accuracy = lambda arm, number, seed: 90.0 + 2 * seed + number  # noqa: E731
    runs = make_runs(arms=["lt"], seeds=[0, 1], rounds=3, accuracy=accuracy, saves=False)
    runs += make_runs(arms=["lt"], seeds=[2], rounds=2, accuracy=accuracy, saves=False)
    runs += make_runs(arms=["reinit"], seeds=[2], rounds=2, accuracy=accuracy, saves=False)
    runs.append(Run(runs[0].root, "fc1", "mnist", runs[0].settings, "random", 0))  # not begun
    found = verdict.table(runs).set_index(["round", "arm"])
    assert found["trials"].to_dict() == {(0, "lt"): 3, (0, "reinit"): 1, (1, "lt"): 3, (1, "reinit"): 1, (2, "lt"): 2}
    assert found.loc[(2, "lt"), "test"] == 93.0  # of seeds 0 and 1
    assert found.loc[(2, "lt"), "difference"] == 2.0  # and their own dense rounds, not all three
    assert math.isnan(found.loc[(1, "reinit"), "low"])


def test_different_settings_are_never_mixed(make_runs: MakeRuns) -> None:
    runs = [make_runs(arms=["lt"], seeds=[0], rounds=1, settings=name, saves=False)[0] for name in ("a", "b")]
    with pytest.raises(ValueError, match="one model, data set and settings"):
        verdict.table(runs)


@pytest.mark.parametrize(
    ("test", "ES", "winning"),
    [
        ([97.0, 97.0], [900, 900], True),  # no lower and no later: equal is enough
        ([97.0, 97.5], [900, 800], True),
        ([97.0, 96.99], [900, 100], False),
        ([97.0, 99.0], [900, 901], False),
    ],
)
def test_winning_is_the_definition_of_the_paper(
    monkeypatch: pytest.MonkeyPatch, test: list[float], ES: list[int], winning: bool
) -> None:
    rounds = pd.DataFrame({"round": [0, 1], "remaining": [100.0, 80.0], "test": test, "ES": ES})
    monkeypatch.setattr(tables, "table", lambda run, name: rounds)
    found = verdict.table([Run(Path(), "fc1", "mnist", "default", "lt", 0)])
    assert found["winning"].tolist() == [False, winning]  # the dense network is no ticket


def test_winning_looks_at_means_over_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    # In floating point, the mean of these differences is a little below zero.
    dense, after = [0.1, 0.2, 0.3], [0.3, 0.1, 0.2]
    stops = [[1000, 2000, 300], [1500, 1700, 100]]

    def table(run: Run, name: str) -> pd.DataFrame:
        test = [dense[run.seed], after[run.seed]]
        return pd.DataFrame(
            {"round": [0, 1], "remaining": [100.0, 80.0], "test": test, "ES": [stop[run.seed] for stop in stops]}
        )

    monkeypatch.setattr(tables, "table", table)
    found = verdict.table([Run(Path(), "fc1", "mnist", "default", "lt", seed) for seed in range(3)])
    assert found["difference"].tolist() == [0, 0]
    assert found["ES_ratio"][1] == 1.0  # though ES is later in one trial
    assert found["winning"].tolist() == [False, True]


def test_written_and_read_again(tmp_path: Path, make_runs: MakeRuns) -> None:
    found = verdict.table(make_runs(rounds=3, saves=False))
    file = verdict.write(found, tmp_path / "plots")
    assert file == tmp_path / "plots" / "verdict.csv"
    pd.testing.assert_frame_equal(pd.read_csv(file), found, check_dtype=False, rtol=1e-8)


def test_sentence_names_the_sparsest_winner_and_where_the_others_fall() -> None:
    found = lines(
        {
            "lt": [98.0, 98.1, 98.2, 98.0, 97.9],
            "reinit": [98.0, 97.9, 98.1, 97.8, 97.0],  # dips, recovers, falls from the third pruning on
            "ticket_reinit": [98.0, 97.9, 97.8, 97.0, 96.0],
            "random_reinit": [98.0, 98.1, 98.1, 98.1, 97.9],
            "random": [98.0, 90.0, 90.0, 90.0, 90.0],  # keeps its initial weights: not among the reinitialised
        }
    )
    assert verdict.sentence(found) == (
        "The sparsest winning ticket keeps 51.2% of the weights (98.00% test accuracy, +0.00 ± 0.25 points from the "
        "dense network's, early stop at 1.00 of its iteration); "
        "reinit is below the dense accuracy from 51.2% on; "
        "random_reinit is below the dense accuracy from 41%, the sparsest tried; "
        "ticket_reinit is below the dense accuracy from the first pruning on; "
        "means of 3 trials."
    )


def test_sentence_where_the_sparsest_tried_wins_and_nothing_falls() -> None:
    found = verdict.sentence(lines({"lt": [98.0, 98.1, 98.2], "reinit": [98.0, 97.9, 98.0]}, trials=1))
    assert "keeps 64% of the weights, the sparsest tried" in found
    assert "reinit has not fallen below the dense accuracy for good by 64%" in found
    assert "no interval" in found
    assert "±" not in found
    assert "nan" not in found


def test_sentence_without_a_winner() -> None:
    later = {"lt": [1.0, 1.1, 1.2]}
    found = verdict.sentence(lines({"lt": [98.0, 98.3, 97.9]}, later))
    assert found.startswith("No ticket of lt down to 64% of the weights is a winning one (")
    assert "+0.30 points" in found
    assert "80%" in found


def test_sentence_of_other_arms_only() -> None:
    found = verdict.sentence(lines({"reinit": [98.0, 97.0]}))
    assert found.startswith("Without pruned rounds of lt there is no ticket to judge; reinit is below")
    assert verdict.sentence(lines({"finetune": [98.0, 98.0]})) == (
        "Without pruned rounds of lt there is no ticket to judge; means of 3 trials."
    )
    partial = verdict.sentence(lines({"lt": [98.0], "ticket_reinit": [98.0, 97.0]}))
    assert partial.startswith("Without pruned rounds of lt")


def test_sentence_of_the_dense_network_only() -> None:
    found = verdict.sentence(lines({"lt": [98.0], "reinit": [98.0]}, trials=1))
    assert found.startswith("Only the dense network has been trained so far: 98.00% test accuracy at iteration 1,000")
    assert "no interval" in found
    assert verdict.sentence(lines({"lt": [98.0]}, trials=2)).endswith("means of 2 trials.")


def test_sentence_before_the_first_round(tmp_path: Path) -> None:
    nothing = verdict.table([Run(tmp_path, "fc1", "mnist", "default", "lt", 0)])
    assert list(nothing) == list(verdict.COLUMNS)
    assert verdict.sentence(nothing) == "No round is finished yet."
    assert verdict.render(nothing, 80) == ""


def test_sentence_says_when_trials_differ() -> None:
    found = lines({"lt": [98.0, 98.1]})
    found.loc[1, "trials"] = 2
    assert verdict.sentence(found).endswith("means of 2 to 3 trials.")


NUMBER = re.compile(r"[+-]?\d+\.\d+")


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("trials", [1, 3])
def test_render_at_any_width(width: int, trials: int) -> None:
    arms = ("lt", "reinit", "random_reinit", "ticket_reinit", "ticket_shuffle")
    falling = [98.04, 98.1, 98.0, 97.5, 90.0, 11.35]
    accuracy = {
        arm: [value - (place * index if index else 0) for index, value in enumerate(falling)]
        for place, arm in enumerate(arms)
    }
    found = lines(accuracy, {"lt": [1.0, 0.9, 0.8, 0.7, 1.1, 2.55]}, trials)
    text = verdict.render(found, width)
    rows = text.splitlines()
    assert max(map(len, rows)) <= width
    assert "\x1b" not in text
    assert rows == [row.rstrip() for row in rows]
    numbers = NUMBER.findall(text)
    for line in found.to_dict("records"):
        assert f"{line['test']:.2f}" in numbers
        assert f"{line['ES_ratio']:.2f}" in numbers
        if line["round"]:
            assert f"{line['difference']:+.2f}" in numbers
    assert text.count("*") == found["winning"].sum() + 1  # and the explanation
    assert text.count("±") == (0 if trials == 1 else 5 * len(arms))
    assert ("95% interval" in text) == (trials > 1)
    assert [arm for arm in arms if arm not in text] == []
    blocks = sum(row.strip().startswith("round") for row in rows)
    assert (blocks == 1) == (width == 200)


def test_render_is_aligned() -> None:
    found = lines({"lt": [98.04, 98.1, 9.8, 100.0], "reinit": [98.04, 98.0]}, {"lt": [1.0, 0.9, 12.25, 0.1]})
    rows = verdict.render(found, 100).splitlines()
    head = next(place for place, row in enumerate(rows) if row.startswith("round"))
    body = rows[head + 2 : head + 6]
    assert len({row.index(".", row.index("%")) for row in body}) == 1  # points of the accuracies below each other
    assert len({row.index("±") for row in body[1:]}) == 1
    assert body[0].split()[:3] == ["0", "100%", "98.04"]
    assert body[2].count(".") < body[1].count(".")  # reinit has not come that far


def test_render_says_where_trials_are_missing() -> None:
    found = lines({"lt": [98.0, 98.1, 98.2]})
    found.loc[2, "trials"] = 2
    rows = [row for row in verdict.render(found, 60).splitlines() if "(2 of 3)" in row]
    assert len(rows) == 1
    assert rows[0].split()[0] == "2"


def test_arms_keep_their_order() -> None:
    assert verdict.in_order(["ticket_reinit", "new", "reinit", "lt", "reinit"]) == [
        "lt",
        "reinit",
        "ticket_reinit",
        "new",
    ]
    assert verdict.in_order(list(ARMS)) == list(ARMS)
