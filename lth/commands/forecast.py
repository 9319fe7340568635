"""How long trainings take on this machine, from a few measured steps and evaluations of their networks."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lth import pruning
from lth.commands.holding import Prepared
from lth.data.images import Images
from lth.records.tables import Run
from lth.settings.config import Config
from lth.training import sparse
from lth.training.hardware import channels_last, memory_kept, numerics
from lth.training.network import Network
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
    with numerics(config.precision, config.threads or 1), memory_kept():
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


def sentence(prepared: Sequence[Prepared], left: Mapping[Run, int], at_once: int) -> str:
    """How long the trainings that are `left` of these experiments will take on this CPU, `at_once` side by side. Empty
    where that is hardly worth a measurement."""
    seconds: dict[Run, float] = {}
    lengths = set[int]()
    for one in prepared:
        config, images = one.config, one.images
        multiply_adds, trainings = one.problem.step_multiply_adds(config.batch_size), sum(left[run] for run in one.runs)
        if not trainings or multiply_adds is None:
            continue
        length = config.end_iter.iterations((len(images.train) - (config.valid_size or 0)) // config.batch_size)
        lengths.add(length)
        if trainings * length * (STEP + multiply_adds / PACE) >= SHORT:
            again = 1 + config.connectivity
            first = {run: config.prune_iterations - left[run] // again for run in one.runs}
            costs = _costs(one, range(min(first.values()), config.prune_iterations))
            seconds |= {run: again * sum(costs[number] for number in costs if number >= first[run]) for run in first}
    if not seconds:
        return ""
    total = max(*seconds.values(), sum(seconds.values()) / min(at_once, len(seconds)))
    rounds = max(one.config.prune_iterations for one in prepared)
    what = f"{rounds} rounds of {max(lengths):,} iterations" + (" or fewer" if len(lengths) > 1 else "")
    return f"{what}: about {in_words(total / 60)} on this CPU; --end_iter and --prune_iterations shorten it"


def _costs(one: Prepared, rounds: Sequence[int]) -> dict[int, float]:
    """Seconds of a training in each of these rounds: dense ones as the first; sparse ones, which lth.training.sparse
    chooses, on the line between the first of them and the last."""
    config, problem = one.config, one.problem
    example, model = torch.zeros(2, *one.images.shape), problem.make()

    def cost(number: int) -> float:
        return measured(config, one.images, problem, torch.device("cpu"), number).training(config, one.images)

    def sparsely(number: int) -> bool:
        return bool(sparse.choose(model, [_masks(config, problem, number)], sparse.limits(config), example))

    dense = bisect.bisect_left(rounds, True, key=sparsely)  # how many; sparser rounds are sparse, too
    first, after = rounds[:dense], rounds[dense:]
    known = dict.fromkeys(first, cost(first[0])) if first else {}
    if after:
        ends = [cost(number) for number in sorted({after[0], after[-1]})]
        known |= dict(zip(after, np.linspace(ends[0], ends[-1], len(after)).tolist(), strict=True))
    return known


def _masks(config: Config, problem: Problem, number: int) -> pruning.Masks:
    """Random masks with as many weights in each layer as round `number` has, if layers are compared within."""
    model, generator = problem.make(), torch.Generator().manual_seed(0)
    masks = pruning.dense(pruning.prunable(model, config.prune_embeddings))
    percents = pruning.percents(model, config.rates(), config.prune_embeddings)
    return pruning.keep_highest(
        pruning.random_scores(masks, generator), masks, pruning.quotas(masks, percents, rounds=number)
    )


def in_words(minutes: float) -> str:
    """`1 minute`, `90 minutes`, `3 hours`: rounded, at least a minute."""
    number, unit = (minutes / 60, "hour") if minutes > 120 else (max(minutes, 1), "minute")
    return f"{number:,.0f} {unit}{'s' * (round(number) != 1)}"
