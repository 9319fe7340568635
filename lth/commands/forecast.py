"""What a command is about to do, in words: its trainings, how long they take on this machine, the disk space that they
need, and remarks on settings that may surprise."""

import math
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
from lth.commands import device as devices
from lth.commands.queue import Queue, Work
from lth.data.images import Images
from lth.models import building, prunable
from lth.records import tables
from lth.records.store import ENDS
from lth.records.tables import Run
from lth.settings import checks, names
from lth.settings.arms import ARMS, unused_settings
from lth.settings.config import Config
from lth.settings.values import as_text
from lth.training import hardware, sparse
from lth.training.learned import LEARNED, LearnedMasks
from lth.training.network import Network
from lth.training.problem import Problem, constant_weights, stack_size
from lth.training.schedule import Plan, remarks
from lth.training.train import Training

WARM_UP, SECONDS, STEPS = 3, 0.25, 400  # steps before a measurement; its length in seconds, and at most in steps
EVALUATED = 500  # validation images, and as many test images, in a measured evaluation
WORTH_MEASURING = 30.0  # seconds of processor time, estimated from multiply-adds, below which nothing is measured
PACE, STEP = 2e10, 3e-4  # for that estimate: multiply-adds per second, and the overhead of a step in seconds


def announcement(works: Sequence[Work], device: torch.device, machine: str) -> Iterator[str]:
    """The messages before training: the machine, the folder of the results, their disk space, remarks, and the rounds
    that are finished already."""
    runs = {run: work.config.prune_iterations for work in works for run in work.runs}  # in a sweep, works share runs
    experiments = f"{len(works)} experiments, " if len(works) > 1 else ""
    up_to = "up to " if len({*runs.values()}) > 1 else ""
    most_threads = max(work.config.threads or 1 for work in works)
    threads = f" with {most_threads} threads each" if most_threads > 1 else ""
    trainings = f"{_count(len(runs), 'run')} of {up_to}{_count(max(runs.values()), 'round')}"
    yield f"{experiments}{trainings} on {machine}{threads}, results in {common_folder([*runs])}"
    yield from _remarks(works, device)
    for run, count in runs.items():
        if 0 < (finished := tables.finished_rounds(run)) < count:
            yield f"Continuing {run}: {finished} of {count} rounds are finished"
            for row in tables.table(run, "rounds").itertuples():
                accuracies = f"val {row.val:.2f}%, test {row.test:.2f}%"
                yield f"  round {row.round}: {row.remaining:.2f}% of the weights, ES {row.ES:.0f}, {accuracies}"


def dry_run(works: Sequence[Work], device: torch.device, at_once: int) -> list[str]:
    """The lines of --dry_run: the trainings that each arm of each folder of settings still needs, their time, and
    remarks. ConfigError if results cannot be written."""
    root = works[0].config.root
    try:
        tempfile.TemporaryFile(dir=_existing(root)).close()
    except OSError as error:
        reason = f"must be a folder that can be written, not {root} ({error.strerror})"
        raise checks.ConfigError(checks.Problem("root", reason)) from None
    queue = Queue(works)
    left, lines = queue.left(), list[str]()
    for folder in dict.fromkeys(run.plots for run in queue.work):
        runs = [run for run in queue.work if run.plots == folder]
        lines.append(f"{labels.title(runs[0])}, results in {runs[0].dumps.parent.parent}")
        for arm in dict.fromkeys(run.arm for run in runs):
            trials = [run for run in runs if run.arm == arm]
            size = f"{_count(len(trials), 'trial')} x {_count(max(map(queue.rounds, trials)), 'round')}"
            dense_arms = {queue.dense[run].arm for run in trials} - {arm}
            needs = [f"the dense round of {other}" for other in sorted(dense_arms)]
            needs += [f"the masks of {ARMS[arm].mask_of}"] if ARMS[arm].mask_of else []
            needed = f"; needs {' and '.join(needs)}" if needs else ""
            lines.append(f"  {arm}: {size}, {_count(sum(left[run] for run in trials), 'training')} left{needed}")
    lines.append(f"{_count(sum(left.values()), 'training')} left, up to {len(queue.work)} at once")
    time = time_needed(works, left, at_once) if device.type == "cpu" else ""
    return [*lines, *filter(None, [time]), *_remarks(works, device)]


def common_folder(runs: Sequence[Run]) -> Path:
    """The deepest folder under dumps/ that has all these runs."""
    return Path(os.path.commonpath([run.dumps.parent.parent for run in runs]))


def _count(number: int, name: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{number} {name}{'s' * (number != 1)}"


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists (which may be a link to another disk)."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _disk(works: Sequence[Work]) -> str:
    """A sentence about the disk space that the files of these experiments need at most."""
    total, counted = 0, set[Run]()
    for work in works:
        config, model = work.config, work.problem.make()
        rounds, connectivity = config.prune_iterations, config.connectivity
        state_bytes = sum(tensor.numel() * tensor.element_size() for tensor in building.state_of(model).values())
        mask_bytes = sum(weight.numel() for weight in pruning.prunable(model, config.prune_embeddings).values()) // 8
        states = {"all": rounds, "last": 1, "none": 0}[config.keep_weights]  # the weights at ES
        # initial, dense, rewind, drawn; the checkpoint with its moments and best weights
        states += 2 + bool(config.rewind.amount) + 2 * bool(config.draw_at) + 5
        if connectivity:  # the ends of the rounds, and a checkpoint of each repeated training
            states += rounds + 5 * len(ENDS)
        for run in {*work.runs} - counted:
            starts = rounds - 1 if ARMS[run.arm].start != "original" else 0
            total += state_bytes * (states + starts) + mask_bytes * rounds * (1 + ARMS[run.arm].changes_masks)
        counted.update(work.runs)
    free = shutil.disk_usage(_existing(works[0].runs[0].saves)).free
    warning = "warning: the disk may become full: " if total > free else ""
    size = f"up to {total / 1e6:,.0f} MB of {free / 1e6:,.0f} MB free"
    return f"{warning}the weights under saves/ take {size} (--keep_weights last: less)"


def _remarks(works: Sequence[Work], device: torch.device) -> list[str]:
    """Sentences about the disk space that these experiments need and about what may surprise, each once."""
    remarks = [_disk(works), *(remark for work in works for remark in _surprises(work, device))]
    return list(dict.fromkeys(filter(None, remarks)))


def _surprises(work: Work, device: torch.device) -> Iterator[str | None]:
    """Sentences about what may surprise in an experiment; some are empty or None."""
    config, model, rates = work.config, work.problem.make(), work.config.rates()
    yield work.images.remark
    yield names.fallback_note(config.arch_type, work.runs[0].dataset, config.data)
    yield from prunable.left_out_notes(model)
    yield prunable.unpruned_note(model, config.prune_embeddings)
    if config.init != Config.init and building.draws_itself(model):
        own = f"{config.arch_type} draws its weights by its own _initialize_weights()"
        yield f"--init {config.init} only changes the folder's name: {own}"
    if rates["output"] != rates["fc"]:
        yield pruning.output_layer_note(model, work.images.classes, config.prune_embeddings)
    yield from _unused(config, model)
    for kind in ("prune", "conv", "fc", "output"):
        if 0 < (rate := getattr(config, f"{kind}_percent") or 0) < 1:
            yield f"--{kind}_percent {rate:.12g} prunes {rate:.12g}% of the weights per round: 20 is a fifth"
    if config.overwrite and (arms := dict.fromkeys(run.arm for run in work.runs if run.arm not in config.prune_type)):
        yield f"--overwrite also starts {' and '.join(arms)} again, whose masks {' '.join(config.prune_type)} takes"
    yield from _equal_weights(work, model)
    yield from remarks(config, _epoch_steps(config, work.images))
    if stack_size(config, work.problem, device) < (config.stack or 1):
        yield f"--stack {config.stack}: torch.func.vmap cannot follow this model, each run is trained alone"
    convolves = any(weight.ndim == 4 for weight in model.parameters())
    if device.type == "cpu" and config.precision == "fast" and hardware.has_amx() and convolves:
        gain = "conv2 takes half the time, resnet20 two thirds"
        yield f"this processor has bfloat16 products, which convolutions gain from with --precision bf16 ({gain})"
    if config.sparse == "auto" and device.type == "cpu" and not sparse.available():
        yield sparse.UNAVAILABLE
    yield work.problem.cost[1]


def _unused(config: Config, model: nn.Module) -> Iterator[str]:
    """Sentences about settings that none of the arms uses, or for kinds of layers that the model does not have."""
    unused = set[str].intersection(*map(unused_settings, config.prune_type))
    if config.connectivity:
        unused.discard("rewind")
    reasons = dict.fromkeys(sorted(unused), f"{' '.join(config.prune_type)} does not use it")
    kinds = set(pruning.layer_kinds(model, config.prune_embeddings).values())
    if config.output_percent is None and "output" in kinds:
        kinds.add("fc")  # the output layer then has the percentage of fc layers
    absent = [f"{kind}_percent" for kind in ("conv", "fc", "output") if kind not in kinds]
    if pruning.layer_kinds(model, True) == pruning.layer_kinds(model, False):
        absent.append("prune_embeddings")
    reasons |= dict.fromkeys(absent, f"{config.arch_type} has no such layers")
    for name, reason in reasons.items():
        if (value := getattr(config, name)) not in (getattr(Config, name), None):
            flag = f"--{name}" if value is True else f"--{name} {as_text(value)}"
            yield f"{flag} only changes the folder's name: {reason}"


def _equal_weights(work: Work, model: nn.Module) -> Iterator[str]:
    """Sentences about weights that are equal for all seeds, such as pretrained ones: with several trials or fresh
    weights, and if --init overwrites them (constants, such as a head of zeros, may be overwritten silently)."""
    config, weights = work.config, pruning.prunable(model, work.config.prune_embeddings)
    if config.trials > 1 or any(ARMS[arm].start == "fresh" for arm in config.prune_type):
        trained = [name for name, weight in weights.items() if weight.requires_grad]
        if fixed := constant_weights(work.problem.initial, trained):
            yield f"{_listed(fixed)}: equal for every seed, so that trials and fresh weights do not differ there"
    if config.init != "own" and not building.draws_itself(model):
        own_initial = Problem.of(replace(config, init="own"), work.images).initial
        if fixed := constant_weights(own_initial, weights):
            own, new = own_initial(1), work.problem.initial(1)
            if any(len(own[name].unique()) > 1 and not torch.equal(own[name], new[name]) for name in fixed):
                init = f"--init {config.init} overwrites {_listed(fixed)}, which the model file sets to equal values"
                yield f"{init} for every seed, as pretrained weights: --init own keeps them"


def _listed(weights: Sequence[str]) -> str:
    return ", ".join(weights[:3]) + (f" and {len(weights) - 3} more" if len(weights) > 3 else "")


# How long it takes


@dataclass(frozen=True)
class Cost:
    """Seconds per training step and per evaluated image."""

    step: float
    image: float

    def training(self, config: Config, images: Images) -> float:
        """Seconds of one training with these settings."""
        epoch = _epoch_steps(config, images)
        steps = config.end_iter.iterations(epoch)
        evaluations = math.ceil(steps / config.valid_freq.iterations(epoch, steps))
        tests = math.ceil(steps / config.test_freq.iterations(epoch, steps)) if config.test_freq else evaluations
        evaluated = evaluations * (config.valid_size or 0) + min(tests, evaluations) * len(images.test)
        return steps * self.step + evaluated * self.image


def _epoch_steps(config: Config, images: Images) -> int:
    return (len(images.train) - (config.valid_size or 0)) // config.batch_size


def measure_cost(
    config: Config, images: Images, problem: Problem, device: torch.device, number: int = 0, learn: str = ""
) -> Cost:
    """The cost of round `number`, measured by briefly training a network with as many weights, pruned at random, or
    with the masks of that round learned by `learn`. Nothing is written."""
    batch, count = config.batch_size, 20 * config.batch_size + EVALUATED
    train: Any = {"train": images.train[:count], "train_labels": images.train_labels[:count]}
    subset = replace(images, **train, test=images.test[:EVALUATED], test_labels=images.test_labels[:EVALUATED])
    model, masks, held_back = problem.make(), _masks(config, problem, number), min(EVALUATED, len(subset.train) - batch)
    with hardware.numerics(config.precision, config.threads or 1), hardware.keep_memory():
        feed = subset.feed([0], held_back, batch, device, config.augment)
        arguments = (model, [problem.initial(0)], [masks], device, problem.criterion, config.precision == "bf16")
        memory: Any = {"channels_last": hardware.channels_last(problem.make, feed.example())}
        if learn:
            network: Network = LearnedMasks(*arguments, how=LEARNED[learn], seeds=[0], **memory)
        else:
            layers = sparse.choose(model, [masks], sparse.limits(config), feed.example())
            network = Network(*arguments, sparse=layers, **memory)
        optimizer, steps = problem.optimizer(network), WARM_UP
        for _ in range(2):
            plan = Plan(steps, steps, lambda _: config.lr)
            (trained,) = Training(network, optimizer, feed, plan, [(0, "forecast")], 0).run()
            step = trained.seconds["training"] / steps
            steps = min(max(round(SECONDS / step), WARM_UP), STEPS)
    return Cost(step, trained.seconds["evaluation"] / (held_back + len(subset.test)))


def time_needed(works: Sequence[Work], left: Mapping[Run, int], at_once: int) -> str:
    """A sentence about how long the trainings that are `left` will take on this CPU, `at_once` side by side. Empty if a
    measurement is not worthwhile."""
    seconds, lengths = dict[Run, float](), set[int]()
    for work in works:
        config, trainings = work.config, [left[run] for run in work.runs]
        multiply_adds = work.problem.step_multiply_adds(config.batch_size)
        if not any(trainings) or multiply_adds is None:
            continue
        length = config.end_iter.iterations(_epoch_steps(config, work.images))
        lengths.add(length)
        if sum(trainings) * length * (STEP + multiply_adds / PACE) >= WORTH_MEASURING:
            per_round = 1 + config.connectivity  # trainings
            kinds = dict[tuple[str, bool], list[Run]]()
            for run in work.runs:
                kinds.setdefault((ARMS[run.arm].learn, ARMS[run.arm].update == "gmp"), []).append(run)
            for (learn, gradual), runs in kinds.items():
                count = max(left[run] for run in runs) // per_round
                costs = _costs(work, count, learn, gradual) if count else []
                seconds |= {run: per_round * sum(costs[count - left[run] // per_round :]) for run in runs}
    if not seconds:
        return ""
    at_once = min(at_once, max(devices.cores() // (works[0].config.threads or 1), 1), len(seconds))
    total = max(*seconds.values(), sum(seconds.values()) / at_once)
    rounds = max(work.config.prune_iterations for work in works)
    size = f"{rounds} round{'s' * (rounds > 1)} of {max(lengths):,} iterations"
    size += " or fewer" if len(lengths) > 1 else ""
    return f"{size}: about {in_words(total / 60)} on this CPU; --end_iter and --prune_iterations shorten it"


def _costs(work: Work, count: int, learn: str, gradual: bool) -> list[float]:
    """The seconds of a training in each of the last `count` rounds. The first of them is measured and, if it trains
    sparsely, the last; the others are interpolated. If pruning is `gradual`, half of a round is assumed to take as long
    as in the dense one; if training learns the masks (`learn`), all rounds after the dense one cost the same."""
    config, problem, images = work.config, work.problem, work.images
    first, last = config.prune_iterations - count, config.prune_iterations - 1

    def seconds(number: int, learn: str = "") -> float:
        return measure_cost(config, images, problem, torch.device("cpu"), number, learn).training(config, images)

    if learn:
        dense = [seconds(0)] if first == 0 else []
        return dense + [seconds(last, learn)] * (count - len(dense)) if last else dense
    masks, example = _masks(config, problem, last), torch.zeros(2, *images.shape)
    sparsely = sparse.choose(problem.make(), [masks], sparse.limits(config), example)
    start = seconds(first)
    costs = np.linspace(start, seconds(last) if sparsely else start, count)
    if gradual and sparsely:
        costs = (costs + seconds(0)) / 2
    return costs.tolist()


def _masks(config: Config, problem: Problem, number: int) -> pruning.Masks:
    """Random masks with as many weights in each layer as round `number` has if each layer is pruned by its own rate."""
    model, generator = problem.make(), torch.Generator().manual_seed(0)
    masks = pruning.dense(pruning.prunable(model, config.prune_embeddings))
    percents = pruning.percents(model, config.rates(), config.prune_embeddings)
    quotas = pruning.quotas(masks, percents, rounds=number)
    return pruning.keep_highest(pruning.random_scores(masks, generator), masks, quotas)


def in_words(minutes: float) -> str:
    """`40 seconds`, `90 minutes`, `3 hours`: rounded, at least 10 seconds."""
    if minutes < 2:
        return f"{max(round(minutes * 6), 1) * 10} seconds"
    number, unit = (minutes / 60, "hours") if minutes > 120 else (minutes, "minutes")
    return f"{number:,.0f} {unit}"
