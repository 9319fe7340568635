"""report.html: a folder of settings on one page that needs nothing else, to be looked at and sent on."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd

from lth.analysis import labels, verdict
from lth.analysis.sentences import half
from lth.plots import style
from lth.records import files, tables
from lth.records.tables import Run, config_of
from lth.settings.config import Config
from lth.settings.values import as_text

COLUMNS = {  # of the verdict's table: heading, digits after the point, what it is
    "round": ("round", 0, "0 is the dense network"),
    "remaining": ("weights %", 2, "percent of the prunable weights that survive"),
    "arm": ("arm", None, "what happens between rounds"),
    "difference": ("vs dense", 2, "points above the trial's dense network, mean over trials"),
    "low": ("from", 2, "lower end of the 95% interval of the difference"),
    "high": ("to", 2, "upper end of the 95% interval of the difference"),
    "test": ("test %", 2, "accuracy at early stop, mean over trials"),
    "ES": ("ES", 0, "iteration of the lowest validation loss, mean over trials"),
    "ES_ratio": ("ES / dense", 2, "early stop as a share of the dense network's"),
    "speedup": ("speedup", 2, "dense multiply-adds ÷ remaining ones (not a measured speed-up)"),
    "each": ("single trials, test %", None, "in the order of their seeds"),
}
KINDS = {"fc": "matrices", "conv": "convolutions", "embedding": "embeddings", "bias": "biases", "other": "others"}
HEADINGS = {  # of the figures on the page: what they are, and what is seen
    "comparison": (
        "Accuracy and early stop",
        "Test accuracy, and the iteration of the lowest validation loss, against the weights remaining",
    ),
    "comparison_compression": ("Against compression", "The same against compression"),
    "comparison_flops": ("Against multiply-adds remaining", "The same against multiply-adds remaining"),
    "connectivity": (
        "Linear mode connectivity",
        "Error barriers between two trainings of each ticket, and the error along the line",
    ),
    "masks": ("Overlap of masks", "How far the masks of arms and trials overlap, against chance"),
    "supermask": (
        "Accuracy before training",
        "Test accuracy of the masked networks before any training, against the weights remaining",
    ),
    "training": ("Training", "Test accuracy during training, a panel per arm, a line per sparsity"),
    "layers": ("Layers", "Weights that each layer keeps, round by round"),
    "first_layer": ("What the first layer looks at", "What the first layer keeps, round by round"),
    "initial_weights": (
        "Initial weights of the survivors",
        "Distribution of the initial weights of those that survive, a line per sparsity",
    ),
}


def write(
    runs: Sequence[Run], table: pd.DataFrame, sentences: Sequence[str], folder: Path, figures: Sequence[Path] = ()
) -> Path:
    """Write report.html into `folder` for runs of one model, data set and settings. `table` and `sentences` are the
    verdict's, `figures` the pictures that the page shows."""
    file = folder / "report.html"
    files.write(file, page(runs, table, sentences, figures).encode())
    return file


def page(runs: Sequence[Run], table: pd.DataFrame, sentences: Sequence[str], figures: Sequence[Path] = ()) -> str:
    """The page as HTML. User-given names are escaped; figures are pictures, in which no script runs."""
    arms = verdict.in_order([run.arm for run in runs])
    runs = sorted(runs, key=lambda run: (arms.index(run.arm), run.seed))
    configs = [config_of(run) for run in runs]
    paired = verdict.paired(runs).sort_values("seed")
    each = paired.groupby(["round", "arm"])["test"].agg(lambda found: " ".join(f"{value:.2f}" for value in found))
    lines = [{**line, "each": each.get((line["round"], line["arm"]), "")} for line in table.to_dict("records")]
    pictures = {file.stem: file for figure in figures if (file := style.also(figure)[-1]).is_file()}
    shown = [(*words, _image(pictures[name])) for name, words in HEADINGS.items() if name in pictures]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template("report.html").render(
        title=labels.title(runs[0]),
        settings_said=labels.settings(*runs),
        sentences=sentences,
        numbers=_numbers(table),
        lights=[(arm, *_light(arm, rows)) for arm in arms if (rows := verdict.pruned(table, arm))],
        figures=[
            {"heading": heading, "seen": f"{seen}; {', '.join(arms)}", "image": image} for heading, seen, image in shown
        ],
        columns=[{"name": name, "help": help, "text": digits is None} for name, digits, help in COLUMNS.values()],
        rows=[_row(line) for line in lines],
        kinds=_kinds(runs),
        kinds_of=runs[0].arm,
        chosen=_settings(configs[0].get("settings", {})),
        commands=[command for command in dict.fromkeys(map(_command, configs)) if command],
        made_by=[*_when(runs), *dict.fromkeys(line for config in configs for line in _made_by(config))],
        links=[("verdict.csv", "verdict.csv"), *(link for run in runs for link in _link(run))],
    )


def _image(file: Path) -> str:
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[file.suffix]
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _light(arm: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The colour of an arm and what it stands for."""
    if verdict.finds_tickets(arm) and (found := verdict.sparsest([dict(row) for row in rows])):
        return "green", f"winning tickets down to {labels.percent(found['remaining'], 3)}%"
    worse = [row for row in rows if row["accuracy"] == verdict.WORSE]
    if len(worse) == len(rows):
        return "red", "worse than dense at every sparsity"
    last = next((row for row in reversed(rows) if row["accuracy"] in verdict.ACCURATE), None)
    if last and not verdict.finds_tickets(arm):
        return "green", f"{last['accuracy']} than dense at {labels.percent(last['remaining'], 3)}%"
    return "amber", "undecided" + (f", worse at {len(worse)} of {len(rows)} sparsities" if worse else "")


def _numbers(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Three numbers and what they are: of the sparsest winning ticket, else of the most accurate ticket, of the first
    arm that finds tickets."""
    arm = next((arm for arm in verdict.in_order(table["arm"]) if verdict.finds_tickets(arm)), "")
    rows = verdict.pruned(table, arm)
    if not rows:
        return []
    found = verdict.sparsest(rows)
    row = found or max(rows, key=lambda row: row["difference"])
    what = f"sparsest winning ticket of {arm}" if found else f"most accurate ticket of {arm}; none is shown to win"
    measured = row["stop"] != verdict.UNMEASURED
    return [
        (f"{labels.percent(row['remaining'], 3)}%", f"of the weights: {what}"),
        (
            f"{row['difference']:+.2f}{half(row['low'], row['high'])}",
            f"points vs dense: {row['test']:.2f}% test accuracy",
        ),
        (
            f"{row['ES_ratio']:.2f} ×" if measured else "not measured",
            f"early stop vs dense: iteration {row['ES']:,.0f}",
        ),
    ]


def _when(runs: Sequence[Run]) -> list[str]:
    """When the last round was finished, how long all took, and the seeds."""
    journals = [run.dumps / "journal.jsonl" for run in runs]
    ended = max((file.stat().st_mtime for file in journals if file.is_file()), default=0.0)
    seconds = float(tables.lines(runs, "times")["seconds"].sum())
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    day = datetime.datetime.fromtimestamp(ended).strftime("%d %B %Y") if ended else ""
    took = f"{seconds / 3600:.1f} hours" if seconds > 7200 else f"{seconds / 60:.0f} minutes"
    return [*([f"last round finished on {day}"] if day else []), f"{took} of training in all", f"seeds {seeds}"]


def _link(run: Run) -> list[tuple[str, str]]:
    """A run's table of rounds, relative to the page."""
    with contextlib.suppress(ValueError):  # on another drive
        return [
            (quote(os.path.relpath(run.dumps / "rounds.csv", run.plots).replace(os.sep, "/")), f"{run.arm} {run.seed}")
        ]
    return []


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table: what each cell shows, and what it is sorted by."""
    cells = []
    for column, (_, digits, _) in COLUMNS.items():
        sorted_by = shown = line[column]
        if digits is not None:
            sign = "+" if column in ("difference", "low", "high") else ""
            known = not math.isnan(line[column])
            sorted_by = f"{line[column]:.10g}".replace("inf", "Infinity") if known else ""
            shown = f"{line[column]:{sign},.{digits}f}" if known else ""
        cells.append({"value": sorted_by, "shown": shown, "text": digits is None})
    return {"cells": cells, "winning": line["winning"]}


def _kinds(runs: Sequence[Run]) -> list[list[str]]:
    """What the rounds of an arm keep per kind of layer: weights, of how many, in percent; multiply-adds likewise."""
    table = verdict.compression([run for run in runs if run.arm == runs[0].arm])

    def left(line: Mapping[str, Any], part: str, whole: str) -> list[str]:
        percent = labels.percent(100 * line[part] / line[whole], 3) if line[whole] else ""
        return [f"{line[part]:,.0f}", f"{line[whole]:,.0f}", percent]

    return [
        [str(line["round"]), KINDS[line["kind"]], *left(line, "weights", "total"), *left(line, "macs", "dense_macs")]
        for line in table.to_dict("records")
    ]


def _settings(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of config.json beside their defaults, those that differ first. Arms and trials, which later commands
    may have added, are in the table of rounds."""
    usual = {spec.name: as_text(spec.default) for spec in dataclasses.fields(Config)}
    usual["data"] = as_text(None)  # the project's own folder, which each machine has elsewhere
    rows = []
    for name in [name for name in given if name not in ("prune_type", "trials", "seed")]:
        value = as_text(tuple(given[name]) if isinstance(given[name], list) else given[name])
        texts = {"value": value, "default": usual.get(name, "")}
        shown = {which: "-" if text == as_text(None) else text for which, text in texts.items()}
        rows.append({"name": name, **shown, "changed": value != texts["default"]})
    return sorted(rows, key=lambda row: not row["changed"])


def _command(config: Mapping[str, Any]) -> str:
    """What was typed; nothing where a program of the user's own began the run."""
    given = config.get("command")
    return shlex.join(["python", *config.get("program", ["main.py"]), *given]) if given else ""


def _made_by(config: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in config.get("versions", {}).items())
    commit = config.get("git_commit")
    said = [config.get("device"), config.get("cpu_precision"), versions, f"commit {commit}" if commit else ""]
    return [str(line) for line in said if line]
