"""What all pictures have in common: one look for an arm everywhere, sizes for print, percent on axes, saving.

Figures are drawn without pyplot, so that no display is needed and nothing of matplotlib's state changes.
"""

from __future__ import annotations

import io
import math
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from lth.analysis import labels
from lth.records import files
from lth.records.tables import Run
from lth.settings.arms import ARMS

WIDTH = 7.2  # inches: the text of a page; at 200 dots an inch half of it is still sharp on a screen
DPI = 200
DARK = "#333333"
FAINT = "#777777"
TITLES = ContextVar("TITLES", default=True)  # False where a page has headings of its own
LAST = ("dense network", "winning ticket: no worse than dense", "winning ticket: better than dense")  # in legends
LEGEND: dict[str, Any] = {"frameon": False, "handlelength": 3.0, "columnspacing": 1.4}
DASHES = ((0, ()), (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (2, 1)), (0, (1, 0.8)), (0, (6, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Look:
    """How the lines of an arm are drawn; arms differ without the colour too."""

    color: Any
    marker: str
    dashes: Any


# Places in seaborn's colour-blind-safe palette, without its two pale ones; the first is lt's alone. With the markers
# and dashes, of which there are other numbers, most arms differ in all three, whichever stand together.
COLORS = (0, 1, 2, 3, 9, 5, 4, 7)
MARKERS = ("o", "s", "D", "X", "P", "<", "^", "v", ">", "p", "h", "8", "d")  # stars are for winning tickets
LINES: tuple[Any, ...] = (
    *("-", (0, (4, 1.5)), (0, (7, 1, 1, 1)), (0, (1, 1)), (0, (2, 2)), (0, (6, 2)), (0, (4, 1, 1, 1))),
    *((0, (4, 1, 1, 1, 1, 1)), (0, (3, 3)), (0, (1, 2)), (0, (8, 2, 2, 2))),
)


def look(arm: str) -> Look:
    """The look of an arm by its place among all arms; of others (`snip_shuffle`) by a hash of the name."""
    known = list(ARMS)
    place = known.index(arm) if arm in known else len(known) + zlib.crc32(arm.encode())
    color = COLORS[1 + (place - 1) % (len(COLORS) - 1)] if place else COLORS[0]
    return Look(seaborn.color_palette("colorblind")[color], MARKERS[place % len(MARKERS)], LINES[place % len(LINES)])


def looks(arms: Sequence[str]) -> dict[str, Look]:
    """The looks of arms drawn together: where two would share a colour or a marker, the later one takes the next free
    one. lt's colour stays its own."""
    palette = [seaborn.color_palette("colorblind")[place] for place in COLORS[1:]]
    found: dict[str, Look] = {}
    for arm in arms:
        own = look(arm)
        color = _free(own.color, palette, [other.color for other in found.values()])
        marker = _free(own.marker, MARKERS, [other.marker for other in found.values()])
        found[arm] = replace(own, color=color, marker=marker)
    return found


def _free(own: Any, choices: Sequence[Any], taken: Sequence[Any]) -> Any:
    place = choices.index(own) if own in choices else 0
    return next((each for each in (own, *choices[place:], *choices) if each not in taken), own)


def named(text: str) -> str:
    """A user's name for a legend: matplotlib leaves out those that begin with an underscore."""
    return f" {text}" if text.startswith("_") else text


def band(axes: Axes, rounds: pd.DataFrame, column: str, name: str, look: Look, scale: float = 1.0) -> None:
    """A line of the mean over trials by weights remaining, and the band between the lowest and the highest trial."""
    by_round = rounds[rounds["remaining"] > 0].groupby("round")
    x, values = by_round["remaining"].mean(), by_round[column]
    style: dict[str, Any] = {"color": look.color, "marker": look.marker, "linestyle": look.dashes}
    style |= {"markersize": 4.5 * scale, "markeredgecolor": "white", "markeredgewidth": 0.5}
    axes.plot(x, values.mean(), label=named(name), linewidth=1.6 * scale, **style)
    if (values.count() > 1).any():
        axes.fill_between(x, values.min(), values.max(), color=look.color, alpha=0.18, linewidth=0)


def shades(count: int) -> list[Any]:
    """Colours from dark to light for an ordered few, light enough apart in grey print."""
    return list(seaborn.color_palette("viridis", as_cmap=True)(np.linspace(0.0, 0.82, max(count, 1))))


@contextmanager
def sheet(
    file: Path | None, height: float, runs: Sequence[Run], what: str, width: float = WIDTH, about: str = ""
) -> Iterator[Figure]:
    """A figure of that size in inches, headed by whose numbers it shows (those of `runs`, or `about`), written to
    `file`, if there is one, at the end of the block."""
    theme: Any = {**seaborn.axes_style("darkgrid"), **seaborn.plotting_context("paper")}
    own: Any = {
        **{"font.sans-serif": ["DejaVu Sans"], "font.size": 8.5, "axes.labelsize": 8.5, "axes.titlesize": 9},
        **{"xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8, "figure.titlesize": 9.5},
        **{"axes.titlepad": 4, "xtick.major.pad": 2, "ytick.major.pad": 2, "grid.linewidth": 0.8},
        "pdf.fonttype": 42,  # text stays text
        "svg.hashsalt": "lth",  # the same numbers give the same file
    }
    with matplotlib.rc_context({**theme, **own}):
        figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.05))
        if TITLES.get():
            small = wrapped(labels.settings(*runs) if runs else about, int(width * 17))
            title = f"{labels.title(runs[0])}: {what}" if runs else what
            figure.suptitle(title + "\n" * len(small), color=DARK)  # with room for the settings
            place: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 7, "color": FAINT, "linespacing": 1.4}
            figure.text(0.5, 1 - 0.22 / height, "\n".join(small), **place)
        yield figure
        if file is not None:
            save(figure, file)


@contextmanager
def untitled() -> Iterator[None]:
    """Within it, figures are drawn without the line that says whose numbers they show."""
    before = TITLES.set(False)
    try:
        yield
    finally:
        TITLES.reset(before)


def wrapped(text: str, width: int, between: str = ", ") -> list[str]:
    """A list of things in lines of at most `width` and about the same length, broken between them where they can be."""
    bound = between.join(part.replace(" ", "\xa0") for part in text.split(between))
    fewest = math.ceil(len(text) / width)
    for rows in (fewest, fewest + 1):
        for room in range(math.ceil(len(text) / max(rows, 1)), width + 1):
            lines = textwrap.wrap(bound, max(room, 1), break_long_words=False, break_on_hyphens=False)
            if len(lines) <= rows and all(len(line) <= width for line in lines):
                return [line.replace("\xa0", " ") for line in lines]
    return textwrap.wrap(text, width)


def save(figure: Figure, file: Path) -> None:
    """Write a figure in the format of the file's suffix."""
    kind, content = file.suffix[1:], io.BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    figure.savefig(content, format=kind, dpi=DPI, metadata=undated)
    files.write(file, content.getvalue())


def legend(
    figure: Figure, axes: Iterable[Axes], caption: str = "", columns: int = 5, leave_out: Iterable[str] = ()
) -> None:
    """One legend below everything, with each name once, headed by what its lines are; the names in LAST have a row of
    their own."""
    title = "\n".join(wrapped(caption, int(figure.get_figwidth() * 17), "; "))
    entries = {name: handle for name, handle in _entries(axes).items() if name not in set(leave_out)}
    last = [name for name in LAST if name in entries]
    first = [name for name in entries if name not in last]
    for across in range(columns, 0, -1):
        rows = [names[i : i + across] for names in (first, last) for i in range(0, len(names), across)]
        wide = max(map(len, rows), default=1)
        # A legend fills its columns first.
        order = [row[place] if place < len(row) else "" for place in range(wide) for row in rows]
        handles = [entries.get(name, Line2D([], [], linestyle="none")) for name in order]
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": wide, "title_fontsize": 7.5}
        drawn = figure.legend(handles, order, title=title or None, **place, **LEGEND)
        drawn.get_title().set_multialignment("center")
        drawn.get_title().set_color(FAINT)
        if drawn.get_window_extent().width <= figure.bbox.width or across == 1:
            return
        drawn.remove()


def heading(place: Axes, axes: Axes, names: Sequence[str], title: str) -> None:
    """A title and the legend of these lines of `axes`, in the place above them."""
    entries = _entries([axes])
    place.set_axis_off()
    where: dict[str, Any] = {"alignment": "left", "loc": "lower left", "borderaxespad": 0, "borderpad": 0}
    handles = [entries[name] for name in names]
    place.legend(handles, list(names), title=title, title_fontsize=8.5, ncols=len(names), **where, **LEGEND)


def _entries(axes: Iterable[Axes]) -> dict[str, Any]:
    """The first drawn handle of each name."""
    entries: dict[str, Any] = {}
    for each in axes:
        for handle, name in zip(*each.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    return entries
