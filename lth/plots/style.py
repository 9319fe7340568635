"""What all pictures have in common: one look for an arm everywhere, sizes for print, percent on axes, saving.

Figures are drawn without pyplot, so that no display is needed and nothing of matplotlib's state changes.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lth.records import files, labels
from lth.records.tables import Run
from lth.settings.arms import ARMS

WIDTH = 7.2  # inches: the text of a page; at 200 dots an inch half of it is still sharp on a screen
DPI = 200
DARK = "#333333"
DASHES = ((0, ()), (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (2, 1)), (0, (1, 0.8)), (0, (6, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Look:
    """How the lines of an arm are drawn: tellable apart without the colour too."""

    color: Any
    marker: str
    dashes: Any


# Colours: places in seaborn's colour-blind-safe palette. The dense network is the thin dark dashed line.
LOOKS: dict[str, tuple[int, str, Any]] = {
    "lt": (0, "o", "-"),
    "reinit": (1, "s", (0, (4, 1.5))),
    "finetune": (4, "D", (0, (7, 1, 1, 1))),
    "random": (9, "X", (0, (1, 1))),
    "random_reinit": (5, "P", (0, (2, 2))),
    "random_finetune": (6, "<", (0, (6, 2))),
    "ticket_reinit": (2, "^", (0, (4, 1, 1, 1))),
    "ticket_shuffle": (3, "v", (0, (4, 1, 1, 1, 1, 1))),
}
SPARE = ((7, ">", (0, (3, 3))), (8, "p", (0, (1, 2))))  # for arms that come later


def look(arm: str) -> Look:
    """The look of an arm."""
    later = [name for name in ARMS if name not in LOOKS]
    place, marker, dashes = LOOKS.get(arm) or SPARE[(later.index(arm) if arm in later else 0) % len(SPARE)]
    return Look(seaborn.color_palette("colorblind")[place], marker, dashes)


def line(arm: str, scale: float = 1.0) -> dict[str, Any]:
    """The look of an arm as arguments of Axes.plot."""
    found = look(arm)
    style = {"color": found.color, "marker": found.marker, "linestyle": found.dashes, "linewidth": 1.6 * scale}
    return {**style, "markersize": 4.5 * scale, "markeredgecolor": "white", "markeredgewidth": 0.5}


def shades(count: int) -> list[Any]:
    """Colours from dark to light for an ordered few, light enough apart in grey print."""
    return list(seaborn.color_palette("viridis", as_cmap=True)(np.linspace(0.0, 0.82, max(count, 1))))


@contextmanager
def sheet(file: Path, height: float, runs: Sequence[Run], what: str, width: float = WIDTH) -> Iterator[Figure]:
    """A figure of that size in inches, headed by whose numbers it shows, written to `file` at the end of the block."""
    theme: Any = {**seaborn.axes_style("darkgrid"), **seaborn.plotting_context("paper")}
    own: Any = {
        **{"font.sans-serif": ["DejaVu Sans"], "font.size": 8.5, "axes.labelsize": 8.5, "axes.titlesize": 9},
        **{"xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8, "figure.titlesize": 9.5},
        **{"axes.titlepad": 4, "xtick.major.pad": 2, "ytick.major.pad": 2, "grid.linewidth": 0.8},
        # Text stays text in PDF, and the same numbers give the same file.
        **{"pdf.fonttype": 42, "svg.hashsalt": "lth"},
    }
    with matplotlib.rc_context({**theme, **own}):
        figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.05))
        lines = [f"{labels.title(runs[0])}: {what}"] if runs else [what]
        if runs:
            lines += wrapped(labels.settings(runs[0]), int(width * 13))
        figure.suptitle("\n".join(lines), color=DARK)
        yield figure
        save(figure, file)


def wrapped(text: str, width: int) -> list[str]:
    """A list of things in lines of at most `width` and about the same length, broken after commas where they can be."""
    bound = ", ".join(part.replace(" ", "\xa0") for part in text.split(", "))
    fewest = math.ceil(len(text) / width)
    for rows in (fewest, fewest + 1):
        for room in range(math.ceil(len(text) / max(rows, 1)), width + 1):
            lines = textwrap.wrap(bound, max(room, 1), break_long_words=False, break_on_hyphens=False)
            if len(lines) <= rows and all(len(line) <= width for line in lines):
                return [line.replace("\xa0", " ") for line in lines]
    return textwrap.wrap(text, width)


def save(figure: Figure, file: Path) -> None:
    """Write a figure in the format that the file's name says."""
    kind = file.suffix[1:]
    content = io.BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    figure.savefig(content, format=kind, dpi=DPI, metadata=undated)
    files.write(file, content.getvalue())


def remaining_axis(axes: Axes, remaining: Iterable[float], ticks: int = 7, label: bool = True) -> None:
    """An x axis of weights remaining: logarithmic, from 100% on the left, ticks at rounds, in percent."""
    values = sorted({value for value in remaining if value > 0}, reverse=True) or [100.0]
    first, last = values[0], values[-1]
    gap = max(math.log(first / last) / (ticks - 1), 1e-9)
    chosen: list[float] = []
    for value in values:
        if not chosen or math.log(chosen[-1] / value) >= gap * 0.999:
            chosen.append(value)
    room = max((first / last) ** 0.04, 1.02)
    axes.set_xscale("log")
    axes.set_xlim(first * room, last / room)
    axes.xaxis.set_major_locator(FixedLocator(chosen))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: labels.percent(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    if label:
        axes.set_xlabel("weights remaining (%)")


def iterations_axis(axis: Any) -> None:
    """Ticks of iterations as 5,000."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def accuracy_axis(axes: Axes, values: Sequence[float], least: float = 5.0) -> float:
    """Limits of a y axis of accuracies, so that a few collapsed networks do not flatten all others; gives the lower.

    Where values lie far below, the axis reaches from the top three times as far down as the middle value, and at least
    `least` points.
    """
    found = np.asarray([value for value in values if math.isfinite(value)])
    top, lowest = float(found.max(initial=0)), float(found.min(initial=100))
    reach = max(least, 3 * (top - float(np.median(found)))) if len(found) else 100.0
    bottom = lowest if top - lowest < 1.8 * reach else top - reach
    room = max((top - bottom) * 0.06, 0.05)
    axes.set_ylim(bottom - room, top + room)
    return bottom - room


def note_below(
    axes: Axes, values: Sequence[float], limit: float, side: str = "left", what: str = "below this axis: down to"
) -> None:
    """Say in the picture, at the bottom of that side, that values lie below the axis and how far."""
    lowest = min(values, default=limit)
    if lowest < limit:
        place = 0.02 if side == "left" else 0.98
        behind = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5}
        spot: Any = {"transform": axes.transAxes, "va": "bottom", "ha": side, "zorder": 6, "bbox": behind}
        axes.text(place, 0.03, f"▼ {what} {lowest:.3g}", fontsize=7.5, color=DARK, **spot)


def legend(figure: Figure, axes: Iterable[Axes], caption: str = "", columns: int = 5) -> None:
    """One legend below everything, with each name once, headed by what its lines are."""
    entries: dict[str, Any] = {}
    for each in axes:
        for handle, name in zip(*each.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    rows = math.ceil(len(entries) / columns) or 1
    figure.legend(
        list(entries.values()),
        list(entries),
        title=caption or None,
        title_fontsize=8,
        loc="outside lower center",
        ncols=math.ceil(len(entries) / rows),
        frameon=False,
        handlelength=3.0,
        columnspacing=1.4,
    )
