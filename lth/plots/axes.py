"""Axes of weights remaining, of accuracies and of iterations: their limits, scales and ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lth.analysis import labels

STRIP = 0.2  # of an accuracy axis: the part that holds collapsed networks
COMPRESSED = "shaded: the same axis, compressed"


SPARSITY: dict[str, tuple[str, Callable[[float], str]]] = {  # what an x axis of sparsity is called, and its ticks
    "remaining": ("weights remaining (%)", labels.percent),
    "flops": ("multiply-adds remaining (%)", labels.percent),
    "compression": ("compression (times fewer weights)", lambda value: labels.percent(100 / value)),
}


def remaining_axis(
    axes: Axes, remaining: Iterable[float], ticks: int = 8, label: bool = True, kind: str = "remaining"
) -> None:
    """An x axis of weights remaining: logarithmic, 100% on the left, ticks at rounds, also the last one. `kind` is
    a name in SPARSITY."""
    name, text = SPARSITY[kind]
    values = sorted({value for value in remaining if value > 0}, reverse=True) or [100.0]
    first, last = values[0], values[-1]
    step = math.ceil((len(values) - 1) / (ticks - 1)) or 1
    spread = labels.spread(values, math.ceil((len(values) - 1) / step) + 1)
    least = 0.5 * math.log(first / last) / max(len(spread) - 1, 1)  # where rounds are not evenly apart
    chosen = [first]
    for value in spread[1:]:
        if value == last or min(math.log(chosen[-1] / value), math.log(value / last)) >= least:
            chosen.append(value)
    room = max((first / last) ** 0.04, 1.02)
    axes.set_xscale("log")
    axes.set_xlim(first * room, last / room)
    axes.xaxis.set_major_locator(FixedLocator(chosen))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    if label:
        axes.set_xlabel(name)


def iterations_axis(axis: Any) -> None:
    """Ticks of iterations as 5,000."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def accuracy_axis(axes: Axes, values: Sequence[float], least: float = 5.0) -> bool:
    """A y axis for all of these accuracies on which a few collapsed networks do not flatten the others.

    If some lie far below, the axis is linear from the top four times as far down as the best third reaches, at least
    `least` points, and the rest is compressed into a shaded strip at its bottom. Returns whether it is.
    """
    found = np.asarray([value for value in values if math.isfinite(value)])
    top, lowest = float(found.max(initial=0)), float(found.min(initial=100))
    reach = max(least, 4 * (top - float(np.quantile(found, 0.67)))) if len(found) else 100.0
    if top - lowest < 2.2 * reach:
        room = max((top - lowest) * 0.06, 0.05)
        axes.set_ylim(lowest - room, top + room)
        return False
    edge, room = float(math.floor(top - reach)), reach * 0.06
    reach = top - edge
    scale = STRIP / (1 - STRIP) * (reach + room) / (edge - lowest)  # of the strip beside the rest
    axes.set_yscale(
        "function",
        functions=(
            lambda y: np.where(np.asarray(y) < edge, edge - (edge - np.asarray(y)) * scale, y),
            lambda y: np.where(np.asarray(y) < edge, edge - (edge - np.asarray(y)) / scale, y),
        ),
    )
    bottom = lowest - room / scale
    axes.set_ylim(bottom, top + room)
    above = [tick for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(edge, top) if edge < tick <= top + room]
    below = [tick for tick in MaxNLocator(2).tick_values(lowest, edge) if bottom <= tick < edge - (edge - lowest) / 4]
    axes.yaxis.set_major_locator(FixedLocator([*below, edge, *(tick for tick in above if tick > edge + reach * 0.1)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    for panel in axes.get_shared_y_axes().get_siblings(axes):
        panel.axhspan(bottom, edge, color="#d5d5e0", linewidth=0, zorder=0.5)
    return True


def percent_axis(axis: Any, lowest: float) -> None:
    """Ticks at 100, 50, 20, 10, ... percent down to the lowest value: as many as read well."""
    ticks = [step * 10.0**power for power in range(2, -7, -1) for step in (5, 2, 1)]
    ticks = [tick for tick in ticks if lowest * 0.85 <= tick <= 100]
    if len(ticks) > 9:
        ticks = [tick for tick in ticks if math.log10(tick).is_integer()]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: labels.percent(value)))
