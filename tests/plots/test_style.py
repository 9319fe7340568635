"""What all figures have in common."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from lth.plots import style


def test_settings_break_after_commas() -> None:
    text = "20% pruned per round, 50,000 iterations per round, output layer 10%, evaluated every 100 iterations"
    first, second = style.wrapped(text, 80)
    assert first == "20% pruned per round, 50,000 iterations per round,"
    assert f"{first} {second}" == text
    assert style.wrapped("short", 80) == ["short"]
    assert style.wrapped("", 80) == []
    assert max(map(len, style.wrapped(f"{'x' * 90}, {text}", 80))) <= 80


@pytest.mark.parametrize("width", [style.WIDTH, 3.6])
@pytest.mark.parametrize("count", [3, 10])
def test_a_legend_with_a_long_caption_stays_within_its_figure(width: float, count: int) -> None:
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    axes = figure.subplots()
    for number in range(count):
        axes.plot([0, 1], label=f"winning ticket: no worse than dense {number}" if number > 2 else f"arm {number}")
    said = "mean of 2 to 3 trials, band from the lowest to the highest; early stop is the last evaluation"
    style.legend(figure, [axes], f"{said}; shaded: the same axis, compressed")
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert count > 3 or len({round(text.get_window_extent().y0) for text in figure.legends[0].get_texts()}) == 1
