"""The verdict's table as aligned text for a terminal, and the table of a sweep."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lth.analysis import verdict
from lth.analysis.labels import percent, trials
from lth.records import tables
from lth.records.tables import Run


def render(table: pd.DataFrame, width: int) -> str:
    """The table as aligned text: one line per sparsity, as many arms side by side as fit into `width`, others below.

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
    for arm in verdict.in_order(table["arm"]):
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
    return f"{text}\n{textwrap.fill(_explanation(table), min(max(width - 1, 40), 110))}"


def _explanation(table: pd.DataFrame) -> str:
    """What the columns and marks mean."""
    dense = f"{table[table['round'] == 0]['ES'].mean():,.0f}"
    band = "" if table["low"].isna().all() else ", ± half of its 95% interval (Student's t over trials)"
    text = (
        "test: accuracy at early stop, mean over trials, in percent. vs dense: points above the trial's dense "
        f"network{band}. ES: early stop as a share of the dense network's ({dense} iterations)."
    )
    spread = table.groupby("round")["remaining"].agg(["min", "max"])
    if (spread["max"] > 1.01 * spread["min"]).any():
        text += f" weights: of {verdict.in_order(table['arm'])[0]}; other arms differ (see verdict.csv)."
    if table["winning"].any():
        text += " Winning tickets: ** better than dense and no later, * no worse and no later."
    return text


def _cells(lines: pd.DataFrame) -> tuple[str, dict[int, str]]:
    """The heading of an arm's column and its cell per round, padded to the same length."""
    usual = lines["trials"].max()
    stars = 2 if lines["winning"].any() else 1
    grid = []
    for line in lines.to_dict("records"):
        difference = f"{line['difference']:+.2f}" if line["round"] else ""
        band = "" if math.isnan(line["low"]) or not line["round"] else f" ± {(line['high'] - line['low']) / 2:.2f}"
        few = f" ({line['trials']} of {usual})" if line["trials"] < usual else ""
        mark = ("**" if line["accuracy"] == verdict.BETTER else "*") if line["winning"] else ""
        test = f"{line['test']:.2f}{mark:<{stars}}"
        grid.append([test, difference, band, f"{line['ES_ratio']:.2f}{few}"])
    first, second, third, last = (max(len(row[i]) for row in grid) for i in range(4))
    middle = max(second + third, len("vs dense"))
    heading = f"{'test' + ' ' * stars:>{first}} {'vs dense':<{middle}}  {'ES':>4}{'':{last - 4}}"
    cells = [f"{row[0]:>{first}} {f'{row[1]:>{second}}{row[2]:>{third}}':>{middle}}  {row[3]:<{last}}" for row in grid]
    return heading, dict(zip(lines["round"], cells, strict=True))


def _block(block: list[tuple[str, str, dict[int, str]]], head: list[str], left: dict[int, list[str]]) -> str:
    """Some arms side by side."""
    heads = [*("\n" + name for name in head), *(f"{name}\n{heading}" for name, heading, _ in block)]
    rows = ([*start, *(cells.get(number, "") for _, _, cells in block)] for number, start in left.items())
    # As wide as it needs: `render` has already made sure that it fits.
    return aligned(heads, [row for row in rows if any(row[len(head) :])], 10_000, right=len(head)) + "\n"


def aligned(heads: Sequence[str], rows: Iterable[Sequence[str]], width: int, right: int = 0, folded: int = 0) -> str:
    """Columns below their headings and a line, without colours, the first `right` of them aligned to the right; the
    first `folded` are broken into lines where `width` is too small."""
    ruled = box.Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)  # a line below the headings only
    # Between columns are two spaces: this padding, and the place of the box's missing vertical line.
    drawn = Table(box=ruled, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(heads):
        drawn.add_column(Text(name), justify="right" if number < right else "left", no_wrap=number >= folded)
    for row in rows:
        drawn.add_row(*map(Text, row))
    text = io.StringIO()
    Console(file=text, width=width, color_system=None, force_terminal=False, legacy_windows=False).print(drawn)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


SWEEP = ("arm", "round", "remaining", "trials", "test", "low", "high", "ES")


def sweep(groups: Iterable[tuple[Mapping[str, str], Sequence[Run]]]) -> pd.DataFrame:
    """One row per setting, arm and round: the values in which the settings differ, and SWEEP.

    `groups` are these values and the runs of each setting. remaining, test and ES are means over trials, low and high
    the 95% interval of the mean test accuracy (`verdict.accuracy_interval`), NaN with fewer than two trials.
    """
    rows = []
    names: dict[str, None] = {}
    for values, runs in groups:
        names |= dict.fromkeys(values)
        rounds = tables.lines(runs, "rounds")
        for arm in verdict.in_order(rounds["arm"]):
            for number, found in rounds[rounds["arm"] == arm].groupby("round"):
                low, high = verdict.accuracy_interval(found["test"])
                means = {name: found[name].mean() for name in ("remaining", "test", "ES")}
                about = {"arm": arm, "round": int(number), "trials": len(found), "low": low, "high": high}
                rows.append({**values, **about, **means})
    return pd.DataFrame(rows, columns=[*names, *SWEEP])


def ranked(groups: Iterable[tuple[str, Sequence[Run]]]) -> list[str]:
    """A sentence per setting, by its name and its runs: the sparsest winning tickets first, then the highest validation
    accuracy of the dense network."""
    found = []
    for name, runs in groups:
        judged = verdict.table(runs)
        arm = next(iter(verdict.in_order([run.arm for run in runs])))
        best = verdict.sparsest(verdict.pruned(judged, arm)) if verdict.finds_tickets(arm) else None
        dense = tables.lines(runs, "rounds").query("round == 0")["val"].mean()
        said = f"the sparsest winning ticket of {arm} keeps {best['remaining']:.3g}% of the weights" if best else ""
        found.append((best["remaining"] if best else 100.0, -dense, f"{name}: {said or f'no winning ticket of {arm}'}"))
    return [
        f"{place}. {sentence}; the dense network has {-dense:.2f}% validation accuracy"
        for place, (_, dense, sentence) in enumerate(sorted(found), 1)
    ]
