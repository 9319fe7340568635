"""What all figures have in common."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from lth.plots import style


def test_settings_break_after_commas() -> None:
    text = "20% pruned a round, 50,000 iterations a round, output layer 10%, evaluated every 100 iterations"
    first, second = style.wrapped(text, 80)
    assert first == "20% pruned a round, 50,000 iterations a round,"
    assert f"{first} {second}" == text
    assert style.wrapped("short", 80) == ["short"]
    assert style.wrapped("", 80) == []
    assert max(map(len, style.wrapped(f"{'x' * 90}, {text}", 80))) <= 80


def test_a_legend_stays_within_its_figure() -> None:
    names = [
        "lt",
        "reinit",
        "dense network",
        "winning ticket: no worse than dense",
        "winning ticket: better than dense",
    ]
    for shown in (names[:3], names, names * 2):
        figure = Figure(figsize=(style.WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        for number, name in enumerate(shown):
            axes.plot([0, 1], label=f"{name}{' again' * (number // len(names))}")
        style.legend(figure, [axes], "mean of 2 trials")
        stays_within(figure)


@pytest.mark.parametrize("width", [style.WIDTH, 3.6])
def test_a_long_caption_is_broken_and_the_legend_keeps_its_columns(width: float) -> None:
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in ("lt", "reinit", "dense"):
        axes.plot([0, 1], label=name)
    said = (
        "mean of 2 to 3 trials, band from the lowest to the highest; early stop is the last evaluation in most rounds; "
    )
    style.legend(figure, [axes], said + "shaded: the same axis, compressed")
    stays_within(figure)
    rows = {round(text.get_window_extent().y0) for text in figure.legends[0].get_texts()}
    assert len(rows) == 1


def stays_within(figure: Figure) -> None:
    """Nothing of the legend below the figure is cut off at its sides."""
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
