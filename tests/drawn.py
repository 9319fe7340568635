"""What a figure shows, for the tests of figures."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def lines_in(axes: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The named lines of a panel."""
    return {
        str(line.get_label()): (np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float))
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def panels(figure: Figure, what: str = "") -> list[Axes]:
    """The panels that have lines, of those whose y axis shows `what`."""
    return [axes for axes in figure.axes if axes.lines and what in axes.get_ylabel()]


def legends_of(figure: Figure) -> list[str]:
    """The names in all legends, with repetitions."""
    drawn = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    return [name for legend in drawn for text in legend.get_texts() if (name := text.get_text())]


def caption_of(figure: Figure) -> str:
    """What stands above the legend of the whole figure."""
    return figure.legends[0].get_title().get_text()
