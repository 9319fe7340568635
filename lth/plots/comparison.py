"""Test accuracy and early stop against the weights remaining, arm by arm: the figure that the verdict is read from;
and the rounds of each arm as curves."""

from __future__ import annotations

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

TOGETHER = 4  # arms that one panel can show; more are grouped, each group beside the first arm
DENSE: dict[str, Any] = {"color": style.DARK, "linestyle": (0, (3, 2)), "linewidth": 1.0, "zorder": 1.5}
ONE_TRIAL = "1 trial: no winning ticket can be told from luck"
WINS: dict[str, tuple[str, dict[str, Any]]] = {  # how winning tickets are marked
    verdict.NO_WORSE: (style.LAST[1], {"marker": "o", "markersize": 8.5, "mfc": "none", "markeredgewidth": 1.1}),
    verdict.BETTER: (style.LAST[2], {"marker": "*", "markersize": 9.5, "mfc": style.DARK, "markeredgewidth": 0.5}),
}


def comparison(runs: Sequence[Run], folder: Path, format: str = "png", x: str = "remaining") -> list[Path]:
    """Write the figure of `runs` as comparison.<format> into `folder`; nothing where there is none."""
    file = folder / f"comparison{'' if x == 'remaining' else f'_{x}'}.{format}"
    return [] if draw(runs, file, x) is None else [file]


def supermask(runs: Sequence[Run], folder: Path, format: str = "png") -> list[Path]:
    """Test accuracy of the masked networks before any training, against weights remaining (Zhou et al. 2019,
    arXiv:1905.01067, Section 4). Nothing where it was not measured."""
    rounds = verdict.paired(runs).dropna(subset="supermask")
    if rounds.empty:
        return []
    file = folder / f"supermask.{format}"
    with style.sheet(file, 3.4, runs, "accuracy before training (supermasks)") as figure:
        axes = figure.subplots()
        for arm, look in style.looks(verdict.in_order(rounds["arm"])).items():
            style.band(axes, rounds[rounds["arm"] == arm], "supermask", arm, look)
        style.remaining_axis(axes, rounds["remaining"])
        axes.set_ylabel("test accuracy before training (%)")
        counts = per_point(rounds)
        band = ", band from the lowest to the highest" if counts.max() > 1 else ""
        style.legend(figure, [axes], f"mean of {trials(counts)}{band}", columns=4)
    return [file]


def draw(runs: Sequence[Run], file: Path | None = None, x: str = "remaining") -> Figure | None:
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
    table, shown = verdict.judged(rounds), rounds[rounds["remaining"] > 0]
    groups = grouped(list(rounds["arm"]))
    height = 3.7 if len(groups) == 1 else 1.0 + 2.4 * len(groups)
    with style.sheet(file, height, runs, "accuracy and early stop") as figure:
        heights = [0.22 if len(groups) > 1 else 0.001, 1] * len(groups)
        cells = figure.add_gridspec(2 * len(groups), 2, height_ratios=heights)
        lefts: list[Axes] = []
        for row, arms in enumerate(groups):
            left, right = (figure.add_subplot(cells[2 * row + 1, column]) for column in range(2))
            for axes, column in ((left, "test"), (right, "ES")):
                dense = rounds[rounds["round"] == 0].groupby("seed")[column].first().mean()
                arm_lines(axes, table, shown, arms, column, dense, marked=arms[1:] if row else arms)
                style.remaining_axis(axes, shown["remaining"], label=row == len(groups) - 1, kind=x)
            cut = style.accuracy_axis(left, shown["test"].tolist(), ends(table, "test"), least=8.0)
            style.fit(right, shown["ES"], ends(table, "ES"))
            left.set_ylabel("test accuracy (%)")
            right.set_ylabel("early stop (iteration)")
            style.iterations_axis(right.yaxis)
            say_late(right, table[table["arm"].isin(arms)])
            lefts.append(left)
            if len(groups) > 1:
                style.heading(figure.add_subplot(cells[2 * row, :]), left, arms)
        said = caption(rounds) + (f"; accuracy {cut}" if cut else "")
        style.legend(figure, lefts, said, leave_out=rounds["arm"] if len(groups) > 1 else ())
    return figure


def grouped(arms: Sequence[str]) -> list[list[str]]:
    """Arms in groups that a panel each can show, controls beside their arm. The first (lt, if it is there) is in every
    group."""
    first, *others = verdict.in_order(arms)
    rows = math.ceil(len(others) / (TOGETHER - 1)) or 1
    size = math.ceil(len(others) / rows) or 1
    return [[first, *others[i : i + size]] for i in range(0, len(others), size)] or [[first]]


def arm_lines(
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
            half = half_widths(line, column)
            if column == "test" or arm not in late:  # where early stop means nothing, its interval does not either
                low, high = line[column] - half, line[column] + half
                axes.vlines(line["remaining"], low, high, color=look.color, linewidth=0.9, alpha=0.8)
        own: dict[str, Any] = {"color": look.color, "marker": look.marker, "linestyle": look.dashes}
        own |= {"markersize": 4.5 * scale, "markeredgecolor": "white", "markeredgewidth": 0.5}
        axes.plot(line["remaining"], line[column], label=style.named(arm), linewidth=1.6 * scale, **own)
    for kind, (name, mark) in WINS.items():
        wins = table[table["winning"] & (table["accuracy"] == kind) & table["arm"].isin(marked)]
        if len(wins):
            look_of = {**mark, "markersize": mark["markersize"] * scale, "mec": style.DARK, "linestyle": "none"}
            axes.plot(wins["remaining"], wins[column], **look_of, label=name, zorder=4)
    whole = rounds[rounds["round"] == 0]["remaining"].max() > 99.9
    axes.axhline(dense, label=style.LAST[0] if whole else "the ticket of round 0", **DENSE)


def half_widths(table: pd.DataFrame, column: str) -> pd.Series:
    """Half of the 95% intervals that the verdict judges: of the difference from the dense network, for `test`; of the
    early stop relative to it, for `ES_ratio`, and in iterations, for `ES`."""
    if column == "test":
        return (table["high"] - table["low"]) / 2
    return (table["ES_high"] - table["ES_low"]) / 2 * (table["ES_dense"] if column == "ES" else 1.0)


def ends(table: pd.DataFrame, column: str) -> list[float]:
    """Both ends of these intervals."""
    if column != "test":
        table = table[~table["arm"].isin(list(verdict.late_stops(table)))]
    half = half_widths(table, column)
    return [*(table[column] - half), *(table[column] + half)]


def say_late(axes: Axes, table: pd.DataFrame) -> None:
    """A note on a panel of early stops where they are the last evaluation, and so mean nothing."""
    if late := verdict.late_stops(table):
        last, of = (sum(counts) for counts in zip(*late.values(), strict=True))
        arms = "" if set(late) == set(table["arm"]) else f"{', '.join(late)}: "
        note: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "fontsize": 7, "color": style.FAINT}
        axes.text(0.5, 0.04, f"{arms}{'always' if last == of else 'mostly'} the last evaluation", **note)


def caption(rounds: pd.DataFrame, each: bool = False) -> str:
    """What lines and bars are, and what a logarithmic axis cannot show; `each`: panels say their own trials."""
    counts = per_point(rounds)
    many = f"mean of {'the trials' if each else trials(counts)} (dots); bars: 95% interval of the comparison with dense"
    gone = "; rounds with no weights left (0%) are not shown" if (rounds["remaining"] <= 0).any() else ""
    return (many if counts.max() > 1 else ONE_TRIAL) + gone


def per_point(rounds: pd.DataFrame) -> pd.Series:
    """How many trials each point of the arms' lines is of."""
    return rounds.groupby(["arm", "round"])["seed"].nunique()


def trials(counts: pd.Series) -> str:
    """These counts in words: `3 trials`, `1 to 3 trials`."""
    return f"{counts.min()} to {labels.trials(counts.max())}" if counts.nunique() > 1 else labels.trials(counts.max())


POINTS = 100  # of a curve; more would hide each other


def training(runs: Sequence[Run], folder: Path, format: str = "png", lines: int = 6) -> list[Path]:
    """Test accuracy during training for a choice of sparsities, a panel an arm (Frankle & Carbin, Figure 3)."""
    remaining = tables.lines(runs, "rounds")[["arm", "seed", "round", "remaining"]]
    found = tables.lines(runs, "evals").merge(remaining, on=["arm", "seed", "round"])
    if found.empty:
        return []
    arms = verdict.in_order(found["arm"])
    rows = math.ceil(len(arms) / 3)
    columns = math.ceil(len(arms) / rows)
    file = folder / f"training.{format}"
    with style.sheet(file, 1.3 + 2.2 * rows, runs, "test accuracy during training") as figure:
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        chosen = labels.spread(sorted(found["round"].unique()), lines)
        colors = dict(zip(chosen, style.shades(len(chosen)), strict=True))
        found = found[found["round"].isin(chosen)].dropna(subset="test")  # see --test_freq
        window = math.ceil(found.groupby(["arm", "seed", "round"]).size().max() / POINTS)
        for arm, axes in zip(arms, panels.flat, strict=False):
            for number, group in found[found["arm"] == arm].groupby("round"):
                tested = group.groupby("iteration")["test"].agg(["mean", "count"])
                complete = tested.loc[tested["count"] == group["seed"].nunique(), "mean"]  # others are of some trials
                curve, name = thinned(complete, window), f"{labels.percent(group['remaining'].mean())}%"
                look: dict[str, Any] = {"linestyle": style.DASHES[chosen.index(number) % len(style.DASHES)]}
                look |= {"color": colors[number], "marker": "o" if len(curve) <= 12 else "", "markersize": 3}
                axes.plot(curve.index, curve, linewidth=1.4, label=name, **look)
            axes.set_title(arm)
            axes.set_xlabel("iteration")
            axes.set_xlim(0, found["iteration"].max() * 1.04)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            style.iterations_axis(axes.xaxis)
        for axes in panels.flat[len(arms) :]:
            axes.remove()
        cut = style.accuracy_axis(panels[0, 0], found["test"].tolist(), least=2.0)
        for axes in panels[:, 0]:
            axes.set_ylabel("test accuracy (%)")
        counts = per_point(found)
        said = f"weights remaining; {f'mean of {trials(counts)}' if counts.max() > 1 else '1 trial'}"
        said += f", each point that of {window} evaluations" if window > 1 else ""
        said += f"; {cut}" if cut else ""
        style.legend(figure, panels.flat[: len(arms)], said, columns=lines)
    return [file]


def thinned(curve: pd.Series, window: int) -> pd.Series:
    """Means over so many evaluations each, without an incomplete last window: single evaluations scatter more than
    sparsities differ."""
    steps = np.diff(curve.index)
    if len(steps) > 1 and steps[-1] < steps[-2]:  # a last evaluation that comes early would be a hook
        curve = curve.iloc[:-1]
    whole = curve.iloc[: max(len(curve) // window, 1) * window]
    block = np.arange(len(whole)) // window
    return whole.groupby(block).mean().set_axis(whole.index.to_series().groupby(block).mean())
