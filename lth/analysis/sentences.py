"""The verdict in words, from its table alone: the sparsest winning ticket and what happens beyond it, how each other
arm compares, and what the numbers rest on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors

from lth.analysis import verdict
from lth.analysis.labels import percent, trials
from lth.analysis.verdict import ACCURATE, LATER, NO_LATER, WORSE
from lth.records import tables
from lth.records.tables import Run

Row = dict[str, Any]  # of the table
UNEVEN = 0.01  # the largest difference between trials in weights kept, relative to the highest, that is not reported


def sentences(table: pd.DataFrame) -> list[str]:
    """The verdict: one sentence per arm, arms that find tickets first, then what all of them rest on."""
    if table.empty:
        return ["No round is finished yet."]
    if table["round"].max() == 0:
        dense = table.iloc[0]
        what = "the dense network" if dense["remaining"] > 99.9 else "round 0"
        return [
            f"Only {what} has been trained so far: {dense['test']:.2f}% test accuracy at "
            f"iteration {dense['ES']:,.0f} ({_rests_on(table)}).",
            *(f"{sentence}." for sentence in _uneven(table)),
        ]
    first = table[table["round"] == 0].iloc[0]
    if not verdict.learned(first["remaining"], first["supermask"], first["test"]):
        return [
            f"The dense network has learned nothing: {first['test']:.2f}% test accuracy, {first['supermask']:.2f}% "
            f"before training ({_rests_on(table)}). Tickets cannot be compared with it."
        ]
    arms = verdict.in_order(table["arm"])
    finders = [arm for arm in arms if verdict.finds_tickets(arm)]
    told = [_finder(arm, verdict.pruned(table, arm)) for arm in finders]
    told += [_other(arm, verdict.pruned(table, arm)) for arm in arms if arm not in finders]
    if not any(verdict.pruned(table, arm) for arm in finders):
        told.insert(0, "There is no ticket to judge yet: no pruned round of lt is finished")
    return [f"{sentence}." for sentence in [*told, *_notes(table)] if sentence]


def _finder(arm: str, rows: Sequence[Row]) -> str:
    """The sparsest winning ticket of an arm, or why it has none."""
    if not rows:
        return ""
    if max(row["trials"] for row in rows) < 2:
        return _one_trial_of_tickets(arm, rows)
    found = verdict.sparsest(rows)
    if found is None:
        return _no_winner(arm, rows)
    kept = f"{_weights(found)}{_products(found)}{_tried(found, rows)}"
    text = (
        f"The sparsest winning ticket of {arm} keeps {kept}: {found['accuracy']} than "
        f"the dense network, and it stops no later ({found['test']:.2f}% test accuracy, {_there(found)})"
    )
    after = [row for row in rows if row["round"] > found["round"]]
    return f"{text}; {_beyond(after)}" if after else text


def _beyond(after: Sequence[Row]) -> str:
    """Why the rounds after the sparsest winning ticket do not count."""
    text = f"at {_share(after[0])} the ticket is {_why_not(after[0])}"
    out = next((row for row in after if verdict.falls_out(row)), None)
    if out and out is not after[0]:
        text += f", at {_share(out)} {_why_not(out)}"
    again = [row for row in after if row["winning"]]
    return f"{text}; those at {_shares(again)} would win if judged alone" if again else text


def _no_winner(arm: str, rows: Sequence[Row]) -> str:
    if winning := [row for row in rows if row["winning"]]:
        out = next(row for row in rows if verdict.falls_out(row))
        return (
            f"No winning ticket of {arm}: those at {_shares(winning)} would win if judged alone, but already at "
            f"{_share(out)} the ticket is {_why_not(out)}"
        )
    accurate = [row for row in rows if _accurate(row)]
    best = max(accurate or rows, key=lambda row: row["difference"])
    shown = f"(best: {_there(best)}, at {_share(best)})"
    none = f"No winning ticket of {arm} down to {_weights(rows[-1])}"
    if accurate:
        late = "too late" if all(row["stop"] == LATER for row in accurate) else "perhaps too late"
        which = "tickets" if len(accurate) == len(rows) else f"those at {_shares(accurate)}"
        return f"{none}: {which} are accurate enough but stop {late} {shown}"
    if all(row["accuracy"] == WORSE for row in rows):
        return f"{none}: all are significantly worse than the dense network {shown}"
    return (
        f"Undecided: no ticket of {arm} is shown to be as good as the dense network {shown}. More trials narrow the "
        "interval"
    )


def _accurate(row: Row) -> bool:
    return row["accuracy"] in ACCURATE


def _why_not(row: Row) -> str:
    """What keeps a round from being a winning ticket."""
    if row["accuracy"] == WORSE:
        return f"significantly worse ({_points(row)})"
    if _accurate(row):
        late = "too late" if row["stop"] == LATER else "perhaps too late" if row["stop"] != NO_LATER else "winning"
        return f"{late} ({_early_stop(row)})"
    return f"undecided ({_points(row)})"


def _other(arm: str, rows: Sequence[Row]) -> str:
    """The sparsity down to which an arm is as accurate as the dense network, and the one from which it is not."""
    if not rows:
        return ""
    if max(row["trials"] for row in rows) < 2:
        return _one_trial(arm, rows)
    worse = [index for index, row in enumerate(rows) if row["accuracy"] == WORSE]
    held = [row for row in rows[: worse[0] if worse else None] if _accurate(row)]
    last = max((index for index, row in enumerate(rows) if _accurate(row)), default=-1)
    falls = next((index for index in worse if index > last), None)
    parts = []
    if held:
        parts.append(
            f"is {held[-1]['accuracy']} than the dense network down to {_weights(held[-1])} ({_there(held[-1])})"
        )
    than = "" if held else " than the dense network"
    if falls is not None and rows[-1]["accuracy"] == WORSE:
        on = f"from {_share(rows[falls])} on" if falls else "from the first pruning on"
        parts.append(f"{'' if held else 'is '}worse{than} {on} ({_points(rows[falls])} at {_share(rows[falls])})")
    elif worse:
        shares = _shares([rows[index] for index in worse])
        now = rows[-1]["accuracy"] if _accurate(rows[-1]) else "not significantly"
        parts.append(f"{'' if held else 'is '}worse{than} at {shares}, but {now} at {_share(rows[-1])}")
    if not parts:
        return f"{arm} does not differ significantly from the dense network ({_there(rows[-1])}, at {_share(rows[-1])})"
    return f"{arm} {', '.join(parts)}"


def _one_trial_of_tickets(arm: str, rows: Sequence[Row]) -> str:
    """What one trial shows, without claiming that there is a winning ticket."""
    start = f"One trial gives no interval, so no ticket of {arm} can be called a winning one: its tickets are "
    fallen = next((index for index, row in enumerate(rows) if row["difference"] < 0), len(rows))
    if not fallen:
        best = max(rows, key=lambda row: row["difference"])
        return (
            f"{start}less accurate than the dense network from the first pruning on ({_points(rows[0])}; best: "
            f"{_there(best)}, at {_share(best)})"
        )
    held = rows[fallen - 1]
    late = ": too late for a winning ticket" if held["ES_ratio"] > 1 else ""
    return (
        f"{start}no less accurate than the dense network down to {_weights(held)}{_tried(held, rows)} "
        f"({held['test']:.2f}% test accuracy, {_there(held)}{late})"
    )


def _one_trial(arm: str, rows: Sequence[Row]) -> str:
    below = [row["difference"] < 0 for row in rows]
    if not below[-1]:
        return f"{arm}, in one trial, is not below the dense accuracy at {_share(rows[-1])} ({_there(rows[-1])})"
    first = len(below) - below[::-1].index(False) if False in below else 0
    on = f"from {_share(rows[first])} on" if first else "from the first pruning on"
    return f"{arm}, in one trial, is below the dense accuracy {on} ({_there(rows[-1])}, at {_share(rows[-1])})"


def _notes(table: pd.DataFrame) -> list[str]:
    """How many trials there are, what no worse means, and whether early stop means anything."""
    told = []
    first = table[table["round"] == 0]["remaining"].mean()
    if first < 99.9:
        told.append(f"The dense network here is round 0, a ticket of {percent(first, 3)}% of the weights (--ticket)")
    if table["trials"].max() > 1:
        told.append(
            f"{_rests_on(table).capitalize()}; ±: 95% interval; no worse: the mean is not below the dense network's, "
            f"and the interval excludes a loss of more than {table['margin'].mean():.2g} points"
        )
    told += _uneven(table)
    last, all_of = verdict.late_stops(table)
    if last > all_of / 2:
        told.append(
            f"Early stop is the last evaluation in {last} of {all_of} rounds: they are too short, or evaluated "
            "too rarely, for it to mean anything"
        )
    return told


def _uneven(table: pd.DataFrame) -> list[str]:
    """The round in which trials differ most in the weights that they keep, if by more than a few: because of the user's
    own rule, or because they began with different tickets."""
    low, high = table["remaining_low"], table["remaining_high"]
    apart = ((high - low) / high).fillna(0)
    if apart.max() < UNEVEN:
        return []
    row = table.loc[apart.idxmax()]
    return [
        f"Trials of {row['arm']} keep different shares of the weights, so that their means mix sparsities: in "
        f"round {row['round']} they keep {percent(row['remaining_low'], 3)}% to {percent(row['remaining_high'], 3)}%"
    ]


def _rests_on(table: pd.DataFrame) -> str:
    least, most = int(table["trials"].min()), int(table["trials"].max())
    if most == 1:
        return "one trial"
    return f"means of {trials(most) if least == most else f'{least} to {most} trials'}"


def _share(row: Row) -> str:
    return f"{percent(row['remaining'], 3)}%"


def _shares(rows: Sequence[Row]) -> str:
    return " and ".join(map(_share, rows))


def _products(row: Row) -> str:
    """The share of the multiply-adds that remains, where they have been counted and it is not that of the weights."""
    share = "" if math.isnan(row["speedup"]) else f"{percent(100 / row['speedup'], 3)}%"
    return f" and {share} of the multiply-adds" if share not in ("", _share(row)) else ""


def _weights(row: Row) -> str:
    return f"{_share(row)} of the weights"


def _tried(row: Row, rows: Sequence[Row]) -> str:
    return ", the sparsest tried" if row["round"] == rows[-1]["round"] else ""


def _points(row: Row) -> str:
    band = "" if math.isnan(row["low"]) else f" ± {(row['high'] - row['low']) / 2:.2f}"
    return f"{row['difference']:+.2f}{band} points"


def _early_stop(row: Row) -> str:
    band = "" if math.isnan(row["ES_low"]) else f" ± {(row['ES_high'] - row['ES_low']) / 2:.2f}"
    return f"ES {row['ES_ratio']:.2f}{band} of dense"


def _there(row: Row) -> str:
    return f"{_points(row)}, {_early_stop(row)}"


def ties(at_random: int, weights: float) -> str:
    """A sentence where at least 1% of a round's surviving weights were drawn from weights with equal scores."""
    if not at_random or 100 * at_random < weights:
        return ""
    share = f"{at_random:,} of the {weights:,.0f} surviving weights ({100 * at_random / weights:.1f}%)"
    return f"{share} were drawn at random among weights of equal score, since too few have a higher one"


def about_ties(runs: Iterable[Run]) -> list[str]:
    """A sentence per arm about its first round in which ties decide 1% or more of what survives."""
    found: dict[str, str] = {}
    for run in runs:
        for number, weights in enumerate(tables.table(run, "rounds")["weights"]):
            at_random = _at_random(run.saves / f"ticket_{number:02}.safetensors")
            if run.arm not in found and (text := ties(at_random, weights)):
                found[run.arm] = f"{run.arm}, round {number}: {text}."
    return list(found.values())


def _at_random(ticket: Path) -> int:
    """How many survivors of a ticket were drawn at random, by the header of its file; 0 if it cannot be read."""
    try:
        with safetensors.safe_open(ticket, framework="np") as opened:
            return int(json.loads((opened.metadata() or {}).get("facts", "{}")).get("at_random", 0))
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError):
        return 0
