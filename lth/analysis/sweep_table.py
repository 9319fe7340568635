"""The table of a sweep: several settings, and how accurate each arm is at each sparsity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from lth.analysis import verdict
from lth.records import tables
from lth.records.tables import Run

COLUMNS = ("arm", "round", "remaining", "trials", "test", "low", "high", "ES")


def table(groups: Iterable[tuple[Mapping[str, str], Sequence[Run]]]) -> pd.DataFrame:
    """One row per setting, arm and round: the values in which the settings differ, and COLUMNS.

    `groups` are these values and the runs of each setting. remaining, test and ES are means over trials, low and high
    the 95% interval of the mean test accuracy (`verdict.accuracy_interval`), NaN with fewer than two trials.
    """
    rows = []
    names: dict[str, None] = {}
    for values, runs in groups:
        names |= dict.fromkeys(values)
        for arm in verdict.in_order([run.arm for run in runs]):
            frames = [tables.table(run, "rounds") for run in runs if run.arm == arm]
            for number, found in pd.concat(frames).groupby("round"):
                low, high = verdict.accuracy_interval(found["test"])
                means = {name: found[name].mean() for name in ("remaining", "test", "ES")}
                about = {"arm": arm, "round": int(number), "trials": len(found), "low": low, "high": high}
                rows.append({**values, **about, **means})
    return pd.DataFrame(rows, columns=[*names, *COLUMNS])


def ranked(groups: Iterable[tuple[str, Sequence[Run]]]) -> list[str]:
    """A sentence per setting, by its name and its runs: the sparsest winning tickets first, then the highest validation
    accuracy of the dense network."""
    found = []
    for name, runs in groups:
        judged = verdict.table(runs)
        arm = next(iter(verdict.in_order([run.arm for run in runs])))
        best = verdict.sparsest(verdict.pruned(judged, arm)) if verdict.finds_tickets(arm) else None
        dense = pd.concat([tables.table(run, "rounds").query("round == 0") for run in runs])["val"].mean()
        said = f"the sparsest winning ticket of {arm} keeps {best['remaining']:.3g}% of the weights" if best else ""
        found.append((best["remaining"] if best else 100.0, -dense, f"{name}: {said or f'no winning ticket of {arm}'}"))
    return [
        f"{place}. {sentence}; the dense network has {-dense:.2f}% validation accuracy"
        for place, (_, dense, sentence) in enumerate(sorted(found), 1)
    ]


def text(table: pd.DataFrame) -> str:
    """The table as sweep.csv holds it."""
    return table.to_csv(index=False, float_format="%.10g", lineterminator="\n")
