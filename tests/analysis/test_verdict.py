"""The verdict: intervals, what counts as better, no worse and later, and the sparsest winning ticket."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MakeRuns
from drawn import rounds_of
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import stats

from lth.analysis import verdict
from lth.records import tables
from lth.records.tables import Run
from lth.settings.arms import ARMS

pytestmark = pytest.mark.versions


def judged(test: list[list[float]], ES: list[list[float]] | None = None, **more: object) -> pd.DataFrame:
    """The table of these trials, a list of rounds each."""
    return verdict.judged(rounds_of(np.array(test), None if ES is None else np.array(ES), **more))  # type: ignore[arg-type]


@examples(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=12))
def test_interval_of_one_round_is_that_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    test, dense = np.array(pairs).T
    low, high = verdict.interval((test - dense)[:, None])
    if np.ptp(test - dense) < 1e-6:  # scipy warns of lost precision and gives no interval where all are the same
        assert low == pytest.approx(high, abs=1e-4)
        return
    expected = stats.ttest_rel(test, dense).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (3, 0)])
def test_there_is_no_interval_of_fewer_than_two_trials_or_no_round(shape: tuple[int, int]) -> None:
    assert all(math.isnan(bound) for bound in verdict.interval(np.zeros(shape)))


@pytest.mark.parametrize("trials", [2, 3, 5])
@pytest.mark.parametrize("own", [0.0, 0.1])  # what tickets of one trial have in common, beside the dense network
def test_intervals_hold_the_truth_as_often_as_they_say(trials: int, own: float) -> None:
    noise, width, hit = np.random.default_rng(trials), [], []
    for _ in range(400):
        accuracy = noise.normal(0, 0.17, (trials, 11))
        accuracy[:, 1:] += noise.normal(0, own, (trials, 1))
        low, high = verdict.interval(accuracy[:, 1:] - accuracy[:, :1])
        hit.append(low <= 0 <= high)
        width.append(high - low)
    assert 0.92 <= np.mean(hit) <= 0.995
    alone = 2 * stats.t.ppf(0.975, trials - 1) * math.sqrt(2 * 0.17**2 + own**2) / math.sqrt(trials)
    assert np.mean(width) < {2: 0.35, 3: 0.7, 5: 0.95}[trials] * alone  # than what a round alone would give


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
        if number == 1:
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


def test_the_margin_is_a_twentieth_of_the_dense_error_and_at_most_half_a_point() -> None:
    assert [verdict.margin(dense) for dense in (98, 92, 90, 50)] == [0.1, 0.4, 0.5, 0.5]


def test_better_no_worse_open_and_worse_are_kept_apart() -> None:
    dense = [98.0, 98.0, 98.0]
    for gains, accuracy in (
        ([0.30, 0.31, 0.32], "better"),
        ([0.00, 0.00, 0.00], "no worse"),
        ([0.05, 0.00, 0.02], "no worse"),  # the interval goes below 0, but not by a loss of 0.1
        ([-0.02, 0.00, -0.01], "open"),  # the mean does
        ([2.00, 0.10, 0.00], "open"),  # +0.7 on average, but a loss of two points is in the interval
        ([-0.30, -0.31, -0.32], "worse"),
        ([-2.00, -0.10, 0.00], "open"),
    ):
        found = judged([[before, before + gain] for before, gain in zip(dense, gains, strict=True)]).iloc[1]
        assert (found["accuracy"], found["winning"]) == (accuracy, accuracy in ("better", "no worse")), gains
    alone = judged([[98.0, 98.5, 99.0]])
    assert alone["accuracy"].tolist() == ["", "open", "open"] and not alone["winning"].any(), "one trial wins nothing"


@pytest.mark.parametrize(
    ("ES", "stop"),
    [
        ([[900, 900], [900, 900]], "no later"),  # equal is enough
        ([[900, 800], [900, 990]], "no later"),  # on average
        ([[900, 901], [900, 901]], "later"),
        ([[900, 800], [900, 1100]], "open"),
    ],
)
def test_early_stop_may_be_no_later(ES: list[list[float]], stop: str) -> None:
    found = judged([[97.0, 97.5], [97.0, 97.5]], ES).iloc[1]
    assert found["accuracy"] == "better"
    assert found["stop"] == stop
    assert found["winning"] == (stop == "no later")


def test_no_ticket_wins_by_stopping_at_the_last_evaluation() -> None:
    for last, stop, late in ((1000.0, "not measured", {"lt": (4, 4)}), (1001.0, "no later", {})):
        table = judged([[98.0, 98.3], [98.0, 98.31]], last=last)
        found = table.iloc[1]
        assert (found["accuracy"], found["stop"], found["winning"]) == ("better", stop, stop == "no later")
        assert verdict.late_stops(table) == late


def test_intervals_of_accuracies_stay_between_0_and_100() -> None:
    for tests in ([83.0, 99.9, 94.0], [0.0, 40.0], [100.0, 100.0], [0.0, 0.0]):
        low, high = verdict.accuracy_interval(pd.Series(tests))
        assert 0 <= low <= high <= 100
    low, high = verdict.accuracy_interval(pd.Series([97.9, 98.0, 98.1]))
    assert low < 98.0 < high and high - low == pytest.approx(0.497, abs=0.01), "as Student's t, away from the ends"
    assert all(map(math.isnan, verdict.accuracy_interval(pd.Series([98.0]))))


def test_only_arms_that_find_tickets_win() -> None:
    finders = [arm for arm in [*ARMS, "random_shuffle", "an unknown arm"] if verdict.finds_tickets(arm)]
    assert finders[0] == "lt"
    never = {"reinit", "finetune", "random", "random_reinit", "ticket_reinit", "ticket_shuffle", "an unknown arm"}
    assert not never & set(finders)
    assert not any(arm.endswith("_shuffle") for arm in finders)
    for arm in ("random", "ticket_shuffle"):
        found = judged([[97.0, 97.5], [97.0, 97.5]], arm=arm).iloc[1]
        assert (found["accuracy"], found["winning"]) == ("better", False)


def sparsest(test: list[list[float]], ES: list[list[float]] | None = None) -> int | None:
    """The number of the round that is named."""
    found = verdict.sparsest(verdict.pruned(judged(test, ES), "lt"))
    return None if found is None else found["round"]


def test_the_sparsest_winning_ticket_is_that_before_the_first_that_falls_out() -> None:
    gains = [0.0, 0.3, 0.3, 0.3, -0.5, 0.3, -0.5]
    trials = [[98 + gain + shift for gain in gains] for shift in (0.0, 0.1, 0.2)]
    assert sparsest(trials) == 3  # not 5, which wins taken alone
    late = [[1000, 900, 1400, 900, 900, 900, 900]] * 3
    assert sparsest(trials, late) == 1
    assert sparsest([[98.0, 97.0, 98.5], [98.1, 97.1, 98.6]]) is None  # the first pruning falls out


def test_rounds_that_are_open_neither_win_nor_end_the_row() -> None:
    # The first pruning costs one trial a little and gives another a little: no one knows.
    assert sparsest([[98.0, 97.9, 98.5, 98.5], [98.0, 98.15, 98.5, 98.5], [98.0, 98.0, 98.5, 98.3]]) == 3
    assert sparsest([[98.0, 97.9], [98.0, 98.15], [98.0, 98.0]]) is None


def test_written_and_read_again(tmp_path: Path, make_runs: MakeRuns) -> None:
    found = verdict.table(make_runs(rounds=3, saves=False))
    missing = dict.fromkeys(("low", "high", "ES_low", "ES_high", "speedup"), "")
    read = pd.read_csv(verdict.write(found, tmp_path), keep_default_na=False, na_values=missing)
    pd.testing.assert_frame_equal(read, found, check_dtype=False, rtol=1e-8)
