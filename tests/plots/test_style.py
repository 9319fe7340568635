"""What all figures have in common."""

from __future__ import annotations

from lth.plots import style


def test_settings_break_after_commas() -> None:
    text = "20% pruned per round, 50,000 iterations per round, output layer 10%, evaluated every 100 iterations"
    first, second = style.wrapped(text, 80)
    assert first.endswith("output layer 10%,") and f"{first} {second}" == text, "not within a thing"
    assert style.wrapped("short", 80) == ["short"]
    assert style.wrapped("", 80) == []
    assert max(map(len, style.wrapped(f"{'x' * 90}, {text}", 80))) <= 80
