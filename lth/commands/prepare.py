"""From the settings of an experiment to what can be trained: images, model, every check, and what config.json says."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lth import data
from lth.commands import device as devices
from lth.commands.queue import Work
from lth.data.images import Images
from lth.experiment import start_tickets
from lth.models import building
from lth.models import fingerprints as prints
from lth.records import identity, tables
from lth.records.tables import Run, config_of
from lth.settings import flags, names
from lth.settings.checks import collect_errors
from lth.settings.config import PROJECT, Config, ConfigError, usual_valid_size
from lth.settings.values import Duration, TicketName
from lth.training import hardware, sparse
from lth.training.problem import Problem, check_fit, check_seeded, stack_size
from lth.training.schedule import check_plan

LIBRARIES = ("torch", "torchvision", "numpy", "safetensors")
LARGE_STEP = 3e8  # multiply-adds of a training step from which on it gains from more threads (docs/speed.md)
Loaded = dict[tuple[object, ...], Images]  # the images that were read before, by the settings that name them


def work_of(asked: Config, about: str, command: Sequence[str], loaded: Loaded) -> Work:
    """An experiment, checked. ConfigError if it cannot be done; `loaded` keeps the images for the next one."""
    images_of(asked, loaded)  # how many there are decides the validation split
    config, runs = settled(asked), tables.runs_of(asked, about)
    images, problem = prepare(config, loaded)
    identity.check(runs, config, problem.fingerprint, config.overwrite)
    return Work(config, runs, images, problem, about_command(asked, config, command))


def images_of(config: Config, loaded: Loaded) -> Images:
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


def settled(config: Config) -> Config:
    """The settings with what the data alone tell: the size of the validation split where none is given."""
    if config.valid_size is not None:
        return config
    count = data.training_count(config.dataset, config.data, config.image_size)
    return replace(config, valid_size=usual_valid_size(count))


def prepare(config: Config, loaded: Loaded | None = None) -> tuple[Images, Problem]:
    """The images and the model of the settings, and every check that needs them. ConfigError with all that is wrong.
    `loaded` keeps images from one call for the next."""
    images = images_of(config, {} if loaded is None else loaded)
    problem = start_tickets.problem(config, images)
    held_back = usual_valid_size(len(images.train)) if config.valid_size is None else config.valid_size
    problems = data.check_sizes(images, held_back, config.batch_size)
    if not problems:
        problems += check_plan(config, (len(images.train) - held_back) // config.batch_size)
    with collect_errors(problems):
        name, embeddings = f"--arch_type {config.arch_type}", config.prune_embeddings
        check_fit(problem.make(), images.shape, images.classes, name, embeddings, config.batch_size)
        assert problem.build
        check_seeded(problem.build, name)  # the user's code may fail: now, and not after files are written
    if problems:
        raise ConfigError(*problems)
    return images, problem


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


def on_machine(work: Work, device: torch.device) -> Work:
    """The experiment as this machine trains it. Where --stack does not say how many runs a GPU trains as one network,
    it is as many as they began with on such a GPU, since a measurement may come out otherwise and other stacks give
    other sums."""
    config, problem, images = work.config, work.problem, work.images
    if not config.stack and device.type != "cpu":
        begun = (about for run in work.runs if (about := config_of(run)).get("device") == devices.name(device))
        size = next((about["stack"] for about in begun if isinstance(about.get("stack"), int)), None)
        config = replace(config, stack=size or stack_size(config, problem, device))
    facts = {
        **work.facts,
        **about_machine(config, device),
        "stack": (together := stack_size(config, problem, device)),
        "threads": config.threads or 1,
        "fingerprint": problem.fingerprint,
        "classes": images.classes,
        "image_shape": list(images.shape),
        "normalisation": images.normalisation,
    }
    return replace(work, config=config, facts=facts, together=together)


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


# config.json


def about_command(asked: Config, config: Config, command: Sequence[str] = ()) -> dict[str, Any]:
    """What is the same wherever the training is done: the settings that were `asked` for, and what they came to."""
    argv0 = Path(sys.argv[0])
    called = [word for word in sys.argv[1:2] if word in flags.COMMANDS.values()]
    return {
        "settings": plain_settings(asked),
        "deciding": config.deciding(),
        "program": ["-m", "lth", *called] if argv0.stem in flags.LTH else [argv0.name],
        "command": list(command),
        "git_commit": commit(PROJECT) if (PROJECT / "main.py").exists() else None,  # not an installed library's
    }


def about_machine(config: Config, device: torch.device) -> dict[str, Any]:
    """What depends on the machine that does the training."""
    cpu = device.type == "cpu"
    fast = "bfloat16 products (AMX)" if hardware.has_amx() else "float32 by oneDNN"  # what this processor makes of it
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "device": devices.name(device),
        "processor": _processor(),
        "cpu_precision": {"fp32": "float32", "bf16": "bfloat16", "fast": fast}[config.precision] if cpu else None,
        "sparse_up_to": sparse.limits(config) if cpu else {},
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


def _processor() -> str:
    """The name of the processor, as `AMD EPYC 9B14`; that of its architecture where the name is unknown."""
    with suppress(OSError):  # Linux alone has it
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()
