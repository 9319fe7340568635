"""What settings cannot be given together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lth.settings.arms import ARMS, Arm
from lth.settings.values import as_text

if TYPE_CHECKING:
    from lth.settings.config import Config


def problems(config: Config) -> list[str]:
    """What is wrong with settings that are right one by one. Values may still be of the wrong type."""
    found = []
    given = {spec.name for spec in dataclasses.fields(config) if getattr(config, spec.name) != spec.default}
    own_rates = given & {"prune_percent", "conv_percent", "fc_percent", "output_percent"}
    if "target_remaining" in given:
        if own_rates:
            found.append(
                "--target_remaining decides the percent of a round itself and cannot be given with "
                f"--{' --'.join(sorted(own_rates))}"
            )
        if config.prune_iterations == 1:
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


def unused(config: Config) -> list[str]:
    """Sentences about settings that name a folder and that none of the arms asked for looks at."""
    arms, finders = [ARMS[name] for name in config.prune_type], _finders(config)
    looked_at = {
        "random_rates": any(arm.compared == "layer" for arm in finders),
        "score_batches": scores_batches(config),
        "prune_method": any(arm.scores == "criterion" and arm.prunes != "given" for arm in finders),
        "rewind": config.connectivity or any(arm.schedule == "rewound" for arm in [*arms, *finders]),
    }
    told = " ".join(config.prune_type)
    return [
        f"--{spec.name} {as_text(value)} is in the folder's name and changes nothing: {told} does not use it"
        for spec in dataclasses.fields(config)
        if not looked_at.get(spec.name, True) and (value := getattr(config, spec.name)) != spec.default
    ]


def scores_batches(config: Config) -> bool:
    """Whether one of the arms asked for has scores that training batches decide."""
    return any(arm.scores in ("snip", "grasp") for arm in _finders(config))


def _finders(config: Config) -> list[Arm]:
    """The arms that find the masks of those asked for."""
    return [ARMS[ARMS[name].mask_of or name] for name in config.prune_type]


def takes_over(config: Config) -> list[str]:
    """The arms asked for that take over all tickets of the run that --ticket names."""
    arms = config.prune_type if isinstance(config.prune_type, tuple) else ()
    return [arm for arm in arms if arm in ARMS and ARMS[ARMS[arm].mask_of or arm].prunes == "given"]
