"""Several models, data sets or settings side by side, from the records of their runs alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lth.analysis import labels, verdict
from lth.plots import style
from lth.plots.comparison import arm_lines, caption, ends, grouped, per_point, say_late, trials
from lth.records.tables import Run

ACROSS = 3  # panels side by side


def grid(groups: Sequence[Sequence[Run]], folder: Path, format: str = "png") -> list[Path]:
    """Write the figure of these groups of runs as grid.<format> into `folder`; nothing where no round is finished."""
    file = folder / f"grid.{format}"
    return [] if draw(groups, file) is None else [file]


def draw(groups: Sequence[Sequence[Run]], file: Path | None = None) -> Figure | None:
    """Groups of runs side by side, each of one model, data set and settings: accuracy above, early stop relative to
    the dense network below. Where two things differ, one differs along rows and the other along columns. One y axis
    serves all panels of one model and data set. Groups of many arms have several panels. Written to `file`, if there is
    one; None where no round is finished."""
    found = [(runs, rounds) for runs in groups if len(rounds := verdict.paired(runs))]
    if not found:
        return None
    order, across = labels.rows_and_columns([runs for runs, _ in found], ACROSS)
    found = [found[place] for place in order]
    panels = [(run, rounds, arms) for (run, *_), rounds in found for arms in grouped(list(rounds["arm"]))]
    across = across if len(panels) == len(found) else min(len(panels), ACROSS)
    bands = [panels[i : i + across] for i in range(0, len(panels), across)]
    shared, own = labels.differing([runs for runs, _ in found])
    width = max(3.6, style.WIDTH * across / ACROSS)
    everything = pd.concat([rounds for _, rounds in found])
    alike = len({labels.title(run) for (run, *_), _ in found}) == 1
    with style.sheet(file, 0.9 + 4.0 * len(bands), [], "accuracy and early stop", width, shared) as figure:
        axes = figure.subplots(2 * len(bands), across, squeeze=False, sharey="row" if alike else False)
        uppers, lowers = axes[::2].flat[: len(panels)], axes[1::2].flat[: len(panels)]
        values: list[tuple[pd.DataFrame, pd.DataFrame]] = []
        for (run, rounds, arms), upper, lower in zip(panels, uppers, lowers, strict=True):
            values.append(_panel(upper, lower, rounds, arms))
            about = [labels.title(run), *style.wrapped(own[run.plots], 34)]
            upper.set_title("\n".join([*about, trials(per_point(rounds[rounds["arm"].isin(arms)]))]), fontsize=7.5)
        cuts = set()
        for place, (upper, lower) in enumerate(zip(uppers, lowers, strict=True)):
            tables, shown = zip(*(values if alike else values[place : place + 1]), strict=True)
            table, rounds = pd.concat(tables), pd.concat(shown)
            cuts.add(style.accuracy_axis(upper, rounds["test"].tolist(), ends(table, "test")))
            style.fit(lower, [1.0, *rounds["ES_ratio"]], ends(table, "ES_ratio"))
        for unused in (*axes[::2].flat[len(panels) :], *axes[1::2].flat[len(panels) :]):
            unused.remove()
        for row in range(len(bands)):
            axes[2 * row, 0].set_ylabel("test accuracy (%)")
            axes[2 * row + 1, 0].set_ylabel("early stop / dense")
        said = [caption(everything, each=True), "" if alike else "scales differ", *(cuts if alike else ())]
        style.legend(figure, uppers, "; ".join(filter(None, said)), columns=max(across, 2) + 1)
    return figure


def _panel(upper: Axes, lower: Axes, rounds: pd.DataFrame, arms: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw one group of arms; gives its verdict and rounds."""
    table = verdict.judged(rounds)
    dense = rounds[rounds["round"] == 0].groupby("seed")["test"].first().mean()
    # As the table has it: mean by mean, which the mean of the trials' own ratios is not.
    mean = rounds.groupby(["arm", "round"])["ES_dense"].transform("mean")
    shown = rounds.assign(ES_ratio=rounds["ES"] / mean)[rounds["remaining"] > 0]
    for axes, column, value in ((upper, "test", dense), (lower, "ES_ratio", 1.0)):
        arm_lines(axes, table, shown, arms, column, value, marked=arms, scale=0.75)
        style.remaining_axis(axes, shown["remaining"], ticks=5, label=axes is lower)
    say_late(lower, table[table["arm"].isin(arms)])
    return table, shown
