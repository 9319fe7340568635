"""The findings on a claim: values per trial, their intervals, and whether they agree with it; as a table for the
terminal, a CSV file, and a section of a Markdown report with its figures."""

from __future__ import annotations

import itertools
import math
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lth.analysis import labels, overlap, printed, verdict
from lth.claims.claim import PERCENT, POINTS, TIMES, Form, Statement
from lth.plots.comparison import comparison
from lth.plots.pairs import connectivity
from lth.records import files, tables
from lth.records.store import Store
from lth.records.tables import Run

NEAR = 1.1  # a sparsity is the one that a statement is about if they differ by at most this factor
ROUGHLY = 2.0  # the same with changed settings: rounds of quick forms prune more
SCALES: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {  # of means and intervals, and back
    POINTS: (float, float),
    TIMES: (math.log, math.exp),
    PERCENT: (lambda p: math.log(max(p, 0.01) / max(100 - p, 0.01)), lambda x: 100 / (1 + math.exp(-x))),
}
VERDICTS = ("agrees", "disagrees", "not decided", "not measured")
HEAD = ("the paper says", "weights", "published", "measured (95% interval)", "trials", "verdict")
COLUMNS = ("says", "remaining", "unit", "published", "mean", "low", "high", "trials", "verdict")
EXPLANATION = (
    "measured: mean over trials with its 95% interval by Student's t (on logarithms of ratios and log-odds of "
    "accuracies). agrees: the statement is true for the whole interval (with a published figure, true usually means at "
    "least half of its effect). disagrees: it is false for the whole interval. not decided: the interval includes "
    "both, or there is only one trial."
)


@dataclass(frozen=True)
class Records:
    """The runs of each experiment of a claim, and their finished rounds.

    `rounds` has a row per round of a run, with the columns of `verdict.paired` and `experiment`.
    """

    runs: Mapping[str, Sequence[Run]]
    rounds: pd.DataFrame

    @classmethod
    def from_runs(cls, runs: Mapping[str, Sequence[Run]]) -> Records:
        """The finished rounds of these runs, by the name of their experiment."""
        rounds = [verdict.paired(group).assign(experiment=name) for name, group in runs.items()]
        return cls(runs, pd.concat(rounds))

    def near(self, remaining: float, factor: float = NEAR) -> Records:
        """Only the round of each experiment that is nearest to that percent of the weights, if one is near enough and
        has the sparsity of the nearest of all, since rounds of different sparsities cannot be compared."""
        means = self.rounds[self.rounds["remaining"] > 0].groupby(["experiment", "round"])["remaining"].mean()
        apart = (means / remaining).map(math.log).abs()
        if not len(apart) or apart.min() > math.log(factor):
            return Records(self.runs, self.rounds.iloc[:0])
        closest = means[apart.idxmin()]
        nearest = apart.groupby("experiment").idxmin()
        selected = [which for which in nearest if abs(math.log(means[which] / closest)) <= math.log(NEAR)]
        rows = pd.MultiIndex.from_frame(self.rounds[["experiment", "round"]]).isin(selected)
        return Records(self.runs, self.rounds[rows])

    def arm(self, which: str) -> pd.DataFrame:
        """The rows of an arm, by seed."""
        experiment, _, arm = which.rpartition("/")
        rows = self.rounds
        return rows[(rows["experiment"] == experiment) & (rows["arm"] == arm)].set_index("seed")

    def runs_of(self, which: str) -> list[Run]:
        """The runs of an arm that have rows."""
        experiment, _, arm = which.rpartition("/")
        return [run for run in self.runs[experiment] if run.arm == arm and run.seed in self.arm(which).index]

    def barriers(self, which: str) -> pd.Series:
        """The error barrier of an arm's rounds, in points, by seed, without rounds whose line was not measured."""
        rounds = self.arm(which).reset_index()[["seed", "round"]]
        barriers = tables.barriers(self.runs_of(which)).merge(rounds)
        return barriers.set_index("seed")[["train", "test"]].max(axis=1)

    def overlaps(self, which: str) -> pd.Series:
        """How far the masks of two trials overlap, as a multiple of chance, by the seed of the first."""
        rows, runs, overlaps = self.arm(which), self.runs_of(which), {}
        for pair in zip(runs[::2], runs[1::2], strict=False):
            masks = [Store(run).masks(int(rows["round"][run.seed])) for run in pair]
            both = overlap.compare(*masks).set_index("layer").loc[overlap.ALL]
            overlaps[pair[0].seed] = both["jaccard"] / both["jaccard_chance"]
        return pd.Series(overlaps, dtype=float)


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

    def cells(self, form: Form) -> list[str]:
        """The finding as a row below HEAD."""
        statement = self.statement
        number = "{:+.2f}".format if statement.unit == POINTS else "{:.2f}".format
        band = "" if math.isnan(self.low) else f" [{number(self.low)}, {number(self.high)}]"
        return [
            statement.says,
            "" if math.isnan(self.remaining) else f"{labels.percent(self.remaining, 3)}%",
            "" if statement.published is None else number(statement.published),
            number(self.mean) + band if self.trials else "",
            f"{self.trials or ''}",
            f"({self.verdict})" if form.changes and self.trials else self.verdict,
        ]


def findings(form: Form) -> list[Finding]:
    """What the finished rounds say about each statement."""
    records, factor = Records.from_runs(runs_of(form)), ROUGHLY if form.changes else NEAR
    return [check(statement, records, factor) for statement in form.claim.statements]


def runs_of(form: Form) -> dict[str, list[Run]]:
    """The runs of each experiment of a claim, finished or not."""
    return {name: tables.runs_of(config) for name, config in form.configs.items()}


def check(statement: Statement, records: Records, factor: float = NEAR) -> Finding:
    """What the records say about a statement. `factor`: how far a round's sparsity may be from the statement's."""
    selected = records if statement.at is None else records.near(statement.at, factor)
    values = statement.measure(selected).dropna().astype(float)
    remaining = selected.rounds["remaining"].mean() if statement.at is not None else math.nan
    if not len(values):
        return Finding(statement)
    scale, back = SCALES[statement.unit]
    scaled = values.map(scale)
    mean, low, high = map(back, (scaled.mean(), *verdict.interval(scaled)))
    return Finding(statement, remaining, mean, low, high, len(values), judge(low, high, statement.holds))


def judge(low: float, high: float, holds: tuple[float, float]) -> str:
    """Whether an interval lies within the values for which a statement is true, outside them, or both. If all trials
    are exactly on the limit, nothing is decided."""
    if low == high and low in holds:
        return "not decided"
    if low >= holds[0] and high <= holds[1]:
        return "agrees"
    return "disagrees" if low > holds[1] or high < holds[0] else "not decided"


def warning(form: Form) -> str:
    """The changes to the published experiment; nothing if there are none."""
    kind = "QUICK FORM" if form.quick else "CHANGED SETTINGS"
    return f"{kind}, not the published experiment: {'; '.join(form.changes)}" if form.changes else ""


def text(form: Form, results: Sequence[Finding], width: int) -> str:
    """The findings as aligned text of at most that width, or of 90 characters."""
    claim, counts, width = form.claim, Counter(finding.verdict for finding in results), max(width, 90)
    words = [f"{word} {counts[word]}" for word in VERDICTS if counts[word]]
    changed = " on a changed experiment" if form.changes else ""
    rows = [HEAD, *(finding.cells(form) for finding in results)]
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sizes[0] = min(sizes[0], width - sum(2 + size for size in sizes[1:]))  # sentences may have several lines
    lines = []
    for says, *cells in rows:
        first, *more = textwrap.wrap(says, sizes[0])
        line = "  ".join(f"{cell:{size}}" for cell, size in zip((first, *cells), sizes, strict=True))
        lines += [line.rstrip(), *more]
    lines.insert(1, "-" * max(map(len, lines)))
    title = f"{claim.name}: {claim.about} ({claim.paper}, {claim.where}, {claim.source})"
    summary = f"{claim.name}, {len(results)} statements{changed}: {', '.join(words)}."
    head, tail = (
        "\n".join(textwrap.fill(part, width, break_on_hyphens=False) for part in parts)
        for parts in ([title, warning(form)], [EXPLANATION, "", summary])
    )
    return "\n".join([head, *lines, tail])


def write(form: Form, results: Sequence[Finding]) -> Path:
    """Write the findings into plots/claims/ as a CSV file, a row per statement."""
    common = {"claim": form.claim.name, "published_settings": not form.changes, "changes": "; ".join(form.changes)}
    facts = [vars(finding.statement) | vars(finding) for finding in results]
    frame = pd.DataFrame([common | {column: row[column] for column in COLUMNS} for row in facts])
    file = next(iter(form.configs.values())).root / "plots" / "claims" / f"{form.slug}.csv"
    files.write(file, frame.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode())
    return file


def renew(file: Path, form: Form, results: Sequence[Finding]) -> list[Path]:
    """Write this form's section of a Markdown report, and its figures beside it, in place of an older one of the same
    form; everything else in the file stays. Returns the files written."""
    begin, end = (f"<!-- {word} of {form.slug}, written by reproduce.py -->" for word in ("begin", "end"))
    figures = _figures(form, file.parent)
    section = f"{begin}\n{markdown(form, results, figures)}\n{end}"
    old = file.read_text(encoding="utf-8") if file.exists() else "# Published claims, measured\n"
    before, _, rest = old.partition(begin)
    after = rest.partition(end)[2]
    new = f"{before}{section}{after}" if end in rest else f"{old.rstrip()}\n\n{section}\n"
    files.write(file, new.encode())
    return [file, *itertools.chain(*figures.values())]


def markdown(form: Form, results: Sequence[Finding], figures: Mapping[str, Sequence[Path]]) -> str:
    """A section of a report: the claim, how it was measured, the findings, and the figures and rounds of each
    experiment."""
    claim = form.claim
    link = f"https://arxiv.org/abs/{claim.source.removeprefix('arXiv:')}"
    rows = (HEAD, ("---", *["---:"] * 4, "---"), *(finding.cells(form) for finding in results))
    parts = [
        f"### {claim.name}: {claim.about}",
        f"{claim.paper}, {claim.where} ([{claim.source}]({link})). {claim.note}".strip(),
        f"**{warning(form)}.**" if form.changes else "",
        f"```bash\n{form.command}\n```",
        measured_by(form),
        "\n".join("| " + " | ".join(row).replace("  ", " ") + " |" for row in rows),
        EXPLANATION[0].upper() + EXPLANATION[1:],
    ]
    for name, runs in runs_of(form).items():
        if len(rounds := verdict.table(runs)):
            parts += [f"Experiment {name}:" if name else ""]
            parts += [f"![{claim.about}, {figure.stem}]({figure.name})" for figure in figures.get(name, ())]
            parts += ["Every round:", f"```\n{printed.render(rounds, 120)}\n```"]
    return "\n\n".join(part for part in parts if part)


def measured_by(form: Form) -> str:
    """The machines, versions, precision and dates that the finished rounds of a form were measured with."""
    machines: dict[str, None] = {}
    days, times = [], []
    for name, runs in runs_of(form).items():
        for run in runs:
            if not (file := run.dumps / "rounds.csv").exists():
                continue
            config = tables.read_config(run)
            settings, device = config.get("settings", {}), str(config.get("device", "?"))
            precision = f"--precision {settings.get('precision')}"
            if device.startswith("cpu"):
                device = f"{config.get('processor') or '?'} ({device})"
                precision += f" ({config.get('cpu_precision')})"
            precision += ", --sparse off" if settings.get("sparse") == "off" else ""
            versions = (f"{what} {number}" for what, number in config.get("versions", {}).items())
            machines[", ".join((device, *versions, precision))] = None
            days.append(time.strftime("%Y-%m-%d", time.localtime(file.stat().st_mtime)))
            times.append(tables.table(run, "times").assign(trial=f"{name}/{run.seed}"))
    if not days:
        return "Nothing is finished yet."
    when = " to ".join(dict.fromkeys((min(days), max(days))))
    trained = pd.concat(times)
    trained = trained[(trained["round"] > 0) | ~trained.duplicated(["trial", "round"])]  # round 0 is all arms'
    seconds = trained["seconds"].sum()
    took = f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds / 60:.1f} minutes"
    total = f"{len(trained)} trainings, {took} of training in all"
    return f"Measured {when} on {'; '.join(machines)}: {total}."


def _figures(form: Form, folder: Path) -> dict[str, list[Path]]:
    """Figures of each experiment: accuracy and early stop by sparsity, and connectivity where it was measured."""
    figures: dict[str, list[Path]] = {}
    for name, runs in runs_of(form).items():
        finished = [run for run in runs if tables.finished_rounds(run)]
        for draw, kind in ((comparison, ""), (connectivity, connectivity.__name__)) if finished else ():
            file = folder / ("-".join(filter(None, (form.slug, name, kind))) + ".png")
            if draw(finished, file):
                figures.setdefault(name, []).append(file)
    return figures
