"""One command from its settings to its results: checks before any work, the locks, the rounds, what is said about them.

All front doors (main.py, `python lth`, ExperimentRunner) come through `run`.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lth import data, pruning
from lth.data.images import Images
from lth.records import tables
from lth.records.events import Event
from lth.records.files import write_json
from lth.records.lock import Locks, probe
from lth.records.tables import Run
from lth.run import jobs
from lth.run.machine import processor
from lth.run.progress import Progress
from lth.run.tensorboard import Board
from lth.settings import names
from lth.settings.arms import ARMS
from lth.settings.config import PROJECT, Config, ConfigError, Duration, as_text
from lth.training import models
from lth.training.problem import Problem, stack_size
from lth.training.schedule import check_plan

LIBRARIES = ("torch", "torchvision", "numpy", "safetensors")


class TrialsFailed(Exception):
    """Some trials ended early, as has been said; the others are complete."""


def run(config: Config, command: Sequence[str] = ()) -> list[Run]:
    """Do, or go on with, the experiment of these settings, and give its runs.

    ConfigError if it cannot be done, before anything is written; RecordError if a file cannot be written or another
    process is at it; jobs.Interrupted after a signal; TrialsFailed if a trial ended early.
    """
    with jobs.signals() as signalled:
        runs = jobs.runs_of(config)
        if not config.overwrite:
            refuse_other_settings(config, runs)
            if all(tables.finished_rounds(run) >= config.prune_iterations for run in runs):
                _say(config, "all rounds of these runs are finished: more --prune_iterations or --trials extend them")
                return runs
        device, remark = _device(config)
        images, problem = prepare(config)
        if remark:
            _say(config, remark)
        probe(config.root)
        with Locks(config.lock_limit) as locks:
            runs = [replace(run, fence=locks.take(run.dumps)) for run in runs]
            if config.overwrite:
                stamp = time.strftime("%Y%m%d-%H%M%S")
                for old in runs:
                    tables.move_aside(old, stamp)
            _announce(config, problem, runs, device, command)
            rounds = sum(
                config.prune_iterations - min(tables.finished_rounds(r), config.prune_iterations) for r in runs
            )
            progress = Progress(rounds, config.print_freq, config.quiet)
            board = Board(config) if config.tensorboard else None

            def tell(event: Event) -> None:
                progress(event)
                if board:
                    board(event)

            together = device.type != "cpu" or bool(config.stack)
            try:
                tasks = jobs.tasks_of(runs, config.prune_iterations, together)
                jobs.run_tasks(tasks, config, images, device, tell, signalled)
            except jobs.Interrupted:
                progress.close()
                print(f"the results so far are in {runs[0].dumps.parent.parent}", file=sys.stderr)
                raise
            finally:
                progress.close()
                if board:
                    board.close()
        if progress.failures:
            raise TrialsFailed(f"{progress.failures} of {len(runs)} runs ended early; what they finished is kept")
    return runs


def prepare(config: Config) -> tuple[Images, Problem]:
    """The images and the model of the settings, and every check that needs them. ConfigError with all that is wrong."""
    models.find(config.arch_type, config.dataset, data=config.data)  # a bad file is said before data are downloaded
    images = data.load(config.dataset, config.data, config.pixels)
    problem = Problem.of(config, images)
    problems = data.check_sizes(images, config.valid_size, config.batch_size)
    if not problems:
        problems += check_plan(config, (len(images.train) - config.valid_size) // config.batch_size)
    try:
        models.check_fit(problem.make(), images.shape, images.classes, f"--arch_type {config.arch_type}")
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return images, problem


def refuse_other_settings(config: Config, runs: Sequence[Run]) -> None:
    """ConfigError if a folder of these runs holds results of other settings, which --name makes possible."""
    for run in runs:
        about = tables.read_json(run.dumps / "config.json")
        old = {**about.get("deciding", config.deciding()), **about.get("meaning", {})}
        new = {**config.deciding(), **config.meaning(run.arm)} if about else old
        usual = {spec.name: as_text(spec.default) for spec in fields(Config)}  # of a setting that one of them lacks
        usual["finetune"] = "with the whole schedule again (now the arm lr_rewind)"
        both = {key: (old.get(key, usual.get(key)), new.get(key, usual.get(key))) for key in {**new, **old}}
        other = {key: pair for key, pair in both.items() if pair[0] != pair[1]}
        if other:
            differ = ", ".join(f"{key} {before}, now {now}" for key, (before, now) in other.items())
            raise ConfigError(
                f"{run.dumps} holds results of other settings ({differ}): use another --name, or --overwrite"
            )


def _device(config: Config) -> tuple[torch.device, str]:
    try:
        return choose_device(config.gpu)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def choose_device(gpu: str) -> tuple[torch.device, str]:
    """The device that --gpu means, and a sentence about it where it is not what was asked for."""
    if gpu == "cpu":
        return torch.device("cpu"), ""
    if gpu != "mps" and torch.cuda.is_available():
        if int(gpu) < torch.cuda.device_count():
            return torch.device(f"cuda:{gpu}"), ""
        raise ValueError(f"--gpu must be below {torch.cuda.device_count()}, the number of GPUs, not {gpu}")
    if torch.backends.mps.is_available():
        return torch.device("mps"), ""
    return torch.device("cpu"), "no GPU found: training on the CPU"


def disk_needed(config: Config, problem: Problem, runs: Sequence[Run]) -> int:
    """Bytes that the files of these runs will take at most, old ones included."""
    model = problem.make()
    state = sum(tensor.numel() * tensor.element_size() for tensor in models.state_of(model).values())
    bits = sum(weight.numel() for weight in pruning.prunable(model).values()) // 8
    kept = {"all": config.prune_iterations, "last": 1, "none": 0}[config.keep_weights]
    once = (
        2 + bool(config.rewind.amount) + 5
    )  # initial, dense, rewind; the checkpoint with its moments and best weights
    total = 0
    for run in runs:
        own = config.prune_iterations - 1 if ARMS[run.arm].start != "original" else 0
        total += state * (once + kept + own) + bits * config.prune_iterations
    return total


def _announce(
    config: Config, problem: Problem, runs: Sequence[Run], device: torch.device, command: Sequence[str]
) -> None:
    """Write each run's config.json and say where things go and how much disk they take."""
    stack = stack_size(config, problem, device)
    about = {
        "settings": plain_settings(config),
        "deciding": config.deciding(),
        "command": list(command),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} {platform.machine()}",
        "processor": processor(),
        "cpu_precision": _cpu_precision(config) if device.type == "cpu" else None,
        "stack": stack,
        "git_commit": _commit(),
    }
    for run in runs:
        taken = run.fence.number if run.fence else 0
        own = {"meaning": config.meaning(run.arm), "arm": run.arm, "seed": run.seed, "taken": taken}
        write_json(run.dumps / "config.json", {**about, **own}, run.fence)
    need, free = disk_needed(config, problem, runs) / 1e6, shutil.disk_usage(config.root).free / 1e6
    where = runs[0].dumps.parent.parent
    if assumed := names.assumed(config.arch_type, runs[0].dataset, config.data):
        _say(config, assumed)
    _say(config, f"{len(runs)} runs of {config.prune_iterations} rounds on {about['device']}, results in {where}")
    _say(
        config, f"the weights under saves/ take up to {need:,.0f} MB of {free:,.0f} MB free (--keep_weights last: less)"
    )
    if need > free:
        print("warning: the disk may become full; a stopped run can be taken up later", file=sys.stderr)


def plain_settings(config: Config) -> dict[str, Any]:
    """All settings as JSON holds them; --config reads them back. Paths of one machine are left out."""
    settings: dict[str, Any] = {}
    for spec in fields(config):
        value = getattr(config, spec.name)
        if spec.name not in ("data", "root", "overwrite"):
            plain = [str(item) for item in value] if isinstance(value, tuple) else value
            settings[spec.name] = str(plain) if isinstance(plain, (Path, Duration)) else plain
    return settings


def _cpu_precision(config: Config) -> str:
    """What float32 products on this CPU really are, since --precision fast depends on the processor."""
    if config.precision != "fast":
        return {"fp32": "float32", "bf16": "bfloat16"}[config.precision]
    return "bfloat16 products (AMX)" if torch.cpu._is_amx_tile_supported() else "float32 by oneDNN"


def _commit() -> str | None:
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip() or None


def _say(config: Config, text: str) -> None:
    if not config.quiet:
        print(text, flush=True)
