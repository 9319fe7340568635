"""Several models, data sets or settings side by side, from the records of their runs alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lth.plots import style
from lth.plots.curves import arm_lines, caption, mark_below
from lth.records import labels, verdict
from lth.records.tables import Run

Group = tuple[Run, pd.DataFrame]  # one of the runs, and the rounds of all


def grid(groups: Sequence[Sequence[Run]], folder: Path, format: str = "png", columns: int = 4) -> list[Path]:
    """Groups of runs side by side, each of one model, data set and settings: accuracy above, early stop below.

    Data sets stand below each other, each with an accuracy axis of its own; weights remaining, and early stop relative
    to the dense network, have one axis for all. Writes grid.<format> into `folder`; nothing where no round is finished.
    """
    by_dataset: dict[str, list[Group]] = {}
    for runs in groups:
        rounds = verdict.paired(runs)
        if len(rounds):
            by_dataset.setdefault(runs[0].dataset, []).append((runs[0], rounds))
    bands = [part[i : i + columns] for part in by_dataset.values() for i in range(0, len(part), columns)]
    if not bands:
        return []
    across = max(map(len, bands))
    everything = pd.concat([rounds for band in bands for _, rounds in band])
    top = float(np.nanmax(everything["ES_ratio"])) * 1.08
    file = folder / f"grid.{format}"
    what = "Accuracy and early stop by sparsity"
    with style.sheet(file, 1.1 + 3.4 * len(bands), [], what, max(3.6, min(style.WIDTH, 2.6 * across))) as figure:
        panels = figure.subplots(2 * len(bands), across, squeeze=False)
        used = []
        for row, band in enumerate(bands):
            accuracies = pd.concat([rounds for _, rounds in by_dataset[band[0][0].dataset]])["test"].tolist()
            for column in range(across):
                upper, lower = panels[2 * row, column], panels[2 * row + 1, column]
                if column >= len(band):
                    upper.set_axis_off()
                    lower.set_axis_off()
                    continue
                _panel(upper, lower, *band[column], accuracies, first=column == 0, letters=92 // across)
                lower.set_ylim(0, top)
                for axes in (upper, lower):
                    style.remaining_axis(axes, everything["remaining"], ticks=5, label=axes is lower)
                used.append(upper)
        style.legend(figure, used, caption(everything), columns=max(across, 2) + 1)
    return [file]


def _panel(
    upper: Axes, lower: Axes, run: Run, rounds: pd.DataFrame, accuracies: list[float], first: bool, letters: int
) -> None:
    """One group; `accuracies` are those of all groups that share its accuracy axis, `letters` fit into its width."""
    dense = rounds[rounds["round"] == 0].groupby("seed")["test"].first().mean()
    for axes, column, value in ((upper, "test", dense), (lower, "ES_ratio", 1.0)):
        arm_lines(axes, rounds, column, value, scale=0.75)
        axes.tick_params(labelleft=first)
    about = style.wrapped(labels.settings(run), min(letters, 36))
    if len(about) > 3:
        about = [*about[:2], "..."]
    upper.set_title("\n".join([labels.title(run), *about]), fontsize=7.5)
    mark_below(upper, rounds, style.accuracy_axis(upper, accuracies), what="down to")
    upper.tick_params(labelbottom=False)
    if first:
        upper.set_ylabel("test accuracy (%)")
        lower.set_ylabel("early stop / dense")
