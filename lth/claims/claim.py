"""What a claim is: a published experiment, the statements that the paper makes of it, and how each is measured.

This module and published.py load neither PyTorch nor pandas, so that a mistyped name is answered at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

POINTS, TIMES, PERCENT = "points", "times", "percent"  # units: differences of accuracy; ratios; accuracies

# A measure gives one value per trial, by seed, from the records of a claim's runs (lth.claims.judge.Records, untyped
# here, since it loads pandas). An arm is named `lt`, or `large_init/lt` where a claim has several experiments.
Measure = Callable[[Any], "pd.Series"]


def early_stop(which: str, beside: str = "") -> Measure:
    """An arm's early-stop iteration divided by that of the trial's dense network, or of another arm in that round."""
    return lambda found: found.arm(which)["ES"] / found.arm(beside)["ES"] if beside else found.arm(which)["ES_ratio"]


def accuracy(which: str, beside: str = "") -> Measure:
    """An arm's test accuracy, in points above that of the trial's dense network, or of another arm in that round."""
    return lambda found: (
        found.arm(which)["test"] - found.arm(beside)["test"] if beside else found.arm(which)["difference"]
    )


def barrier(which: str) -> Measure:
    """The error barrier between two trainings of an arm's ticket, on training or test images, whichever is higher; for
    experiments with --connectivity."""
    return lambda found: found.barriers(which)


def untrained(which: str) -> Measure:
    """The test accuracy, in percent, of an arm's best ticket before any training, except for round 0."""
    return lambda found: found.arm(which).query("round > 0").groupby("seed")["supermask"].max()


def overlap(which: str) -> Measure:
    """The Jaccard index of the masks that two trials of an arm found, divided by that of random masks; each trial is
    in one pair, so that the values are independent."""
    return lambda found: found.overlaps(which)


def towards(published: float, none: float) -> tuple[float, float]:
    """The values that show an effect at least half as large as the published one; `none` is no effect."""
    half = (published + none) / 2
    return (-math.inf, half) if published < none else (half, math.inf)


@dataclass(frozen=True)
class Statement:
    """One sentence of a paper, and how it is measured here.

    says: the sentence, in short.
    measure: returns a value per trial from the records, narrowed to the round nearest to `at`.
    at: percent of the weights that the sentence is about; None: `measure` gets all rounds.
    holds: the lowest and the highest value for which the sentence is true. `towards` derives it from a figure.
    published: the paper's figure, if it has one.
    unit: POINTS; TIMES for ratios (geometric mean); PERCENT for test accuracies before training, which the report's
        table of rounds then shows too.
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

    experiments: the flags of main.py that repeat each, by name. Most claims have one, named "".
    start_of: for an experiment, another one above it, with whose initial weights of the first trial all trials begin.
    quick: flags that follow them for a form of less than three minutes on two cores.
    source: where to find the paper. note: what differs from the paper.
    needs: what the published form needs beyond any computer.
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
    start_of: Mapping[str, str] = field(default_factory=dict)
