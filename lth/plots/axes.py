"""Axes of weights remaining, of accuracies and of iterations: their limits, scales and ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from lth.analysis import labels

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
    """A y axis for all of these values, and for as much of the ends of `bars` as does not flatten them."""
    found = np.asarray([value for value in values if math.isfinite(value)])
    span = float(np.ptp(found)) or 1.0
    low, high = found.min(), found.max()
    ends = np.clip([value for value in bars if math.isfinite(value)], low - span / 2, high + span / 2)
    low, high = min([low, *ends]), max([high, *ends])
    axes.set_ylim(low - 0.06 * (high - low or 1), high + 0.06 * (high - low or 1))


def accuracy_axis(axes: Axes, values: Sequence[float], bars: Iterable[float] = (), least: float = 5.0) -> str:
    """A y axis for accuracies on which a few collapsed networks do not flatten the others: if some lie far below, it
    ends four times as far down as the best third reaches, at least `least` points. Returns what to say of it."""
    found = np.asarray([value for value in values if math.isfinite(value)])
    if not len(found):
        return ""
    top, lowest = float(found.max()), float(found.min())
    reach = max(least, 4 * (top - float(np.quantile(found, 0.67))))
    cut = top - lowest >= 2.2 * reach
    fit(axes, found[found >= top - reach] if cut else found, bars)
    bottom, high = axes.get_ylim()
    axes.set_ylim(top - reach if cut else bottom, min(high, 100 + 0.06 * (high - bottom)))
    return f"cut off at {top - reach:.3g}%, the lowest is {lowest:.3g}%" if cut else ""


def percent_axis(axis: Any, lowest: float) -> None:
    """Ticks at 100, 50, 20, 10, ... percent down to the lowest value: as many as read well."""
    ticks = [step * 10.0**power for power in range(2, -7, -1) for step in (5, 2, 1)]
    ticks = [tick for tick in ticks if lowest * 0.85 <= tick <= 100]
    if len(ticks) > 9:
        ticks = [tick for tick in ticks if math.log10(tick).is_integer()]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: labels.percent(value)))
