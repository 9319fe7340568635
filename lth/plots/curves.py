"""Test accuracy during training: the rounds of each arm as curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from lth.analysis import labels, verdict
from lth.plots import axes as scales
from lth.plots import style
from lth.plots.comparison import per_point, trials
from lth.records import tables
from lth.records.tables import Run

POINTS = 100  # of a curve; more would hide each other


def training(runs: Sequence[Run], folder: Path, format: str = "png", lines: int = 6) -> list[Path]:
    """Test accuracy during training for a choice of sparsities, a panel an arm (Frankle & Carbin, Figure 3)."""
    found = _evaluations(runs)
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
            scales.iterations_axis(axes.xaxis)
        for axes in panels.flat[len(arms) :]:
            axes.remove()
        cut = scales.accuracy_axis(panels[0, 0], found["test"].tolist(), least=2.0)
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


def _evaluations(runs: Sequence[Run]) -> pd.DataFrame:
    """The evaluations of all finished rounds: those of evals.csv, arm, seed, remaining."""
    frames = []
    for run in runs:
        rounds, evals = tables.table(run, "rounds"), tables.table(run, "evals")
        if len(rounds) and len(evals):
            frames.append(evals.merge(rounds[["round", "remaining"]], on="round").assign(arm=run.arm, seed=run.seed))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
