"""Linear mode connectivity: how far the error rises on the straight line between two trainings of one ticket."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from lth.analysis import labels, verdict
from lth.plots import style
from lth.plots.comparison import per_point, trials
from lth.records import tables
from lth.records.tables import Run
from lth.settings.arms import ARMS

SPARSITIES = 6  # of which the whole line is shown
FROM_BEFORE = "from the round before"
LIMIT = f"stable below {tables.STABLE:g} points"
Lines = Mapping[str, Sequence[Run]]  # the trials behind a line of the figure, by its name


def connectivity(runs: Sequence[Run], folder: Path, format: str = "png") -> list[Path]:
    """The error barrier of each round, a line per arm, and the error along the line between the two ends at some
    sparsities (Frankle et al. 2020, arXiv:1912.05671, Figures 2 and 5); dotted, the barrier from the end of the round
    before (Paul et al. 2023, arXiv:2210.03044). Nothing where no line was measured."""
    arms = verdict.in_order([run.arm for run in runs])
    lines = {arm: [run for run in runs if run.arm == arm] for arm in arms}
    return _drawn(lines, folder / f"connectivity.{format}", runs, between_rounds=True)


def rewind_points(groups: Sequence[Sequence[Run]], folder: Path, format: str = "png") -> list[Path]:
    """The same for several settings, as points to rewind to, a line each (an arm of each, if they have several)."""
    names = labels.told_apart(groups)
    if len({labels.title(runs[0]) for runs in groups}) == 1:  # the settings alone tell them apart
        own = labels.differing(groups)[1]
        names = [own[runs[0].plots] or name for runs, name in zip(groups, names, strict=True)]
    lines = {}
    for title, runs in zip(names, groups, strict=True):
        several = len({run.arm for run in runs}) > 1
        for arm in verdict.in_order([run.arm for run in runs]):
            lines[f"{title}: {arm}" if several else title] = [run for run in runs if run.arm == arm]
    return _drawn(lines, folder / f"connectivity.{format}", [])


def _drawn(lines: Lines, file: Path, runs: Sequence[Run], between_rounds: bool = False) -> list[Path]:
    barriers = {name: table for name, of in lines.items() if len(table := tables.barriers(of))}
    if not barriers:
        return []
    with style.sheet(file, 3.4, runs, "error on the line between two trainings of each ticket") as figure:
        panels = figure.subplots(1, 3)
        # A line of an arm has the arm's look; those of settings have the looks of arms, one after another.
        known = list(barriers) if all(name in ARMS for name in barriers) else list(ARMS)
        looks = dict(zip(barriers, itertools.cycle(style.looks(known).values()), strict=False))
        for axes, half in zip(panels, ("test", "train"), strict=False):
            for name, table in barriers.items():
                style.band(axes, table, half, name, looks[name])
                rounds = tables.barriers(lines[name], tables.ROUNDS)
                if between_rounds and len(rounds):
                    style.band(axes, rounds, half, f"{name}, {FROM_BEFORE}", replace(looks[name], dashes=(0, (1, 1))))
            axes.axhline(tables.STABLE, color=style.DARK, linestyle=(0, (4, 2)), linewidth=1, label=LIMIT)
            axes.set_ylabel(f"{'test' if half == 'test' else 'training'} error barrier (points)")
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
            style.remaining_axis(axes, pd.concat(barriers.values())["remaining"], ticks=5)
        first = next(iter(barriers))
        _along(panels[2], lines[first])
        panels[2].set_title(first if len(barriers) > 1 else "")
        counts = per_point(pd.concat([table.assign(arm=name) for name, table in barriers.items()]))
        said = "barrier: highest error on the line above the mean of its ends"
        said += f"; mean of {trials(counts)}, band from the lowest to the highest" if counts.max() > 1 else "; 1 trial"
        style.legend(figure, panels[:1], said)
    return [file]


def _along(axes: Axes, runs: Sequence[Run]) -> None:
    """The test error on the way from one end to the other, mean over trials, at some sparsities."""
    found = tables.lines(runs, "connectivity")
    found = found[found["line"] == tables.ORDERS]
    chosen = labels.spread(sorted(found["round"].unique()), SPARSITIES)
    for number, color in zip(chosen, style.shades(len(chosen)), strict=True):
        line = found[found["round"] == number]
        errors = line.groupby("point")["test_error"].mean()
        dashes = style.DASHES[chosen.index(number) % len(style.DASHES)]
        text = f"{labels.percent(line['remaining'].mean())}%"
        axes.plot(errors.index, errors, color=color, linestyle=dashes, linewidth=1.4, label=text)
    axes.set_xlabel("from one end (0) to the other (1)")
    axes.set_ylabel("test error (%)")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.35 * (high - low))  # room for its own legend
    narrow: dict[str, Any] = {"handlelength": 1.6, "columnspacing": 1.2, "fontsize": 6.5, "title_fontsize": 6.5}
    axes.legend(title="weights remaining", loc="upper center", ncols=3, frameon=False, **narrow)
