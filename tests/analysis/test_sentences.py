"""The verdict in words and as a table: what is named, what is not, why, and what the numbers rest on."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import rounds_of

from lth.analysis import printed, verdict
from lth.analysis.sentences import sentences
from lth.records.tables import Run

JITTER = (0.0, 0.05, -0.05, 0.03, -0.03)  # of the trials, not of the rounds: pairing takes it away
Values = Mapping[str, Sequence[float]]


def said(
    accuracy: Values, ES: Values | None = None, trials: int = 3, spread: float = 0.02, last: float = 9e9
) -> list[str]:
    """The sentences on each arm's mean accuracy and ES per round, where trials differ by `spread`."""
    frames = []
    for arm, values in accuracy.items():
        means = np.array(values)
        noise = np.outer(np.linspace(-1, 1, trials) if trials > 1 else [0.0], np.arange(len(values)) % 2) * spread
        test = np.round(means + np.array(JITTER[:trials])[:, None] + noise, 6)
        stops = np.tile((ES or {}).get(arm, [1000.0] * len(values)), (trials, 1))
        frames.append(rounds_of(test, stops, arm, last))
    return sentences(verdict.judged(pd.concat(frames, ignore_index=True)))


UP = [98.0, 98.3, 98.3]


@pytest.mark.parametrize(
    ("accuracy", "ES", "words"),
    [
        ([*UP, 98.02, 97.0, 98.4], None, "The sparsest winning ticket of lt keeps 51.2% of the weights: no worse than"),
        ([*UP, 98.02, 97.0, 98.4], None, " and it stops no later (98.02% test accuracy, +0.02 ± 0.0"),
        ([*UP, 98.02, 97.0, 98.4], None, "ES 1.00 ± 0.00 of dense"),
        ([*UP, 98.02, 97.0, 98.4], None, "at 41% the ticket is significantly worse (-1.00 ±"),
        ([*UP, 98.02, 97.0, 98.4], None, "tickets at 32.8% would qualify on their own"),
        (UP[:2], None, "the sparsest tried"),
        (UP, [1000, 900, 1300], "at 64% the ticket is too late (ES 1.30"),
        ([60.0, 63.0, 65.96], [1000, 1420, 1500], "No winning ticket of lt down to 64% of the weights: tickets are"),
        ([60.0, 63.0, 65.96], [1000, 1420, 1500], "are accurate enough but stop too late (best: +5.96"),
        ([98.0, 98.3, 97.0], [1000, 1300, 1300], "tickets at 80% are accurate enough but stop too late (best: +0.30"),
        ([60.0, 59.0, 58.0], None, "all are significantly worse than the dense network (best: -1.00"),
        ([98.0, 97.0, *UP[1:]], None, "tickets at 64% and 51.2% would qualify on their own, but the denser one at 80%"),
        ([98.0, 97.0, *UP], None, "64%, 51.2% and 41% would qualify on their own, but the denser one at 80% is"),
    ],
)
def test_an_arm_that_finds_tickets(accuracy: Sequence[float], ES: Sequence[float] | None, words: str) -> None:
    lt = said({"lt": accuracy}, {"lt": ES} if ES else None)[0]
    assert words in lt and ("too late" in lt) == bool(ES)


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        ([98.0, 98.1, 97.8, 97.5], "is better than the dense network down to 80% of the weights (+0.10"),
        ([98.0, 98.1, 97.8, 97.5], ", worse from 64% on (-0.20"),
        ([98.0, 98.3, 98.3, 98.3, 98.3], "is better than the dense network down to 41% of the weights (+0.30"),
        ([98.0, 90.0, 90.0], "is worse than the dense network from the first pruning on (-8.00"),
        ([98.0, 97.99, 97.99], "does not differ significantly from the dense network (-0.01"),
        ([98.0, 98.3, 97.0, 97.99], "worse only at 64% (-1.00"),
        ([98.0, 97.0, 98.3], "is worse than the dense network only at 80% (-1.00"),
    ],
)
def test_other_arms(accuracy: Sequence[float], words: str) -> None:
    told = said({"lt": [98.0, 98.3], "someone's": accuracy})
    assert told[1].startswith("someone's ") and words in told[1]
    assert told[2].startswith("Means of 3 trials; ±: 95% interval; no worse: ") and "0.1 points" in told[2]
    assert all(sentence.endswith(".") and "nan" not in sentence for sentence in told)


def test_tickets_may_be_undecided_or_perhaps_too_late() -> None:
    undecided = said({"lt": [60.0, 60.5, 60.9]}, spread=3.0)[0]
    assert undecided.startswith("Undecided: no ticket of lt is shown to be as good as the dense network (best +0.90 ±")
    assert undecided.endswith(" at 64%). More --trials narrow the interval.")
    stops = np.array([[1000.0, 700.0], [1000.0, 1400.0], [1000.0, 1100.0]])
    test = np.array([[98.0, 98.3], [98.0, 98.31], [98.0, 98.29]])
    assert "accurate enough but stop perhaps too late" in sentences(verdict.judged(rounds_of(test, stops)))[0]


def test_no_ticket_is_compared_with_a_dense_network_that_has_learned_nothing() -> None:
    def told(before: float, **changes: float) -> list[str]:
        rounds = rounds_of(np.array([[9.9], [10.0], [9.8]]).repeat(3, axis=1)).assign(supermask=before, **changes)
        table = verdict.judged(rounds)
        assert table["winning"].any() == (len(sentences(table)) > 1)
        return sentences(table)

    (sentence,) = told(before=9.8)
    assert sentence.startswith("The dense network has learned nothing: 9.90% test accuracy, 9.80% before training")
    for learned in (told(before=8.0), told(before=np.nan), told(before=9.8, remaining=20.0)):
        assert "winning ticket of lt" in learned[0]


def test_one_trial_names_no_winning_ticket() -> None:
    lt, reinit = said({"lt": [98.0, 98.1, 98.2, 97.0, 98.5], "reinit": [98.0, 97.0, 96.0]}, trials=1)
    assert "no ticket of lt can be called a winning one" in lt
    assert "no less accurate than the dense network down to 64% of the weights" in lt  # though 98.5 comes later
    assert reinit.startswith("reinit, in one trial, is less accurate than the dense network from the first pruning on")
    assert "±" not in lt + reinit
    late = said({"lt": [60.0, 65.96]}, {"lt": [1000.0, 1420.0]}, trials=1)[0]
    assert "+5.96 points" in late and "too late for a winning ticket" in late
    below = said({"lt": [98.0, 97.0, 98.5]}, trials=1)[0]
    assert "less accurate than the dense network from the first pruning on (-1.00 points; best: +0.50" in below


ALL = [1000] * 3


@pytest.mark.parametrize(
    ("stops", "last", "share"),
    [(ALL, 9e9, ""), (ALL, 1000, "9 of 9"), ([1000, 1000, 700], 1000, "6 of 9"), ([1000, 9, 9], 1000, "")],
)
def test_rounds_too_short_for_early_stop_are_reported(stops: Sequence[float], last: float, share: str) -> None:
    told = said({"lt": [98.0, 98.3, 98.3]}, {"lt": stops}, last=last)
    found = [sentence for sentence in told if sentence.startswith("Early stop of lt is the last evaluation")]
    assert ("winning ticket" in told[0]) == (not share), "where nothing is measured, no ticket stops no later"
    assert ("nothing shows whether they stop no later" in told[0]) == bool(share) or "too late" in told[0]
    assert len(found) == bool(share) and all(f"in {share} rounds" in sentence for sentence in found)


@pytest.mark.versions
def test_before_there_are_tickets(tmp_path: Path) -> None:
    told = said({"lt": [98.0], "reinit": [98.0, 97.0]})
    assert told[0] == "There is no ticket to judge yet: no pruned round of lt is finished."
    assert told[1].startswith("reinit is worse than the dense network from the first pruning on")
    dense = "Only the dense network has been trained so far: 98.00% test accuracy at iteration 1,000 "
    assert said({"lt": [98.0], "reinit": [98.0]}, trials=1) == [f"{dense}(one trial)."]
    assert said({"lt": [98.0]}, trials=2)[0].endswith("(means of 2 trials).")
    nothing = verdict.table([Run(tmp_path, "fc1", "mnist", "default", "lt", 0)])
    assert sentences(nothing) == ["No round is finished yet."] and list(nothing) == list(verdict.COLUMNS)


def test_trials_that_differ_in_number_or_sparsity_are_reported() -> None:
    two = rounds_of(np.array([[98.0, 98.3], [98.1, 98.4]]))
    one = rounds_of(np.array([[98.0, 97.0]]), arm="reinit")
    several = sentences(verdict.judged(pd.concat([two, one], ignore_index=True)))
    assert several[2].startswith("Means of 1 to 2 trials")

    def told(kept: Sequence[float], rounds: int = 3) -> list[str]:
        table = rounds_of(np.tile([98.0, 98.1, 98.0], (2, 1))[:, :rounds])
        table.loc[table["round"] == rounds - 1, "remaining"] = kept
        return [sentence for sentence in sentences(verdict.judged(table)) if "different shares" in sentence]

    (uneven,) = told([64.0, 12.5])
    assert uneven.startswith("Trials of lt keep different") and uneven.endswith("in round 2 they keep 12.5% to 64%.")
    assert len(told([50.0, 12.5], rounds=1)) == len(told([0.5, 0.0])) == 1
    assert told([64.0, 63.8]) == told([0.0, 0.0]) == told([100.0, 100.0], rounds=1) == [], "a few weights"


NUMBER = re.compile(r"[+-]?\d+\.\d+")


def table(trials: int, arms: dict[str, Sequence[float]], ES: dict[str, Sequence[float]] | None = None) -> pd.DataFrame:
    """The table of arms with these accuracies and ES ratios a round."""
    frames = []
    for arm, values in arms.items():
        shifts = np.linspace(-0.02, 0.02, trials)[:, None] * np.arange(len(values))
        stops = np.tile(1000 * np.array((ES or {}).get(arm, [1.0] * len(values))), (trials, 1))
        frames.append(rounds_of((np.array(values) + shifts).round(6), stops, arm))
    return verdict.judged(pd.concat(frames, ignore_index=True))


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("trials", [1, 3])
def test_it_fits_any_width(width: int, trials: int) -> None:
    arms = ("lt", "reinit", "random_reinit", "ticket_reinit", "ticket_shuffle")
    falling = [98.04, 98.1, 98.0, 97.5, 90.0, 11.35]
    accuracy = {
        arm: [value - (place * index if index else 0) for index, value in enumerate(falling)]
        for place, arm in enumerate(arms)
    }
    found = table(trials, accuracy, {"lt": [1.0, 0.9, 0.8, 0.7, 1.1, 2.55]})
    text = printed.render(found, width)
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
    assert text.count("±") == (0 if trials == 1 else 5 * len(arms) + 1)  # and the explanation
    assert ("95% interval" in text) == (trials > 1)
    assert [arm for arm in arms if arm not in text] == []
    blocks = sum(row.strip().startswith("round") for row in rows)
    assert (blocks == 1) == (width == 200)


def test_stars_are_for_winning_tickets_of_arms_that_find_them() -> None:
    gains = [98.0, 98.3, 98.0, 97.0]
    text = printed.render(table(3, {"lt": gains, "reinit": gains}), 100)
    assert re.findall(r"[\d.]+\*+", text) == ["98.30**", "98.00*"]
    assert "** better than dense and no later, * no" in text
    alone = printed.render(table(1, {"lt": gains}), 100)
    assert "*" not in alone


def test_missing_trials_are_said() -> None:
    found = table(3, {"lt": [98.0, 98.1, 98.2]})
    found.loc[2, "trials"] = 2
    rows = [row for row in printed.render(found, 60).splitlines() if "(2 of 3)" in row]
    assert len(rows) == 1
    assert rows[0].split()[0] == "2"
