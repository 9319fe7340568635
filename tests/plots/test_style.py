"""What all figures have in common."""

from __future__ import annotations

from lth.plots import style


def test_settings_break_after_commas() -> None:
    text = "20% pruned a round, 50,000 iterations a round, output layer 10%, evaluated every 100 iterations"
    first, second = style.wrapped(text, 80)
    assert first == "20% pruned a round, 50,000 iterations a round,"
    assert f"{first} {second}" == text
    assert style.wrapped("short", 80) == ["short"]
    assert style.wrapped("", 80) == []
    assert max(map(len, style.wrapped(f"{'x' * 90}, {text}", 80))) <= 80
