"""The verdict on lottery tickets, from the records of runs alone: a table with intervals, and one sentence."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.special import stdtrit  # Student's t quantile; scipy.stats has the same one and takes longer to load

from lth.records import files, tables
from lth.records.labels import percent, trials
from lth.records.tables import Run
from lth.settings.arms import ARMS

COLUMNS = (
    *("round", "remaining", "arm", "trials", "test", "difference", "low", "high"),
    *("ES", "ES_ratio", "ES_dense", "winning"),
)
CONFIDENCE = 0.95


def in_order(arms: Sequence[str]) -> list[str]:
    """These arms, once each, in the order of lth.settings.arms.ARMS, unknown ones last."""
    known = list(ARMS)
    return sorted(set(arms), key=lambda arm: (known.index(arm) if arm in known else len(known), arm))


def paired(runs: Sequence[Run]) -> pd.DataFrame:
    """A row a run and round: arm, seed, those of rounds.csv, and beside the run's own dense round `difference` (points
    of test accuracy) and `ES_ratio`. ValueError if the runs are not of one model, data set and settings."""
    kinds = {(run.root, run.arch_type, run.dataset, run.settings) for run in runs}
    if len(kinds) > 1:
        raise ValueError(f"runs must be of one model, data set and settings, not of {len(kinds)}")
    frames = [
        found.assign(
            arm=run.arm,
            seed=run.seed,
            # rounded, because a difference of equal means must be 0 and not what floating point leaves of it
            difference=(found["test"] - found["test"].iloc[0]).round(9),
            ES_ratio=found["ES"] / found["ES"].iloc[0],
            ES_dense=found["ES"].iloc[0],
        )
        for run in runs
        if len(found := tables.table(run, "rounds"))
    ]
    columns = [*tables.ROUNDS, "arm", "seed", "difference", "ES_ratio", "ES_dense"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row a round and arm, over the trials that have finished the round (columns COLUMNS).

    test and ES are means. difference is the mean, over trials, of test accuracy minus that of the trial's dense round;
    low and high are its 95% interval by Student's t, NaN with fewer than two trials. ES_ratio is mean ES by mean
    ES of the dense rounds (ES_dense). winning: a mean accuracy no lower and a mean ES no later than those of the dense
    network (Frankle & Carbin, Section 1). ValueError if the runs are not of one model, data set and settings.
    """
    rows = []
    for (number, arm), group in paired(runs).groupby(["round", "arm"]):
        low, high = interval(group["difference"])
        difference, ratio = round(group["difference"].mean(), 9), group["ES"].sum() / group["ES_dense"].sum()
        rows.append(
            {
                **{"round": int(number), "remaining": group["remaining"].mean(), "arm": arm, "trials": len(group)},
                **{"test": group["test"].mean(), "difference": difference, "low": low, "high": high},
                **{"ES": group["ES"].mean(), "ES_ratio": ratio, "ES_dense": group["ES_dense"].mean()},
                "winning": bool(number >= 1 and difference >= 0 and ratio <= 1),
            }
        )
    place = {arm: index for index, arm in enumerate(in_order([row["arm"] for row in rows]))}
    return pd.DataFrame(sorted(rows, key=lambda row: (row["round"], place[row["arm"]])), columns=list(COLUMNS))


def interval(differences: Sequence[float] | pd.Series) -> tuple[float, float]:
    """The 95% interval of the mean of paired differences by Student's t; NaN for fewer than two."""
    values = pd.Series(differences, dtype=float)
    if len(values) < 2:
        return math.nan, math.nan
    half = stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def write(table: pd.DataFrame, folder: Path) -> Path:
    """Write verdict.csv into a folder."""
    file = folder / "verdict.csv"
    files.write(file, table.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode())
    return file


def sentence(table: pd.DataFrame) -> str:
    """The verdict in one sentence: the sparsest winning ticket, and where the reinitialised arms fall off."""
    if table.empty:
        return "No round is finished yet."
    least, most = int(table["trials"].min()), int(table["trials"].max())
    means = f"means of {trials(most) if least == most else f'{least} to {most} trials'}"
    if most == 1:
        means = "this is one trial, so there is no interval"
    if table["round"].max() == 0:
        dense = table.iloc[0]
        return (
            f"Only the dense network has been trained so far: {dense['test']:.2f}% test accuracy at "
            f"iteration {dense['ES']:,.0f}; {means}."
        )
    parts = [_winning(table)]
    parts += [_falling(table, arm) for arm in in_order(table["arm"]) if arm in ARMS and ARMS[arm].start == "fresh"]
    return "; ".join(part for part in [*parts, means] if part) + "."


def _winning(table: pd.DataFrame) -> str:
    """Which is the sparsest winning ticket."""
    lines = table[(table["arm"] == "lt") & (table["round"] >= 1)]
    if lines.empty:
        return "Without pruned rounds of lt there is no ticket to judge"
    sparsest = percent(lines["remaining"].iloc[-1], 3)
    found = lines[lines["winning"]]
    if found.empty:
        close = lines.loc[lines["difference"].idxmax()]
        return (
            f"No ticket of lt down to {sparsest}% of the weights is a winning one "
            f"(the best test accuracy is {close['difference']:+.2f} points from the dense network's, "
            f"at {percent(close['remaining'], 3)}%)"
        )
    best = found.iloc[-1]
    band = "" if math.isnan(best["low"]) else f" ± {(best['high'] - best['low']) / 2:.2f}"
    last = ", the sparsest tried" if best["round"] == lines["round"].max() else ""
    return (
        f"The sparsest winning ticket keeps {percent(best['remaining'], 3)}% of the weights{last} "
        f"({best['test']:.2f}% test accuracy, {best['difference']:+.2f}{band} points from the dense network's, "
        f"early stop at {best['ES_ratio']:.2f} of its iteration)"
    )


def _falling(table: pd.DataFrame, arm: str) -> str:
    """From which sparsity on a reinitialised arm stays below the dense accuracy."""
    lines = table[(table["arm"] == arm) & (table["round"] >= 1)]
    if lines.empty:
        return ""
    below = (lines["difference"] < 0).tolist()
    if not below[-1]:
        return f"{arm} has not fallen below the dense accuracy for good by {percent(lines['remaining'].iloc[-1], 3)}%"
    first = len(below) - below[::-1].index(False) if False in below else 0
    if first == 0:
        return f"{arm} is below the dense accuracy from the first pruning on"
    on = ", the sparsest tried" if first == len(below) - 1 else " on"
    return f"{arm} is below the dense accuracy from {percent(lines['remaining'].iloc[first], 3)}%{on}"


EXPLANATION = (
    "test: accuracy at early stop, mean over trials, in percent. vs dense: points above the trial's dense network{ci}. "
    "ES: early stop as a share of the dense network's ({dense} iterations). *: winning ticket, no less accurate and no "
    "later than dense."
)


def render(table: pd.DataFrame, width: int) -> str:
    """The table as aligned text: a line a sparsity, as many arms side by side as fit into `width`, others below.

    Plain characters only. A line is never wrapped: where `width` holds not even one arm, lines are longer.
    """
    if table.empty:
        return ""
    rounds = table.drop_duplicates("round").set_index("round")["remaining"]
    head = ["round", "weights"]
    left = {number: [f"{number}", f"{percent(value, 3, pad=True)}%"] for number, value in rounds.items()}
    fixed = sum(max(len(row[i]) for row in [head, *left.values()]) + 2 for i in range(2))
    blocks: list[list[tuple[str, str, dict[int, str]]]] = []
    used = width + 1
    for arm in in_order(table["arm"]):
        lines = table[table["arm"] == arm]
        heading, cells = _cells(lines)
        name = f"{arm}, {trials(int(lines['trials'].max()))}"
        size = max(len(name), len(heading)) + 2
        if used + size > width:
            blocks.append([])
            used = fixed
        blocks[-1].append((name, heading, cells))
        used += size
    text = "\n".join(_block(block, head, left) for block in blocks)
    ci = "" if table["low"].isna().all() else ", with its 95% interval (Student's t over trials)"
    dense = f"{table[table['round'] == 0]['ES'].mean():,.0f}"
    return text + "\n" + textwrap.fill(EXPLANATION.format(ci=ci, dense=dense), min(max(width - 1, 40), 110))


def _cells(lines: pd.DataFrame) -> tuple[str, dict[int, str]]:
    """The heading of an arm's column and its cell for each round, of equal lengths."""
    usual = lines["trials"].max()
    grid = []
    for line in lines.to_dict("records"):
        difference = f"{line['difference']:+.2f}" if line["round"] else ""
        band = "" if math.isnan(line["low"]) or not line["round"] else f" ± {(line['high'] - line['low']) / 2:.2f}"
        few = f" ({line['trials']} of {usual})" if line["trials"] < usual else ""
        test = f"{line['test']:.2f}{'*' if line['winning'] else ' '}"
        grid.append([test, difference, band, f"{line['ES_ratio']:.2f}{few}"])
    first, second, third, last = (max(len(row[i]) for row in grid) for i in range(4))
    middle = max(second + third, len("vs dense"))
    heading = f"{'test ':>{first}} {'vs dense':<{middle}}  {'ES':>4}{'':{last - 4}}"
    cells = [f"{row[0]:>{first}} {f'{row[1]:>{second}}{row[2]:>{third}}':>{middle}}  {row[3]:<{last}}" for row in grid]
    return heading, dict(zip(lines["round"], cells, strict=True))


def _block(block: list[tuple[str, str, dict[int, str]]], head: list[str], left: dict[int, list[str]]) -> str:
    """Some arms side by side."""
    ruled = box.Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)  # a line below the headings only
    # Between columns are two spaces: this padding, and the place of the box's missing vertical line.
    drawn = Table(box=ruled, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in head:
        drawn.add_column(Text("\n" + name), justify="right", no_wrap=True)
    for name, heading, _ in block:
        drawn.add_column(Text(f"{name}\n{heading}"), no_wrap=True)
    for number, start in left.items():
        cells = [cells.get(number, "") for _, _, cells in block]
        if any(cells):
            drawn.add_row(*map(Text, [*start, *cells]))
    text = io.StringIO()
    # As wide as it needs: `render` has already seen to it that it fits.
    console = Console(file=text, width=10_000, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(drawn)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
