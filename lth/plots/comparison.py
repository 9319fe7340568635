"""Test accuracy and early stop against the weights remaining, arm by arm: the figure that the verdict is read from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lth.analysis import labels, verdict
from lth.plots import axes as scales
from lth.plots import style
from lth.records.tables import Run
from lth.settings.arms import ARMS

TOGETHER = 4  # arms that one panel can show; more are grouped, each group beside the first arm
STARTS = {
    "original": "original initial weights",
    "fresh": "new random weights",
    "trained": "trained weights",
    "of_ticket": "weights of the saved tickets",
    "sign": "constants of the initial signs",
    "shuffled_signs": "constants of shuffled signs",
}
DENSE: dict[str, Any] = {"color": style.DARK, "linestyle": (0, (3, 2)), "linewidth": 1.0, "zorder": 1.5}
ONE_TRIAL = "1 trial: no winning ticket can be told from luck"
RINGS = {verdict.NO_WORSE: (style.LAST[1], "#999999"), verdict.BETTER: (style.LAST[2], style.DARK)}


def comparison(runs: Sequence[Run], folder: Path, format: str = "png", x: str = "remaining") -> list[Path]:
    """Write the figure of `runs` as comparison.<format> into `folder`; nothing where there is none."""
    file = folder / f"comparison{'' if x == 'remaining' else f'_{x}'}.{format}"
    return [] if draw(runs, file, x) is None else [file]


def draw(runs: Sequence[Run], file: Path | None = None, x: str = "remaining") -> Figure | None:
    """Test accuracy at early stop, and the iteration of early stop, against weights remaining (Frankle & Carbin,
    Figure 4): mean over trials, with a band from the lowest to the highest trial. A row a group of arms.

    `x` (a name in lth/plots/axes.py, SPARSITY) may be multiply-adds or compression instead (Blalock et al. 2020,
    arXiv:2003.03033); no figure if they were not counted.
    """
    rounds = verdict.paired(runs)
    if x == "flops":
        rounds = rounds[rounds["macs"].notna()]
        rounds = rounds.assign(remaining=100 * rounds["macs"] / rounds["dense_macs"])
    if rounds.empty:
        return None
    groups = grouped(list(rounds["arm"]))
    height = 3.6 if len(groups) == 1 else 1.0 + 2.4 * len(groups)
    with style.sheet(file, height, runs, "accuracy and early stop") as figure:
        table = verdict.judged(rounds)
        said = caption(rounds)
        if verdict.late_stops(table)[0] > verdict.late_stops(table)[1] / 2:
            said += "; early stop is the last evaluation in most rounds"
        heights = [0.22 if len(groups) > 1 else 0.001, 1] * len(groups)
        cells = figure.add_gridspec(2 * len(groups), 2, height_ratios=heights)
        lefts: list[Axes] = []
        for row, (title, arms) in enumerate(groups):
            left, right = (figure.add_subplot(cells[2 * row + 1, column]) for column in range(2))
            for axes, column in ((left, "test"), (right, "ES")):
                dense = rounds[rounds["round"] == 0].groupby("seed")[column].first().mean()
                arm_lines(axes, rounds, arms, column, dense)
                rings(axes, table[table["arm"].isin(arms[1:] if row else arms)], column)
                scales.remaining_axis(axes, rounds["remaining"], label=row == len(groups) - 1, kind=x)
            if scales.accuracy_axis(left, rounds[rounds["remaining"] > 0]["test"].tolist()) and not row:
                said += f"; {scales.COMPRESSED}"
            left.set_ylabel("test accuracy (%)")
            right.set_ylabel("early stop (iteration)")
            right.set_ylim(0, rounds["ES"].max() * 1.08)
            scales.iterations_axis(right.yaxis)
            lefts.append(left)
            if len(groups) > 1:
                style.heading(figure.add_subplot(cells[2 * row, :]), left, arms, f"arms with {title}")
        style.legend(figure, lefts, said, leave_out=rounds["arm"] if len(groups) > 1 else ())
    return figure


def grouped(arms: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Arms in groups that a panel each can show, with what a group has in common: all together if they are few, else
    by whose masks they take or what survivors start from. The first arm (lt, if it is there) is in every group."""
    first, *others = verdict.in_order(arms)
    if len(others) < TOGETHER:
        return [("", [first, *others])]
    finders = {ARMS[arm].mask_of for arm in others if arm in ARMS} - {"", first}
    kinds: dict[str, list[str]] = {}
    for arm in others:
        known = arm in ARMS
        of = arm if arm in finders or not known else ARMS[arm].mask_of
        start = STARTS.get(ARMS[arm].start, f"start {ARMS[arm].start}") if known else "other starts"
        kinds.setdefault(f"masks of {of}" if of in finders else start, []).append(arm)
    groups: list[tuple[list[str], list[str]]] = []
    for title, members in kinds.items():
        rows = math.ceil(len(members) / (TOGETHER - 1))
        size = math.ceil(len(members) / rows)
        for part in (members[i : i + size] for i in range(0, len(members), size)):
            if groups and len(groups[-1][1]) + len(part) < TOGETHER:
                groups[-1][0].append(title)
                groups[-1][1].extend(part)
            else:
                groups.append(([title], part))
    return [(", ".join(dict.fromkeys(titles)), [first, *part]) for titles, part in groups]


def arm_lines(
    axes: Axes, rounds: pd.DataFrame, arms: Sequence[str], column: str, dense: float, scale: float = 1.0
) -> None:
    """A line with its band per arm, and the dense network's value."""
    for arm, look in style.looks(arms).items():
        style.band(axes, rounds[rounds["arm"] == arm], column, arm, look, scale)
    whole = rounds[rounds["round"] == 0]["remaining"].max() > 99.9
    axes.axhline(dense, label=style.LAST[0] if whole else "the ticket of round 0", **DENSE)


def rings(axes: Axes, table: pd.DataFrame, column: str, scale: float = 1.0) -> None:
    """Rings around the winning tickets, dark ones around those that are better than the dense network."""
    for kind, (name, color) in RINGS.items():
        wins = table[table["winning"] & (table["accuracy"] == kind)]
        if len(wins):
            ring: dict[str, Any] = {"markersize": 7.5 * scale, "markeredgewidth": 1.1 * scale, "mec": color}
            axes.plot(wins["remaining"], wins[column], "o", mfc="none", linestyle="none", **ring, label=name, zorder=4)


def caption(rounds: pd.DataFrame, each: bool = False) -> str:
    """What lines and bands are, and what a logarithmic axis cannot show; `each`: panels say their own trials."""
    counts = per_point(rounds)
    many = f"mean of {'the trials' if each else trials(counts)}, band from the lowest to the highest"
    gone = "; rounds with no weights left (0%) are not shown" if (rounds["remaining"] <= 0).any() else ""
    return (many if counts.max() > 1 else ONE_TRIAL) + gone


def per_point(rounds: pd.DataFrame) -> pd.Series:
    """How many trials each point of the arms' lines is of."""
    return rounds.groupby(["arm", "round"])["seed"].nunique()


def trials(counts: pd.Series) -> str:
    """These counts in words: `3 trials`, `1 to 3 trials`."""
    return f"{counts.min()} to {labels.trials(counts.max())}" if counts.nunique() > 1 else labels.trials(counts.max())
