"""Surviving weights layer by layer, where layers are not all pruned alike."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from lth.analysis import labels, verdict
from lth.plots import style
from lth.records import tables
from lth.records.tables import Run

ACROSS = 3  # panels side by side
ROUNDING = 3  # weights by which rounding to whole ones, round after round, makes equal rates differ


def layers(runs: Sequence[Run], folder: Path, format: str = "png") -> list[Path]:
    """Percent of each layer's weights that survive, a row per layer and a column per round; arms that keep the same
    counts share a panel. Nothing where all layers are pruned at one rate."""
    found = tables.lines(runs, "layers")
    totals = found.groupby("layer")["total"].first()
    shown = _panels(found)
    if not any(_uneven(kept, totals) for kept in shown.values()):
        return []
    lowest = min(kept.to_numpy()[kept.to_numpy() > 0].min() for kept in shown.values())
    across = min(len(shown), ACROSS)
    down = math.ceil(len(shown) / across)
    file = folder / f"layers.{format}"
    height = 1.0 + down * max(0.5 + 0.17 * max(map(len, shown.values())), 2.0)
    with style.sheet(file, height, runs, "surviving weights by layer") as figure:
        panels = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
        for axes in panels[len(shown) :]:
            axes.remove()
        for axes, (arms, kept) in zip(panels, shown.items(), strict=False):
            everything = len(shown) == 1 and arms.count(",") > 2
            axes.set_title("all arms" if everything else textwrap.fill(arms, 90 // across))
            _map(axes, kept, lowest, small=across > 1)
            names = [f"{name.removesuffix('.weight')} ({totals[name]:,})" for name in kept.index]
            axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=7)
            axes.tick_params(labelleft=axes.get_subplotspec().is_first_col())
        mesh, label = panels[0].collections[0], "weights remaining (%)"
        bar = figure.colorbar(mesh, ax=panels[: len(shown)], label=label, aspect=40, pad=0.01)
        style.percent_axis(bar.ax.yaxis, lowest)
    return [file]


def _panels(found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What each arm keeps, in percent (layers, rounds), mean over trials, by the names of the arms that keep it."""
    shown: dict[str, pd.DataFrame] = {}
    for arm in verdict.in_order(found["arm"]):
        of_arm = found[found["arm"] == arm]
        kept = of_arm.pivot_table(index="layer", columns="round", values="remaining", sort=False)
        like = next((names for names, other in shown.items() if _same(kept, other)), "")
        longer = max(kept, shown.pop(like, kept), key=lambda each: each.shape[1])
        shown[f"{like}, {arm}" if like else arm] = longer
    return shown


def _same(kept: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two arms keep the same counts in the rounds that both have."""
    both = kept.columns.intersection(other.columns)
    return kept.index.equals(other.index) and np.allclose(kept[both], other[both])


def _uneven(kept: pd.DataFrame, totals: pd.Series) -> bool:
    """Whether the layers are pruned at different rates."""
    rounding = 100 * ROUNDING / totals[kept.index].min()
    return bool((kept.max() - kept.min() > np.maximum(0.03 * kept.max(), rounding)).any())


def _map(axes: Axes, kept: pd.DataFrame, lowest: float, small: bool) -> None:
    """The percent as colours, and in numbers where they fit; layers without weights are white."""
    values, norm = kept.to_numpy(), LogNorm(min(lowest, 99.0), 100)
    colors = matplotlib.colormaps["viridis"]
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
    numbers = range(0, values.shape[1], math.ceil(values.shape[1] / (5 if small else 15)))
    axes.set_xticks([number + 0.5 for number in numbers], [str(kept.columns[number]) for number in numbers])
    axes.set_xlabel("round")
