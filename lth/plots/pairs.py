"""Two trainings compared: how far the error rises on the straight line between them (linear mode connectivity), and how
far their masks overlap."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lth.analysis import labels, verdict
from lth.plots import style
from lth.records import tables
from lth.records.tables import Run
from lth.settings.arms import ARMS

SPARSITIES = 6  # whose whole line is shown
FROM_BEFORE = "from the round before"
LIMIT = f"stable below {tables.STABLE:g} points"
DOTTED = (0, (1, 1))
NUMBERED = 10  # masks up to which the matrix shows numbers
CHANCE = "random masks"


def connectivity(runs: Sequence[Run], file: Path | None = None) -> Figure | None:
    """The error barrier of each round, a line per arm, and the error along the line between the two ends at some
    sparsities (Frankle et al. 2020, arXiv:1912.05671, Figures 2 and 5); dotted, the barrier from the end of the round
    before (Paul et al. 2023, arXiv:2210.03044). None where no line was measured."""
    lines, before = (_by_arm(tables.barriers(runs, line)) for line in (tables.ORDERS, tables.ROUNDS))
    return _barriers(lines, runs, file, runs, before) if lines else None


def rewind_points(groups: Sequence[Sequence[Run]], file: Path | None = None) -> Figure | None:
    """The same for several settings, as points to rewind to: a line per setting and arm."""
    names = labels.distinct_names(groups)
    if len({labels.title(runs[0]) for runs in groups}) == 1:  # the settings alone tell them apart
        settings = labels.differing(groups)[1]
        names = [settings[runs[0].plots] or name for runs, name in zip(groups, names, strict=True)]
    lines: dict[str, pd.DataFrame] = {}
    measured = []
    for name, runs in zip(names, groups, strict=True):
        by_arm = _by_arm(tables.barriers(runs))
        lines |= {f"{name}: {arm}" if len(by_arm) > 1 else name: table for arm, table in by_arm.items()}
        measured += [runs] if by_arm else []
    return _barriers(lines, measured[0], file, [], {}) if lines else None


def _by_arm(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {arm: table[table["arm"] == arm] for arm in verdict.in_order(table["arm"])}


def _barriers(
    lines: Mapping[str, pd.DataFrame],
    first: Sequence[Run],
    file: Path | None,
    runs: Sequence[Run],
    before: Mapping[str, pd.DataFrame],
) -> Figure:
    """The barriers of each named line of the figure, and from the round `before`; and the whole path between the ends
    for the runs `first`. Names are arms if `runs` are given."""
    with style.sheet(file, 3.4, runs, "error on the line between two trainings of each ticket") as figure:
        panels = figure.subplots(1, 3)
        # A line of an arm has the arm's look; lines of settings take the looks of arms, one after another.
        looks = style.looks(list(lines if runs else ARMS)).values()
        for axes, half in zip(panels, ("test", "training"), strict=False):
            for (name, table), look in zip(lines.items(), itertools.cycle(looks), strict=False):
                style.band(axes, table, half.removesuffix("ing"), name, look)
                if name in before:
                    dotted = replace(look, dashes=DOTTED)
                    style.band(axes, before[name], half.removesuffix("ing"), f"{name}, {FROM_BEFORE}", dotted)
            axes.axhline(tables.STABLE, color=style.DARK, linestyle=(0, (4, 2)), linewidth=1, label=LIMIT)
            axes.set_ylabel(f"{half} error barrier (points)")
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
            style.remaining_axis(axes, pd.concat(lines.values())["remaining"], ticks=5)
        _along(panels[2], first)
        panels[2].set_title("\n".join(style.wrapped(next(iter(lines)), 28)) if len(lines) > 1 else "")
        averaged = style.averaged(pd.concat([table.assign(arm=name) for name, table in lines.items()]))
        style.legend(figure, panels[:1], f"barrier: highest error on the line above the mean of its ends; {averaged}")
    return figure


def _along(axes: Axes, runs: Sequence[Run]) -> None:
    """The test error of the first arm on the way from one end to the other, mean over trials, at some sparsities."""
    points = tables.combined(runs, "connectivity")
    points = next(iter(_by_arm(points[points["line"] == tables.ORDERS]).values()))
    chosen = labels.spread(sorted(points["round"].unique()), SPARSITIES)
    for number, color, dashes in zip(chosen, style.shades(len(chosen)), style.DASHES, strict=False):
        line = points[points["round"] == number]
        errors = line.groupby("point")["test_error"].mean()
        text = f"{labels.percent(line['remaining'].mean())}%"
        axes.plot(errors.index, errors, color=color, linestyle=dashes, linewidth=1.4, label=text)
    axes.set_xlabel("from one end (0) to the other (1)")
    axes.set_ylabel("test error (%)")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.35 * (high - low))  # room for its own legend
    narrow: dict[str, Any] = {"handlelength": 1.6, "columnspacing": 1.2, "fontsize": 6.5, "title_fontsize": 6.5}
    axes.legend(title="weights remaining", loc="upper center", ncols=3, frameon=False, **narrow)


def masks(runs: Sequence[Run], file: Path | None = None) -> Figure | None:
    """The Jaccard index of every two masks in the last round that all have, and by sparsity: of trials of an arm, and
    of the first arm with others in the same trial. None where there is no masks.csv in the runs' folder of plots
    (`combine_plots.py --masks`)."""
    table = runs[0].plots / "masks.csv"
    if not table.is_file():
        return None
    overlaps = pd.read_csv(table)
    overlaps = overlaps[overlaps["layer"] == "all"]
    with style.sheet(file, 4.2, runs, "overlap of masks (Jaccard index)") as figure:
        left, right = figure.subplots(1, 2)
        _matrix(left, overlaps)
        _by_sparsity(right, overlaps)
        note = f"; {CHANCE}: the middle 95%, with as many weights per layer"
        style.legend(figure, [right], f"mean over pairs, band from the lowest to the highest{note}", columns=4)
    return figure


def _matrix(axes: Axes, overlaps: pd.DataFrame) -> None:
    counts = overlaps.groupby("round").size()
    last = overlaps[overlaps["round"] == counts[counts == counts.max()].index.max()]
    ends = [overlaps[[f"arm_{end}", f"seed_{end}"]].set_axis(["arm", "seed"], axis="columns") for end in "ab"]
    arms = verdict.in_order(pd.concat(ends)["arm"])
    runs = sorted(set(pd.concat(ends).itertuples(index=False, name=None)), key=lambda run: (arms.index(run[0]), run[1]))
    values = np.full((len(runs), len(runs)), np.nan)
    for pair in last.itertuples():
        row, column = runs.index((pair.arm_a, pair.seed_a)), runs.index((pair.arm_b, pair.seed_b))
        values[row, column] = values[column, row] = pair.jaccard
    names = [f"{arm} {seed}" for arm, seed in runs]
    look: dict[str, Any] = {"annot": len(runs) <= NUMBERED, "fmt": ".2g", "annot_kws": {"fontsize": 6.5}}
    import seaborn  # here: it takes as long to load as all else together

    seaborn.heatmap(values, ax=axes, cmap="viridis", square=True, xticklabels=names, yticklabels=names, **look)
    axes.tick_params(labelsize=6.5)
    axes.set_facecolor("white")
    low, high = map(labels.percent, (last["jaccard_chance"].min(), last["jaccard_chance"].max()))
    chance = low if low == high else f"{low} to {high}"
    remaining = labels.percent(last["remaining"].mean(), 3)
    axes.set_title(f"arm and seed, {remaining}% of the weights left\n{CHANCE}: {chance} on average", fontsize=8)


def _by_sparsity(axes: Axes, overlaps: pd.DataFrame) -> None:
    """The Jaccard index relative to random masks, whose index depends on how an arm spreads weights over the layers."""
    shares = ["jaccard", "jaccard_low", "jaccard_high"]
    overlaps = overlaps.assign(**overlaps[shares].div(overlaps["jaccard_chance"], axis=0))
    same_trial = overlaps[overlaps["seed_a"] == overlaps["seed_b"]]
    arms = verdict.in_order([*overlaps["arm_a"], *overlaps["arm_b"]])
    chance = overlaps.groupby("round").agg({"remaining": "mean", "jaccard_low": "min", "jaccard_high": "max"})
    band: dict[str, Any] = {"color": style.DARK, "alpha": 0.35, "linewidth": 1.5, "label": CHANCE}
    axes.fill_between(chance["remaining"], chance["jaccard_low"], chance["jaccard_high"], **band)
    for arm, look in style.looks(arms).items():
        of_arm = overlaps[(overlaps["arm_a"] == arm) & (overlaps["arm_b"] == arm)]
        with_first = same_trial[(same_trial["arm_a"] == arms[0]) & (same_trial["arm_b"] == arm)]
        if len(of_arm):
            style.band(axes, of_arm, "jaccard", f"trials of {arm}", look)
        if arm != arms[0] and len(with_first):
            style.band(axes, with_first, "jaccard", f"{arms[0]} and {arm}", replace(look, dashes=DOTTED))
    axes.set_ylabel(f"Jaccard index / {CHANCE}")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, (1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    style.remaining_axis(axes, overlaps["remaining"], ticks=6)
