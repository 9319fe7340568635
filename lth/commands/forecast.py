"""How long trainings take on this machine at most, from a few measured steps and evaluations of the dense network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lth import pruning
from lth.commands.holding import Prepared
from lth.data.images import Images
from lth.records.tables import Run
from lth.settings.config import Config
from lth.training import memory
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


def measured(config: Config, images: Images, problem: Problem, device: torch.device) -> Cost:
    """The cost of the dense round, from a moment of training it. Nothing is written."""
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
    masks = pruning.dense(pruning.prunable(model, config.prune_embeddings))
    with numerics(config.precision, config.threads or 1), memory.kept():
        feed = few.feed([0], held_back, batch, device, config.augment)
        network = Network(
            model,
            [problem.initial(0)],
            [masks],
            device,
            problem.criterion,
            autocast=config.precision == "bf16",
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
    """How long the trainings that are `left` of these experiments will take on this CPU, `at_once` side by side, if all
    are dense; later rounds may be quicker. Empty where that is hardly worth a measurement."""
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
            cost = measured(config, images, one.problem, torch.device("cpu")).training(config, images)
            seconds |= {run: left[run] * cost for run in one.runs}
    if not seconds:
        return ""
    total = max(*seconds.values(), sum(seconds.values()) / min(at_once, len(seconds)))
    rounds = max(one.config.prune_iterations for one in prepared)
    what = f"{rounds} rounds of {max(lengths):,} iterations" + (" or fewer" if len(lengths) > 1 else "")
    return f"{what}: at most about {in_words(total / 60)} on this CPU; --end_iter and --prune_iterations shorten it"


def in_words(minutes: float) -> str:
    """`1 minute`, `90 minutes`, `3 hours`: rounded, at least a minute."""
    number, unit = (minutes / 60, "hour") if minutes > 120 else (max(minutes, 1), "minute")
    return f"{number:,.0f} {unit}{'s' * (round(number) != 1)}"
