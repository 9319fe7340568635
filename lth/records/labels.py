"""Results in words: what pictures and tables say about whose numbers they show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lth.records import tables
from lth.records.tables import Run
from lth.settings.config import Config, Duration

DATASETS = {"mnist": "MNIST", "fashionmnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
UNITS = {"ep": "epoch", "it": "iteration"}
DURATIONS = ("end_iter", "rewind", "warmup", "valid_freq", "lr_milestones")
ALWAYS = ("prune_percent", "end_iter")  # said also where they have their defaults
SAID = {
    "prune_percent": "{}% pruned a round",
    "conv_percent": "convolutions {}%",
    "fc_percent": "matrices {}%",
    "output_percent": "output layer {}%",
    "target_remaining": "pruned down to {}%",
    "end_iter": "{} a round",
    "prune_scope": "{} pruning",
    "prune_embeddings": "embeddings pruned",
    "lr": "learning rate {}",
    "batch_size": "batches of {}",
    "rewind": "rewound to {}",
    "lr_milestones": "learning rate dropped at {}",
    "warmup": "warm-up over {}",
    "augment": "augmented images",
    "nesterov": "Nesterov momentum",
    "valid_freq": "evaluated every {}",
}


def percent(value: float, digits: int = 2, pad: bool = False) -> str:
    """A percentage with that many significant digits, as on the axes of the paper: 100, 51, 8.6, 0.12. `pad` keeps
    zeros at the end."""
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


def settings(run: Run) -> str:
    """The settings of a run: how much is pruned and how long is trained, and what else is not as usual."""
    chosen = tables.read_json(run.dumps / "config.json").get("deciding")
    if not isinstance(chosen, dict):  # a folder from elsewhere still has its name
        return "default settings" if run.settings == "default" else run.settings.replace("_", " ").replace(",", ", ")
    usual = Config().deciding()
    told = {**{name: usual[name] for name in ALWAYS}, **chosen}
    said = [
        _said(name, str(value))
        for name, value in told.items()
        if (name in ALWAYS or usual.get(name) != value) and not _overruled(name, told)
    ]
    named = run.settings != "default" and "=" not in run.settings  # by --name
    return (f"{run.settings}: " if named else "") + ", ".join(said)


def _overruled(name: str, chosen: dict[str, str]) -> bool:
    target = chosen.get("target_remaining", "None")
    return (name == "prune_percent" and target != "None") or name == "prune_iterations"


def _said(name: str, value: str) -> str:
    """One setting in words."""
    words = " and ".join(_duration(part) for part in value.split("+")) if name in DURATIONS else value
    return SAID.get(name, name.replace("_", " ") + " {}").format(words)


def _duration(text: str) -> str:
    """`5 epochs`, `500 iterations`, `1% of a round`."""
    try:
        found = Duration.parse(text)
    except ValueError:
        return text
    if found.unit == "%":
        return f"{found.amount:g}% of a round"
    return f"{found.amount:,.12g} {UNITS[found.unit]}{'' if found.amount == 1 else 's'}"


def spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of these, evenly apart, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]
