"""What a claim is: a published experiment, the statements that the paper makes of it, and how each is measured.

This module and published.py load neither PyTorch nor pandas, so that a mistyped name is answered at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pandas as pd

POINTS, TIMES, PERCENT = "points", "times", "percent"  # units: differences of accuracy; ratios; accuracies


class Measured(Protocol):
    """What measures ask (lth.claims.judge.Records is one)."""

    def arm(self, which: str) -> pd.DataFrame:
        """The rows of an arm, by seed. `which` is `lt`, or `large_init/lt` where a claim has several experiments."""

    def barriers(self, which: str) -> pd.Series:
        """The error barriers of an arm, by seed."""


Measure = Callable[[Measured], "pd.Series"]  # one value per trial, by seed


def early_stop(which: str, beside: str = "dense") -> Measure:
    """How late an arm stops early, as a share of the trial's dense network, or of another arm in the same round."""

    def measure(records: Measured) -> pd.Series:
        rows = records.arm(which)
        return rows["ES_ratio"] if beside == "dense" else rows["ES"] / records.arm(beside)["ES"]

    return measure


def accuracy(which: str, beside: str = "dense") -> Measure:
    """An arm's test accuracy, in points above that of the trial's dense network, or of another arm in that round."""

    def measure(records: Measured) -> pd.Series:
        rows = records.arm(which)
        return rows["difference"] if beside == "dense" else rows["test"] - records.arm(beside)["test"]

    return measure


def barrier(which: str) -> Measure:
    """The error barrier between two trainings of an arm's ticket, on training or test images, whichever is higher; of
    experiments with --connectivity."""
    return lambda records: records.barriers(which)


def untrained(which: str) -> Measure:
    """The test accuracy, in percent, of an arm's best ticket before any training; that of round 0 does not count."""

    def measure(records: Measured) -> pd.Series:
        rows = records.arm(which)
        return rows[rows["round"] > 0].groupby("seed")["supermask"].max()

    return measure


def towards(published: float, none: float) -> tuple[float, float]:
    """The values that show an effect: at least half as large as published, where `none` would be no effect."""
    half = (published + none) / 2
    return (-math.inf, half) if published < none else (half, math.inf)


@dataclass(frozen=True)
class Statement:
    """One sentence of a paper, and how it is measured here.

    says: the sentence, in short.
    measure: gives a value a trial from the records, narrowed to the round nearest to `at`.
    at: percent of the weights that the sentence is about; None gives `measure` all rounds.
    holds: the lowest and the highest value for which the sentence is true. `towards` makes it of a figure.
    published: the paper's figure, where it gives one.
    unit: POINTS; TIMES for ratios (their mean is the geometric one, and their interval that of the logarithms); PERCENT
    for test accuracies before training, which the report's table of rounds then has, too.
    """

    says: str
    measure: Measure
    at: float | None
    holds: tuple[float, float]
    published: float | None = None
    unit: str = POINTS


@dataclass(frozen=True)
class Claim:
    """A published experiment.

    experiments: for each, the flags of main.py that repeat it. Most claims have one, named "".
    quick: flags that follow them for a form of less than three minutes on two cores.
    source: where the paper is to be found. note: what is not as in the paper.
    needs: what the published form had better have, where that is not any computer.
    """

    name: str
    about: str
    paper: str
    where: str
    source: str
    experiments: Mapping[str, str]
    quick: str
    statements: Sequence[Statement]
    note: str = ""
    needs: str = ""
