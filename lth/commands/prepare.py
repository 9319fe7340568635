"""From the settings of an experiment to one that is ready to be trained: images, model, all checks, config.json."""

import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lth import data
from lth.commands import device as devices
from lth.commands.queue import Work
from lth.data.images import Images
from lth.experiment import start_tickets
from lth.models import building, fingerprints
from lth.records import identity, tables
from lth.records.tables import Run, read_config
from lth.settings import flags, names
from lth.settings.checks import collect_errors
from lth.settings.config import PROJECT, Config, ConfigError, usual_valid_size
from lth.settings.values import Duration, TicketName
from lth.training import hardware, sparse
from lth.training.problem import Problem, check_fit, check_seeded, stack_size
from lth.training.schedule import check_plan

LIBRARIES = ("torch", "torchvision", "numpy", "safetensors")
LARGE_STEP = 3e8  # multiply-adds; a training step with at least this many gains from more threads (docs/speed.md)
Loaded = dict[tuple[object, ...], Images]  # the images that have been read, by the settings that decide them


def make_work(asked: Config, label: str, command: Sequence[str], loaded: Loaded) -> Work:
    """An experiment, checked and ready to be trained. ConfigError if that is impossible; `loaded` keeps the images for
    the next one."""
    images, problem = prepare(asked, loaded)
    config, runs = with_valid_size(asked), tables.runs_of(asked, label)
    identity.check(runs, config, problem.fingerprint, config.overwrite)
    return Work(config, runs, images, problem, command_facts(asked, config, command))


def load_images(config: Config, loaded: Loaded) -> Images:
    """The images of the settings, from `loaded` if they are there; otherwise they are put there."""
    key = (config.dataset, config.data, config.pixels, config.image_size)
    if key not in loaded:
        building.find(config.arch_type, config.dataset, data=config.data)  # a bad file is reported before data are read
        name = names.canonical_dataset(config.dataset)
        file = names.npz_file(config.data, name, config.image_size)
        if config.dry_run and name in names.TORCHVISION and not file.exists():
            raise ConfigError(f"--dry_run neither downloads nor converts images, and there is no {file}")
        loaded[key] = data.load(*key)
    return loaded[key]


def with_valid_size(config: Config) -> Config:
    """The settings with the size of the validation split; its default depends on the number of images."""
    if config.valid_size is not None:
        return config
    count = data.training_count(config.dataset, config.data, config.image_size)
    return replace(config, valid_size=usual_valid_size(count))


def prepare(config: Config, loaded: Loaded | None = None) -> tuple[Images, Problem]:
    """The images and the model of the settings, after all checks that need them. ConfigError with all problems.
    `loaded` keeps images from one call for the next."""
    images = load_images(config, {} if loaded is None else loaded)
    problem = start_tickets.problem(config, images)
    held_back = usual_valid_size(len(images.train)) if config.valid_size is None else config.valid_size
    problems = data.check_sizes(images, held_back, config.batch_size)
    if not problems:
        problems += check_plan(config, (len(images.train) - held_back) // config.batch_size)
    with collect_errors(problems):
        name, embeddings = f"--arch_type {config.arch_type}", config.prune_embeddings
        check_fit(problem.make(), images.shape, images.classes, name, embeddings, config.batch_size)
        assert problem.build
        check_seeded(problem.build, name)  # if the user's code fails, it does so before files are written
    if problems:
        raise ConfigError(*problems)
    return images, problem


def with_threads(config: Config, problem: Problem, run: Run, runs: int, device: torch.device) -> Config:
    """The settings with the number of threads of each run on a CPU, if --threads does not give it. It is the one that
    `run` or another run of these settings began with, since bits depend on it; otherwise, if a step is large enough to
    gain from more than one thread, the number of cores divided by the number of `runs` that are trained side by
    side."""
    if config.threads or device.type != "cpu" or config.ray:
        return config
    recorded = [] if config.overwrite else [read_config(other) for other in identity.neighbours(run)]
    threads = next((facts["threads"] for facts in recorded if isinstance(facts.get("threads"), int)), None)
    if threads is None:
        large = (problem.step_multiply_adds(config.batch_size) or 0) >= LARGE_STEP
        threads = max(1, devices.cores() // runs) if large else 1
    return replace(config, threads=threads)


def on_machine(work: Work, device: torch.device) -> Work:
    """The experiment as this machine trains it. Without --stack, runs that began on a GPU of this kind keep the number
    that is trained as one network: a new measurement might give another, with which sums are rounded differently."""
    config, problem, images = work.config, work.problem, work.images
    if not config.stack and device.type != "cpu":
        recorded = (facts for run in work.runs if (facts := read_config(run)).get("device") == devices.name(device))
        size = next((facts["stack"] for facts in recorded if isinstance(facts.get("stack"), int)), None)
        config = replace(config, stack=size or stack_size(config, problem, device))
    size = stack_size(config, problem, device)
    facts = {
        **work.facts,
        **machine_facts(config, device),
        "stack": size,
        "threads": config.threads or 1,
        "fingerprint": problem.fingerprint,
        "classes": images.classes,
        "image_shape": list(images.shape),
        "normalisation": images.normalisation,
    }
    return replace(work, config=config, facts=facts, piece_size=size)


def current_fingerprints(config: Config, run: Run) -> dict[str, str]:
    """The current fingerprints of the experiment of a finished run. Nothing is downloaded, and data that are no longer
    there are left out. Empty if the run has no fingerprints to compare with."""
    recorded = read_config(run)
    if not recorded.get("classes") or "data" not in recorded.get("fingerprint", ()):
        return {}
    make = building.find(config.arch_type, config.dataset, recorded["classes"], config.data)
    current = {"model": fingerprints.fingerprint_model(make)}
    name = names.canonical_dataset(config.dataset)
    if names.npz_file(config.data, name, config.image_size).exists() or names.picture_folder(name, config.data):
        current["data"] = data.load(name, config.data, image_size=config.image_size).fingerprint
    if config.ticket:
        current |= start_tickets.StartTickets.from_config(config).fingerprints()
    return current


# config.json


def command_facts(asked: Config, config: Config, command: Sequence[str] = ()) -> dict[str, Any]:
    """The facts for config.json that do not depend on the machine: the settings that were `asked` for, those that
    decide numbers, and the program."""
    program = Path(sys.argv[0])
    subcommand = [word for word in sys.argv[1:2] if word in flags.COMMANDS.values()]
    return {
        "settings": json_settings(asked),
        "deciding": config.deciding(),
        "program": ["-m", "lth", *subcommand] if program.stem in flags.LTH else [program.name],
        "command": list(command),
        "git_commit": commit(PROJECT) if (PROJECT / "main.py").exists() else None,  # an installed library has none
    }


def machine_facts(config: Config, device: torch.device) -> dict[str, Any]:
    """The facts for config.json that depend on the machine."""
    cpu = device.type == "cpu"
    fast = "bfloat16 products (AMX)" if hardware.has_amx() else "float32 by oneDNN"
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "device": devices.name(device),
        "processor": _processor(),
        "cpu_precision": {"fp32": "float32", "bf16": "bfloat16", "fast": fast}[config.precision] if cpu else None,
        "sparse_up_to": sparse.limits(config) if cpu else {},
    }


def json_settings(config: Config) -> dict[str, Any]:
    """All settings for JSON, which --config reads back. `data` is null for the project's own folder, which is elsewhere
    on another machine; the folder of the results is left out."""
    settings: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, tuple):
            settings[name] = [str(item) for item in value]
        elif name not in ("root", "overwrite", "dry_run", "join", "ray"):
            settings[name] = str(value) if isinstance(value, (Path, Duration, TicketName)) else value
    data = config.data.resolve()
    return settings | {"data": None if data == Config.data.resolve() else str(data)}


def commit(folder: Path) -> str | None:
    """The git commit of `folder`, and whether its files have uncommitted changes; None outside of git."""
    try:
        head, changes = (
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "."))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + (" with uncommitted changes" if changes.strip() else "")


def _processor() -> str:
    """The name of the processor, as `AMD EPYC 9B14`; its architecture if the name is unknown."""
    with suppress(OSError):  # only Linux has this file
        if match := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return match[1].strip()
    return platform.processor() or platform.machine()
