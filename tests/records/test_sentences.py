"""The verdict in words: what is named, what is not, why, and what the numbers rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rounds import rounds_of

from lth.records import verdict
from lth.records.sentences import sentences
from lth.records.tables import Run

JITTER = (0.0, 0.05, -0.05, 0.03, -0.03)  # of the trials, not of the rounds: pairing takes it away


def said(
    accuracy: Mapping[str, Sequence[float]],
    ES: Mapping[str, Sequence[float]] | None = None,
    trials: int = 3,
    spread: float = 0.02,
    last: float = 9e9,
) -> list[str]:
    """The sentences on each arm's mean accuracy and ES a round, where trials differ by `spread`."""
    frames = []
    for arm, values in accuracy.items():
        means = np.array(values)
        noise = np.outer(np.linspace(-1, 1, trials) if trials > 1 else [0.0], np.arange(len(values)) % 2) * spread
        test = np.round(means + np.array(JITTER[:trials])[:, None] + noise, 6)
        stops = np.tile((ES or {}).get(arm, [1000.0] * len(values)), (trials, 1))
        frames.append(rounds_of(test, stops, arm, last))
    return sentences(verdict.judged(pd.concat(frames, ignore_index=True)))


def test_every_arm_has_a_sentence() -> None:
    lt, *others, rest = said(
        {
            "lt": [98.0, 98.3, 98.3, 98.0, 97.5],
            "reinit": [98.0, 98.1, 97.8, 97.5, 97.0],
            "finetune": [98.0, 98.3, 98.3, 98.3, 98.3],
            "random": [98.0, 90.0, 90.0, 90.0, 90.0],
            "ticket_shuffle": [98.0, 97.99, 97.99, 97.99, 97.99],
            "someone's": [98.0, 98.0, 98.0, 98.0, 98.0],
        }
    )
    assert lt.startswith("The sparsest winning ticket of lt keeps 51.2% of the weights: ")
    assert [sentence.split()[0] for sentence in others] == [
        "reinit",
        "finetune",
        "random",
        "ticket_shuffle",
        "someone's",
    ]
    reinit, finetune, random, shuffle, _ = others
    dips = said({"reinit": [98.0, 98.3, 97.0, 97.99]})[1]
    assert "is better than the dense network down to 80% of the weights (+0.10" in reinit
    assert "worse from 64% on (-0.20" in reinit
    assert "is better than the dense network down to 41% of the weights" in finetune and "worse" not in finetune
    assert "is worse than the dense network from the first pruning on (-8.00" in random
    assert "cannot be told from the dense network" in shuffle
    assert "worse at 64%, but not beyond doubt at 51.2%" in dips
    recovers = said({"reinit": [98.0, 97.0, 98.3]})[1]
    assert "is worse than the dense network at 80%, but better at 64%" in recovers
    assert rest.startswith("Means of 3 trials; ±: 95% interval; no worse: ")
    assert "0.1 points" in rest
    assert all(sentence.endswith(".") and "nan" not in sentence for sentence in [lt, *others, rest])


def test_what_is_named_comes_with_its_interval_and_with_what_follows() -> None:
    lt = said({"lt": [98.0, 98.3, 98.3, 98.02, 97.0, 98.4]})[0]
    assert "no worse than the dense network and no later (98.02% test accuracy, +0.02 ± 0.0" in lt
    assert "ES 1.00 ± 0.00 of dense" in lt
    assert "at 41% it is too inaccurate (-1.00 ±" in lt
    assert "32.8%, taken alone, would be one again" in lt
    assert "the sparsest tried" in said({"lt": [98.0, 98.3]})[0]


def test_too_late_is_not_too_inaccurate() -> None:
    late = said({"lt": [60.0, 63.0, 65.96]}, {"lt": [1000.0, 1420.0, 1500.0]})[0]
    assert late.startswith(
        "No ticket of lt down to 64% of the weights is a winning one: they are accurate enough but too"
    )
    assert "+5.96" in late and "ES 1.50" in late and "at 64%" in late
    inaccurate = said({"lt": [60.0, 59.0, 58.0]})[0]
    assert "too inaccurate" in inaccurate and "late" not in inaccurate and "-1.00" in inaccurate
    open_ = said({"lt": [60.0, 60.5, 60.9]}, spread=3.0)[0]
    assert "beyond doubt" in open_ and "more trials" in open_
    after = said({"lt": [98.0, 98.3, 98.3]}, {"lt": [1000.0, 900.0, 1300.0]})[0]
    assert "at 64% it is too late (ES 1.30" in after


def test_one_accurate_ticket_does_not_speak_for_all() -> None:
    stops = np.array([[1000.0, 700.0], [1000.0, 1400.0], [1000.0, 1100.0]])
    test = np.array([[98.0, 98.3], [98.0, 98.31], [98.0, 98.29]])
    perhaps = sentences(verdict.judged(rounds_of(test, stops)))[0]
    assert "accurate enough but perhaps too late" in perhaps
    some = said({"lt": [98.0, 98.3, 97.0, 97.0]}, {"lt": [1000.0, 1300.0, 1300.0, 1300.0]})[0]
    assert "those accurate enough, at 80%, are too late (the best: +0.30" in some


def test_a_dense_network_that_has_learned_nothing_judges_no_ticket() -> None:
    def told(before: float, **changes: float) -> list[str]:
        rounds = rounds_of(np.array([[9.9], [10.0], [9.8]]).repeat(3, axis=1)).assign(supermask=before, **changes)
        table = verdict.judged(rounds)
        assert table["winning"].any() == (len(sentences(table)) > 1)
        return sentences(table)

    (sentence,) = told(before=9.8)
    assert sentence.startswith("The dense network has learned nothing: 9.90% test accuracy, 9.80% before training")
    for learned in (told(before=8.0), told(before=np.nan), told(before=9.8, remaining=20.0)):
        assert "winning ticket of lt" in learned[0]


def test_a_first_round_that_falls_out_is_said() -> None:
    lt = said({"lt": [98.0, 97.0, 98.3, 98.3]})[0]
    assert "is a winning one down to which none falls out: at 80% it is too inaccurate (-1.00" in lt
    assert "taken alone, 64% and 51.2% would be" in lt


def test_one_trial_names_no_winning_ticket() -> None:
    told = said({"lt": [98.0, 98.1, 98.2, 97.0, 98.5], "reinit": [98.0, 97.0, 96.0]}, trials=1)
    lt, reinit = told
    assert "no ticket of lt can be called a winning one" in lt
    assert "no less accurate than the dense network down to 64% of the weights" in lt  # though 98.5 comes later
    assert reinit.startswith(
        "reinit, in one trial, is below the dense accuracy from the first pruning on (-2.00 points"
    )
    assert "±" not in " ".join(told)
    late = said({"lt": [60.0, 65.96]}, {"lt": [1000.0, 1420.0]}, trials=1)[0]
    assert "+5.96 points" in late and "too late for a winning ticket" in late
    below = said({"lt": [98.0, 97.0, 98.5]}, trials=1)[0]
    assert "less accurate than the dense network from the first pruning on (-1.00 points; the best: +0.50" in below
    above = said({"lt": [98.0, 98.1], "random": [98.0, 98.1]}, trials=1)[1]
    assert "is not below the dense accuracy at 80%" in above


def test_rounds_too_short_for_early_stop_are_said() -> None:
    accuracy = {"lt": [98.0, 98.3, 98.3]}
    assert not any("last evaluation" in sentence for sentence in said(accuracy))
    assert said(accuracy, last=1000.0)[-1].startswith("Early stop is the last evaluation in 9 of 9 rounds: ")
    stops = {"lt": [1000.0, 1000.0, 700.0]}
    assert "in 6 of 9 rounds" in said(accuracy, stops, last=1000.0)[-1]
    stops = {"lt": [1000.0, 700.0, 700.0]}
    assert not any("last evaluation" in sentence for sentence in said(accuracy, stops, last=1000.0))


def test_without_tickets() -> None:
    told = said({"reinit": [98.0, 97.0]})
    assert told[0] == "Without pruned rounds of lt there is no ticket to judge."
    assert told[1].startswith("reinit is worse than the dense network from the first pruning on")
    partial = said({"lt": [98.0], "ticket_reinit": [98.0, 97.0]})
    assert partial[0].startswith("Without pruned rounds of lt")


def test_of_the_dense_network_only() -> None:
    (found,) = said({"lt": [98.0], "reinit": [98.0]}, trials=1)
    expected = "Only the dense network has been trained so far: 98.00% test accuracy at iteration 1,000 (one trial)."
    assert found == expected
    assert "(means of 2 trials)" in said({"lt": [98.0]}, trials=2)[0]


def test_before_the_first_round(tmp_path: Path) -> None:
    nothing = verdict.table([Run(tmp_path, "fc1", "mnist", "default", "lt", 0)])
    assert sentences(nothing) == ["No round is finished yet."]


def test_trials_that_differ_are_said() -> None:
    two = rounds_of(np.array([[98.0, 98.3], [98.1, 98.4]]))
    one = rounds_of(np.array([[98.0, 97.0]]), arm="reinit")
    told = sentences(verdict.judged(pd.concat([two, one], ignore_index=True)))
    assert told[1].startswith("reinit, in one trial, is below")
    assert told[2].startswith("Means of 1 to 2 trials")


def test_trials_of_different_sparsities_are_not_averaged_without_a_word() -> None:
    def told(kept: Sequence[float], rounds: int = 3) -> list[str]:
        table = rounds_of(np.tile([98.0, 98.1, 98.0], (2, 1))[:, :rounds])
        table.loc[table["round"] == rounds - 1, "remaining"] = kept
        return [sentence for sentence in sentences(verdict.judged(table)) if "equally many" in sentence]

    (said,) = told([64.0, 12.5])
    assert said.startswith("Trials of lt do not keep equally many weights")
    assert said.endswith("in round 2 they keep 12.5% to 64%.")
    assert len(told([50.0, 12.5], rounds=1)) == len(told([0.5, 0.0])) == 1
    assert told([64.0, 63.8]) == told([0.0, 0.0]) == told([100.0, 100.0], rounds=1) == [], "a few weights"
