"""Surviving weights layer by layer, where layers are not all pruned alike."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from lth.analysis import labels, verdict
from lth.plots import axes as scales
from lth.plots import style
from lth.records import tables
from lth.records.tables import Run

FEW_LAYERS = 6  # as many as lines can show; more become a heat map
MARKERS = "osD^vP"
ACROSS = 3  # panels side by side
ROUNDING = 3  # weights by which rounding to whole ones, round after round, makes equal rates differ


@dataclass(frozen=True)
class Kept:
    """Percent of each layer's weights (rows) that survive in each round (columns), mean over trials; and the layers'
    numbers of weights."""

    percent: pd.DataFrame
    totals: pd.Series

    def alike(self, one: str, other: str) -> bool:
        """Whether two layers are pruned at one rate."""
        a, b = (self.percent.loc[name].to_numpy() for name in (one, other))
        tolerance = np.maximum(0.03 * b, 100 * ROUNDING / min(self.totals[one], self.totals[other]))
        return bool((np.abs(a - b) <= tolerance)[~np.isnan(a + b)].all())

    def label(self, name: str) -> str:
        return f"{name.removesuffix('.weight')} ({self.totals[name]:,})"


def layers(runs: Sequence[Run], folder: Path, format: str = "png") -> list[Path]:
    """Surviving weights of each layer over the rounds; arms that keep the same counts share a panel. Nothing where
    all layers are pruned at one rate: all curves would be that of the whole network."""
    shown = _panels(runs)
    groups = _alike(shown)
    if len(groups) < 2:
        return []
    lowest = min(found.percent.to_numpy()[found.percent.to_numpy() > 0].min() for found in shown.values())
    most = max(len(found.percent) for found in shown.values())
    across = min(len(shown), ACROSS)
    down = math.ceil(len(shown) / across)
    file = folder / f"layers.{format}"
    few = most <= FEW_LAYERS
    height = (1.6 if few else 1.0) + down * (1.9 if few else max(0.5 + 0.17 * most, 2.0))
    with style.sheet(file, height, runs, "surviving weights by layer") as figure:
        panels = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
        for axes in panels[len(shown) :]:
            axes.remove()
        for axes, (arms, found) in zip(panels, shown.items(), strict=False):
            everything = len(shown) == 1 and arms.count(",") > 2
            axes.set_title("all arms" if everything else textwrap.fill(arms, 90 // across))
            if few:
                _lines(axes, found, groups)
            else:
                _map(axes, found, lowest, small=across > 1, named=axes.get_subplotspec().is_first_col())
        if few:
            panels[0].set_yscale("log")
            panels[0].set_ylim(lowest * 0.85, 118)
            scales.percent_axis(panels[0].yaxis, lowest)
            for axes in panels[: len(shown) : across]:
                axes.set_ylabel("weights remaining (%)")
            style.legend(figure, panels[: len(shown)], "layer (its weights)", columns=3)
        else:
            mesh = panels[0].collections[0]
            label = "weights remaining (%)"
            bar = figure.colorbar(mesh, ax=panels[: len(shown)], label=label, aspect=40, pad=0.01)
            scales.percent_axis(bar.ax.yaxis, lowest)
    return [file]


def _panels(runs: Sequence[Run]) -> dict[str, Kept]:
    """What each arm keeps, by the names of the arms that keep it."""
    shown: dict[str, Kept] = {}
    for arm in verdict.in_order([run.arm for run in runs]):
        found = _kept([run for run in runs if run.arm == arm])
        if found is not None:
            like = next((names for names, other in shown.items() if _same(found, other)), "")
            longer = shown.pop(like) if like else found
            both = sorted([found, longer], key=lambda kept: kept.percent.shape[1])
            shown[f"{like}, {arm}" if like else arm] = both[-1]
    return shown


def _same(found: Kept, other: Kept) -> bool:
    """Whether two arms keep the same counts in the rounds that both have."""
    both = [number for number in found.percent if number in other.percent]
    return list(found.percent.index) == list(other.percent.index) and np.allclose(
        found.percent[both], other.percent[both]
    )


def _kept(runs: Sequence[Run]) -> Kept | None:
    frames = [found for run in runs if len(found := tables.table(run, "layers"))]
    if not frames:
        return None
    found = pd.concat(frames, ignore_index=True)
    means = found.groupby(["layer", "round"])["remaining"].mean().unstack()
    return Kept(means.loc[found["layer"].drop_duplicates()], found.groupby("layer")["total"].first())


def _alike(shown: Mapping[str, Kept]) -> list[list[str]]:
    """The layers in groups that are pruned at one rate in every panel, and so can share a line."""
    groups: list[list[str]] = []
    for name in dict.fromkeys(itertools.chain.from_iterable(found.percent.index for found in shown.values())):
        for names in groups:
            both = [kept for kept in shown.values() if name in kept.percent.index and names[0] in kept.percent.index]
            if both and all(kept.alike(name, names[0]) for kept in both):
                names.append(name)
                break
        else:
            groups.append([name])
    return groups


def _lines(axes: Axes, found: Kept, groups: Sequence[Sequence[str]]) -> None:
    """A line per group of layers."""
    colors = seaborn.color_palette("colorblind", len(groups))
    for index, names in enumerate(groups):
        here = [name for name in names if name in found.percent.index]
        if here:
            values, name = found.percent.loc[here[0]], style.named("\n".join(map(found.label, here)))
            look: dict[str, Any] = {"color": colors[index], "linestyle": style.DASHES[index % len(style.DASHES)]}
            look |= {"marker": MARKERS[index % len(MARKERS)], "markersize": 4, "linewidth": 1.6}
            axes.plot(found.percent.columns, values.where(values > 0), label=name, **look)
    axes.set_xlabel("round")
    axes.set_xlim(-0.5, max(found.percent.columns) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _map(axes: Axes, found: Kept, lowest: float, small: bool, named: bool) -> None:
    """A row per layer, a column per round, with the percent where it fits; layers without weights are white."""
    values, norm = found.percent.to_numpy(), LogNorm(min(lowest, 99.0), 100)
    colors = seaborn.color_palette("viridis", as_cmap=True)
    axes.pcolormesh(np.ma.masked_less_equal(np.nan_to_num(values), 0), cmap=colors, norm=norm, linewidth=0)
    if values.shape[1] <= (0 if small else 15):
        for (row, column), value in np.ndenumerate(values):
            if math.isfinite(value):
                ink = "black" if value <= 0 or norm(value) > 0.55 else "white"
                spot: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5, "color": ink}
                axes.text(column + 0.5, row + 0.5, labels.percent(value), **spot)
    axes.set_facecolor("white")
    axes.grid(False)
    axes.set_ylim(len(values), 0)
    axes.set_yticks(np.arange(len(values)) + 0.5, list(map(found.label, found.percent.index)), fontsize=7)
    axes.tick_params(labelleft=named)
    step = math.ceil(values.shape[1] / (5 if small else 15))
    numbers = range(0, values.shape[1], step)
    axes.set_xticks([number + 0.5 for number in numbers], [str(found.percent.columns[number]) for number in numbers])
    axes.set_xlabel("round")
