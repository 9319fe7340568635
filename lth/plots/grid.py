"""Several models, data sets or settings side by side, from the records of their runs alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lth.analysis import labels, verdict
from lth.plots import axes as scales
from lth.plots import style
from lth.plots.comparison import arm_lines, caption, grouped, per_point, rings, trials
from lth.records.tables import Run

ACROSS = 3  # panels side by side


def grid(groups: Sequence[Sequence[Run]], folder: Path, format: str = "png") -> list[Path]:
    """Write the figure of these groups of runs as grid.<format> into `folder`; nothing where no round is finished."""
    file = folder / f"grid.{format}"
    return [] if draw(groups, file) is None else [file]


def draw(groups: Sequence[Sequence[Run]], file: Path | None = None) -> Figure | None:
    """Groups of runs side by side, each of one model, data set and settings: accuracy above, early stop relative to
    the dense network below. Each has axes of its own, since data sets and depths of pruning differ; groups of many arms
    stand below each other. Written to `file`, if there is one; None where no round is finished."""
    found = [(runs, rounds) for runs in groups if len(rounds := verdict.paired(runs))]
    if not found:
        return None
    panels = [(run, rounds, title, arms) for (run, *_), rounds in found for title, arms in grouped(list(rounds["arm"]))]
    across = min(len(panels), ACROSS)
    bands = [panels[i : i + across] for i in range(0, len(panels), across)]
    shared, own = labels.differing([runs for runs, _ in found])
    width = max(3.6, style.WIDTH * across / ACROSS)
    everything = pd.concat([rounds for _, rounds in found])
    with style.sheet(file, 0.9 + 4.0 * len(bands), [], "accuracy and early stop", width, shared) as figure:
        axes = figure.subplots(2 * len(bands), across, squeeze=False)
        uppers, strip = [], False
        for row, band in enumerate(bands):
            for (run, rounds, kind, arms), upper, lower in zip(band, axes[2 * row], axes[2 * row + 1], strict=False):
                strip |= _panel(upper, lower, rounds, arms)
                about = [labels.title(run), *style.wrapped(own[run.plots], 34), *style.wrapped(kind, 34)]
                upper.set_title("\n".join([*about, trials(per_point(rounds[rounds["arm"].isin(arms)]))]), fontsize=7.5)
                uppers.append(upper)
            for unused in axes[2 * row : 2 * row + 2, len(band) :].flat:
                unused.remove()
            axes[2 * row, 0].set_ylabel("test accuracy (%)")
            axes[2 * row + 1, 0].set_ylabel("early stop / dense")
        said = caption(everything, each=True) + (f"; {scales.COMPRESSED}" if strip else "")
        style.legend(figure, uppers, said, columns=max(across, 2) + 1)
    return figure


def _panel(upper: Axes, lower: Axes, rounds: pd.DataFrame, arms: Sequence[str]) -> bool:
    """One group of arms; gives whether its accuracy axis is compressed."""
    table = verdict.judged(rounds)
    dense = rounds[rounds["round"] == 0].groupby("seed")["test"].first().mean()
    # As the table has it: mean by mean, which the mean of the trials' own ratios is not.
    mean = rounds.groupby(["arm", "round"])["ES_dense"].transform("mean")
    rounds = rounds.assign(ES_ratio=rounds["ES"] / mean)
    for axes, column, value in ((upper, "test", dense), (lower, "ES_ratio", 1.0)):
        arm_lines(axes, rounds, arms, column, value, scale=0.75)
        rings(axes, table[table["arm"].isin(arms)], column, scale=0.75)
        scales.remaining_axis(axes, rounds["remaining"], ticks=5, label=axes is lower)
    lower.set_ylim(0, rounds["ES_ratio"].max() * 1.08)
    return scales.accuracy_axis(upper, rounds[rounds["remaining"] > 0]["test"].tolist())
