"""Figures of accuracy, early stop and surviving weights, from records alone. main.py and combine_plots.py draw these.

Each function takes runs of one model, data set and settings, writes into a folder and gives the files written: none
where there is nothing to show. Pictures of the weights themselves are in lth/plots/weights.py.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lth.plots import style, weights
from lth.records import labels, tables, verdict
from lth.records.files import RecordError
from lth.records.tables import Run
from lth.records.tickets import Damaged

FEW_LAYERS = 6  # that lines can tell apart; more become a heat map
MARKERS = "osD^vP"
POINTS = 100  # of a training curve; more would hide each other
DENSE: dict[str, Any] = {"color": style.DARK, "linestyle": (0, (3, 2)), "linewidth": 1.0, "zorder": 1.5}


def _warn(problem: str) -> None:
    warnings.warn(problem, stacklevel=3)


def draw_all(
    runs: Sequence[Run], folder: Path, format: str = "png", complain: Callable[[str], object] = _warn
) -> list[Path]:
    """Draw every figure there is. One that cannot be drawn, because a file is damaged, is reported to `complain`."""
    written = []
    for draw in (comparison, training, layers, weights.first_layer, weights.initial_weights):
        try:
            written += draw(runs, folder, format)
        except (RecordError, Damaged) as error:
            complain(f"no {draw.__name__}.{format}: {error}")
    return written


def comparison(runs: Sequence[Run], folder: Path, format: str = "png") -> list[Path]:
    """Test accuracy at early stop, and the iteration of early stop, against weights remaining (Frankle & Carbin,
    Figure 4): mean over trials, with a band from the lowest to the highest trial."""
    rounds = verdict.paired(runs)
    if rounds.empty:
        return []
    file = folder / f"comparison.{format}"
    with style.sheet(file, 3.6, runs, "accuracy and early stop by sparsity") as figure:
        left, right = figure.subplots(1, 2)
        wins = verdict.table(runs).query("arm == 'lt' and winning")
        for axes, column in ((left, "test"), (right, "ES")):
            dense = rounds[rounds["round"] == 0].groupby("seed")[column].first().mean()
            arm_lines(axes, rounds, column, dense)
            if len(wins):
                ring = {"markersize": 8, "markerfacecolor": "none", "markeredgecolor": style.DARK}
                axes.plot(wins["remaining"], wins[column], "o", **ring, label="winning ticket of lt", zorder=4)
            style.remaining_axis(axes, rounds["remaining"])
        mark_below(left, rounds, style.accuracy_axis(left, rounds["test"].tolist()))
        left.set_ylabel("test accuracy at early stop (%)")
        right.set_ylabel("early stop (iteration)")
        right.set_ylim(0, rounds["ES"].max() * 1.08)
        style.iterations_axis(right.yaxis)
        style.legend(figure, [left], caption(rounds))
    return [file]


def caption(rounds: pd.DataFrame) -> str:
    """What lines and bands are, and what a logarithmic axis cannot show."""
    counts = rounds[rounds["round"] == 0].groupby("arm")["seed"].nunique()
    said = _trials(counts)
    parts = [f"mean of {said}, band from the lowest to the highest" if counts.max() > 1 else said]
    if (rounds["remaining"] <= 0).any():
        parts.append("rounds with no weights left (0%) are not shown")
    return "; ".join(parts)


def _trials(counts: pd.Series) -> str:
    """How many trials the arms have: `3 trials`, `1 to 3 trials`."""
    return f"{counts.min()} to {labels.trials(counts.max())}" if counts.nunique() > 1 else labels.trials(counts.max())


def arm_lines(axes: Axes, rounds: pd.DataFrame, column: str, dense: float, scale: float = 1.0) -> None:
    """A line an arm: mean over trials, and the band between the lowest and the highest; the dense network's value."""
    shown = rounds[rounds["remaining"] > 0]
    for arm in verdict.in_order(shown["arm"]):
        by_round = shown[shown["arm"] == arm].groupby("round")
        x, values = by_round["remaining"].mean(), by_round[column]
        axes.plot(x, values.mean(), label=arm, **style.line(arm, scale))
        if (values.count() > 1).any():
            axes.fill_between(x, values.min(), values.max(), color=style.look(arm).color, alpha=0.18, linewidth=0)
    axes.axhline(dense, label="dense network", **DENSE)


def mark_below(axes: Axes, rounds: pd.DataFrame, limit: float, what: str = "below this axis: down to") -> None:
    """Mark mean accuracies that lie below the axis at its edge, and say how low they go."""
    shown = rounds[rounds["remaining"] > 0]
    means = shown.groupby(["arm", "round"])[["remaining", "test"]].mean()
    for (arm, _), point in means[means["test"] < limit].iterrows():
        axes.plot(point["remaining"], limit, "v", color=style.look(arm).color, clip_on=False, markersize=5, zorder=5)
    style.note_below(axes, shown["test"].tolist(), limit, what=what)


def training(runs: Sequence[Run], folder: Path, format: str = "png", lines: int = 6) -> list[Path]:
    """Test accuracy during training for a choice of sparsities, a panel an arm (Frankle & Carbin, Figure 3)."""
    found = _evaluations(runs)
    if found.empty:
        return []
    arms = verdict.in_order(found["arm"])
    rows = math.ceil(len(arms) / 3)
    columns = math.ceil(len(arms) / rows)
    file = folder / f"training.{format}"
    with style.sheet(file, 1.4 + 2.4 * rows, runs, "test accuracy during training") as figure:
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        chosen = labels.spread(sorted(found["round"].unique()), lines)
        colors = dict(zip(chosen, style.shades(len(chosen)), strict=True))
        found = found[found["round"].isin(chosen)]
        window = math.ceil(found.groupby(["arm", "seed", "round"]).size().max() / POINTS)
        for arm, axes in zip(arms, panels.flat, strict=False):
            for number, group in found[found["arm"] == arm].groupby("round"):
                curve = thinned(group.groupby("iteration")["test"].mean(), window)
                marker = "o" if len(curve) <= 12 else ""
                name = f"{labels.percent(group['remaining'].mean())}%"
                line = {
                    "linestyle": style.DASHES[chosen.index(number) % len(style.DASHES)],
                    "linewidth": 1.4,
                    "markersize": 3,
                }
                axes.plot(curve.index, curve, marker=marker, color=colors[number], label=name, **line)
            axes.set_title(arm)
            axes.set_xlim(0, found["iteration"].max() * 1.04)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            style.iterations_axis(axes.xaxis)
        for axes in panels.flat[len(arms) :]:
            axes.set_visible(False)
        limit = style.accuracy_axis(panels[0, 0], found["test"].tolist(), least=2.0)
        for arm, axes in zip(arms, panels.flat, strict=False):
            style.note_below(axes, found[found["arm"] == arm]["test"].tolist(), limit, "right")
        for axes in panels[:, 0]:
            axes.set_ylabel("test accuracy (%)")
        for axes in panels.flat[max(len(arms) - columns, 0) : len(arms)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("iteration")
        counts = found.groupby("arm")["seed"].nunique()
        said = f"weights remaining; {f'mean of {_trials(counts)}' if counts.max() > 1 else '1 trial'}"
        said += f", each point that of {window} evaluations" if window > 1 else ""
        style.legend(figure, panels.flat, said, columns=lines)
    return [file]


def thinned(curve: pd.Series, window: int) -> pd.Series:
    """Means over so many evaluations each: single ones scatter more than sparsities differ."""
    block = np.arange(len(curve)) // window
    means = curve.groupby(block).mean()
    return means.set_axis(curve.index.to_series().groupby(block).mean())


def _evaluations(runs: Sequence[Run]) -> pd.DataFrame:
    """The evaluations of all finished rounds: those of evals.csv, arm, seed, remaining."""
    frames = []
    for run in runs:
        rounds, evals = tables.table(run, "rounds"), tables.table(run, "evals")
        if len(rounds) and len(evals):
            frames.append(evals.merge(rounds[["round", "remaining"]], on="round").assign(arm=run.arm, seed=run.seed))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def layers(runs: Sequence[Run], folder: Path, format: str = "png") -> list[Path]:
    """Surviving weights of each layer over the rounds; arms that keep the same counts share a panel."""
    shown: dict[str, pd.DataFrame] = {}
    for arm in verdict.in_order([run.arm for run in runs]):
        kept = _layers_of([run for run in runs if run.arm == arm])
        if len(kept):
            like = next((names for names, other in shown.items() if _same(kept, other)), "")
            longer = shown.pop(like) if like else kept
            shown[f"{like}, {arm}" if like else arm] = longer if longer.shape[1] >= kept.shape[1] else kept
    if not shown:
        return []
    lowest = min(kept.to_numpy()[kept.to_numpy() > 0].min() for kept in shown.values())
    most = max(map(len, shown.values()))
    file = folder / f"layers.{format}"
    height = 3.4 if most <= FEW_LAYERS else max(1.0 + len(shown) * (0.5 + 0.17 * most), 3.0)
    with style.sheet(file, height, runs, "surviving weights by layer") as figure:
        if most <= FEW_LAYERS:
            panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
            for axes, (arms, kept) in zip(panels, shown.items(), strict=True):
                _layer_lines(axes, kept)
                axes.set_title(_named(arms, len(shown)))
            panels[0].set_yscale("log")
            panels[0].set_ylim(lowest * 0.85, 118)
            _percent_ticks(panels[0].yaxis, lowest)
            panels[0].set_ylabel("weights remaining (%)")
            style.legend(figure, panels, "layer (its weights)", columns=3)
        else:
            panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
            for axes, (arms, kept) in zip(panels, shown.items(), strict=True):
                mesh = _layer_map(axes, kept, lowest)
                axes.set_title(_named(arms, len(shown)))
            bar = figure.colorbar(mesh, ax=list(panels), label="weights remaining (%)", aspect=40, pad=0.01)
            _percent_ticks(bar.ax.yaxis, lowest)
    return [file]


def _named(arms: str, panels: int) -> str:
    """The title of a panel."""
    return "all arms" if panels == 1 and arms.count(",") > 2 else textwrap.fill(arms, 90 // panels)


def _same(kept: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two arms keep the same counts in the rounds that both have."""
    both = [number for number in kept.columns if number in other.columns]
    return list(kept.index) == list(other.index) and np.allclose(kept[both], other[both])


def _layers_of(runs: Sequence[Run]) -> pd.DataFrame:
    """Percent of each layer's weights (rows) that survive in each round (columns): mean over trials."""
    frames = [found for run in runs if len(found := tables.table(run, "layers"))]
    if not frames:
        return pd.DataFrame()
    found = pd.concat(frames, ignore_index=True)
    means = found.groupby(["layer", "round"])["remaining"].mean().unstack()
    totals = found.groupby("layer")["total"].first()
    means = means.loc[found["layer"].drop_duplicates()]
    means.index = pd.Index([f"{name.removesuffix('.weight')} ({totals[name]:,})" for name in means.index])
    return means


def _layer_lines(axes: Axes, kept: pd.DataFrame) -> None:
    """A line a layer; layers that are pruned at one rate coincide but for rounding, and share one."""
    groups: list[list[str]] = []
    for name in kept.index:
        like = [names for names in groups if np.allclose(kept.loc[name], kept.loc[names[0]], rtol=0.03)]
        if like:
            like[0].append(name)
        else:
            groups.append([name])
    colors = seaborn.color_palette("colorblind", len(groups))
    for index, names in enumerate(groups):
        line: dict[str, Any] = {
            "marker": MARKERS[index % len(MARKERS)],
            "linestyle": style.DASHES[index % 6],
            "linewidth": 1.6,
        }
        values = kept.loc[names[0]]
        axes.plot(kept.columns, values.where(values > 0), color=colors[index], label="\n".join(names), **line)
    axes.set_xlabel("round")
    axes.set_xlim(-0.5, max(kept.columns) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _layer_map(axes: Axes, kept: pd.DataFrame, lowest: float) -> Any:
    """A row a layer, a column a round, the percent written in where it fits; layers without weights are white."""
    values = kept.to_numpy()
    norm = LogNorm(min(lowest, 99.0), 100)
    colors = seaborn.color_palette("viridis", as_cmap=True)
    mesh = axes.pcolormesh(np.ma.masked_less_equal(np.nan_to_num(values), 0), cmap=colors, norm=norm, linewidth=0)
    if values.shape[1] <= 15:
        for (row, column), value in np.ndenumerate(values):
            if math.isfinite(value):
                ink = "black" if value <= 0 or norm(value) > 0.55 else "white"
                spot: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5, "color": ink}
                axes.text(column + 0.5, row + 0.5, labels.percent(value), **spot)
    axes.set_facecolor("white")
    axes.grid(False)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(kept)) + 0.5, list(kept.index), fontsize=7)
    numbers = range(0, values.shape[1], math.ceil(values.shape[1] / 15))
    axes.set_xticks([number + 0.5 for number in numbers], [str(kept.columns[number]) for number in numbers])
    axes.set_xlabel("round")
    return mesh


def _percent_ticks(axis: Any, lowest: float) -> None:
    """Ticks at 100, 50, 20, 10, ... percent down to the lowest value: as many as read well."""
    ticks = [step * 10.0**power for power in range(2, -7, -1) for step in (5, 2, 1)]
    ticks = [tick for tick in ticks if lowest * 0.85 <= tick <= 100]
    if len(ticks) > 9:
        ticks = [tick for tick in ticks if math.log10(tick).is_integer()]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: labels.percent(value)))
