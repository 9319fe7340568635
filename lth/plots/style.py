"""What all pictures have in common: one look for an arm everywhere, sizes for print, percent on axes, saving.

Figures are drawn without pyplot, so that no display is needed and nothing of matplotlib's state changes.
"""

import io
import math
import textwrap
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from lth.analysis import labels
from lth.records import files
from lth.records.tables import Run
from lth.settings.arms import ARMS

WIDTH = 7.2  # inches: the text of a page; at 200 dots an inch half of it is still sharp on a screen
DPI = 200
DARK = "#333333"
FAINT = "#777777"
LAST = ("dense network", "winning ticket: no worse than dense", "winning ticket: better than dense")  # in legends
LEGEND: dict[str, Any] = {"frameon": False, "handlelength": 3.0, "columnspacing": 1.4}
DASHES = ((0, ()), (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (2, 1)), (0, (1, 0.8)), (0, (6, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Look:
    """How the lines of an arm are drawn; arms differ without the colour too."""

    color: Any
    marker: str
    dashes: Any


# Seaborn's colour-blind-safe palette, without its two pale ones; the first is lt's alone. With the markers and dashes,
# whose numbers differ, most arms drawn together differ in all three.
COLORS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#56b4e9", "#ca9161", "#cc78bc", "#949494")
MARKERS = ("o", "s", "D", "X", "P", "<", "^", "v", ">", "p", "h", "8", "d")  # stars are for winning tickets
LINES: tuple[Any, ...] = (
    *("-", (0, (4, 1.5)), (0, (7, 1, 1, 1)), (0, (1, 1)), (0, (2, 2)), (0, (6, 2)), (0, (4, 1, 1, 1))),
    *((0, (4, 1, 1, 1, 1, 1)), (0, (3, 3)), (0, (1, 2)), (0, (8, 2, 2, 2))),
)


def look(arm: str) -> Look:
    """The look of an arm by its place among all arms; of others (`snip_shuffle`) by a hash of the name."""
    order = list(ARMS)
    place = order.index(arm) if arm in order else len(order) + zlib.crc32(arm.encode())
    color = COLORS[1 + (place - 1) % (len(COLORS) - 1)] if place else COLORS[0]
    return Look(color, MARKERS[place % len(MARKERS)], LINES[place % len(LINES)])


def looks(arms: Sequence[str]) -> dict[str, Look]:
    """The looks of arms drawn together: where two would share a colour or a marker, the later one takes a free one.
    lt's colour stays its own."""
    result: dict[str, Look] = {}
    for arm in arms:
        preferred = look(arm)
        colors, markers = ([getattr(other, part) for other in result.values()] for part in ("color", "marker"))
        color = next((color for color in (preferred.color, *COLORS[1:]) if color not in colors), preferred.color)
        marker = next((marker for marker in (preferred.marker, *MARKERS) if marker not in markers), preferred.marker)
        result[arm] = replace(preferred, color=color, marker=marker)
    return result


def line(axes: Axes, x: pd.Series, y: pd.Series, name: str, look: Look, scale: float = 1.0) -> None:
    """A line with markers, for the legend under `name`."""
    name = f" {name}" if name.startswith("_") else name  # matplotlib would leave it out
    style: dict[str, Any] = {"color": look.color, "marker": look.marker, "linestyle": look.dashes}
    style |= {"markersize": 4.5 * scale, "markeredgecolor": "white", "markeredgewidth": 0.5}
    axes.plot(x, y, label=name, linewidth=1.6 * scale, **style)


def band(axes: Axes, rounds: pd.DataFrame, column: str, name: str, look: Look) -> None:
    """A line of the mean over trials by weights remaining, and the band between the lowest and the highest trial."""
    by_round = rounds[rounds["remaining"] > 0].groupby("round")
    x, values = by_round["remaining"].mean(), by_round[column]
    line(axes, x, values.mean(), name, look)
    if (values.count() > 1).any():
        axes.fill_between(x, values.min(), values.max(), color=look.color, alpha=0.18, linewidth=0)


def per_point(rounds: pd.DataFrame) -> pd.Series:
    """The number of trials behind each point of the arms' lines."""
    return rounds.groupby(["arm", "round"])["seed"].nunique()


def averaged(rounds: pd.DataFrame, band: str = ", band from the lowest to the highest") -> str:
    """What the lines of `band` are, in words."""
    counts = per_point(rounds)
    return f"mean of {labels.trials(counts)}{band}" if counts.max() > 1 else "1 trial"


def shades(count: int) -> list[Any]:
    """Colours from dark to light for a few ordered lines, distinct in grey print."""
    return list(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.82, max(count, 1))))


@contextmanager
def sheet(
    file: Path | None, height: float, runs: Sequence[Run], what: str, width: float = WIDTH, about: str = ""
) -> Iterator[Figure]:
    """A figure of that size in inches, headed by the model and settings of `runs` (or by `about`), written to
    `file`, if there is one, at the end of the block."""
    style: Any = {
        **matplotlib.style.library["seaborn-v0_8-darkgrid"],
        **matplotlib.style.library["seaborn-v0_8-paper"],
        **{"font.sans-serif": ["DejaVu Sans"], "font.size": 8.5, "axes.labelsize": 8.5, "axes.titlesize": 9},
        **{"xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8, "figure.titlesize": 9.5},
        **{"axes.titlepad": 4, "xtick.major.pad": 2, "ytick.major.pad": 2, "grid.linewidth": 0.8},
        "pdf.fonttype": 42,  # text stays text
        "svg.hashsalt": "lth",  # the same numbers give the same file
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.05))
        subtitle = wrapped(labels.settings(*runs) if runs else about, int(width * 17))
        title = f"{labels.title(runs[0])}: {what}" if runs else what
        figure.suptitle(title + "\n" * len(subtitle), color=DARK)  # with room for the settings
        place: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 7, "color": FAINT, "linespacing": 1.4}
        figure.text(0.5, 1 - 0.22 / height, "\n".join(subtitle), **place)
        yield figure
        if file is not None:
            save(figure, file)


def wrapped(text: str, width: int, between: str = ", ") -> list[str]:
    """A list of things in lines of at most `width`, broken between them where they can be."""
    bound = between.join(part.replace(" ", "\xa0") for part in text.split(between))
    return [line.replace("\xa0", " ") for line in textwrap.wrap(bound, width, break_on_hyphens=False)]


def save(figure: Figure, file: Path) -> None:
    """Write a figure in the format of the file's suffix, and with a PDF also a PNG, which a page can show."""
    for kind in ("pdf", "png") if file.suffix == ".pdf" else (file.suffix[1:],):
        content = io.BytesIO()
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        figure.savefig(content, format=kind, dpi=DPI, metadata=undated)
        files.write(file.with_suffix(f".{kind}"), content.getvalue())


def legend(
    figure: Figure, axes: Iterable[Axes], caption: str = "", columns: int = 5, leave_out: Iterable[str] = ()
) -> None:
    """One legend below everything, with each name once, headed by what its lines are; the names in LAST have a row of
    their own."""
    entries = {name: handle for name, handle in _entries(axes).items() if name not in set(leave_out)}
    last = [name for name in LAST if name in entries]
    first = [name for name in entries if name not in last]
    title = "\n".join(wrapped(caption, int(figure.get_figwidth() * 17), "; "))
    for across in range(columns, 0, -1):
        rows = [names[i : i + across] for names in (first, last) for i in range(0, len(names), across)]
        order = [name for column in zip_longest(*rows, fillvalue="") for name in column]  # legends fill columns first
        handles = [entries.get(name, Line2D([], [], linestyle="none")) for name in order]
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": max(map(len, rows), default=1)}
        drawn = figure.legend(handles, order, title=title or None, title_fontsize=7.5, **place, **LEGEND)
        drawn.get_title().set(multialignment="center", color=FAINT)
        if drawn.get_window_extent().width <= figure.bbox.width or across == 1:
            return
        drawn.remove()


def heading(place: Axes, axes: Axes, names: Sequence[str]) -> None:
    """The legend of these lines of `axes`, in the place above them."""
    entries = _entries([axes])
    place.set_axis_off()
    where: dict[str, Any] = {"alignment": "left", "loc": "lower left", "borderaxespad": 0, "borderpad": 0}
    place.legend([entries[name] for name in names], list(names), ncols=len(names), **where, **LEGEND)


def _entries(axes: Iterable[Axes]) -> dict[str, Any]:
    """The first drawn handle of each name."""
    entries: dict[str, Any] = {}
    for each in axes:
        for handle, name in zip(*each.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    return entries


SPARSITY: dict[str, tuple[str, Callable[[float], str]]] = {  # what an x axis of sparsity is called, and its ticks
    "remaining": ("weights remaining (%, log scale)", labels.percent),
    "flops": ("multiply-adds remaining (%, log scale)", labels.percent),
    "compression": ("compression (times fewer weights, log scale)", lambda value: labels.percent(100 / value)),
}


def remaining_axis(
    axes: Axes, remaining: Iterable[float], ticks: int = 8, label: bool = True, kind: str = "remaining"
) -> None:
    """An x axis of weights remaining: logarithmic, 100% on the left, a tick for every round, at most `ticks` of them
    with numbers, the last one too. `kind` is a name in SPARSITY."""
    name, text = SPARSITY[kind]
    values = sorted({value for value in remaining if value > 0}, reverse=True) or [100.0]
    first, last = values[0], values[-1]
    apart = math.log(first / last) / (ticks - 1)
    chosen = [first]
    for value in values[1:-1]:
        if math.log(chosen[-1] / value) > 0.99 * apart and math.log(value / last) > 0.7 * apart:
            chosen.append(value)
    room = max((first / last) ** 0.04, 1.02)
    axes.set_xscale("log")
    axes.set_xlim(first * room, last / room)
    axes.xaxis.set_major_locator(FixedLocator(list(dict.fromkeys((*chosen, last)))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axes.xaxis.set_minor_locator(FixedLocator(values))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="both", bottom=True, color="#999999", width=0.6)
    axes.tick_params(axis="x", which="minor", length=2)
    axes.tick_params(axis="x", which="major", length=3.5)
    if label:
        axes.set_xlabel(name)


def iterations_axis(axis: Any) -> None:
    """Ticks of iterations as 5,000."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def fit(axes: Axes, values: Iterable[float], bars: Iterable[float] = ()) -> None:
    """A y axis for all of these values, none of which is negative, and for as much of the ends of `bars` as does not
    flatten them."""
    finite = np.asarray([value for value in values if math.isfinite(value)])
    span = float(np.ptp(finite)) or 1.0
    ends = np.clip([value for value in bars if math.isfinite(value)], finite.min() - span / 2, finite.max() + span / 2)
    low, high = min([finite.min(), *ends]), max([finite.max(), *ends])
    room = 0.06 * (high - low or abs(high) or 1)  # also where all values are the same
    axes.set_ylim(max(low - room, 0), high + room)


def accuracy_axis(axes: Axes, values: Iterable[float], bars: Iterable[float] = (), least: float = 5.0) -> str:
    """A y axis for accuracies on which a few collapsed networks do not flatten the others: if some lie far below, it
    ends four times as far down as the best third reaches, at least `least` points. Returns a note for the caption."""
    finite = np.asarray([value for value in values if math.isfinite(value)])
    if not len(finite):
        return ""
    top, lowest = float(finite.max()), float(finite.min())
    reach = max(least, 4 * (top - float(np.quantile(finite, 0.67))))
    cut = top - lowest >= 2.2 * reach
    fit(axes, finite[finite >= top - reach] if cut else finite, bars)
    bottom, high = axes.get_ylim()
    axes.set_ylim(top - reach if cut else bottom, min(high, 100 + 0.06 * (high - bottom)))
    return f"accuracy cut off at {top - reach:.3g}% (lowest: {lowest:.3g}%)" if cut else ""
