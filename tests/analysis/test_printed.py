"""The verdict's table as text."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from drawn import rounds_of

from lth.analysis import printed, verdict

NUMBER = re.compile(r"[+-]?\d+\.\d+")


def table(trials: int, arms: dict[str, Sequence[float]], ES: dict[str, Sequence[float]] | None = None) -> pd.DataFrame:
    """The table of arms with these accuracies and ES ratios a round."""
    frames = []
    for arm, values in arms.items():
        shifts = np.linspace(-0.02, 0.02, trials)[:, None] * np.arange(len(values))
        stops = np.tile(1000 * np.array((ES or {}).get(arm, [1.0] * len(values))), (trials, 1))
        frames.append(rounds_of((np.array(values) + shifts).round(6), stops, arm))
    return verdict.judged(pd.concat(frames, ignore_index=True))


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("trials", [1, 3])
def test_it_fits_any_width(width: int, trials: int) -> None:
    arms = ("lt", "reinit", "random_reinit", "ticket_reinit", "ticket_shuffle")
    falling = [98.04, 98.1, 98.0, 97.5, 90.0, 11.35]
    accuracy = {
        arm: [value - (place * index if index else 0) for index, value in enumerate(falling)]
        for place, arm in enumerate(arms)
    }
    found = table(trials, accuracy, {"lt": [1.0, 0.9, 0.8, 0.7, 1.1, 2.55]})
    text = printed.render(found, width)
    rows = text.splitlines()
    assert max(map(len, rows)) <= width
    assert "\x1b" not in text
    assert rows == [row.rstrip() for row in rows]
    numbers = NUMBER.findall(text)
    for line in found.to_dict("records"):
        assert f"{line['test']:.2f}" in numbers
        assert f"{line['ES_ratio']:.2f}" in numbers
        if line["round"]:
            assert f"{line['difference']:+.2f}" in numbers
    assert text.count("±") == (0 if trials == 1 else 5 * len(arms) + 1)  # and the explanation
    assert ("95% interval" in text) == (trials > 1)
    assert [arm for arm in arms if arm not in text] == []
    blocks = sum(row.strip().startswith("round") for row in rows)
    assert (blocks == 1) == (width == 200)


def test_stars_are_for_winning_tickets_of_arms_that_find_them() -> None:
    gains = [98.0, 98.3, 98.0, 97.0]
    text = printed.render(table(3, {"lt": gains, "reinit": gains}), 100)
    assert re.findall(r"[\d.]+\*+", text) == ["98.30**", "98.00*"]
    assert "** better than dense and no later, * no" in text
    alone = printed.render(table(1, {"lt": gains}), 100)
    assert "*" not in alone


def test_missing_trials_are_said() -> None:
    found = table(3, {"lt": [98.0, 98.1, 98.2]})
    found.loc[2, "trials"] = 2
    rows = [row for row in printed.render(found, 60).splitlines() if "(2 of 3)" in row]
    assert len(rows) == 1
    assert rows[0].split()[0] == "2"
