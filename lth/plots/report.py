"""report.html: a folder of settings on one page that needs nothing else, to be looked at and sent on."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import functools
import io
import math
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
import matplotlib
import matplotlib.image
import pandas as pd

from lth.analysis import labels, verdict
from lth.analysis.sentences import half
from lth.plots import barriers, comparison, curves, draw, layer_counts, mask_overlap, style, weights
from lth.records import files, tables
from lth.records.tables import Run, config_of
from lth.records.tickets import UNUSABLE
from lth.settings.config import Config
from lth.settings.values import as_text

ROOM = 600_000  # bytes of figures: they grow by a third on the page, which stays below a megabyte
MAPS = 40  # rounds that the slider has at most, so that the page stays small
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
FIGURES: tuple[tuple[str, Callable[..., list[Path]], str, str], ...] = (  # name, drawing, heading, what is seen
    (
        "comparison",
        comparison.comparison,
        "Accuracy and early stop",
        "Test accuracy, and the iteration of the lowest validation loss, against the weights remaining",
    ),
    (
        "connectivity",
        barriers.connectivity,
        "Linear mode connectivity",
        "Error barriers between two trainings of each ticket, and the error along the line",
    ),
    ("masks", mask_overlap.masks, "Overlap of masks", "How far the masks of arms and trials overlap, against chance"),
    (
        "supermask",
        comparison.supermask,
        "Accuracy before training",
        "Test accuracy of the masked networks before any training, against the weights remaining",
    ),
    ("training", curves.training, "Training", "Test accuracy during training, a panel per arm, a line per sparsity"),
    ("layers", layer_counts.layers, "Layers", "Weights that each layer keeps, round by round"),
    (
        "initial_weights",
        weights.initial_weights,
        "Initial weights of the survivors",
        "Distribution of the initial weights of those that survive, a line per sparsity",
    ),
)


class Picture(NamedTuple):
    """A figure on the page: its heading, what is seen, and its SVG."""

    heading: str
    seen: str
    content: bytes


def write(
    runs: Sequence[Run], table: pd.DataFrame, sentences: Sequence[str], folder: Path, x: str = "remaining"
) -> Path:
    """Write report.html into `folder` for runs of one model, data set and settings. `table` and `sentences` are the
    verdict's; the comparison is shown against `x` too."""
    file = folder / "report.html"
    files.write(file, page(runs, table, sentences, figures(runs, folder, x)).encode())
    return file


def figures(runs: Sequence[Run], folder: Path, x: str = "remaining") -> dict[str, Picture]:
    """The figures of these runs, by name, as many as the page has room for. Those whose numbers or weights cannot be
    read are left out, since drawing them for plots/ says why. They are drawn below `folder`; Unwritable if that has no
    room."""
    drawn: dict[str, Picture] = {}
    drawings = list(FIGURES)
    for kind in draw.other_axes(folder, x):
        against = comparison.scales.SPARSITY[kind][0].removesuffix(", log scale)").split(" (")[0]
        first = functools.partial(comparison.comparison, x=kind)
        drawings.insert(1, (f"comparison_{kind}", first, f"Against {against}", f"The same against {against}"))
    arms = ", ".join(verdict.in_order([run.arm for run in runs]))
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (
            style.untitled(),
            # Where the disk has become read-only, the error to report is that of drawing, not of tidying up.
            tempfile.TemporaryDirectory(suffix=".partial", dir=folder, ignore_cleanup_errors=True) as inside,
        ):
            for name, drawing, heading, seen in drawings:
                try:
                    found = drawing(runs, Path(inside), "svg")
                except files.Unwritable:
                    raise
                except UNUSABLE:
                    continue
                for file in found:
                    content = file.read_bytes()
                    if sum(len(picture.content) for picture in drawn.values()) + len(content) <= ROOM:
                        drawn[name] = Picture(heading, f"{seen}; {arms}", content)
    return drawn


def page(runs: Sequence[Run], table: pd.DataFrame, sentences: Sequence[str], figures: Mapping[str, Picture]) -> str:
    """The page as HTML. User-given names are escaped; figures are pictures, in which no script runs. Unreadable data
    are left out, as in `figures`."""
    arms = verdict.in_order([run.arm for run in runs])
    runs = sorted(runs, key=lambda run: (arms.index(run.arm), run.seed))
    configs = [config_of(run) for run in runs]
    maps, maps_of, kinds = list[dict[str, str]](), "", list[list[str]]()
    with contextlib.suppress(*UNUSABLE):
        maps, maps_of = pixel_maps(runs)
    with contextlib.suppress(*UNUSABLE):
        kinds = _kinds(runs)
    paired = verdict.paired(runs).sort_values("seed")
    each = paired.groupby(["round", "arm"])["test"].agg(lambda found: " ".join(f"{value:.2f}" for value in found))
    lines = [{**line, "each": each.get((line["round"], line["arm"]), "")} for line in table.to_dict("records")]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template("report.html").render(
        title=labels.title(runs[0]),
        settings_said=labels.settings(*runs),
        sentences=sentences,
        numbers=_numbers(table),
        lights=[(arm, *_light(arm, rows)) for arm in arms if (rows := verdict.pruned(table, arm))],
        figures=[{**figure._asdict(), "image": _uri("image/svg+xml", figure.content)} for figure in figures.values()],
        maps=maps,
        maps_of=maps_of,
        kept=weights.KEPT,
        columns=[{"name": name, "help": help, "text": digits is None} for name, digits, help in COLUMNS.values()],
        rows=[_row(line) for line in lines],
        kinds=kinds,
        kinds_of=runs[0].arm,
        chosen=_settings(configs[0].get("settings", {})),
        commands=[command for command in dict.fromkeys(map(_command, configs)) if command],
        made_by=[*_when(runs), *dict.fromkeys(line for config in configs for line in _made_by(config))],
        links=[("verdict.csv", "verdict.csv"), *(link for run in runs for link in _link(run))],
    )


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


def _when(runs: Sequence[Run]) -> list[str]:
    """When the last round was finished, how long all took, and the seeds."""
    journals = [run.dumps / "journal.jsonl" for run in runs]
    ended = max((file.stat().st_mtime for file in journals if file.is_file()), default=0.0)
    seconds = sum(float(tables.table(run, "times")["seconds"].sum()) for run in runs)
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


def pixel_maps(runs: Sequence[Run]) -> tuple[list[dict[str, str]], str]:
    """A small picture per round of how many weights each pixel keeps, as in first_layer.png, and the run's name."""
    source = weights.ticket_run(runs)
    first = weights.input_layer(source) if source else None
    if source is None or first is None or not first.image:
        return [], ""
    maps, remaining, made = weights.pixel_maps(source, first, MAPS), source.remaining(), []
    scale = weights.pixel_scale(maps)
    for number, kept in maps.items():
        picture = io.BytesIO()
        matplotlib.image.imsave(picture, matplotlib.colormaps[weights.PIXELS](scale(kept)), format="png")
        said = f"round {number}: {labels.percent(remaining[number], 3)}% of the weights remaining"
        made.append({"image": _uri("image/png", picture.getvalue()), "said": said})
    return made, str(source.run)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
