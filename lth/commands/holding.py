"""Experiments that are about to be trained: what they need, whether their runs are free, what config.json says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from lth import data
from lth.commands import device as devices
from lth.commands.about import about, about_data
from lth.data.images import Images
from lth.models import building
from lth.records import identity, recording, tables
from lth.records.files import read_json, write_json
from lth.records.lock import Locked, Locks
from lth.records.tables import Run
from lth.settings import names
from lth.settings.arms import ARMS
from lth.settings.config import Config, ConfigError
from lth.training.problem import Problem, stack_size

# Multiply-adds of a step from which on it gains from more threads. The time on two threads by that on one, two cores of
# an Intel Xeon with AMX: fc1 at batch 60 (5e7) 0.98, lenet5 at 60 (8e7) 0.80, or five times as long beside other work,
# lenet5 at 256 (3e8) 0.65, fc1 at 512 (4e8) 0.77; on CIFAR-10 conv2 (7e9) 0.56, resnet20 0.58, vgg16 0.54.
LARGE_STEP = 3e8


@dataclass(frozen=True)
class Prepared:
    """An experiment that can be done: its settings as they were asked for and as the data settle them, and what they
    name."""

    asked: Config
    config: Config
    runs: list[Run]
    images: Images
    problem: Problem


def images_of(config: Config, loaded: dict[tuple[object, ...], Images]) -> Images:
    """The images of the settings, from `loaded` if they are there; otherwise they are kept in it."""
    what = (config.dataset, config.data, config.pixels, config.image_size)
    if what not in loaded:
        building.find(config.arch_type, config.dataset, data=config.data)  # a bad file is reported before data are read
        name = names.dataset(config.dataset)
        file = names.npz(config.data, name, config.image_size)
        if config.dry_run and name in names.KNOWN and not file.exists():
            raise ConfigError(f"--dry_run neither downloads nor converts images, and there is no {file}")
        loaded[what] = data.load(*what)
    return loaded[what]


def mend(runs: Sequence[Run], config: Config, warn: Callable[[str], object]) -> None:
    """Write damaged tables of these runs again, but for --dry_run; `warn` gets a sentence for each. Locked if another
    process has the run; with --join, that one is left to it."""
    for run in runs:
        if not config.dry_run and recording.damage(run):
            with suppress(Locked) if config.join else nullcontext(), Locks(alone=not config.join) as locks:
                locks.take(run.dumps)
                recording.mend(run, warn)


def claim(prepared: Sequence[Prepared], alone: bool) -> None:
    """Make sure that nobody works on these runs, that their results are of the same experiments, and, with --overwrite,
    move the old ones aside, all of it under their locks. Locked or ConfigError, with nothing written, if not so."""
    with Locks(alone) as locks:
        for run in dict.fromkeys(run for one in prepared for run in one.runs):
            locks.take(run.dumps)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for run in (run for one in prepared if one.config.overwrite for run in one.runs):
            tables.move_aside(run, stamp)
        for one in prepared:
            identity.check(one.runs, one.config, one.problem.fingerprint)


def with_stack(one: Prepared, device: torch.device) -> Prepared:
    """The experiment with the number of runs that a GPU trains as one network, where --stack does not say it: as many
    as it began with on such a GPU, since a measurement may come out otherwise and other stacks give other sums."""
    if one.config.stack or device.type == "cpu":
        return one
    begun = (about for run in one.runs if (about := tables.config_of(run)).get("device") == devices.name(device))
    size = next((about["stack"] for about in begun if isinstance(about.get("stack"), int)), None)
    return replace(one, config=replace(one.config, stack=size or stack_size(one.config, one.problem, device)))


def with_threads(config: Config, problem: Problem, run: Run, runs: int, device: torch.device) -> Config:
    """The settings with the number of threads of each run on a CPU, where --threads does not give it. Results of these
    settings that are there, of `run` or beside it, decide it, since bits depend on it. Else it is the cores divided by
    the `runs` that are trained side by side, if a step is large enough to gain from more than one thread."""
    if config.threads or device.type != "cpu" or config.ray:
        return config
    begun = [] if config.overwrite else [tables.config_of(other) for other in identity.neighbours(run)]
    threads = next((about["threads"] for about in begun if isinstance(about.get("threads"), int)), None)
    if threads is None:
        large = (problem.step_multiply_adds(config.batch_size) or 0) >= LARGE_STEP
        threads = max(1, devices.cores() // runs) if large else 1
    return replace(config, threads=threads)


def facts(one: Prepared, device: torch.device, command: Sequence[str]) -> dict[str, Any]:
    """What the config.json of each run of an experiment says."""
    stack = stack_size(one.config, one.problem, device)
    prints = {"fingerprint": one.problem.fingerprint, **about_data(one.images)}
    threads = one.config.threads or 1
    return {**about(one.asked, one.config, device, command), "stack": stack, "threads": threads, **prints}


def write_config(run: Run, config: Config, facts: Mapping[str, Any]) -> None:
    """Write config.json, which says what the run is trained with, unless the run is finished."""
    file = run.dumps / "config.json"
    if not read_json(file) or tables.done_rounds(run, config.connectivity) < config.prune_iterations:
        usual = {} if ARMS[run.arm].changes_masks else facts["sparse_up_to"]  # their products are dense
        limits = tables.config_of(run).get("sparse_up_to", usual)
        write_json(file, {**facts, "arm": run.arm, "seed": run.seed, "sparse_up_to": limits})
