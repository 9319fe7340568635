"""How far the masks of arms and trials overlap: all pairs at one sparsity, and by sparsity, beside random masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lth.analysis import labels, overlap, verdict
from lth.plots import style
from lth.records.tables import Run

NUMBERED = 10  # masks of which the matrix says the numbers
CHANCE = "random masks"


def masks(runs: Sequence[Run], folder: Path, format: str = "png") -> list[Path]:
    """The Jaccard index of every two masks in the last round that all have, and by sparsity: of trials of an arm, and
    of the first arm with others in the same trial. Nothing where there is no masks.csv in the runs' folder of plots
    (`combine_plots.py --masks`)."""
    table = runs[0].plots / overlap.FILE
    if not table.is_file():
        return []
    found = pd.read_csv(table)
    found = found[found["layer"] == overlap.ALL]
    file = folder / f"masks.{format}"
    with style.sheet(file, 4.2, runs, "overlap of masks (Jaccard index)") as figure:
        left, right = figure.subplots(1, 2)
        _matrix(left, found)
        _lines(right, found)
        said = "mean over pairs, band from the lowest to the highest"
        said += f"; {CHANCE}: the middle 95% of those with the same counts per layer"
        style.legend(figure, [right], said, columns=4)
    return [file]


def _matrix(axes: Axes, found: pd.DataFrame) -> None:
    ends = [found[[f"arm_{end}", f"seed_{end}"]].set_axis(["arm", "seed"], axis="columns") for end in "ab"]
    runs = list(pd.concat(ends).drop_duplicates().itertuples(index=False, name=None))
    arms = verdict.in_order([arm for arm, _ in runs])
    runs.sort(key=lambda run: (arms.index(run[0]), run[1]))
    counts = found.groupby("round").size()
    last = found[found["round"] == counts[counts == counts.max()].index.max()]
    values = np.full((len(runs), len(runs)), np.nan)
    for pair in last.itertuples():
        one, other = runs.index((pair.arm_a, pair.seed_a)), runs.index((pair.arm_b, pair.seed_b))
        values[one, other] = values[other, one] = pair.jaccard
    names = [f"{arm} {seed}" for arm, seed in runs]
    look: dict[str, Any] = {"annot": len(runs) <= NUMBERED, "fmt": ".2g", "annot_kws": {"fontsize": 6.5}}
    import seaborn  # here: it takes as long to load as all else together

    seaborn.heatmap(values, ax=axes, cmap="viridis", square=True, xticklabels=names, yticklabels=names, **look)
    axes.tick_params(labelsize=6.5)
    axes.set_facecolor("white")
    low, high = (labels.percent(found) for found in (last["jaccard_chance"].min(), last["jaccard_chance"].max()))
    chance = low if low == high else f"{low} to {high}"
    remaining = labels.percent(last["remaining"].mean(), 3)
    axes.set_title(f"arm and seed, {remaining}% of the weights left\n{CHANCE}: {chance} on average", fontsize=8)


def _lines(axes: Axes, found: pd.DataFrame) -> None:
    """As a multiple of what random masks have, since that differs between arms that divide weights among layers in
    other ways."""
    parts = {name: found[name] / found["jaccard_chance"] for name in ("jaccard", "jaccard_low", "jaccard_high")}
    found, arms = found.assign(**parts), verdict.in_order([*found["arm_a"], *found["arm_b"]])
    chance = found.groupby("round").agg({"remaining": "mean", "jaccard_low": "min", "jaccard_high": "max"})
    band: dict[str, Any] = {"color": style.DARK, "alpha": 0.35, "linewidth": 1.5, "label": CHANCE}
    axes.fill_between(chance["remaining"], chance["jaccard_low"], chance["jaccard_high"], **band)
    for arm, look in style.looks(arms).items():
        own = found[(found["arm_a"] == arm) & (found["arm_b"] == arm)]
        with_first = found[(found["arm_a"] == arms[0]) & (found["arm_b"] == arm) & (found["seed_a"] == found["seed_b"])]
        if len(own):
            style.band(axes, own, "jaccard", f"trials of {arm}", look)
        if arm != arms[0] and len(with_first):
            style.band(axes, with_first, "jaccard", f"{arms[0]} and {arm}", replace(look, dashes=(0, (1, 1))))
    axes.set_ylabel(f"Jaccard index / {CHANCE}")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, (1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    style.remaining_axis(axes, found["remaining"], ticks=6)
