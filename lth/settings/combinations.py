"""What settings cannot be given together."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING

from lth.settings.arms import ARMS
from lth.settings.values import as_text

if TYPE_CHECKING:
    from lth.settings.config import Config


def problems(config: Config) -> list[str]:
    """What is wrong with settings that are right one by one. Values may still be of the wrong type."""
    found = []
    given = {spec.name for spec in dataclasses.fields(config) if getattr(config, spec.name) != spec.default}
    found += said_twice(given)
    if "target_remaining" in given and config.prune_iterations == 1:
        found.append("--target_remaining needs at least 2 --prune_iterations: the first round is dense")
    if config.optimizer != "sgd":
        found += [
            f"--{name} belongs to --optimizer sgd, not to {config.optimizer}"
            for name in ("momentum", "nesterov")
            if name in given
        ]
    elif config.nesterov and not config.momentum:
        found.append("--nesterov needs a --momentum above 0")
    if "lr_gamma" in given and not config.lr_milestones:
        found.append("--lr_gamma needs --lr_milestones, which say when the learning rate drops")
    if takes_over(config) and config.ticket is None:
        found.append(f"--prune_type {takes_over(config)[0]} needs --ticket, which says whose tickets it takes over")
    if config.join and config.overwrite:
        found.append("--overwrite cannot be given with --join: each process would move away what the others do")
    if config.ray and config.gpu not in (None, "cpu"):
        found.append(
            f"--gpu {config.gpu} cannot be given with --ray, which gives a task any GPU: leave it out or say cpu"
        )
    if not config.prune_type:
        found.append(f"--prune_type needs at least one of {', '.join(ARMS)}")
    return found


def said_twice(given: Collection[str]) -> list[str]:
    """What is wrong with the names of settings that were given, whatever their values: the percent of a round twice."""
    rates = [name for name in ("conv_percent", "fc_percent", "output_percent", "prune_percent") if name in given]
    if "target_remaining" not in given or not rates:
        return []
    told = " --".join(rates)
    return [f"--target_remaining decides the percent of a round itself and cannot be given with --{told}"]


def unused(config: Config) -> list[str]:
    """Sentences about settings that decide the folder and that none of the arms asked for looks at."""
    of_none = set[str].intersection(*map(idle, config.prune_type)) - ({"rewind"} if config.connectivity else set())
    told = " ".join(config.prune_type)
    return [
        f"--{spec.name} {as_text(value)} decides the folder and changes nothing: {told} does not use it"
        for spec in dataclasses.fields(config)
        if spec.name in of_none and (value := getattr(config, spec.name)) != spec.default
    ]


def idle(name: str) -> set[str]:
    """The settings that decide a folder and that the arm of this name does not look at."""
    arm, finder = ARMS[name], ARMS[ARMS[name].mask_of or name]  # which finds its masks
    looked_at = {
        "random_rates": finder.compared == "layer",
        "score_batches": finder.scores in ("snip", "grasp"),
        "prune_method": finder.scores == "criterion" and finder.prunes != "given",
        "rewind": "rewound" in (arm.schedule, finder.schedule),
    }
    return {setting for setting, looks in looked_at.items() if not looks}


def scores_batches(config: Config) -> bool:
    """Whether one of the arms asked for has scores that training batches decide."""
    return any("score_batches" not in idle(name) for name in config.prune_type)


def takes_over(config: Config) -> list[str]:
    """The arms asked for that take over all tickets of the run that --ticket names."""
    arms = config.prune_type if isinstance(config.prune_type, tuple) else ()
    return [arm for arm in arms if arm in ARMS and ARMS[ARMS[arm].mask_of or arm].prunes == "given"]
