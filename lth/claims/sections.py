"""What came of a claim: a table for the terminal, a CSV file, and a section of a Markdown report with its figures."""

from __future__ import annotations

import itertools
import math
import re
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from lth.analysis import labels, printed, verdict
from lth.claims.claim import POINTS, Form
from lth.claims.judge import Finding, runs_of
from lth.plots.barriers import connectivity
from lth.plots.comparison import comparison
from lth.records import files, tables

HEAD = ("the paper says", "weights", "paper", "here (95% interval)", "trials", "")
COLUMNS = ("says", "remaining", "unit", "published", "mean", "low", "high", "trials", "verdict")
EXPLANATION = (
    "here: mean over trials, with its 95% interval by Student's t (ratios: of their logarithms; accuracies before "
    "training: of their log-odds). agrees: the whole interval lies where the sentence is true, for a published figure "
    "usually at least half of its effect. disagrees: the whole interval lies elsewhere. not decided: the interval "
    "includes both, or one trial gives none."
)


def warning(form: Form) -> str:
    """The changes to the published experiment; nothing if there are none."""
    kind = "QUICK FORM" if form.quick else "CHANGED SETTINGS"
    return f"{kind}, not the published experiment: {'; '.join(form.changes)}" if form.changes else ""


def cells(finding: Finding, form: Form) -> list[str]:
    """A finding as a row below HEAD."""
    statement = finding.statement
    number = (lambda value: f"{value:+.2f}") if statement.unit == POINTS else (lambda value: f"{value:.2f}")
    band = "" if math.isnan(finding.low) else f" [{number(finding.low)}, {number(finding.high)}]"
    return [
        statement.says,
        "" if math.isnan(finding.remaining) else f"{labels.percent(finding.remaining, 3)}%",
        "" if statement.published is None else number(statement.published),
        number(finding.mean) + band if finding.trials else "",
        f"{finding.trials or ''}",
        f"({finding.verdict})" if form.changes and finding.trials else finding.verdict,
    ]


def text(form: Form, findings: Sequence[Finding], width: int) -> str:
    """The findings as aligned text of at most that width."""
    claim, counts = form.claim, Counter(finding.verdict for finding in findings)
    told = [f"{word} {counts[word]}" for word in ("agrees", "disagrees", "not decided", "not measured") if counts[word]]
    whose = ", of another experiment than the published one" if form.changes else ""
    parts = [
        f"{claim.name}: {claim.about} ({claim.paper}, {claim.where}, {claim.source})",
        warning(form),
        printed.aligned(HEAD, [cells(finding, form) for finding in findings], max(width, 90), folded=1),
        f"{EXPLANATION}\n",
        f"{claim.name}, {len(findings)} statements{whose}: {', '.join(told)}.",
    ]
    lines = itertools.chain(*(part.split("\n") for part in parts))
    return "\n".join(textwrap.fill(line, max(width, 90), break_on_hyphens=False) for line in lines)


def write(form: Form, findings: Sequence[Finding]) -> Path:
    """Write the findings into plots/claims/ as a CSV file, a row per statement."""
    whose = {"claim": form.claim.name, "published_settings": not form.changes, "changes": "; ".join(form.changes)}
    facts = [vars(found.statement) | vars(found) for found in findings]
    frame = pd.DataFrame([whose | {column: row[column] for column in COLUMNS} for row in facts])
    file = next(iter(form.configs.values())).root / "plots" / "claims" / f"{form.slug}.csv"
    files.write(file, frame.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode())
    return file


def renew(file: Path, form: Form, findings: Sequence[Finding]) -> list[Path]:
    """Write this form's section of a Markdown report, and its figures beside it, in place of an older one of the same
    form; everything else in the file stays. Gives the files written."""
    begin, end = (f"<!-- {word} of {form.slug}, written by reproduce.py -->" for word in ("begin", "end"))
    figures = _figures(form, file)
    section = f"{begin}\n{markdown(form, findings, figures)}\n{end}"
    old = file.read_text(encoding="utf-8") if file.exists() else "# Published claims, measured\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    new = pattern.sub(lambda _: section, old) if pattern.search(old) else f"{old.rstrip()}\n\n{section}\n"
    files.write(file, new.encode())
    return [file, *itertools.chain(*figures.values())]


def markdown(form: Form, findings: Sequence[Finding], figures: Mapping[str, Sequence[Path]]) -> str:
    """A section of a report: the claim, how it was measured, the findings, and the figures and rounds of each
    experiment."""
    claim = form.claim
    link = f"https://arxiv.org/abs/{claim.source.removeprefix('arXiv:')}"
    parts = [
        f"### {claim.name}: {claim.about}",
        f"{claim.paper}, {claim.where} ([{claim.source}]({link})). {claim.note}".strip(),
        f"**{warning(form)}.**" if form.changes else "",
        f"```bash\n{form.command}\n```",
        measured_by(form),
        _rows(HEAD, [cells(finding, form) for finding in findings], "lrrrrl"),
        EXPLANATION[0].upper() + EXPLANATION[1:],
    ]
    for name, runs in runs_of(form).items():
        if len(rounds := verdict.table(runs)):
            parts += [f"Experiment {name}:" if name else ""]
            parts += [f"![{claim.about}, {figure.stem}]({figure.name})" for figure in figures.get(name, ())]
            parts += ["Every round:", f"```\n{printed.render(rounds, 120)}\n```"]
    return "\n\n".join(part for part in parts if part)


def _rows(head: Sequence[str], lines: Iterable[Sequence[str]], align: str) -> str:
    rule = ["---:" if side == "r" else "---" for side in align]
    return "\n".join("| " + " | ".join(line).replace("  ", " ") + " |" for line in (head, rule, *lines))


def measured_by(form: Form) -> str:
    """The machines, versions, precision and dates that the finished rounds of a form were measured with."""
    about: dict[str, None] = {}
    days, trainings, seconds, dense = [], 0, 0.0, set[tuple[str, int]]()
    for name, run in ((name, run) for name, runs in runs_of(form).items() for run in runs):
        if not (run.dumps / "rounds.csv").exists():
            continue
        config = tables.config_of(run)
        device, precision = str(config.get("device", "?")), f"--precision {config.get('settings', {}).get('precision')}"
        if device.startswith("cpu"):
            device = f"{config.get('processor') or '?'} ({device})"
            precision += f" ({config.get('cpu_precision')})"
        if config.get("settings", {}).get("sparse") == "off":
            precision += ", --sparse off"
        versions = (f"{what} {number}" for what, number in config.get("versions", {}).items())
        about[", ".join((device, *versions, precision))] = None
        days.append(time.strftime("%Y-%m-%d", time.localtime((run.dumps / "rounds.csv").stat().st_mtime)))
        times = tables.table(run, "times")
        times = times[(times["round"] > 0) | ((name, run.seed) not in dense)]  # the arms of a trial share round 0
        dense.add((name, run.seed))
        trainings, seconds = trainings + len(times), seconds + times["seconds"].sum()
    if not days:
        return "Nothing is finished yet."
    when = " to ".join(dict.fromkeys((min(days), max(days))))
    took = f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds / 60:.1f} minutes"
    return f"Measured {when} on {'; '.join(about)}: {trainings} trainings, {took} if they were done one after another."


def _figures(form: Form, file: Path) -> dict[str, list[Path]]:
    """Figures of each experiment, beside the report: accuracy and early stop by sparsity, and connectivity where it was
    measured."""
    drawn: dict[str, list[Path]] = {}
    for name, runs in runs_of(form).items():
        found = [run for run in runs if tables.finished_rounds(run)]
        with tempfile.TemporaryDirectory() as folder:
            for picture in [*comparison(found, Path(folder)), *connectivity(found, Path(folder))] if found else []:
                what = [form.slug, name, "" if picture.stem == comparison.__name__ else picture.stem]
                beside = file.parent / ("-".join(filter(None, what)) + picture.suffix)
                files.write(beside, picture.read_bytes())
                drawn.setdefault(name, []).append(beside)
    return drawn
