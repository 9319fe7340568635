"""How long trainings take on this machine, from a few measured steps and evaluations of their networks."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lth import pruning
from lth.commands.holding import Prepared
from lth.commands.tasks import dense_runs
from lth.data.images import Images
from lth.records import tables
from lth.settings.config import Config
from lth.training import memory, sparse
from lth.training.layout import channels_last
from lth.training.network import Network
from lth.training.numerics import numerics
from lth.training.problem import Problem
from lth.training.schedule import Plan
from lth.training.train import Training

WARM_UP, SECONDS, STEPS = 3, 0.25, 400  # steps before a measurement; of the measurement: seconds, steps at most
FEW = 500  # images that the measured evaluation has of either part
SHORT = 30.0  # seconds of processor time, by multiply-adds, below which nothing is measured
PACE, STEP = 2e10, 3e-4  # multiply-adds per second, and seconds of a step of the smallest network, for that


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


def measured(config: Config, images: Images, problem: Problem, device: torch.device, number: int = 0) -> Cost:
    """The cost of round `number`, from a moment of training a network that was pruned at random as often. Nothing is
    written."""
    count, batch = len(images.train), config.batch_size
    few = replace(
        images,
        train=images.train[: min(count, 20 * batch + FEW)],
        train_labels=images.train_labels[: min(count, 20 * batch + FEW)],
        test=images.test[:FEW],
        test_labels=images.test_labels[:FEW],
        validation=None,
    )
    model, held_back = problem.make(), min(FEW, len(few.train) - batch)
    masks = _masks(config, problem, number)
    with numerics(config.precision, config.threads or 1), memory.kept():
        feed = few.feed([0], held_back, batch, device, config.augment)
        network = Network(
            model,
            [problem.initial(0)],
            [masks],
            device,
            problem.criterion,
            autocast=config.precision == "bf16",
            sparse=sparse.choose(model, [masks], sparse.limits(config), feed.example()),
            channels_last=channels_last(problem.make, feed.example()),
        )
        optimizer, steps = problem.optimizer(network), WARM_UP
        for _ in range(2):
            plan = Plan(steps, steps, lambda _: config.lr)
            (trained,) = Training(network, optimizer, feed, plan, [(0, "forecast")], 0).run()
            step = trained.seconds["training"] / steps
            steps = min(max(round(SECONDS / step), WARM_UP), STEPS)
    return Cost(step, trained.seconds["evaluation"] / (held_back + len(few.test)))


def sentence(prepared: Sequence[Prepared], at_once: int) -> str:
    """How long the unfinished trainings of these experiments will take on this CPU, `at_once` side by side. Empty where
    that is hardly worth a measurement."""
    seconds: list[float] = []  # of each run
    lengths = set[int]()
    for one in prepared:
        config, images = one.config, one.images
        done = (lambda run: 0) if config.overwrite else tables.finished_rounds
        left = [  # the dense round of a trial is trained once
            range(max(done(run), int(dense != run)), config.prune_iterations)
            for run, dense in dense_runs(one.asked).items()
        ]
        rounds = {number for numbers in left for number in numbers}
        multiply_adds = one.problem.step_multiply_adds(config.batch_size)
        if not rounds or multiply_adds is None:
            continue
        epoch = (len(images.train) - (config.valid_size or 0)) // config.batch_size
        lengths.add(config.end_iter.iterations(epoch))
        if sum(map(len, left)) * max(lengths) * (STEP + multiply_adds / PACE) < SHORT:
            continue
        costs = dict(zip(sorted(rounds), _costs(one, rounds), strict=True))
        seconds += [sum(costs[number] for number in numbers) * (1 + config.connectivity) for numbers in left]
    if not seconds:
        return ""
    total = max(max(seconds), sum(seconds) / min(at_once, len(seconds)))
    rounds_each = max(one.config.prune_iterations for one in prepared)
    what = f"{rounds_each} rounds of {max(lengths):,} iterations" + (" or fewer" if len(lengths) > 1 else "")
    return f"{what}: about {in_words(total / 60)} on this CPU; --end_iter and --prune_iterations shorten it"


def _costs(one: Prepared, rounds: Collection[int]) -> Iterable[float]:
    """Seconds of a training in each of these rounds: measured in a few, in between by straight lines."""
    config, problem = one.config, one.problem
    example, model = torch.zeros(2, *one.images.shape), problem.make()

    def sparsely(number: int) -> bool:
        return bool(sparse.choose(model, [_masks(config, problem, number)], sparse.limits(config), example))

    chosen = {min(rounds)}
    if sparsely(max(rounds)):
        first = sorted(rounds)[bisect.bisect_left(sorted(rounds), True, key=sparsely)]  # sparser rounds are, too
        chosen |= {max(first - 1, min(rounds)), first, max(rounds)}
    cpu, known = torch.device("cpu"), dict[int, float]()
    for number in sorted(chosen):
        if number + 1 in chosen and known:  # the last dense one is as the first
            known[number] = known[min(chosen)]
        else:
            known[number] = measured(config, one.images, problem, cpu, number).training(config, one.images)
    return [float(time) for time in np.interp(sorted(rounds), list(known), list(known.values()))]


def _masks(config: Config, problem: Problem, number: int) -> pruning.Masks:
    """Random masks with as many weights in each layer as round `number` has, if layers are compared within."""
    model, generator = problem.make(), torch.Generator().manual_seed(0)
    masks, rates = pruning.dense(pruning.prunable(model, config.prune_embeddings)), config.rates()
    percents = {name: rates[kind] for name, kind in pruning.layer_kinds(model, config.prune_embeddings).items()}
    scores = {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()}
    return pruning.keep_highest(scores, masks, pruning.quotas(masks, percents, rounds=number))


def in_words(minutes: float) -> str:
    """`1 minute`, `90 minutes`, `3 hours`: rounded, at least a minute."""
    number, unit = (minutes / 60, "hour") if minutes > 120 else (max(minutes, 1), "minute")
    return f"{number:,.0f} {unit}{'s' * (round(number) != 1)}"
