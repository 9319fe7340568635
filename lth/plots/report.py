"""Self-contained pages: report.html of a folder of settings, and index.html of all experiments, each with a small
figure and its verdict."""

import base64
import dataclasses
import datetime
import hashlib
import io
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from lth.analysis import labels, verdict
from lth.analysis.sentences import half, of_runs
from lth.plots import draw
from lth.records import files, tables
from lth.records.tables import Run, read_config
from lth.settings.config import Config
from lth.settings.values import as_text

THUMBNAILS = 100  # experiments with a figure on index.html: drawing each takes most of a second
SIZE = (760, 400)  # of such a figure at most, in pixels
COLUMNS = {  # of the verdict's table: heading, format of numbers, meaning
    "round": ("round", ".0f", "0 is the dense network"),
    "remaining": ("weights %", ".4g", "percent of the prunable weights that survive"),
    "arm": ("arm", "", "what happens between rounds"),
    "difference": ("vs dense", "+.2f", "points above the trial's dense network, mean over trials"),
    "low": ("from", "+.2f", "lower end of the 95% interval of the difference"),
    "high": ("to", "+.2f", "upper end of the 95% interval of the difference"),
    "test": ("test %", ".2f", "accuracy at early stop, mean over trials"),
    "ES": ("ES", ",.0f", "iteration of the lowest validation loss, mean over trials"),
    "ES_ratio": ("ES / dense", ".2f", "early stop as a share of the dense network's"),
    "speedup": ("speedup", ".2f", "dense multiply-adds ÷ remaining ones (not a measured speed-up)"),
    "each": ("single trials, test %", "", "in the order of their seeds"),
}
KINDS = {"fc": "matrices", "conv": "convolutions", "embedding": "embeddings", "bias": "biases", "other": "others"}
HEADINGS = {  # of the figures on the page, and their captions
    "comparison": ("Accuracy and early stop", "Test accuracy and iteration of the lowest validation loss by sparsity"),
    "comparison_compression": ("Against compression", "The same against compression"),
    "comparison_flops": ("Against multiply-adds remaining", "The same against multiply-adds remaining"),
    "connectivity": ("Linear mode connectivity", "Error on the line between two trainings of a ticket"),
    "masks": ("Overlap of masks", "How far the masks of arms and trials overlap, against chance"),
    "supermask": ("Accuracy before training", "Test accuracy of the masked networks before any training, by sparsity"),
    "training": ("Training", "Test accuracy during training, a panel per arm, a line per sparsity"),
    "layers": ("Layers", "Weights that each layer keeps, round by round"),
    "first_layer": ("What the first layer looks at", "What the first layer of one run keeps, round by round"),
    "initial_weights": ("Initial weights of the survivors", "Initial weights that survive in one run, by sparsity"),
}
OF_SOME_ARMS = ("masks", "first_layer", "initial_weights")  # which the picture names


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
    in_order = sorted(runs, key=lambda run: (arms.index(run.arm), run.seed))
    configs = [read_config(run) for run in in_order]
    rounds = tables.combined(runs, "rounds").sort_values("seed")
    each = rounds.groupby(["round", "arm"])["test"].agg(lambda accuracies: " ".join(map("{:.2f}".format, accuracies)))
    lines = table.join(each.rename("each"), on=["round", "arm"])
    pictures = {file.stem: file.with_suffix(".png") if file.suffix == ".pdf" else file for file in figures}
    return _rendered(
        "report.html",
        title=labels.title(runs[0]),
        settings=labels.settings(*runs),
        sentences=sentences,
        numbers=_numbers(table),
        lights=[(arm, *_light(arm, rows)) for arm in arms if (rows := verdict.pruned(table, arm))],
        figures=[
            (heading, caption if name in OF_SOME_ARMS else f"{caption}; {', '.join(arms)}", _image(pictures[name]))
            for name, (heading, caption) in HEADINGS.items()
            if name in pictures
        ],
        columns=list(COLUMNS.values()),
        rows=[
            (line["winning"], ["" if pd.isna(line[name]) else f"{line[name]:{COLUMNS[name][1]}}" for name in COLUMNS])
            for line in lines.to_dict("records")
        ],
        kinds=_kinds(runs, arms[0]),
        kinds_of=arms[0],
        chosen=_settings(configs[0].get("settings", {})),
        commands=[command for command in dict.fromkeys(map(_command, configs)) if command],
        made_by=_made_by(runs, configs),
        links={
            "verdict.csv": "verdict.csv",
            **{f"{run.arm} {run.seed}": _relative(run.dumps / "rounds.csv", run.plots) for run in in_order},
        },
    )


def _rendered(template: str, **values: object) -> str:
    """A page of this folder's template of that name."""
    import jinja2  # here, since pages that are up to date do not need it

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**values)


def _relative(file: Path, folder: Path) -> str:
    """The address of a file as a link of a page in `folder`."""
    return quote(os.path.relpath(file, folder).replace(os.sep, "/"))


def _image(file: Path) -> str:
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[file.suffix]
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _light(arm: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The colour of an arm's light and its meaning."""
    if verdict.finds_tickets(arm) and (winner := verdict.sparsest([dict(row) for row in rows])):
        return "green", f"winning tickets down to {labels.percent(winner['remaining'], 3)}%"
    worse = [row for row in rows if row["accuracy"] == verdict.WORSE]
    if len(worse) == len(rows):
        return "red", "worse than dense at every sparsity"
    last = next((row for row in reversed(rows) if row["accuracy"] in verdict.ACCURATE), None)
    if last and not verdict.finds_tickets(arm):
        return "green", f"{last['accuracy']} than dense at {labels.percent(last['remaining'], 3)}%"
    return "amber", "undecided" + (f", worse at {len(worse)} of {len(rows)} sparsities" if worse else "")


def _numbers(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Three numbers, each with a caption, of the sparsest winning ticket, or else of the most accurate ticket, of the
    first arm that finds tickets."""
    arm = next((arm for arm in verdict.in_order(table["arm"]) if verdict.finds_tickets(arm)), "")
    rows = verdict.pruned(table, arm)
    if not rows:
        return []
    winner = verdict.sparsest(rows)
    row = winner or max(rows, key=lambda row: row["difference"])
    caption = f"sparsest winning ticket of {arm}" if winner else f"most accurate ticket of {arm}; none is shown to win"
    measured = row["stop"] != verdict.UNMEASURED
    gained, stop = f"{row['difference']:+.2f}{half(row['low'], row['high'])}", f"{row['ES_ratio']:.2f} ×"
    return [
        (f"{labels.percent(row['remaining'], 3)}%", f"of the weights: {caption}"),
        (gained, f"points vs dense: {row['test']:.2f}% test accuracy"),
        (stop if measured else "not measured", f"early stop vs dense: iteration {row['ES']:,.0f}"),
    ]


def _kinds(runs: Sequence[Run], arm: str) -> list[list[str]]:
    """What the rounds of an arm keep per kind of layer: weights, of how many, in percent; multiply-adds likewise."""
    rows = []
    table = verdict.compression(runs)
    for line in table[table["arm"] == arm].to_dict("records"):
        row = [str(line["round"]), KINDS[line["kind"]]]
        for part, whole in (("weights", "total"), ("macs", "dense_macs")):
            percent = labels.percent(100 * line[part] / line[whole], 3) if line[whole] else ""
            row += [f"{line[part]:,.0f}", f"{line[whole]:,.0f}", percent]
        rows.append(row)
    return rows


def _settings(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of config.json beside their defaults. Arms and trials, which later commands may have added, are in
    the table of rounds."""
    defaults = {spec.name: as_text(spec.default) for spec in dataclasses.fields(Config)}
    defaults["data"] = as_text(None)  # the project's own folder, which each machine has elsewhere
    rows = []
    for name, setting in settings.items():
        value = as_text(tuple(setting) if isinstance(setting, list) else setting)
        default = defaults.get(name, "")
        cells = ["-" if text == as_text(None) else text for text in (name, value, default)]
        rows.append({"name": name, "cells": cells, "changed": value != default})
    return [row for row in rows if row["name"] not in ("prune_type", "trials", "seed")]


def _command(config: Mapping[str, Any]) -> str:
    """The command line; empty if the user's own program began the run."""
    argv = config.get("command")
    return shlex.join(["python", *config.get("program", ["main.py"]), *argv]) if argv else ""


def _made_by(runs: Sequence[Run], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """When the last round was finished, how long all took, the seeds, and the devices and programs."""
    ended = max((run.dumps / "journal.jsonl").stat().st_mtime for run in runs)
    seconds = float(tables.combined(runs, "times")["seconds"].sum())
    took = f"{seconds / 3600:.1f} hours" if seconds > 7200 else f"{seconds / 60:.1f} minutes"
    lines = [
        f"last round finished on {datetime.datetime.fromtimestamp(ended).strftime('%d %B %Y')}",
        f"{took} of training in all",
        f"seeds {', '.join(map(str, sorted({run.seed for run in runs})))}",
    ]
    for config in configs:
        versions = ", ".join(f"{name} {number}" for name, number in config.get("versions", {}).items())
        commit = f"commit {config['git_commit']}" if config.get("git_commit") else ""
        lines += [str(config.get("device") or ""), str(config.get("cpu_precision") or ""), versions, commit]
    return list(filter(None, dict.fromkeys(lines)))


def write_index(groups: Sequence[Sequence[Run]], folder: Path) -> Path:
    """Write index.html into `folder` for groups of runs, each of one model, data set and settings, unless the existing
    page shows the same numbers. Entries link to reports that exist."""
    file = folder / "index.html"
    reports = [runs[0].plots / "report.html" for runs in groups]
    links = [_relative(page, folder) if page.is_file() else "" for page in reports]
    source = [*map(draw.fingerprint, groups), *links]
    mark = f"<!-- {hashlib.sha256(' '.join(source).encode()).hexdigest()} -->"
    if file.is_file() and file.read_text(encoding="utf-8", errors="replace").rstrip().endswith(mark):
        return file
    entries = [
        {
            "title": title,
            "settings": settings,
            "sentences": of_runs(runs),
            "link": link,
            "image": _thumbnail(runs) if number < THUMBNAILS else "",
        }
        for number, (runs, (title, settings), link) in enumerate(
            zip(groups, labels.names_and_settings(groups), links, strict=True)
        )
    ]
    files.write(file, f"{_rendered('gallery.html', entries=entries)}\n{mark}\n".encode())
    return file


def _thumbnail(runs: Sequence[Run]) -> str:
    """The figure of accuracy and early stop as a small PNG in a data: address."""
    from PIL import Image

    from lth.plots.comparison import comparison

    existing, small, large = runs[0].plots / "comparison.png", io.BytesIO(), io.BytesIO()
    if existing.is_file() and draw.up_to_date(runs, existing.parent, "png") is not None:
        large.write(existing.read_bytes())
    elif figure := comparison(runs):
        figure.savefig(large, format="png")
    else:
        return ""
    image = Image.open(large)
    image.thumbnail(SIZE)
    image.convert("RGB").quantize(64).save(small, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"
