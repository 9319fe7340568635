"""What a command is about to do, in words: its trainings, how long they take on this machine, the disk space, and what
may surprise."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lth import pruning
from lth.analysis import labels
from lth.commands.queue import Queue, Work
from lth.data.images import Images
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
from lth.training import hardware, sparse
from lth.training.hardware import channels_last, memory_kept, numerics
from lth.training.learned import LEARNED, LearnedMasks
from lth.training.network import Network
from lth.training.problem import Problem, alike, stack_size
from lth.training.schedule import Plan, remarks
from lth.training.train import Training

WARM_UP, SECONDS, STEPS = 3, 0.25, 400  # steps before a measurement; of the measurement: seconds, steps at most
FEW = 500  # images that the measured evaluation has of either part
SHORT = 30.0  # seconds of processor time, by multiply-adds, below which nothing is measured
PACE, STEP = 2e10, 3e-4  # multiply-adds per second, and seconds of a step of the smallest network, for that


def announced(works: Sequence[Work], device: torch.device, place: str) -> Iterator[str]:
    """What a command says before it begins: where training takes place (`place`), where results go, how much disk space
    they take, what may surprise, and which rounds are finished already."""
    runs = {run: one.config.prune_iterations for one in works for run in one.runs}  # a sweep's may share trials
    experiments = f"{len(works)} experiments, " if len(works) > 1 else ""
    upto = "up to " if len({*runs.values()}) > 1 else ""
    most = max(one.config.threads or 1 for one in works)
    threads = f" with {most} threads each" if most > 1 else ""
    work = f"{_count(len(runs), 'run')} of {upto}{_count(max(runs.values()), 'round')}"
    yield f"{experiments}{work} on {place}{threads}, results in {where([*runs])}"
    yield from _remarks(works, device)
    for run, count in runs.items():
        if 0 < (finished := tables.finished_rounds(run)) < count:
            yield f"Continuing {run}: {finished} of {count} rounds are finished"
            for row in tables.table(run, "rounds").itertuples():
                accuracies = f"val {row.val:.2f}%, test {row.test:.2f}%"
                yield f"  round {row.round}: {row.remaining:.2f}% of the weights, ES {row.ES:.0f}, {accuracies}"


def planned(works: Sequence[Work], device: torch.device, at_once: int) -> list[str]:
    """What --dry_run shows: the trainings that are left of each setting and arm, and what may surprise. ConfigError if
    results cannot be written."""
    root = works[0].config.root
    try:
        tempfile.TemporaryFile(dir=_existing(root)).close()
    except OSError as error:
        reason = f"must be a folder that can be written, not {root} ({error.strerror})"
        raise ConfigError(Mistake("root", reason)) from None
    queue = Queue(works)
    left, lines = queue.left(), list[str]()
    for folder in dict.fromkeys(run.plots for run in queue.work):
        here = [run for run in queue.work if run.plots == folder]
        lines.append(f"{labels.title(here[0])}, results in {here[0].dumps.parent.parent}")
        for arm in dict.fromkeys(run.arm for run in here):
            mine = [run for run in here if run.arm == arm]
            each = f"{_count(len(mine), 'trial')} x {_count(max(map(queue.rounds, mine)), 'round')}"
            needs = [f"the dense round of {other}" for other in sorted({queue.dense[run].arm for run in mine} - {arm})]
            needs += [f"the masks of {ARMS[arm].mask_of}"] if ARMS[arm].mask_of else []
            waits = f"; needs {' and '.join(needs)}" if needs else ""
            lines.append(f"  {arm}: {each}, {_count(sum(left[run] for run in mine), 'training')} left{waits}")
    lines.append(f"{_count(sum(left.values()), 'training')} left, up to {len(queue.work)} at once")
    time = sentence(works, left, at_once) if device.type == "cpu" else ""
    return [*lines, *filter(None, [time]), *_remarks(works, device)]


def where(runs: Sequence[Run]) -> Path:
    """The folder under dumps/ that holds them all."""
    return Path(os.path.commonpath([run.dumps.parent.parent for run in runs]))


def _count(number: int, name: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{number} {name}{'s' * (number != 1)}"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists (which may be a link to another disk)."""
    return next(one for one in (folder, *folder.absolute().parents) if one.exists())


def _disk(works: Sequence[Work]) -> str:
    """How much of the disk the files of these experiments will take at most, in a sentence."""
    total, counted = 0, set[Run]()
    for one in works:
        config, model = one.config, one.problem.make()
        rounds, again = config.prune_iterations, config.connectivity
        state = sum(tensor.numel() * tensor.element_size() for tensor in building.state_of(model).values())
        bits = sum(weight.numel() for weight in pruning.prunable(model, config.prune_embeddings).values()) // 8
        kept = {"all": rounds, "last": 1, "none": 0}[config.keep_weights] + rounds * again  # the ends of the rounds
        # initial, dense, rewind, drawn; the checkpoint with its moments and best weights, also of further trainings
        kept += 2 + bool(config.rewind.amount) + 2 * bool(config.draw_at) + 5 + 5 * len(ENDS) * again
        for run in {*one.runs} - counted:
            own = rounds - 1 if ARMS[run.arm].start != "original" else 0
            total += state * (kept + own) + bits * rounds * (1 + ARMS[run.arm].changes_masks)
        counted.update(one.runs)
    free = shutil.disk_usage(_existing(works[0].runs[0].saves)).free
    full = "warning: the disk may become full: " if total > free else ""
    of = f"up to {total / 1e6:,.0f} MB of {free / 1e6:,.0f} MB free"
    return f"{full}the weights under saves/ take {of} (--keep_weights last: less)"


def _remarks(works: Sequence[Work], device: torch.device) -> list[str]:
    """The disk space that these experiments take, and what may surprise in them, each sentence once."""
    remarks = [_disk(works), *(remark for one in works for remark in _surprises(one, device))]
    return list(dict.fromkeys(filter(None, remarks)))


def _surprises(one: Work, device: torch.device) -> Iterator[str | None]:
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


def _alike(one: Work, model: nn.Module) -> Iterator[str]:
    """Sentences about weights that no seed changes, as pretrained ones, where trials or fresh weights were asked for,
    and about those that --init draws over. Constants, such as a head of zeros, are a way to draw, too."""
    config, weights = one.config, pruning.prunable(model, one.config.prune_embeddings)
    if config.trials > 1 or any(ARMS[arm].start == "fresh" for arm in config.prune_type):
        fixed = alike(one.problem.initial, [name for name, weight in weights.items() if weight.requires_grad])
        if fixed:
            yield f"{_listed(fixed)}: drawn alike for every seed, so that trials and fresh weights do not differ there"
    if config.init != "own" and not building.draws_itself(model):
        own = Problem.of(replace(config, init="own"), one.images).initial
        if fixed := alike(own, weights):
            before, after = own(1), one.problem.initial(1)
            if any(len(before[name].unique()) > 1 and not torch.equal(before[name], after[name]) for name in fixed):
                init = f"--init {config.init} draws over {_listed(fixed)}, which the model file sets alike"
                yield f"{init} for every seed, as pretrained weights: --init own keeps them"


def _listed(weights: Sequence[str]) -> str:
    return ", ".join(weights[:3]) + (f" and {len(weights) - 3} more" if len(weights) > 3 else "")


# How long it takes


@dataclass(frozen=True)
class Cost:
    """Seconds of a training step and of the evaluation of one image."""

    step: float
    image: float

    def training(self, config: Config, images: Images) -> float:
        """Seconds of one training with these settings."""
        held_back = 0 if images.validation else config.valid_size or 0
        valid = len(images.validation[0]) if images.validation else held_back
        epoch = (len(images.train) - held_back) // config.batch_size
        steps = config.end_iter.iterations(epoch)
        evaluations = -(-steps // config.valid_freq.iterations(epoch, steps))
        tests = min(evaluations, -(-steps // config.test_freq.iterations(epoch, steps)) if config.test_freq else steps)
        return steps * self.step + (evaluations * valid + tests * len(images.test)) * self.image


def measured(
    config: Config, images: Images, problem: Problem, device: torch.device, number: int = 0, learn: str = ""
) -> Cost:
    """The cost of round `number`, from a moment of training a network that was pruned at random as often, or whose
    masks are learned as `learn` says. Nothing is written."""
    batch, most = config.batch_size, 20 * config.batch_size + FEW
    some: Any = {"train": images.train[:most], "train_labels": images.train_labels[:most]}
    few = replace(images, **some, test=images.test[:FEW], test_labels=images.test_labels[:FEW], validation=None)
    model, masks, held_back = problem.make(), _masks(config, problem, number), min(FEW, len(few.train) - batch)
    with numerics(config.precision, config.threads or 1), memory_kept():
        feed = few.feed([0], held_back, batch, device, config.augment)
        tickets = (model, [problem.initial(0)], [masks], device, problem.criterion, config.precision == "bf16")
        in_channels_last = channels_last(problem.make, feed.example())
        if learn:
            how = LEARNED[learn]
            network: Network = LearnedMasks(*tickets, how=how, seeds=[0], channels_last=in_channels_last)
        else:
            layers = sparse.choose(model, [masks], sparse.limits(config), feed.example())
            network = Network(*tickets, sparse=layers, channels_last=in_channels_last)
        optimizer, steps = problem.optimizer(network), WARM_UP
        for _ in range(2):
            plan = Plan(steps, steps, lambda _: config.lr)
            (trained,) = Training(network, optimizer, feed, plan, [(0, "forecast")], 0).run()
            step = trained.seconds["training"] / steps
            steps = min(max(round(SECONDS / step), WARM_UP), STEPS)
    return Cost(step, trained.seconds["evaluation"] / (held_back + len(few.test)))


def sentence(works: Sequence[Work], left: Mapping[Run, int], at_once: int) -> str:
    """How long the trainings that are `left` of these experiments will take on this CPU, `at_once` side by side. Empty
    where that is hardly worth a measurement."""
    seconds, lengths = dict[Run, float](), set[int]()
    for one in works:
        config, trainings = one.config, [left[run] for run in one.runs]
        multiply_adds = one.problem.step_multiply_adds(config.batch_size)
        if not any(trainings) or multiply_adds is None:
            continue
        length = config.end_iter.iterations((len(one.images.train) - (config.valid_size or 0)) // config.batch_size)
        lengths.add(length)
        if sum(trainings) * length * (STEP + multiply_adds / PACE) >= SHORT:
            again = 1 + config.connectivity
            kinds = dict[tuple[str, bool], list[Run]]()
            for run in one.runs:
                kinds.setdefault((ARMS[run.arm].learn, bool(ARMS[run.arm].update)), []).append(run)
            for (learn, updated), runs in kinds.items():
                count = max(left[run] for run in runs) // again
                costs = _costs(one, count, learn, updated) if count else []
                seconds |= {run: again * sum(costs[count - left[run] // again :]) for run in runs}
    if not seconds:
        return ""
    total = max(*seconds.values(), sum(seconds.values()) / min(at_once, len(seconds)))
    rounds = max(one.config.prune_iterations for one in works)
    what = f"{rounds} rounds of {max(lengths):,} iterations" + (" or fewer" if len(lengths) > 1 else "")
    return f"{what}: about {in_words(total / 60)} on this CPU; --end_iter and --prune_iterations shorten it"


def _costs(one: Work, count: int, learn: str, updated: bool) -> list[float]:
    """Seconds of a training in each of the last `count` rounds. The first of them is measured and, where it trains
    sparsely, the last; the others lie on the line between. Where masks are `updated` during the training, every round
    costs as much as the dense one; where they are learned (`learn`), all rounds after the dense one cost the same."""
    config, problem, images = one.config, one.problem, one.images
    first, last = config.prune_iterations - count, config.prune_iterations - 1

    def seconds(number: int, learn: str = "") -> float:
        return measured(config, images, problem, torch.device("cpu"), number, learn).training(config, images)

    if learn:
        dense = [seconds(0)] if first == 0 else []
        return dense + [seconds(last, learn)] * (count - len(dense)) if last else dense
    if updated:
        return [seconds(0)] * count
    masks, example = _masks(config, problem, last), torch.zeros(2, *images.shape)
    sparsely = sparse.choose(problem.make(), [masks], sparse.limits(config), example)
    start = seconds(first)
    return np.linspace(start, seconds(last) if sparsely else start, count).tolist()


def _masks(config: Config, problem: Problem, number: int) -> pruning.Masks:
    """Random masks with as many weights in each layer as round `number` has, if layers are compared within."""
    model, generator = problem.make(), torch.Generator().manual_seed(0)
    masks = pruning.dense(pruning.prunable(model, config.prune_embeddings))
    percents = pruning.percents(model, config.rates(), config.prune_embeddings)
    quotas = pruning.quotas(masks, percents, rounds=number)
    return pruning.keep_highest(pruning.random_scores(masks, generator), masks, quotas)


def in_words(minutes: float) -> str:
    """`1 minute`, `90 minutes`, `3 hours`: rounded, at least a minute."""
    number, unit = (minutes / 60, "hour") if minutes > 120 else (max(minutes, 1), "minute")
    return f"{number:,.0f} {unit}{'s' * (round(number) != 1)}"
