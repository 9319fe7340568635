"""What a command is about to do, in words: the trainings, the disk they take, and what may surprise in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from lth import layers, pruning
from lth.records import labels, resume, tables
from lth.records.tables import Run
from lth.records.tickets import ENDS
from lth.run.holding import Prepared
from lth.run.tasks import by_run, plan, tasks_of, trainings
from lth.settings import combinations, names
from lth.settings.arms import ARMS
from lth.settings.config import Config
from lth.training import fit, models, sparse
from lth.training.problem import Problem, stack_size
from lth.training.schedule import remarks


def announce(
    prepared: Sequence[Prepared],
    device: torch.device,
    place: str,
    say: Callable[[str], object],
    warn: Callable[[str], object],
) -> None:
    """Say at which `place` is trained, where things go, how much disk they take, and what may surprise."""
    runs = _runs(prepared)
    rounds = sorted({one.config.prune_iterations for one in prepared})
    need = _disk_needed(prepared) / 1e6
    saves = next(folder for folder in (runs[0].saves, *runs[0].saves.parents) if folder.exists())  # a link, perhaps
    free = shutil.disk_usage(saves).free / 1e6
    of = f"{len(prepared)} experiments, " if len(prepared) > 1 else ""
    upto = "up to " if len(rounds) > 1 else ""
    say(f"{of}{len(runs)} runs of {upto}{rounds[-1]} rounds on {place}, results in {where(runs)}")
    say(f"the weights under saves/ take up to {need:,.0f} MB of {free:,.0f} MB free (--keep_weights last: less)")
    for remark in dict.fromkeys(remark for one in prepared for remark in _remarks(one, device) if remark):
        say(remark)
    if need > free:
        warn("warning: the disk may become full; a stopped run can be taken up later")


def planned(prepared: Sequence[Prepared]) -> list[str]:
    """What --dry_run shows: the trainings of each setting, how many are left, the disk they take."""
    lines: list[str] = []
    count = left = again = again_left = 0
    finished, connected = tables.finished_rounds, tables.connected_rounds
    if prepared[0].asked.overwrite:  # it begins anew, whatever is there
        finished = connected = lambda run: 0
    folders = dict.fromkeys(one.runs[0].dumps.parent.parent for one in prepared)
    for folder in folders:
        here = [one for one in prepared if one.runs[0].dumps.parent.parent == folder]
        rounds = by_run(task for one in here for task in tasks_of(one.asked))
        graph = [task for tasks in rounds.values() for task in tasks]
        lines.append(f"{labels.title(here[0].runs[0])}, results in {folder}")
        lines += [f"  {line}" for line in plan(graph, finished)]
        lines += [f"  {told}" for told in dict.fromkeys(map(_anew, here)) if told]
        count += trainings(graph)
        left += sum(not task.shared and task.round >= finished(task.run) for task in graph)
        if here[0].asked.connectivity:
            again += trainings(graph)
            again_left += sum(not task.shared and task.round >= connected(task.run) for task in graph)
    total = f"{count} trainings, {left} of them left, up to {len(_runs(prepared))} at once"
    if again:
        total += f"; --connectivity trains {again} tickets once more, {again_left} of them left"
    return [*lines, f"{total}; the weights under saves/ take up to {_disk_needed(prepared) / 1e6:,.0f} MB"]


def where(runs: Sequence[Run]) -> Path:
    """The folder under dumps/ that holds them all."""
    return Path(os.path.commonpath([run.dumps.parent.parent for run in runs]))


def _runs(prepared: Sequence[Prepared]) -> list[Run]:
    """All runs, each once: seeds that a sweep names may be trials of each other's."""
    return list(dict.fromkeys(run for one in prepared for run in one.runs))


def _disk_needed(prepared: Sequence[Prepared]) -> int:
    """Bytes that the files of these experiments will take at most, old ones included."""
    of_run = {run: one for one in reversed(prepared) for run in one.runs}
    return sum(_disk_of(one.config, one.problem, [run for run in one.runs if of_run[run] is one]) for one in prepared)


def _disk_of(config: Config, problem: Problem, runs: Sequence[Run]) -> int:
    """The same of these runs of an experiment."""
    model = problem.make()
    state = sum(tensor.numel() * tensor.element_size() for tensor in models.state_of(model).values())
    bits = sum(weight.numel() for weight in pruning.prunable(model, config.prune_embeddings).values()) // 8
    kept = {"all": config.prune_iterations, "last": 1, "none": 0}[config.keep_weights]
    # initial, dense, rewind; the checkpoint with its moments and best weights
    once = 2 + bool(config.rewind.amount) + 5
    total = 0
    for run in runs:
        own = config.prune_iterations - 1 if ARMS[run.arm].start != "original" else 0
        again = 5 * len(ENDS) * config.connectivity  # checkpoints of further trainings
        total += state * (once + kept + own + again) + bits * config.prune_iterations
    return total


def _remarks(one: Prepared, device: torch.device) -> Iterator[str | None]:
    """What may surprise in one experiment, a sentence each, or nothing."""
    config, model, rates = one.config, one.problem.make(), one.config.rates()
    epoch_steps = (len(one.images.train) - (config.valid_size or 0)) // config.batch_size
    yield one.images.remark
    yield names.assumed(config.arch_type, one.runs[0].dataset, config.data)
    yield layers.left_alone(model, config.prune_embeddings)
    if config.init != Config.init and models.draws_itself(model):
        own = f"{config.arch_type} draws its weights by its own _initialize_weights()"
        yield f"--init {config.init} only changes the folder's name: {own}"
    if rates["output"] != rates["fc"]:
        yield pruning.odd_output(model, one.images.classes, config.prune_embeddings)
    yield from combinations.unused(config)
    yield from combinations.small_percents(config)
    yield from _without_layers(config, model)
    yield _anew(one)
    yield _alike(one)
    yield from remarks(config, epoch_steps)
    if stack_size(config, one.problem, device) < (config.stack or 1):
        yield f"--stack {config.stack}: torch.func.vmap cannot follow this model, each run is trained alone"
    yield _densely(one, device)
    yield one.problem.cost[1]


def _without_layers(config: Config, model: nn.Module) -> Iterator[str]:
    """Sentences about settings for kinds of layers that the model has not."""
    kinds = set(pruning.layer_kinds(model, config.prune_embeddings).values())
    if config.output_percent is None and "output" in kinds:
        kinds.add("fc")  # whose percent it then has
    given = {f"{kind}_percent": kind not in kinds for kind in ("conv", "fc", "output")}
    given["prune_embeddings"] = pruning.layer_kinds(model, True) == pruning.layer_kinds(model, False)
    for name in (name for name, idle in given.items() if idle and getattr(config, name) not in (None, False)):
        yield f"--{name} only changes the folder's name: {config.arch_type} has no such layers"


def _anew(one: Prepared) -> str:
    """A sentence about arms that --overwrite begins anew though only those that take their masks were asked for."""
    arms = dict.fromkeys(run.arm for run in one.runs if run.arm not in one.config.prune_type)
    if not one.config.overwrite or not arms:
        return ""
    told = " ".join(one.config.prune_type)
    return f"--overwrite begins {' and '.join(arms)} anew too, whose masks {told} takes"


def _alike(one: Prepared) -> str:
    """A sentence about weights that no seed changes, where trials or fresh weights were asked for."""
    fresh = any(ARMS[arm].start == "fresh" for arm in one.config.prune_type)
    if one.config.trials == 1 and not fresh:
        return ""
    weights = pruning.prunable(one.problem.make(), one.config.prune_embeddings)
    fixed = fit.alike(one.problem.initial, [name for name, weight in weights.items() if weight.requires_grad])
    told = ", ".join(fixed[:3]) + (", ..." if len(fixed) > 3 else "")
    return f"{told}: drawn alike for every seed, so that trials and fresh weights do not differ there" if told else ""


def _densely(one: Prepared, device: torch.device) -> str | None:
    """Why runs that could train sparsely by their settings will not."""
    if one.config.sparse == "off" or device.type != "cpu":
        return None
    if not sparse.available():
        return sparse.UNAVAILABLE
    usual = sparse.limits(one.config)
    if any(resume.sparse_up_to(run, usual) != usual for run in one.runs):
        return "runs begun with another rule for sparse products (sparse_up_to in config.json) go on by that one"
    return None
