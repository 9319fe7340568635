"""What an experiment consists of: its runs, and how many trainings they are."""

from __future__ import annotations

from lth.records.tables import Run
from lth.settings import names
from lth.settings.arms import ARMS
from lth.settings.config import Config


def runs_of(config: Config, about: str = "") -> list[Run]:
    """The runs that the settings ask for, a trial's arms one after another; first those whose masks others need.
    `about` tells them from those of other settings where several are named."""
    needed = [ARMS[arm].mask_of for arm in config.prune_type if ARMS[arm].mask_of]
    arms = dict.fromkeys([*needed, *config.prune_type])
    dataset = names.dataset(config.dataset)
    model = names.model(config.arch_type, dataset, config.data)
    place = (config.root, model, dataset, config.folder())
    return [Run(*place, arm, seed, about=about) for seed in config.seeds for arm in arms]


def dense_runs(config: Config, about: str = "") -> dict[Run, Run]:
    """The runs of an experiment, each with the one that trains the dense round of its trial: the first."""
    first: dict[int, Run] = {}
    return {run: first.setdefault(run.seed, run) for run in runs_of(config, about)}


def trainings(rounds: int, finished: int, shared: bool) -> int:
    """How many of a run's `rounds` are left to train after those that are finished; where the dense one is `shared`,
    another arm trains it."""
    return max(rounds - max(finished, int(shared)), 0)
