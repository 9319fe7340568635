"""Runs and settings in words, for the headings of figures, tables and sentences."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from lth.records import identity
from lth.records.tables import Run, read_config
from lth.settings.values import Duration

T = TypeVar("T")
DATASETS = {"mnist": "MNIST", "fashionmnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
UNITS = {"ep": "epoch", "it": "iteration"}
DURATIONS = ("end_iter", "rewind", "draw_at", "warmup", "valid_freq", "lr_milestones", "update_freq", "update_end")
ALWAYS = ("prune_percent", "end_iter")  # named even at their defaults
WORDS: dict[str, str | dict[str, str]] = {  # per value where that reads better; `*` stands for all other values
    "prune_percent": "{}% pruned per round",
    "conv_percent": "convolutions {}%",
    "fc_percent": "matrices {}%",
    "output_percent": "output layer {}%",
    "target_remaining": "pruned down to {}%",
    "prune_iterations": "{} rounds",
    "prune_scope": {
        "layer": "compared within layers",
        "global": "compared over all layers",
        "erk": "compared within layers of Erdos-Renyi-Kernel shares",
    },
    "prune_method": {"magnitude": "the smallest weights pruned", "*": "pruned by {}"},
    "rewind": {"0": "reset to initial weights", "*": "rewound to {}"},
    "draw_at": "masks drawn at {}",
    "update_freq": "masks updated every {}",
    "update_end": "masks updated until {}",
    "init": {"glorot": "Glorot weights", "kaiming": "Kaiming weights", "own": "the model's own initial weights"},
    "optimizer": {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"},
    "prune_embeddings": {"True": "embeddings pruned", "False": "embeddings kept"},
    "lr": "learning rate {}",
    "momentum": {"0": "no momentum", "*": "momentum {}"},
    "nesterov": {"True": "Nesterov momentum", "False": "no Nesterov momentum"},
    "weight_decay": {"0": "no weight decay", "*": "weight decay {}"},
    "batch_size": "batches of {}",
    "end_iter": "{} per round",
    "lr_schedule": {"steps": "learning rate in steps", "cosine": "cosine learning rate"},
    "lr_milestones": {"": "no drop of the learning rate", "*": "learning rate dropped at {}"},
    "lr_gamma": "to {} of it",
    "warmup": {"0": "no warm-up", "*": "warm-up over {}"},
    "valid_freq": {"1": "evaluated every epoch", "1it": "evaluated every iteration", "*": "evaluated every {}"},
    "valid_size": "{} validation images",
    "pixels": {"standard": "pixels standardised", "unit": "pixels from 0 to 1", "norm": "images of norm 1"},
    "augment": {"True": "augmented images", "False": "no augmentation"},
    "precision": {"fast": "the quickest float32", "fp32": "strict float32", "bf16": "bfloat16"},
}


def percent(value: float, digits: int = 2, pad: bool = False) -> str:
    """A percentage with that many significant digits, as on the axes of the paper: 100, 51, 8.6, 0.12. `pad` keeps
    trailing zeros."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    text = f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text and not pad else text


def trials(counts: int | pd.Series) -> str:
    """`1 trial`, `3 trials`; of several counts `1 to 3 trials`."""
    least, most = np.min(counts), np.max(counts)
    return f"{least} to {most} trials" if least < most else f"{most} trial{'' if most == 1 else 's'}"


def title(run: Run) -> str:
    """Model and data set: `fc1 on MNIST`."""
    return f"{run.arch_type} on {DATASETS.get(run.dataset.lower(), run.dataset)}"


def settings(*runs: Run) -> str:
    """The settings of runs of one folder: pruning rate, length of training, and what differs from the defaults."""
    run, deciding = runs[0], identity.deciding(*runs)
    if not deciding:  # a folder from elsewhere still has its name
        return "default settings" if run.settings == "default" else run.settings.replace("_", " ").replace(",", ", ")
    from_data = [name for name, value in read_config(run).get("settings", {}).items() if value is None]  # --valid_size
    return _listed(_name(run), {name: value for name, value in _changed(deciding).items() if name not in from_data})


def _compared(groups: Sequence[Sequence[Run]]) -> pd.DataFrame:
    """The settings of groups of runs, of one folder each: a row per group, in the order given."""
    rows = pd.DataFrame([identity.deciding(*runs) for runs in groups])
    return rows.fillna(identity.default_settings()).fillna("None")


def differing(groups: Sequence[Sequence[Run]]) -> tuple[str, dict[Path, str]]:
    """What the settings of these groups of runs, of one folder each, have in common, and how each differs, by its
    folder of plots."""
    if not all(identity.deciding(*runs) for runs in groups):
        return "", {runs[0].plots: settings(*runs) for runs in groups}
    compared = _compared(groups)
    varies = compared.nunique() > 1
    by_folder = {}
    for (run, *_), (_, row) in zip(groups, compared.loc[:, varies].iterrows(), strict=True):
        values = row.to_dict()
        chosen = values if len(values) <= 3 else _changed(values)
        by_folder[run.plots] = _listed(_name(run), {name: value for name, value in chosen.items() if value != "None"})
    return _listed("", _changed(compared.loc[:, ~varies].iloc[0].to_dict())), by_folder


def rows_and_columns(groups: Sequence[Sequence[Run]], most: int) -> tuple[list[int], int]:
    """The order in which to show groups of runs in a table, row by row, and its number of columns, at most `most`.

    Where the groups differ in two things (settings; model and data set) and every combination is there, one differs
    along rows and the other along columns; otherwise the order is the one given.
    """
    compared = _compared(groups).assign(title=[title(runs[0]) for runs in groups])
    counts = compared.nunique()
    if (counts > 1).sum() == 2:
        down, across = sorted(counts.index[counts > 1], key=lambda name: (counts[name] <= most, counts[name]))
        cells = compared[[down, across]].apply(lambda values: pd.factorize(values)[0])
        complete = len(cells) == len(cells.drop_duplicates()) == counts[down] * counts[across]
        if complete and counts[across] <= most:
            return list(cells.sort_values([down, across]).index), int(counts[across])
    return list(range(len(groups))), min(len(groups), most)


def distinct_names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Model and data set of each group of runs, with the settings in which groups of the same model and data differ."""
    return [name for name, _ in names_and_settings(groups)]


def names_and_settings(groups: Sequence[Sequence[Run]]) -> list[tuple[str, str]]:
    """The name of each group of runs as `distinct_names` gives it, and the settings that the name does not contain."""
    by_title: dict[str, list[Sequence[Run]]] = {}
    for runs in groups:
        by_title.setdefault(title(runs[0]), []).append(runs)
    described: dict[Path, tuple[str, str]] = {}
    for name, same in by_title.items():
        if len(same) == 1:
            described[same[0][0].plots] = name, settings(*same[0])
            continue
        shared, own = differing(same)
        described |= {run.plots: (f"{name} ({own[run.plots] or run.settings})", shared) for run, *_ in same}
    return [described[run.plots] for run, *_ in groups]


def _changed(values: dict[str, str]) -> dict[str, str]:
    """Without settings at their defaults, except for ALWAYS."""
    defaults = identity.default_settings()
    return {name: value for name, value in values.items() if name in ALWAYS or defaults.get(name) != value}


def _name(run: Run) -> str:
    """The user's name for the settings, if there is one."""
    return "" if run.settings == "default" or "=" in run.settings else run.settings


def _listed(heading: str, values: dict[str, str]) -> str:
    """Settings in words, ALWAYS first, behind `heading`, if there is one."""
    text = ", ".join(_in_words(name, values[name]) for name in sorted(values, key=lambda name: name not in ALWAYS))
    return f"{heading}: {text}" if heading and text else heading or text


def _in_words(name: str, value: str) -> str:
    """One setting in words."""
    words = WORDS.get(name, {})
    unknown = name.replace("_", " ") + " {}"
    template = words if isinstance(words, str) else words.get(value, words.get("*", unknown))
    if name in DURATIONS:
        value = " and ".join(map(_duration, value.split("+")))
    return template.format(value if name == "ticket" else value.replace("_", " "))  # a ticket's name is a folder's


def _duration(text: str) -> str:
    """`5 epochs`, `500 iterations`, `1% of a round`."""
    try:
        duration = Duration.parse(text)
    except ValueError:
        return text
    if duration.unit == "%":
        return f"{duration.amount:g}% of a round"
    return f"{duration.amount:,.12g} {UNITS[duration.unit]}{'' if duration.amount == 1 else 's'}"


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of these, evenly apart, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]
