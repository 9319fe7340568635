"""What a command is about to do, in words: its trainings, the disk space they take, what may surprise."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from lth import pruning
from lth.analysis import labels
from lth.commands import forecast
from lth.commands.holding import Prepared
from lth.commands.queue import Queue, Work
from lth.models import building, prunable
from lth.records import tables
from lth.records.store import ENDS
from lth.records.tables import Run
from lth.settings import names
from lth.settings.arms import ARMS, idle
from lth.settings.checks import ConfigError
from lth.settings.checks import Problem as Mistake
from lth.settings.config import Config
from lth.settings.values import as_text
from lth.training import fit, hardware, sparse
from lth.training.problem import Problem, stack_size
from lth.training.schedule import remarks


def announce(
    prepared: Sequence[Prepared],
    device: torch.device,
    place: str,
    say: Callable[[str], object],
    warn: Callable[[str], object],
) -> None:
    """Print where training takes place (`place`), where results go, how much disk space they take, what may surprise,
    and which rounds are finished already."""
    runs = {run: one.config.prune_iterations for one in prepared for run in one.runs}  # a sweep's may share trials
    rounds = sorted({*runs.values()})
    of = f"{len(prepared)} experiments, " if len(prepared) > 1 else ""
    upto = "up to " if len(rounds) > 1 else ""
    most = max(one.config.threads or 1 for one in prepared)
    threads = f" with {most} threads each" if most > 1 else ""
    work = f"{_count(runs, 'run')} of {upto}{_count(range(rounds[-1]), 'round')}"
    say(f"{of}{work} on {place}{threads}, results in {where([*runs])}")
    for remark in [_disk(prepared), *_remarks(prepared, device)]:
        (warn if remark.startswith("warning: ") else say)(remark)
    for run, count in runs.items():
        if 0 < (finished := tables.finished_rounds(run)) < count:
            say(f"Continuing {run}: {finished} of {count} rounds are finished")
            for row in tables.table(run, "rounds").itertuples():
                accuracies = f"val {row.val:.2f}%, test {row.test:.2f}%"
                say(f"  round {row.round}: {row.remaining:.2f}% of the weights, ES {row.ES:.0f}, {accuracies}")


def planned(prepared: Sequence[Prepared], device: torch.device, at_once: int) -> list[str]:
    """What --dry_run shows: the trainings that are left of each setting and arm, and what may surprise. ConfigError if
    results cannot be written."""
    root = prepared[0].asked.root
    try:
        tempfile.TemporaryFile(dir=_existing(root)).close()
    except OSError as error:
        raise ConfigError(
            Mistake("root", f"must be a folder that can be written, not {root} ({error.strerror})")
        ) from None
    queue = Queue([Work(one.asked, one.config, "", 1, {}) for one in prepared])
    left, lines = queue.left(), list[str]()
    for folder in dict.fromkeys(run.plots for run in queue.work):
        here = [run for run in queue.work if run.plots == folder]
        lines.append(f"{labels.title(here[0])}, results in {here[0].dumps.parent.parent}")
        for arm in dict.fromkeys(run.arm for run in here):
            mine = [run for run in here if run.arm == arm]
            each = f"{_count(mine, 'trial')} x {_count(range(max(map(queue.rounds, mine))), 'round')}"
            line = f"  {arm}: {each}, {_count(range(sum(left[run] for run in mine)), 'training')} left"
            needs = [f"the dense round of {other}" for other in sorted({queue.dense[run].arm for run in mine} - {arm})]
            needs += [f"the masks of {ARMS[arm].mask_of}"] if ARMS[arm].mask_of else []
            lines.append(f"{line}; needs {' and '.join(needs)}" if needs else line)
    lines.append(f"{_count(range(sum(left.values())), 'training')} left, up to {len(queue.work)} at once")
    time = forecast.sentence(prepared, left, at_once) if device.type == "cpu" else ""
    return [*lines, *filter(None, [time, _disk(prepared), *_remarks(prepared, device)])]


def where(runs: Sequence[Run]) -> Path:
    """The folder under dumps/ that holds them all."""
    return Path(os.path.commonpath([run.dumps.parent.parent for run in runs]))


def _count(things: Collection[object], name: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists (which may be a link to another disk)."""
    return next(one for one in (folder, *folder.absolute().parents) if one.exists())


def _disk(prepared: Sequence[Prepared]) -> str:
    """How much of the disk the files of these experiments will take at most, in a sentence."""
    total, counted = 0, set[Run]()
    for one in prepared:
        config, model = one.config, one.problem.make()
        state = sum(tensor.numel() * tensor.element_size() for tensor in building.state_of(model).values())
        bits = sum(weight.numel() for weight in pruning.prunable(model, config.prune_embeddings).values()) // 8
        kept = {"all": config.prune_iterations, "last": 1, "none": 0}[config.keep_weights]
        kept += config.prune_iterations * config.connectivity  # the ends of the rounds
        # initial, dense, rewind, drawn; the checkpoint with its moments and best weights, also of further trainings
        kept += 2 + bool(config.rewind.amount) + 2 * bool(config.draw_at) + 5 + 5 * len(ENDS) * config.connectivity
        for run in {*one.runs} - counted:
            own = config.prune_iterations - 1 if ARMS[run.arm].start != "original" else 0
            total += state * (kept + own) + bits * config.prune_iterations * (1 + ARMS[run.arm].changes_masks)
        counted.update(one.runs)
    free = shutil.disk_usage(_existing(prepared[0].runs[0].saves)).free
    full = "warning: the disk may become full: " if total > free else ""
    of = f"up to {total / 1e6:,.0f} MB of {free / 1e6:,.0f} MB free"
    return f"{full}the weights under saves/ take {of} (--keep_weights last: less)"


def _remarks(prepared: Sequence[Prepared], device: torch.device) -> list[str]:
    """What may surprise in these experiments, each sentence once."""
    return list(dict.fromkeys(remark for one in prepared for remark in _surprises(one, device) if remark))


def _surprises(one: Prepared, device: torch.device) -> Iterator[str | None]:
    """What may surprise in one experiment, a sentence each, or nothing."""
    config, model, rates = one.config, one.problem.make(), one.config.rates()
    epoch_steps = (len(one.images.train) - (config.valid_size or 0)) // config.batch_size
    yield one.images.remark
    yield names.assumed(config.arch_type, one.runs[0].dataset, config.data)
    yield from prunable.left_out(model)
    yield prunable.left_alone(model, config.prune_embeddings)
    if config.init != Config.init and building.draws_itself(model):
        own = f"{config.arch_type} draws its weights by its own _initialize_weights()"
        yield f"--init {config.init} only changes the folder's name: {own}"
    if rates["output"] != rates["fc"]:
        yield pruning.odd_output(model, one.images.classes, config.prune_embeddings)
    yield from _unused(config, model)
    for kind in ("prune", "conv", "fc", "output"):
        if 0 < (rate := getattr(config, f"{kind}_percent") or 0) < 1:
            yield f"--{kind}_percent {rate:.12g} prunes {rate:.12g}% of the weights per round: 20 is a fifth"
    if config.overwrite and (arms := dict.fromkeys(run.arm for run in one.runs if run.arm not in config.prune_type)):
        yield f"--overwrite starts {' and '.join(arms)} again too, whose masks {' '.join(config.prune_type)} takes"
    yield from _alike(one, model)
    yield from remarks(config, epoch_steps)
    if stack_size(config, one.problem, device) < (config.stack or 1):
        yield f"--stack {config.stack}: torch.func.vmap cannot follow this model, each run is trained alone"
    convolves = any(weight.ndim == 4 for weight in model.parameters())
    if device.type == "cpu" and config.precision == "fast" and hardware.has_amx() and convolves:
        gain = "conv2 takes half the time, resnet20 two thirds"
        yield f"this processor has bfloat16 products, which convolutions gain from with --precision bf16 ({gain})"
    if config.sparse == "auto" and device.type == "cpu" and not sparse.available():
        yield sparse.UNAVAILABLE
    yield one.problem.cost[1]


def _unused(config: Config, model: nn.Module) -> Iterator[str]:
    """Sentences about settings that none of the arms asked for uses, or for kinds of layers that the model has not."""
    of_none = set[str].intersection(*map(idle, config.prune_type)) - ({"rewind"} if config.connectivity else set())
    why = dict.fromkeys(sorted(of_none), f"{' '.join(config.prune_type)} does not use it")
    kinds = set(pruning.layer_kinds(model, config.prune_embeddings).values())
    if config.output_percent is None and "output" in kinds:
        kinds.add("fc")  # whose percent it then has
    absent = [f"{kind}_percent" for kind in ("conv", "fc", "output") if kind not in kinds]
    if pruning.layer_kinds(model, True) == pruning.layer_kinds(model, False):
        absent.append("prune_embeddings")
    why |= dict.fromkeys(absent, f"{config.arch_type} has no such layers")
    for name, reason in why.items():
        if (value := getattr(config, name)) not in (getattr(Config, name), None):
            given = "" if value is True else f" {as_text(value)}"
            yield f"--{name}{given} only changes the folder's name: {reason}"


def _alike(one: Prepared, model: nn.Module) -> Iterator[str]:
    """Sentences about weights that no seed changes, as pretrained ones, where trials or fresh weights were asked for,
    and about those that --init draws over. Constants, such as a head of zeros, are a way to draw, too."""
    config, weights = one.config, pruning.prunable(model, one.config.prune_embeddings)
    if config.trials > 1 or any(ARMS[arm].start == "fresh" for arm in config.prune_type):
        fixed = fit.alike(one.problem.initial, [name for name, weight in weights.items() if weight.requires_grad])
        if fixed:
            yield f"{_listed(fixed)}: drawn alike for every seed, so that trials and fresh weights do not differ there"
    if config.init != "own" and not building.draws_itself(model):
        own = Problem.of(replace(config, init="own"), one.images).initial
        if fixed := fit.alike(own, weights):
            before, after = own(1), one.problem.initial(1)
            if any(len(before[name].unique()) > 1 and not torch.equal(before[name], after[name]) for name in fixed):
                told = (
                    f"--init {config.init} draws over {_listed(fixed)}, to which the model file gives the same values"
                )
                yield f"{told} for every seed, as to pretrained weights: --init own keeps them"


def _listed(weights: Sequence[str]) -> str:
    return ", ".join(weights[:3]) + (f" and {len(weights) - 3} more" if len(weights) > 3 else "")
