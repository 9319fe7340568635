"""The verdict in words: the sparsest winning ticket and what happens beyond it, how each other arm compares, and what
the numbers rest on."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors

from lth.analysis import verdict
from lth.analysis.labels import percent, trials
from lth.analysis.verdict import ACCURATE, LATER, UNMEASURED, WORSE
from lth.records import tables
from lth.records.tables import Run

Row = dict[str, Any]  # of the table
UNEVEN = 0.01  # the largest difference between trials in weights kept, relative to the highest, that is not reported


def of_runs(runs: Sequence[Run], table: pd.DataFrame | None = None) -> list[str]:
    """Everything the verdict says about runs of one model, data set and settings; `table` is theirs if known."""
    return [*sentences(verdict.table(runs) if table is None else table), *about_ties(runs)]


def sentences(table: pd.DataFrame) -> list[str]:
    """One sentence per arm, arms that find tickets first, then what all of them rest on."""
    if table.empty:
        return ["No round is finished yet."]
    dense = table[table["round"] == 0].iloc[0]
    rests_on = "one trial" if table["trials"].max() == 1 else f"means of {trials(table['trials'])}"
    if table["round"].max() == 0:
        what = "the dense network" if dense["remaining"] > 99.9 else "round 0"
        trained = f"Only {what} has been trained so far: {dense['test']:.2f}% test accuracy at iteration"
        return [f"{trained} {dense['ES']:,.0f} ({rests_on}).", *_uneven(table)]
    if not verdict.learned(dense["remaining"], dense["supermask"], dense["test"]):
        return [
            f"The dense network has learned nothing: {dense['test']:.2f}% test accuracy, {dense['supermask']:.2f}% "
            f"before training ({rests_on}). Tickets cannot be compared with it."
        ]
    rows = {arm: pruned for arm in verdict.in_order(table["arm"]) if (pruned := verdict.pruned(table, arm))}
    finders = [arm for arm in rows if verdict.finds_tickets(arm)]
    lines = [_finder(arm, rows[arm]) for arm in finders]
    lines = lines or ["There is no ticket to judge yet: no pruned round of lt is finished"]
    lines += [_other(arm, pruned) for arm, pruned in rows.items() if arm not in finders]
    if dense["remaining"] < 99.9:
        lines.append(f"The dense network here is round 0, a ticket of {_weights(dense)} (--ticket)")
    if table["trials"].max() > 1:
        lines.append(
            f"{rests_on.capitalize()}; ±: 95% interval; no worse: the mean is not below the dense network's, "
            f"and the interval excludes a loss of more than {table['margin'].mean():.2g} points"
        )
    late = []
    if arms := verdict.late_stops(table):
        last, of = (sum(counts) for counts in zip(*arms.values(), strict=True))
        late.append(
            f"Early stop of {', '.join(arms)} is the last evaluation in {last} of {of} rounds: rounds are too "
            "short, or evaluations too rare, for early stop to mean anything."
        )
    return [*(f"{sentence}." for sentence in lines), *_uneven(table), *late]


def _finder(arm: str, rows: Sequence[Row]) -> str:
    """The sparsest winning ticket of an arm, and why the rounds after it do not count; or why it has none."""
    if max(row["trials"] for row in rows) < 2:
        start = f"One trial gives no interval, so no ticket of {arm} can be called a winning one: its tickets are"
        return _one_trial(start, rows)
    best, wins = verdict.sparsest(rows), [row for row in rows if row["winning"]]
    failure = next((row for row in rows if verdict.falls_out(row)), None)
    if best is None and wins and failure:
        return (
            f"No winning ticket of {arm}: tickets at {_shares(wins)} would qualify on their own, but the denser one at "
            f"{_share(failure)} is {_why_not(failure)}"
        )
    if best is None:
        return _no_winner(arm, rows)
    text = (
        f"The sparsest winning ticket of {arm} keeps {_weights(best)}{_products(best)}{_tried(best, rows)}: "
        f"{best['accuracy']} than the dense network, and it stops no later ({best['test']:.2f}% test accuracy, "
        f"{_both(best)})"
    )
    after = [row for row in rows if row["round"] > best["round"]]
    if after:
        text += f"; at {_share(after[0])} the ticket is {_why_not(after[0])}"
    if failure and failure is not after[0]:
        text += f", at {_share(failure)} {_why_not(failure)}"
    if others := [row for row in after if row["winning"]]:
        text += f"; tickets at {_shares(others)} would qualify on their own"
    return text


def _no_winner(arm: str, rows: Sequence[Row]) -> str:
    accurate = [row for row in rows if row["accuracy"] in ACCURATE]
    best = max(accurate or rows, key=lambda row: row["difference"])
    start = f"No winning ticket of {arm} down to {_weights(rows[-1])}"
    example = f"(best: {_both(best)}, at {_share(best)})"
    if not accurate and all(row["accuracy"] == WORSE for row in rows):
        return f"{start}: all are significantly worse than the dense network {example}"
    if not accurate:
        return (
            f"Undecided: no ticket of {arm} is shown to be as good as the dense network (best {_points(best)} at "
            f"{_share(best)}). More --trials narrow the interval"
        )
    at = "" if len(accurate) == len(rows) else f" at {_shares(accurate)}"
    stops = {row["stop"] for row in accurate}
    if stops == {UNMEASURED}:
        return (
            f"Undecided: tickets of {arm}{at} are accurate enough (best: {_points(best)}, at {_share(best)}), but "
            "early stop is the last evaluation in most rounds, so nothing shows whether they stop no later"
        )
    late = "too late" if stops == {LATER} else "perhaps too late"
    return f"{start}: tickets{at} are accurate enough but stop {late} {example}"


def _why_not(row: Row) -> str:
    """What keeps a round from being a winning ticket."""
    if row["accuracy"] == WORSE:
        return f"significantly worse ({_points(row)})"
    if row["accuracy"] not in ACCURATE:
        return f"undecided ({_points(row)})"
    late = "winning" if row["winning"] else "too late" if row["stop"] == LATER else "perhaps too late"
    return f"{late} ({_early_stop(row)})"


def _other(arm: str, rows: Sequence[Row]) -> str:
    """The sparsity down to which an arm is as accurate as the dense network, and from which it is worse."""
    if max(row["trials"] for row in rows) < 2:
        return _one_trial(f"{arm}, in one trial, is", rows)
    worse = [row for row in rows if row["accuracy"] == WORSE]
    before = rows[: rows.index(worse[0])] if worse else rows
    held = [row for row in before if row["accuracy"] in ACCURATE]
    if not held and not worse:
        return f"{arm} does not differ significantly from the dense network ({_both(rows[-1])}, at {_share(rows[-1])})"
    than, parts = "than the dense network ", []
    if held:
        parts.append(f"{held[-1]['accuracy']} {than}down to {_weights(held[-1])} ({_both(held[-1])})")
    if worse:
        rest = rows[len(before) :]
        stays = rest[-1] is worse[-1] and not any(row["accuracy"] in ACCURATE for row in rest)
        start = f"from {_share(worse[0])} on" if before else "from the first pruning on"
        where = start if stays else f"only at {_shares(worse)}"
        parts.append(f"worse {'' if held else than}{where} ({_points(worse[0])} at {_share(worse[0])})")
    return f"{arm} is {', '.join(parts)}"


def _one_trial(start: str, rows: Sequence[Row]) -> str:
    """What one trial shows, without claiming that there is a winning ticket."""
    below = next((index for index, row in enumerate(rows) if row["difference"] < 0), len(rows))
    if not below:
        best = max(rows, key=lambda row: row["difference"])
        first = f"less accurate than the dense network from the first pruning on ({_points(rows[0])}"
        return f"{start} {first}; best: {_both(best)}, at {_share(best)})"
    held = rows[below - 1]
    late = ": too late for a winning ticket" if held["ES_ratio"] > 1 else ""
    return (
        f"{start} no less accurate than the dense network down to {_weights(held)}{_tried(held, rows)} "
        f"({held['test']:.2f}% test accuracy, {_both(held)}{late})"
    )


def _uneven(table: pd.DataFrame) -> list[str]:
    """The round in which trials keep the most different numbers of weights, if by more than a few: because of the
    user's own rule, or because they began with different tickets."""
    spread = ((table["remaining_high"] - table["remaining_low"]) / table["remaining_high"]).fillna(0)
    if spread.max() < UNEVEN:
        return []
    row = table.loc[spread.idxmax()]
    kept = f"{percent(row['remaining_low'], 3)}% to {percent(row['remaining_high'], 3)}%"
    text = f"Trials of {row['arm']} keep different shares of the weights, so that their means mix sparsities: in round"
    return [f"{text} {row['round']} they keep {kept}."]


def _share(row: Row | pd.Series) -> str:
    return f"{percent(row['remaining'], 3)}%"


def _shares(rows: Sequence[Row]) -> str:
    """`80%`, `80% and 64%`, `80%, 64% and 51.2%`."""
    return " and ".join(filter(None, (", ".join(map(_share, rows[:-1])), _share(rows[-1]))))


def _products(row: Row) -> str:
    """The share of the multiply-adds that remains, where it was counted and differs from the share of the weights."""
    share = "" if math.isnan(row["speedup"]) else f"{percent(100 / row['speedup'], 3)}%"
    return f" and {share} of the multiply-adds" if share not in ("", _share(row)) else ""


def _weights(row: Row | pd.Series) -> str:
    return f"{_share(row)} of the weights"


def _tried(row: Row, rows: Sequence[Row]) -> str:
    return ", the sparsest tried" if row["round"] == rows[-1]["round"] else ""


def half(low: float, high: float) -> str:
    """` ± ` half an interval; nothing where there is none."""
    return "" if math.isnan(low) else f" ± {(high - low) / 2:.2f}"


def _points(row: Row) -> str:
    return f"{row['difference']:+.2f}{half(row['low'], row['high'])} points"


def _early_stop(row: Row) -> str:
    return f"ES {row['ES_ratio']:.2f}{half(row['ES_low'], row['ES_high'])} of dense"


def _both(row: Row) -> str:
    return f"{_points(row)}, {_early_stop(row)}"


def ties(at_random: int, weights: float) -> str:
    """A sentence where at least 1% of a round's surviving weights were drawn from weights with equal scores."""
    if not at_random or 100 * at_random < weights:
        return ""
    share = f"{at_random:,} of the {weights:,.0f} surviving weights ({100 * at_random / weights:.1f}%)"
    return f"{share} were drawn at random among weights of equal score, since too few weights have a higher score"


def about_ties(runs: Iterable[Run]) -> list[str]:
    """A sentence per arm about the first round of its first trial in which ties decide 1% or more of what survives."""
    first: dict[str, Run] = {}
    for run in runs:
        if any(run.saves.glob("ticket_*.safetensors")):
            first.setdefault(run.arm, run)
    lines = []
    for arm, run in first.items():
        weights = tables.combined([run], "rounds")["weights"]
        texts = (ties(_at_random(run.saves / f"ticket_{n:02}.safetensors"), count) for n, count in enumerate(weights))
        lines += [f"{arm}, round {number}: {text}." for number, text in enumerate(texts) if text][:1]
    return lines


def _at_random(ticket: Path) -> int:
    """How many survivors of a ticket were drawn at random, by the header of its file; 0 if it cannot be read."""
    try:
        with safetensors.safe_open(ticket, framework="np") as opened:
            return int(json.loads((opened.metadata() or {}).get("facts", "{}")).get("at_random", 0))
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError):
        return 0
