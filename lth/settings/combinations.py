"""Which settings are used by the arms that were asked for, and what may surprise in their values."""

from __future__ import annotations

import dataclasses

from lth.settings.arms import ARMS
from lth.settings.config import Config
from lth.settings.values import as_text


def unused(config: Config) -> list[str]:
    """Sentences about settings that decide the folder and that none of the arms asked for uses."""
    of_none = set[str].intersection(*map(idle, config.prune_type)) - ({"rewind"} if config.connectivity else set())
    told = " ".join(config.prune_type)
    return [
        f"--{spec.name} {as_text(value)} only changes the folder's name: {told} does not use it"
        for spec in dataclasses.fields(config)
        if spec.name in of_none and (value := getattr(config, spec.name)) != spec.default
    ]


def idle(name: str) -> set[str]:
    """The settings that decide a folder and that the arm of this name does not use."""
    arm, finder = ARMS[name], ARMS[ARMS[name].mask_of or name]  # the latter finds its masks
    used = {
        "random_rates": finder.compared == "layer",
        "score_batches": finder.scores in ("snip", "grasp"),
        "prune_method": finder.scores == "criterion" and finder.masks != "of_ticket",
        "draw_at": finder.scores == "criterion" and finder.masks in ("iterative", "one_shot"),
        "rewind": "rewound" in (arm.schedule, finder.schedule),
        "update_freq": bool(finder.update),
        "update_end": bool(finder.update),
        "update_fraction": finder.update in ("set", "rigl"),
    }
    return {setting for setting, uses in used.items() if not uses}


def scores_batches(config: Config) -> bool:
    """Whether one of the arms asked for has scores that training batches decide."""
    return any("score_batches" not in idle(name) for name in config.prune_type)


def updates(config: Config) -> bool:
    """Whether the masks of one of the arms asked for change during a training."""
    return any("update_freq" not in idle(name) for name in config.prune_type)


def small_percents(config: Config) -> list[str]:
    """Sentences about percents below 1, where a fraction may have been meant."""
    rates = {f"{name}_percent": getattr(config, f"{name}_percent") for name in ("prune", "conv", "fc", "output")}
    return [
        f"--{name} {rate:.12g} prunes {rate:.12g}% of the weights per round, in percent: 20 is a fifth"
        for name, rate in rates.items()
        if rate is not None and 0 < rate < 1
    ]
