"""Experiments that are about to be trained: what they need, whether their runs are free, and what config.json says of
them: the settings, and all else that numbers may depend on."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lth import data
from lth.commands import device as devices
from lth.data.images import Images
from lth.experiment import start_tickets
from lth.models import building
from lth.models import fingerprints as prints
from lth.records import identity, journal, tables
from lth.records.files import read_json, write_json
from lth.records.lock import Locked, Locks
from lth.records.tables import Run, config_of
from lth.settings import flags, names
from lth.settings.arms import ARMS
from lth.settings.config import PROJECT, Config, ConfigError
from lth.settings.values import Duration, TicketName
from lth.training import hardware, sparse
from lth.training.problem import Problem, stack_size

LIBRARIES = ("torch", "torchvision", "numpy", "safetensors")
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
        if not config.dry_run and journal.damage(run):
            with suppress(Locked) if config.join else nullcontext(), Locks(alone=not config.join) as locks:
                locks.take(run.dumps)
                journal.mend(run, warn)


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
    begun = (about for run in one.runs if (about := config_of(run)).get("device") == devices.name(device))
    size = next((about["stack"] for about in begun if isinstance(about.get("stack"), int)), None)
    return replace(one, config=replace(one.config, stack=size or stack_size(one.config, one.problem, device)))


def with_threads(config: Config, problem: Problem, run: Run, runs: int, device: torch.device) -> Config:
    """The settings with the number of threads of each run on a CPU, where --threads does not give it. Results of these
    settings that are there, of `run` or beside it, decide it, since bits depend on it. Else it is the cores divided by
    the `runs` that are trained side by side, if a step is large enough to gain from more than one thread."""
    if config.threads or device.type != "cpu" or config.ray:
        return config
    begun = [] if config.overwrite else [config_of(other) for other in identity.neighbours(run)]
    threads = next((about["threads"] for about in begun if isinstance(about.get("threads"), int)), None)
    if threads is None:
        large = (problem.step_multiply_adds(config.batch_size) or 0) >= LARGE_STEP
        threads = max(1, devices.cores() // runs) if large else 1
    return replace(config, threads=threads)


def facts(one: Prepared, device: torch.device, command: Sequence[str]) -> dict[str, Any]:
    """What the config.json of each run of an experiment says."""
    return {
        **about(one.asked, one.config, device, command),
        "stack": stack_size(one.config, one.problem, device),
        "threads": one.config.threads or 1,
        "fingerprint": one.problem.fingerprint,
        "classes": one.images.classes,
        "image_shape": list(one.images.shape),
        "normalisation": one.images.normalisation,
    }


def write_config(run: Run, config: Config, facts: Mapping[str, Any]) -> None:
    """Write config.json, which says what the run is trained with, unless the run is finished."""
    file = run.dumps / "config.json"
    if not read_json(file) or tables.done_rounds(run, config.connectivity) < config.prune_iterations:
        usual = {} if ARMS[run.arm].changes_masks else facts["sparse_up_to"]  # their products are dense
        limits = config_of(run).get("sparse_up_to", usual)
        write_json(file, {**facts, "arm": run.arm, "seed": run.seed, "sparse_up_to": limits})


def about(asked: Config, config: Config, device: torch.device, command: Sequence[str] = ()) -> dict[str, Any]:
    """The content of config.json for the settings that were `asked` for and what they came to, `config`."""
    return {**about_command(asked, config, command), **about_machine(config, device)}


def about_command(asked: Config, config: Config, command: Sequence[str] = ()) -> dict[str, Any]:
    """The part that is the same wherever the training is done."""
    return {
        "settings": plain_settings(asked),
        "deciding": config.deciding(),
        "program": program(),
        "command": list(command),
        "git_commit": commit(PROJECT) if (PROJECT / "main.py").exists() else None,  # not an installed library's
    }


def program() -> list[str]:
    """What `python` was given before the flags."""
    if Path(sys.argv[0]).stem in flags.LTH:
        return ["-m", "lth", *(word for word in sys.argv[1:2] if word in flags.COMMANDS.values())]
    return [Path(sys.argv[0]).name]


def about_machine(config: Config, device: torch.device) -> dict[str, Any]:
    """The part about the machine that does the training."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "device": devices.name(device),
        "processor": _processor(),
        "cpu_precision": _cpu_precision(config) if device.type == "cpu" else None,
        "sparse_up_to": sparse.limits(config) if device.type == "cpu" else {},
    }


def plain_settings(config: Config) -> dict[str, Any]:
    """All settings for JSON; --config reads them back. `data` is null for the project's own folder, which another
    machine has elsewhere; the folder of the results is left out."""
    settings: dict[str, Any] = {}
    for spec in fields(config):
        value = getattr(config, spec.name)
        if spec.name == "data":
            settings["data"] = None if value.resolve() == Config.data.resolve() else str(value.resolve())
        elif spec.name not in ("root", "overwrite", "dry_run", "join", "ray"):
            plain = [str(item) for item in value] if isinstance(value, tuple) else value
            settings[spec.name] = str(plain) if isinstance(plain, (Path, Duration, TicketName)) else plain
    return settings


def commit(folder: Path) -> str | None:
    """The git commit of the program in `folder`, and whether its files are as that has them; None outside of git."""
    try:
        head, changes = (
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "."))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + (" with uncommitted changes" if changes.strip() else "")


def _cpu_precision(config: Config) -> str:
    """What float32 products on this CPU really are, since --precision fast depends on the processor."""
    if config.precision != "fast":
        return {"fp32": "float32", "bf16": "bfloat16"}[config.precision]
    return "bfloat16 products (AMX)" if hardware.has_amx() else "float32 by oneDNN"


def fingerprints_now(config: Config, run: Run) -> dict[str, str]:
    """The fingerprints of the experiment that the settings mean now, for a run that is finished: nothing is downloaded,
    and data that are no longer there are not missed. Empty if nothing can be compared with them."""
    about = config_of(run)
    if not about.get("classes") or "data" not in about.get("fingerprint", ()):
        return {}
    found = {"model": prints.of_model(building.find(config.arch_type, config.dataset, about["classes"], config.data))}
    name = names.dataset(config.dataset)
    if names.npz(config.data, name, config.image_size).exists() or names.pictures(name, config.data):
        found["data"] = data.load(name, config.data, image_size=config.image_size).fingerprint
    return {**found, **start_tickets.fingerprints(config)}


def _processor() -> str:
    """The name of the processor, as `AMD EPYC 9B14`; that of its architecture where the name is unknown."""
    with suppress(OSError):  # Linux alone has it
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()
