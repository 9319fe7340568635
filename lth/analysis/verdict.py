"""The verdict on lottery tickets, from the records of runs alone: how each round compares with the dense network.

Pure functions: runs to a table, a table to the sparsest winning ticket. sentences.py puts it in words, printed.py
prints the table.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit, stdtrit  # of Student's t; scipy.stats takes longer to load

from lth.records import files, identity, tables
from lth.records.tables import Run
from lth.settings.arms import ARMS

COLUMNS = (
    *("round", "remaining", "remaining_low", "remaining_high", "speedup", "arm", "trials", "supermask"),
    *("test", "difference", "low", "high", "margin", "accuracy"),
    *("ES", "ES_ratio", "ES_low", "ES_high", "ES_dense", "ES_last", "stop", "winning"),
)
CONFIDENCE = 0.95
LEARNED = 1.0  # points of test accuracy that training must add to a dense network with which tickets are compared
BETTER, NO_WORSE, WORSE = "better", "no worse", "worse"  # in accuracy
NO_LATER, LATER, UNMEASURED = "no later", "later", "not measured"  # in early stop
OPEN = "open"  # the interval decides neither
ACCURATE = (BETTER, NO_WORSE)


def in_order(arms: Sequence[str]) -> list[str]:
    """These arms, once each, in the order of lth.settings.arms.ARMS, controls after their arm, unknown ones last."""
    order = list(ARMS)

    def place(arm: str) -> tuple[int, bool, str]:
        parent = arm if arm in order or arm not in ARMS else ARMS[arm].mask_of
        return (order.index(parent) if parent in order else len(order), parent != arm, arm)

    return sorted(set(arms), key=place)


def finds_tickets(arm: str) -> bool:
    """Whether what an arm trains are tickets of its own: masks that it chose, with their original initial weights."""
    if arm not in ARMS:
        return False
    entry = ARMS[arm]
    chosen = entry.scores != "random" and not entry.mask_of and not entry.changes_masks
    return chosen and entry.start in ("original", "of_ticket")


def paired(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run and round: arm, seed, the columns of rounds.csv, and relative to the run's own dense round
    `difference` (points of test accuracy), `ES_ratio` and `ES_dense`; `last`, the last evaluation's iteration, and
    `dense_macs`, the multiply-adds with all weights (NaN if not counted). ValueError if the runs are not of one model,
    data set and settings, or of different experiments."""
    kinds = {(run.root, run.arch_type, run.dataset, run.settings) for run in runs}
    if len(kinds) > 1:
        raise ValueError(f"runs must be of one model, data set and settings, not of {len(kinds)}")
    if reason := identity.mixed(runs):
        raise ValueError(reason)
    rounds, layers, evals = (tables.combined(runs, name) for name in ("rounds", "layers", "evals"))
    keys = ["arm", "seed"]
    dense = rounds.groupby(keys)[["test", "ES", "macs"]].transform("first")
    first = layers[layers["round"] == 0].assign(pruned=lambda layers: layers["dense_macs"] - layers["macs"])
    pruned = first.groupby(keys)["pruned"].sum()  # before round 0, by --ticket
    last = evals.groupby([*keys, "round"])["iteration"].last().rename("last")
    return rounds.join(last, on=[*keys, "round"]).assign(
        # rounded, because a difference of equal means must be 0 and not what floating point leaves of it
        difference=(rounds["test"] - dense["test"]).astype(float).round(9),
        ES_ratio=rounds["ES"] / dense["ES"],
        ES_dense=dense["ES"],
        dense_macs=dense["macs"] + rounds[keys].join(pruned, on=keys)["pruned"],
    )


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per round and arm, over the trials that have finished the round; docs/verdict.md says how rounds are
    judged, docs/files.md what the columns are.

    Accuracies and ES are means; `difference` is a trial's test accuracy minus its dense round's,
    `low` and `high` its 95% interval (`interval`), `ES_ratio` mean ES divided by mean ES of the dense rounds. `stop` is
    `no later` where ES_ratio is at most 1, `later` where its whole interval is above 1; where ES is the last evaluation
    in most rounds of an arm (`ES_last` counts them), the loss may still be falling, and `not measured` stands for `no
    later`. winning, for arms that find tickets: better or no worse, and no later (Frankle & Carbin, Section 1), than a
    dense network that has `learned`. ValueError if the runs are not of one model, data set and settings.
    """
    return judged(paired(runs))


def compression(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per arm, round and kind of layer, means over trials: remaining weights (weights) of how many
    (total), and the multiply-adds of an example's forward pass with them (macs, dense_macs); empty where these were not
    counted (Blalock et al. 2020, arXiv:2003.03033)."""
    counts, where = ["weights", "total", "macs", "dense_macs"], ["arm", "round", "kind"]
    lines = tables.combined(runs, "layers").dropna(subset=["kind", "macs"])
    return lines.groupby([*where, "seed"])[counts].sum().groupby(where).mean().reset_index()


def judged(rounds: pd.DataFrame) -> pd.DataFrame:
    """The table of `table`, from rounds as `paired` returns them."""
    rounds = rounds.assign(
        speedup=rounds["dense_macs"] / rounds["macs"],
        later=rounds["ES"] - rounds["ES_dense"],
        ES_last=rounds["ES"] >= rounds["last"],
    )
    by_round = rounds.groupby(["arm", "round"])
    result = by_round[["remaining", "speedup", "supermask", "test", "difference", "ES", "ES_dense"]].mean()
    result = result.assign(
        remaining_low=by_round["remaining"].min(),
        remaining_high=by_round["remaining"].max(),
        trials=by_round.size(),
        ES_last=by_round["ES_last"].sum(),
        ES_ratio=result["ES"] / result["ES_dense"],
        margin=(result["test"] - result["difference"]).map(margin),
        difference=result["difference"].round(9),
    )
    result[["low", "high"]] = _intervals(rounds, "difference")
    result[["ES_low", "ES_high"]] = 1 + _intervals(rounds, "later") / result[["ES_dense", "ES_dense"]].to_numpy()
    result = result.reset_index()
    by_arm, dense = result.groupby("arm"), result["round"] == 0
    better, worse = result["low"] > 0, result["high"] < 0
    not_worse = (result["difference"] >= 0) & (result["low"] >= -result["margin"])
    result["accuracy"] = np.select([dense, better, not_worse, worse], ["", BETTER, NO_WORSE, WORSE], OPEN)
    late = 2 * by_arm["ES_last"].transform("sum") > by_arm["trials"].transform("sum")
    not_later = result["ES_ratio"] <= 1
    stops = [dense, not_later & late, not_later, result["ES_low"] > 1]
    result["stop"] = np.select(stops, ["", UNMEASURED, NO_LATER, LATER], OPEN)
    eligible = {
        arm: finds_tickets(arm) and learned(*result.loc[rows[0], ["remaining", "supermask", "test"]])
        for arm, rows in by_arm.groups.items()
    }
    result["winning"] = result["accuracy"].isin(ACCURATE) & (result["stop"] == NO_LATER) & result["arm"].map(eligible)
    place = result["arm"].map(in_order(result["arm"]).index)
    return result.assign(place=place).sort_values(["round", "place"], ignore_index=True)[list(COLUMNS)]


def _intervals(rounds: pd.DataFrame, column: str) -> np.ndarray:
    """The `interval` of a column for every arm and round, over the trials that have finished the round."""
    bounds = []
    for _, lines in rounds.groupby("arm"):
        values = lines.pivot(index="seed", columns="round", values=column)
        for number in values:
            finished = values[values[number].notna()]
            bounds.append(interval(finished.loc[:, 1:number].to_numpy()))
    return np.array(bounds, float).reshape(-1, 2)


def learned(remaining: float, before: float, after: float) -> bool:
    """Whether training has raised the test accuracy of round 0, which has `remaining` percent of the weights: a dense
    network that is as good before training has learned nothing. Tickets of other runs (--ticket) may be good before."""
    return math.isnan(before) or remaining < 99.9 or after >= before + LEARNED


def margin(dense: float) -> float:
    """The loss, in points, that `no worse` must exclude: a twentieth of the dense network's test error (0.1 points at
    98%), and never more than half a point. `dense` is its test accuracy in percent."""
    return round(min((100 - dense) / 20, 0.5), 9)


def interval(differences: np.ndarray | pd.Series) -> tuple[float, float]:
    """The 95% interval of the mean of paired differences (trials), or, given several rounds (trials, rounds), of the
    last one, by Student's t; NaN if there are fewer than two trials or no round.

    For one round it is the interval of the paired t test. With more, the variance is the mean of the rounds' variances,
    since two or three trials of one round say little about noise; sparser rounds, where networks collapse, are unused.
    The differences of a trial share its dense network, so that they correlate by one half where all trainings are
    equally noisy: r rounds have 4r / (r + 3) times the degrees of freedom of one (Satterthwaite's approximation).
    """
    differences = np.asarray(differences, float)
    if differences.ndim == 1:
        differences = differences[:, None]
    trials, rounds = differences.shape
    if trials < 2 or not rounds:
        return math.nan, math.nan
    variance = float(differences.var(axis=0, ddof=1).mean())
    freedom = (trials - 1) * 4 * rounds / (rounds + 3)
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(variance / trials)
    mean = float(differences[:, -1].mean())
    return round(mean - half, 9), round(mean + half, 9)


def accuracy_interval(percent: pd.Series) -> tuple[float, float]:
    """The 95% interval of a mean accuracy over trials, in percent, computed on the logit scale so that it stays within
    0 to 100; NaN with fewer than two trials."""
    low, high = interval(logit((percent / 100).clip(1e-4, 1 - 1e-4)))
    return float(100 * expit(low)), float(100 * expit(high))


def pruned(table: pd.DataFrame, arm: str) -> list[dict[str, Any]]:
    """An arm's rows without the dense round, densest first."""
    return table[(table["arm"] == arm) & (table["round"] >= 1)].sort_values("round").to_dict("records")


def sparsest(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The sparsest winning ticket among an arm's pruned rounds that comes before any round that is significantly worse
    than the dense network or later. Open rounds are not winning, but do not end the search."""
    winner = None
    for row in rows:
        if falls_out(row):
            break
        winner = row if row["winning"] else winner
    return winner


def falls_out(row: dict[str, Any]) -> bool:
    """Whether a round is significantly worse than the dense network, or later."""
    return row["accuracy"] == WORSE or row["stop"] == LATER


def late_stops(table: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """The arms whose early stop is the last evaluation in most rounds: in how many, and of how many."""
    counts = table.groupby("arm")[["ES_last", "trials"]].sum()
    late = counts[2 * counts["ES_last"] > counts["trials"]]
    return {arm: (int(late.loc[arm, "ES_last"]), int(late.loc[arm, "trials"])) for arm in in_order(late.index)}


def write(table: pd.DataFrame, folder: Path) -> Path:
    """Write verdict.csv into a folder."""
    text = table.to_csv(index=False, float_format="%.10g", lineterminator="\n")
    files.write(folder / "verdict.csv", text.encode())
    return folder / "verdict.csv"
