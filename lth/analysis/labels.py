"""Words for runs and settings: what figures and tables say about whose numbers they show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from lth.records import identity
from lth.records.tables import Run, config_of
from lth.settings.values import Duration

T = TypeVar("T")
DATASETS = {"mnist": "MNIST", "fashionmnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
UNITS = {"ep": "epoch", "it": "iteration"}
DURATIONS = ("end_iter", "rewind", "draw_at", "warmup", "valid_freq", "lr_milestones")
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


def trials(count: int) -> str:
    """`1 trial`, `3 trials`."""
    return f"{count} trial{'' if count == 1 else 's'}"


def title(run: Run) -> str:
    """Model and data set: `fc1 on MNIST`."""
    return f"{run.arch_type} on {DATASETS.get(run.dataset.lower(), run.dataset)}"


def settings(*runs: Run) -> str:
    """The settings of runs of one folder: how much is pruned, how long is trained, and what is not at its default."""
    run, told = runs[0], identity.deciding(*runs)
    if not told:  # a folder from elsewhere still has its name
        return "default settings" if run.settings == "default" else run.settings.replace("_", " ").replace(",", ", ")
    asked = config_of(run).get("settings", {})
    left = {name for name, value in asked.items() if value is None}  # to the data: --valid_size
    return _listed(_name(run), {name: value for name, value in _told(told).items() if name not in left})


def differing(groups: Sequence[Sequence[Run]]) -> tuple[str, dict[Path, str]]:
    """What the settings of these groups of runs, of one folder each, have in common, and how each differs, by its
    folder of plots."""
    told = {runs[0]: identity.deciding(*runs) for runs in groups}
    if not all(told.values()):
        return "", {runs[0].plots: settings(*runs) for runs in groups}
    names = list(dict.fromkeys(name for values in told.values() for name in values))
    usual = identity.usual()
    values = {name: {values.get(name, usual.get(name, "None")) for values in told.values()} for name in names}
    differ = [name for name in names if len(values[name]) > 1]
    common = {name: min(found) for name, found in values.items() if name not in differ}
    own = {}
    for run, chosen in told.items():
        mine = {name: chosen.get(name, usual.get(name, "None")) for name in differ}
        said = mine if len(differ) <= 3 else _told(mine)
        own[run.plots] = _listed(_name(run), {name: value for name, value in said.items() if value != "None"})
    return _listed("", _told(common)), own


def rows_and_columns(groups: Sequence[Sequence[Run]], most: int) -> tuple[list[int], int]:
    """In which order to show groups of runs in a table, row by row, and in how many columns, at most `most`: where two
    things differ (settings; model and data set), and every combination is there, one along rows and one along columns;
    else as they come."""
    keys = [{"": title(runs[0]), **identity.deciding(*runs)} for runs in groups]
    usual = identity.usual()
    differ = {name: list(dict.fromkeys(key.get(name, usual.get(name)) for key in keys)) for key in keys for name in key}
    differ = {name: values for name, values in differ.items() if len(values) > 1}
    plain = list(range(len(groups))), min(len(groups), most)
    if len(differ) != 2:
        return plain
    down, across = sorted(differ, key=lambda name: (len(differ[name]) <= most, len(differ[name])))
    cells = [tuple(differ[name].index(key.get(name, usual.get(name))) for name in (down, across)) for key in keys]
    whole = len(set(cells)) == len(cells) == len(differ[down]) * len(differ[across]) and len(differ[across]) <= most
    return (sorted(plain[0], key=cells.__getitem__), len(differ[across])) if whole else plain


def told_apart(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Model and data set of each group of runs, with its settings where several groups have the same."""
    titles = [title(runs[0]) for runs in groups]
    apart = []
    for runs, own in zip(groups, titles, strict=True):
        like = [others for others, name in zip(groups, titles, strict=True) if name == own]
        said = differing(like)[1][runs[0].plots] or runs[0].settings if len(like) > 1 else ""
        apart.append(f"{own} ({said})" if said else own)
    return apart


def _told(values: dict[str, str]) -> dict[str, str]:
    """Without settings at their defaults."""
    usual = identity.usual()
    return {name: value for name, value in values.items() if name in ALWAYS or usual.get(name) != value}


def _name(run: Run) -> str:
    """The user's name for the settings, if there is one."""
    return "" if run.settings == "default" or "=" in run.settings else run.settings


def _listed(heading: str, values: dict[str, str]) -> str:
    order = [*(name for name in ALWAYS if name in values), *(name for name in values if name not in ALWAYS)]
    said = ", ".join(_said(name, values[name]) for name in order)
    return f"{heading}: {said}" if heading and said else heading or said


def _said(name: str, value: str) -> str:
    """One setting in words."""
    words = WORDS.get(name, name.replace("_", " ") + " {}")
    if isinstance(words, dict):
        words = words.get(value, words.get("*", name.replace("_", " ") + " {}"))
    if name == "ticket":  # whose name is that of a folder
        return words.format(value)
    text = " and ".join(map(_duration, value.split("+"))) if name in DURATIONS else value.replace("_", " ")
    return words.format(text)


def _duration(text: str) -> str:
    """`5 epochs`, `500 iterations`, `1% of a round`."""
    try:
        found = Duration.parse(text)
    except ValueError:
        return text
    if found.unit == "%":
        return f"{found.amount:g}% of a round"
    return f"{found.amount:,.12g} {UNITS[found.unit]}{'' if found.amount == 1 else 's'}"


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of these, evenly apart, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / max(count - 1, 1))] for index in range(count)]
