"""Test accuracy and early stop against the weights remaining, arm by arm: the figure that the verdict is read from, of
one experiment or of several side by side; and accuracies before and during training."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lth.analysis import labels, verdict
from lth.plots import style
from lth.records import tables
from lth.records.tables import Run

ARMS_PER_PANEL = 4  # with more arms there are several panels, the first arm in each
ACROSS = 3  # panels side by side
POINTS = 100  # of a curve; more would hide each other
DENSE: dict[str, Any] = {"color": style.DARK, "linestyle": (0, (3, 2)), "linewidth": 1.0, "zorder": 1.5}
WINS: dict[str, tuple[str, dict[str, Any]]] = {  # how winning tickets are marked
    verdict.NO_WORSE: (style.LAST[1], {"marker": "o", "markersize": 8.5, "mfc": "none", "markeredgewidth": 1.1}),
    verdict.BETTER: (style.LAST[2], {"marker": "*", "markersize": 9.5, "mfc": style.DARK, "markeredgewidth": 0.5}),
}


def comparison(runs: Sequence[Run], file: Path | None = None, x: str = "remaining") -> Figure | None:
    """Test accuracy at early stop, and the iteration of early stop, against weights remaining (Frankle & Carbin,
    Figure 4): means over trials with the intervals that the verdict judges, and single trials as dots. A row per group
    of arms.

    `x` (a name in lth/plots/style.py, SPARSITY) may be multiply-adds or compression instead (Blalock et al. 2020,
    arXiv:2003.03033); no figure if they were not counted.
    """
    rounds = verdict.paired(runs)
    if x == "flops":
        rounds = rounds[rounds["macs"].notna()]
        rounds = rounds.assign(remaining=100 * rounds["macs"] / rounds["dense_macs"])
    if rounds.empty:
        return None
    table, points = verdict.judged(rounds), rounds[rounds["remaining"] > 0]
    groups = grouped(list(rounds["arm"]))
    many_groups = len(groups) > 1
    height = 1.0 + 2.4 * len(groups) if many_groups else 3.7
    with style.sheet(file, height, runs, "accuracy and early stop") as figure:
        cells = figure.add_gridspec(2 * len(groups), 2, height_ratios=[0.22 if many_groups else 0.001, 1] * len(groups))
        lefts: list[Axes] = []
        for row, arms in enumerate(groups):
            left, right = (figure.add_subplot(cells[2 * row + 1, column]) for column in range(2))
            for axes, column in ((left, "test"), (right, "ES")):
                dense = rounds[rounds["round"] == 0].groupby("seed")[column].first().mean()
                _lines(axes, table, points, arms, column, dense, marked=arms[1:] if row else arms)
                style.remaining_axis(axes, points["remaining"], label=row == len(groups) - 1, kind=x)
            cut = style.accuracy_axis(left, points["test"], _ends(table, "test"), least=8.0)
            style.fit(right, points["ES"], _ends(table, "ES"))
            left.set_ylabel("test accuracy (%)")
            right.set_ylabel("early stop (iteration)")
            style.iterations_axis(right.yaxis)
            _note_late(right, table[table["arm"].isin(arms)])
            lefts.append(left)
            if many_groups:
                style.heading(figure.add_subplot(cells[2 * row, :]), left, arms)
        caption = _caption(rounds, labels.trials(style.per_point(rounds))) + (f"; {cut}" if cut else "")
        style.legend(figure, lefts, caption, leave_out=rounds["arm"] if many_groups else ())
    return figure


def grid(groups: Sequence[Sequence[Run]], file: Path | None = None) -> Figure | None:
    """Groups of runs side by side, each of one model, data set and settings: accuracy above, early stop relative to
    the dense network below. Where two things differ, one differs along rows and the other along columns. One y axis
    serves all panels of one model and data set. Groups of many arms have several panels. None where no round is
    finished."""
    finished = [(runs, rounds) for runs in groups if len(rounds := verdict.paired(runs))]
    if not finished:
        return None
    order, across = labels.rows_and_columns([runs for runs, _ in finished], ACROSS)
    finished = [finished[place] for place in order]
    panels = [(run, rounds, arms) for (run, *_), rounds in finished for arms in grouped(list(rounds["arm"]))]
    across = across if len(panels) == len(finished) else min(len(panels), ACROSS)
    down = math.ceil(len(panels) / across)
    shared, own = labels.differing([runs for runs, _ in finished])
    width = max(3.6, style.WIDTH * across / ACROSS)
    all_rounds = pd.concat([rounds for _, rounds in finished])
    same_model = len({labels.title(run) for run, _, _ in panels}) == 1
    with style.sheet(file, 0.9 + 4.0 * down, [], "accuracy and early stop", width, shared) as figure:
        axes = figure.subplots(2 * down, across, squeeze=False, sharey="row" if same_model else False)
        pairs = list(zip(axes[::2].flat, axes[1::2].flat, strict=True))
        drawn: list[tuple[pd.DataFrame, pd.DataFrame]] = []
        for (_, rounds, arms), (upper, lower) in zip(panels, pairs, strict=False):
            drawn.append(_panel(upper, lower, rounds, arms))
        cut = ""
        for place, ((run, rounds, arms), (upper, lower)) in enumerate(zip(panels, pairs, strict=False)):
            table, points = map(pd.concat, zip(*(drawn if same_model else drawn[place : place + 1]), strict=True))
            cut = style.accuracy_axis(upper, points["test"], _ends(table, "test"))
            style.fit(lower, [1.0, *points["ES_ratio"]], _ends(table, "ES_ratio"))
            heading = [labels.title(run), *style.wrapped(own[run.plots], 34)]
            heading += [labels.trials(style.per_point(rounds[rounds["arm"].isin(arms)]))]
            upper.set_title("\n".join(heading + ([cut] if cut and not same_model else [])), fontsize=7.5)
        for unused in itertools.chain(*pairs[len(panels) :]):
            unused.remove()
        for row in range(down):
            axes[2 * row, 0].set_ylabel("test accuracy (%)")
            axes[2 * row + 1, 0].set_ylabel("early stop / dense")
        parts = [_caption(all_rounds, "the trials"), cut if same_model else "scales differ"]
        uppers = [upper for upper, _ in pairs[: len(panels)]]
        style.legend(figure, uppers, "; ".join(filter(None, parts)), columns=max(across, 2) + 1)
    return figure


def _panel(upper: Axes, lower: Axes, rounds: pd.DataFrame, arms: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw one group of arms, and return its verdict and rounds."""
    table = verdict.judged(rounds)
    dense = rounds[rounds["round"] == 0].groupby("seed")["test"].first().mean()
    # As in the table: the ratio of means, not the mean of the trials' ratios.
    mean = rounds.groupby(["arm", "round"])["ES_dense"].transform("mean")
    points = rounds.assign(ES_ratio=rounds["ES"] / mean)[rounds["remaining"] > 0]
    for axes, column, value in ((upper, "test", dense), (lower, "ES_ratio", 1.0)):
        _lines(axes, table, points, arms, column, value, marked=arms, scale=0.75)
        style.remaining_axis(axes, points["remaining"], ticks=5, label=axes is lower)
        axes.xaxis.label.set_fontsize(7.5)  # no wider than a panel
    _note_late(lower, table[table["arm"].isin(arms)])
    return table, points


def grouped(arms: Sequence[str]) -> list[list[str]]:
    """Arms in groups, a panel each, controls next to their arm. The first arm (lt, if present) is in every group."""
    first, *others = verdict.in_order(arms)
    rows = math.ceil(len(others) / (ARMS_PER_PANEL - 1)) or 1
    size = math.ceil(len(others) / rows) or 1
    return [[first, *others[i : i + size]] for i in range(0, len(others), size)] or [[first]]


def _lines(
    axes: Axes,
    table: pd.DataFrame,
    rounds: pd.DataFrame,
    arms: Sequence[str],
    column: str,
    dense: float,
    marked: Sequence[str],
    scale: float = 1.0,
) -> None:
    """A line per arm with its intervals and single trials, marks on the winning tickets of the arms `marked`, and the
    dense network's value. `table` is the verdict on `rounds`."""
    table, late = table[table["remaining"] > 0], verdict.late_stops(table)
    for arm, look in style.looks(arms).items():
        line, trials = table[table["arm"] == arm], rounds[rounds["arm"] == arm]
        if line["trials"].max() > 1:
            dots: dict[str, Any] = {"color": look.color, "marker": ".", "markersize": 3.5 * scale, "alpha": 0.4}
            axes.plot(trials["remaining"], trials[column], linestyle="none", markeredgewidth=0, **dots)
            half = _half_widths(line, column)
            if column == "test" or arm not in late:  # where early stop means nothing, its interval does not either
                low, high = line[column] - half, line[column] + half
                axes.vlines(line["remaining"], low, high, color=look.color, linewidth=0.9, alpha=0.8)
        style.line(axes, line["remaining"], line[column], arm, look, scale)
    for kind, (name, mark) in WINS.items():
        wins = table[table["winning"] & (table["accuracy"] == kind) & table["arm"].isin(marked)]
        if len(wins):
            sized = {**mark, "markersize": mark["markersize"] * scale, "mec": style.DARK, "linestyle": "none"}
            axes.plot(wins["remaining"], wins[column], **sized, label=name, zorder=4)
    dense_start = rounds[rounds["round"] == 0]["remaining"].max() > 99.9
    axes.axhline(dense, label=style.LAST[0] if dense_start else "the ticket of round 0", **DENSE)


def _half_widths(table: pd.DataFrame, column: str) -> pd.Series:
    """Half of the 95% intervals that the verdict judges: for `test`, of the difference from the dense network; for
    `ES_ratio`, of early stop relative to it; for `ES`, the same in iterations."""
    if column == "test":
        return (table["high"] - table["low"]) / 2
    return (table["ES_high"] - table["ES_low"]) / 2 * (table["ES_dense"] if column == "ES" else 1.0)


def _ends(table: pd.DataFrame, column: str) -> list[float]:
    """Both ends of the intervals of `_half_widths`."""
    if column != "test":
        table = table[~table["arm"].isin(list(verdict.late_stops(table)))]
    half = _half_widths(table, column)
    return [*(table[column] - half), *(table[column] + half)]


def _note_late(axes: Axes, table: pd.DataFrame) -> None:
    """Note on a panel that early stops are the last evaluation, and so mean nothing."""
    if late := verdict.late_stops(table):
        last, of = (sum(counts) for counts in zip(*late.values(), strict=True))
        arms = "" if set(late) == set(table["arm"]) else f"{', '.join(late)}: "
        note: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "fontsize": 7, "color": style.FAINT}
        axes.text(0.5, 0.04, f"{arms}{'always' if last == of else 'mostly'} the last evaluation", **note)


def _caption(rounds: pd.DataFrame, trials: str) -> str:
    """A caption: what lines and bars show, and what a logarithmic axis cannot."""
    several = f"mean of {trials} (dots); bars: 95% interval of the comparison with dense"
    empty = "; rounds with no weights left (0%) are not shown" if (rounds["remaining"] <= 0).any() else ""
    single = "1 trial: no winning ticket can be told from luck"
    return (several if style.per_point(rounds).max() > 1 else single) + empty


def supermask(runs: Sequence[Run], file: Path | None = None) -> Figure | None:
    """Test accuracy of the masked networks before any training, against weights remaining (Zhou et al. 2019,
    arXiv:1905.01067, Section 4). None where it was not measured."""
    rounds = tables.combined(runs, "rounds").dropna(subset="supermask")
    if rounds.empty:
        return None
    with style.sheet(file, 3.4, runs, "accuracy before training (supermasks)") as figure:
        axes = figure.subplots()
        for arm, look in style.looks(verdict.in_order(rounds["arm"])).items():
            style.band(axes, rounds[rounds["arm"] == arm], "supermask", arm, look)
        style.remaining_axis(axes, rounds["remaining"])
        axes.set_ylabel("test accuracy before training (%)")
        style.legend(figure, [axes], style.averaged(rounds), columns=4)
    return figure


def training(runs: Sequence[Run], file: Path | None = None, lines: int = 6) -> Figure | None:
    """Test accuracy during training for a choice of sparsities, a panel per arm (Frankle & Carbin, Figure 3)."""
    remaining = tables.combined(runs, "rounds")[["arm", "seed", "round", "remaining"]]
    evals = tables.combined(runs, "evals").merge(remaining, on=["arm", "seed", "round"])
    if evals.empty:
        return None
    arms = verdict.in_order(evals["arm"])
    rows = math.ceil(len(arms) / ACROSS)
    columns = math.ceil(len(arms) / rows)
    chosen = labels.spread(sorted(evals["round"].unique()), lines)
    evals = evals[evals["round"].isin(chosen)].dropna(subset="test")  # see --test_freq
    window = math.ceil(evals.groupby(["arm", "seed", "round"]).size().max() / POINTS)
    with style.sheet(file, 1.3 + 2.2 * rows, runs, "test accuracy during training") as figure:
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for arm, axes in zip(arms, panels.flat, strict=False):
            for place, (number, color) in enumerate(zip(chosen, style.shades(len(chosen)), strict=True)):
                group = evals[(evals["arm"] == arm) & (evals["round"] == number)]
                if group.empty:  # of an arm that is behind
                    continue
                tested = group.groupby("iteration")["test"].agg(["mean", "count"])
                complete = tested.loc[tested["count"] == group["seed"].nunique(), "mean"]  # others are of some trials
                curve, name = thinned(complete, window), f"{labels.percent(group['remaining'].mean())}%"
                look: dict[str, Any] = {"color": color, "linestyle": style.DASHES[place % len(style.DASHES)]}
                look |= {"marker": "o" if len(curve) <= 12 else "", "markersize": 3}
                axes.plot(curve.index, curve, linewidth=1.4, label=name, **look)
            axes.set_title(arm)
            axes.set_xlabel("iteration")
            axes.set_xlim(0, evals["iteration"].max() * 1.04)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            style.iterations_axis(axes.xaxis)
        for axes in panels.flat[len(arms) :]:
            axes.remove()
        cut = style.accuracy_axis(panels[0, 0], evals["test"], least=2.0)
        for axes in panels[:, 0]:
            axes.set_ylabel("test accuracy (%)")
        notes = [f"weights remaining; {style.averaged(evals, band='')}", cut]
        notes[0] += f", each point the mean of {window} evaluations" if window > 1 else ""
        style.legend(figure, panels.flat[: len(arms)], "; ".join(filter(None, notes)), columns=lines)
    return figure


def thinned(curve: pd.Series, window: int) -> pd.Series:
    """Means over so many evaluations each, without an incomplete last window: single evaluations scatter more than
    sparsities differ."""
    steps = np.diff(curve.index)
    if len(steps) > 1 and steps[-1] < steps[-2]:  # a last evaluation that comes early would be a hook
        curve = curve.iloc[:-1]
    complete = curve.iloc[: max(len(curve) // window, 1) * window]
    block = np.arange(len(complete)) // window
    return complete.groupby(block).mean().set_axis(complete.index.to_series().groupby(block).mean())
