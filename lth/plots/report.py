"""report.html: a folder of settings on one page that needs nothing else, to be looked at and sent on."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import math
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import matplotlib.image
import pandas as pd

from lth.analysis import labels, verdict
from lth.plots import barriers, comparison, curves, layer_counts, mask_overlap, weights
from lth.records import files
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
    "trials": ("trials", 0, "that have finished the round"),
    "test": ("test %", 2, "accuracy at early stop, mean over trials"),
    "difference": ("vs dense", 2, "points above the trial's dense network"),
    "low": ("from", 2, "lower end of the 95% interval of the difference"),
    "high": ("to", 2, "upper end of the 95% interval of the difference"),
    "ES": ("ES", 0, "iteration of the lowest validation loss, mean over trials"),
    "speedup": ("speedup", 2, "multiply-adds of the dense network divided by those left: what sparse code could gain"),
    "ES_ratio": ("ES / dense", 2, "early stop as a share of the dense network's"),
}

KINDS = {"fc": "matrices", "conv": "convolutions", "embedding": "embeddings", "bias": "biases", "other": "others"}


def write(runs: Sequence[Run], table: pd.DataFrame, sentences: Sequence[str], folder: Path) -> Path:
    """Write report.html into `folder` for runs of one model, data set and settings. `table` and `sentences` are the
    verdict's."""
    file = folder / "report.html"
    files.write(file, page(runs, table, sentences, figures(runs, folder)).encode())
    return file


def figures(runs: Sequence[Run], folder: Path) -> dict[str, bytes]:
    """The figures of these runs as SVG, by name, as many as the page has room for. Those whose numbers or weights
    cannot be read are left out, since drawing them for plots/ says why. They are drawn below `folder`; Unwritable if
    that has no room."""
    drawn: dict[str, bytes] = {}
    drawings = (
        *(comparison.comparison, barriers.connectivity, mask_overlap.masks),
        *(curves.training, layer_counts.layers),
    )
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(suffix=".partial", dir=folder, ignore_cleanup_errors=True)
    with place as inside:
        for draw in (*drawings, weights.initial_weights):
            try:
                found = draw(runs, Path(inside), "svg")
            except files.Unwritable:
                raise
            except UNUSABLE:
                continue
            for file in found:
                content = file.read_bytes()
                if sum(map(len, drawn.values())) + len(content) <= ROOM:
                    drawn[file.stem] = content
    return drawn


def page(runs: Sequence[Run], table: pd.DataFrame, sentences: Sequence[str], figures: Mapping[str, bytes]) -> str:
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
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template("report.html").render(
        title=labels.title(runs[0]),
        settings_said=labels.settings(*runs),
        sentences=sentences,
        figures=[(name, _uri("image/svg+xml", content)) for name, content in figures.items()],
        maps=maps,
        maps_of=maps_of,
        columns=[{"name": name, "help": help, "text": digits is None} for name, digits, help in COLUMNS.values()],
        rows=[_row(line) for line in table.to_dict("records")],
        kinds=kinds,
        kinds_of=runs[0].arm,
        chosen=_settings(configs[0].get("settings", {})),
        commands=[command for command in dict.fromkeys(map(_command, configs)) if command],
        made_by=list(dict.fromkeys(line for config in configs for line in _made_by(config))),
    )


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
    (maps, limit), remaining, made = weights.pixel_maps(source, first, MAPS), source.remaining(), []
    for number, kept in maps.items():
        picture = io.BytesIO()
        matplotlib.image.imsave(picture, kept, cmap="viridis", vmin=0, vmax=limit, format="png")
        said = f"round {number}: {labels.percent(remaining[number], 3)}% of the weights remaining"
        made.append({"image": _uri("image/png", picture.getvalue()), "said": said})
    return made, str(source.run)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
