"""The verdict's table as aligned text for a terminal, and the table of a sweep."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

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
    rounds = table.drop_duplicates("round").set_index("round", drop=False)
    shares = rounds["remaining"].map(lambda value: f"{percent(value, 3, pad=True)}%")
    left = _column("", pd.DataFrame({"round": rounds["round"].astype(str), " weights": shares}))
    blocks: list[list[pd.Series]] = []
    used = width
    for arm in verdict.in_order(table["arm"]):
        lines = table[table["arm"] == arm].set_index("round")
        column = _column(f"{arm}, {trials(lines['trials'].max())}", _cells(lines))
        if used + 2 + len(column["name"]) > width:
            blocks.append([])
            used = len(left["name"])
        blocks[-1].append(column)
        used += 2 + len(column["name"])
    text = "\n\n".join(_block(left, columns) for columns in blocks)
    return f"{text}\n\n{textwrap.fill(_explanation(table), min(max(width - 1, 40), 110))}"


def _cells(lines: pd.DataFrame) -> pd.DataFrame:
    """What the table shows of an arm's rounds, as text."""
    most = lines["trials"].max()
    mark = lines["accuracy"].map({verdict.BETTER: "**", verdict.NO_WORSE: "*"}).where(lines["winning"], "")
    band = ((lines["high"] - lines["low"]) / 2).map(" ± {:.2f}".format, na_action="ignore").fillna("")
    few = lines["trials"].map(f" ({{}} of {most})".format).where(lines["trials"] < most, "")
    marks, fews = mark.str.len().max(), few.str.len().max()
    cells = {
        f"test{'':{marks}}": lines["test"].map("{:.2f}".format) + mark.str.ljust(marks),
        "vs dense": (lines["difference"].map("{:+.2f}".format) + band).where(lines.index > 0, ""),
        f" ES{'':{fews}}": lines["ES_ratio"].map(" {:.2f}".format) + few.str.ljust(fews),
    }
    return pd.DataFrame(cells)


def _column(name: str, cells: pd.DataFrame) -> pd.Series:
    """Cells as one text per line, all of the same length, below a name and their headings."""
    column = pd.Series([name, *cells.to_string(index=False).splitlines()], index=["name", "headings", *cells.index])
    return column.str.ljust(column.str.len().max())


def _block(left: pd.Series, columns: Sequence[pd.Series]) -> str:
    """Some arms side by side."""
    block = pd.concat(columns, axis=1)
    block.insert(0, "left", left)
    padded = block.apply(lambda column: column.fillna(" " * len(column["name"])))
    head, headings, *lines = (line.rstrip() for line in padded.agg("  ".join, axis=1))
    return "\n".join([head, headings, "-" * max(map(len, (head, headings, *lines))), *lines])


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


SWEEP = ("arm", "round", "remaining", "trials", "test", "low", "high", "ES")


def sweep(groups: Iterable[tuple[Mapping[str, str], Sequence[Run]]]) -> pd.DataFrame:
    """One row per setting, arm and round: the values in which the settings differ, and SWEEP.

    `groups` are these values and the runs of each setting. remaining, test and ES are means over trials, low and high
    the 95% interval of the mean test accuracy (`verdict.accuracy_interval`), NaN with fewer than two trials.
    """
    frames = []
    for values, runs in groups:
        rounds = tables.combined(runs, "rounds")
        for arm in verdict.in_order(rounds["arm"]):
            by_round = rounds[rounds["arm"] == arm].groupby("round")
            means = by_round[["remaining", "test", "ES"]].mean().assign(arm=arm, trials=by_round.size(), **values)
            means[["low", "high"]] = [verdict.accuracy_interval(accuracies) for _, accuracies in by_round["test"]]
            frames.append(means.reset_index()[[*values, *SWEEP]])
    return pd.concat(frames, ignore_index=True)


def ranked(groups: Iterable[tuple[str, Sequence[Run]]]) -> list[str]:
    """A sentence per setting, by its name and its runs: the sparsest winning tickets first, then the highest validation
    accuracy of the dense network."""
    ranking = []
    for name, runs in groups:
        judged = verdict.table(runs)
        arm = next(iter(verdict.in_order([run.arm for run in runs])))
        best = verdict.sparsest(verdict.pruned(judged, arm)) if verdict.finds_tickets(arm) else None
        dense = tables.combined(runs, "rounds").query("round == 0")["val"].mean()
        remaining, sentence = 100.0, f"{name}: no winning ticket of {arm}"
        if best:
            remaining = best["remaining"]
            sentence = f"{name}: the sparsest winning ticket of {arm} keeps {remaining:.3g}% of the weights"
        ranking.append((remaining, -dense, sentence))
    return [
        f"{place}. {sentence}; the dense network has {-dense:.2f}% validation accuracy"
        for place, (_, dense, sentence) in enumerate(sorted(ranking), 1)
    ]
