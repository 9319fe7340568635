"""Tables of trials and rounds as the verdict reads them, and what a figure shows."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def rounds_of(test: np.ndarray, ES: np.ndarray | None = None, arm: str = "lt", last: float = 9e9) -> pd.DataFrame:
    """What verdict.paired gives for test accuracies (trials, rounds), round 0 first."""
    trials, count = test.shape
    stops = np.full(test.shape, 1000.0) if ES is None else np.asarray(ES, float)
    columns = {
        "round": np.tile(np.arange(count), trials),
        "remaining": np.tile(100 * 0.8 ** np.arange(count), trials),
        "seed": np.repeat(np.arange(trials), count),
        "test": test.ravel(),
        "difference": (test - test[:, :1]).round(9).ravel(),
        "ES": stops.ravel(),
        "ES_ratio": (stops / stops[:, :1]).ravel(),
        "ES_dense": np.repeat(stops[:, 0], count),
    }
    uncounted = dict.fromkeys(("macs", "dense_macs", "supermask"), np.nan)
    return pd.DataFrame(columns).assign(arm=arm, last=last, **uncounted)


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
