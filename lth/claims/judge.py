"""Whether the records of runs agree with a claim: values per trial, intervals and their judgement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from lth.analysis import overlap, verdict
from lth.claims.claim import PERCENT, POINTS, TIMES, Form, Statement
from lth.records import tables
from lth.records.store import Store
from lth.records.tables import Run

NEAR = 1.1  # a sparsity is the one that a statement is about if they differ by at most this factor
ROUGHLY = 2.0  # the same where settings were changed, as for quick forms, whose rounds prune more
SCALES: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {  # of means and intervals, and back
    POINTS: (float, float),
    TIMES: (math.log, math.exp),
    PERCENT: (lambda p: math.log(max(p, 0.01) / max(100 - p, 0.01)), lambda x: 100 / (1 + math.exp(-x))),
}


@dataclass(frozen=True)
class Records:
    """What the runs of a claim left: the runs of each of its experiments, and their rounds.

    `rounds` has a row per round of a run, with the columns of rounds.csv and experiment, arm, seed, and, against the
    trial's own dense round, difference (points of test accuracy), ES_ratio and ES_dense.
    """

    runs: Mapping[str, Sequence[Run]]
    rounds: pd.DataFrame

    @classmethod
    def of(cls, runs: Mapping[str, Sequence[Run]]) -> Records:
        """What is finished of these runs, whose experiments are given by name."""
        rounds = [verdict.paired(found).assign(experiment=name) for name, found in runs.items()]
        return cls(runs, pd.concat(rounds))

    def near(self, remaining: float, factor: float = NEAR) -> Records:
        """Only the round of each experiment that is nearest to that percent of the weights, if one is near enough, and
        if it is the sparsity of the nearest of all: experiments of other sparsities cannot be compared."""
        means = self.rounds[self.rounds["remaining"] > 0].groupby(["experiment", "round"])["remaining"].mean()
        apart = (means / remaining).map(math.log).abs()
        if not len(apart) or apart.min() > math.log(factor):
            return Records(self.runs, self.rounds.iloc[:0])
        closest = means[apart.idxmin()]
        nearest = apart.groupby("experiment").idxmin()
        kept = [which for which in nearest if abs(math.log(means[which] / closest)) <= math.log(NEAR)]
        rows = pd.MultiIndex.from_frame(self.rounds[["experiment", "round"]]).isin(kept)
        return Records(self.runs, self.rounds[rows])

    def arm(self, which: str) -> pd.DataFrame:
        """The rows of an arm, by seed."""
        experiment, _, arm = which.rpartition("/")
        rows = self.rounds
        return rows[(rows["experiment"] == experiment) & (rows["arm"] == arm)].set_index("seed")

    def barriers(self, which: str) -> pd.Series:
        """The error barrier of an arm's rounds, in points, by seed; nothing of rounds whose line was not measured."""
        rows, (experiment, _, arm) = self.arm(which), which.rpartition("/")
        found = tables.barriers([run for run in self.runs[experiment] if run.arm == arm])
        return found.merge(rows.reset_index()[["seed", "round"]]).set_index("seed")[["train", "test"]].max(axis=1)

    def overlaps(self, which: str) -> pd.Series:
        """How far the masks of two trials overlap, as a multiple of chance, by the seed of the first."""
        rows, (experiment, _, arm) = self.arm(which), which.rpartition("/")
        runs = [run for run in self.runs[experiment] if run.arm == arm and run.seed in rows.index]
        found = {}
        for pair in zip(runs[::2], runs[1::2], strict=False):
            masks = [Store(run).masks(int(rows["round"][run.seed])) for run in pair]
            both = overlap.compare(*masks).set_index("layer").loc[overlap.ALL]
            found[pair[0].seed] = both["jaccard"] / both["jaccard_chance"]
        return pd.Series(found, dtype=float)


@dataclass(frozen=True)
class Finding:
    """What was measured for a statement: the mean over trials with its 95% interval (NaN with fewer than two trials),
    at that percent of the weights, and whether it `agrees`, `disagrees` or is `not decided`."""

    statement: Statement
    remaining: float = math.nan
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    trials: int = 0
    verdict: str = "not measured"


def check(statement: Statement, records: Records, factor: float = NEAR) -> Finding:
    """What the records say about a statement. `factor`: how far a round's sparsity may be from the statement's."""
    there = records if statement.at is None else records.near(statement.at, factor)
    values = statement.measure(there).dropna().astype(float)
    remaining = there.rounds["remaining"].mean() if statement.at is not None else math.nan
    if not len(values):
        return Finding(statement)
    scale, back = SCALES[statement.unit]
    scaled = values.map(scale)
    mean, low, high = map(back, (scaled.mean(), *verdict.interval(scaled)))
    return Finding(statement, remaining, mean, low, high, len(values), judge(low, high, statement.holds))


def judge(low: float, high: float, holds: tuple[float, float]) -> str:
    """Whether an interval lies within the values for which a statement is true, outside them, or on both sides. No
    effect at all, in any trial, is on neither side of itself."""
    if low == high and low in holds:
        return "not decided"
    if low >= holds[0] and high <= holds[1]:
        return "agrees"
    if low > holds[1] or high < holds[0]:
        return "disagrees"
    return "not decided"


def runs_of(form: Form) -> dict[str, list[Run]]:
    """The runs of each experiment of a claim, finished or not."""
    return {name: tables.runs_of(config) for name, config in form.configs.items()}


def findings(form: Form) -> list[Finding]:
    """What the finished rounds say about each statement."""
    records, factor = Records.of(runs_of(form)), ROUGHLY if form.changes else NEAR
    return [check(statement, records, factor) for statement in form.claim.statements]
