"""How long a round is, when it is evaluated, and its learning rate: the settings' durations in iterations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lth.settings import combinations
from lth.settings.config import Config
from lth.settings.problems import Problem
from lth.settings.values import Duration


@dataclass(frozen=True)
class Plan:
    """What a round's training is: from iteration `start` to `steps`, evaluated every `evaluate_every`, on the test
    images too every `test_every`."""

    steps: int
    evaluate_every: int
    lr: Callable[[int], float]  # learning rate of the step that follows an iteration
    start: int = 0
    keep_at: int | None = None  # the iteration whose weights later rounds rewind to
    test_every: int = 1

    def next_evaluation(self, iteration: int) -> int:
        """The first evaluation after `iteration`; the last iteration is always evaluated."""
        return min((iteration // self.evaluate_every + 1) * self.evaluate_every, self.steps)

    def tests(self, iteration: int, before: int) -> bool:
        """Whether the evaluation at `iteration`, the one before it at `before`, has the test images at any rate: it is
        the first after a multiple of `test_every`, or the last."""
        return iteration // self.test_every > before // self.test_every or iteration == self.steps


def make_plan(config: Config, epoch_steps: int, schedule: str, number: int) -> Plan:
    """The training of round `number` in an arm with that `schedule` (lth.settings.arms.Arm), with `epoch_steps` steps
    an epoch."""
    steps = config.end_iter.iterations(epoch_steps)
    warmup = config.warmup.iterations(epoch_steps, steps)
    drops = [milestone.iterations(epoch_steps, steps) for milestone in config.lr_milestones]
    rewind = config.rewind.iterations(epoch_steps, steps)

    def lr(iteration: int) -> float:
        rise = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
        return config.lr * rise * config.lr_gamma ** sum(iteration >= drop for drop in drops)

    final = lr(steps - 1)
    return Plan(
        steps=steps,
        evaluate_every=config.valid_freq.iterations(epoch_steps, steps),
        lr=(lambda iteration: final) if number and schedule == "final" else lr,
        start=rewind if number and schedule == "rewound" else 0,
        keep_at=rewind if number == 0 and rewind else None,
        test_every=config.test_freq.iterations(epoch_steps, steps) if config.test_freq else 1,
    )


def seldom(config: Config, epoch_steps: int) -> str:
    """A sentence about rounds that are evaluated at their end alone; nothing of others."""
    steps = config.end_iter.iterations(epoch_steps)
    if config.valid_freq.iterations(epoch_steps, steps) < steps:
        return ""
    what = {"ep": " (epochs)", "it": "", "%": ""}[config.valid_freq.unit]
    return (
        f"--valid_freq {config.valid_freq}{what}: each round is evaluated once, at its end after {steps:,} iterations, "
        "so that early stop says nothing"
    )


def scarce(config: Config, epoch_steps: int) -> str:
    """A sentence about scores by more batches than an epoch has; nothing of others."""
    if config.score_batches <= epoch_steps or not combinations.scores_batches(config):
        return ""
    return f"--score_batches {config.score_batches}: scores look at all of an epoch, which has {epoch_steps:,} batches"


def check_plan(config: Config, epoch_steps: int) -> list[str]:
    """What is wrong with the settings' durations for a training set of `epoch_steps` steps an epoch."""
    steps, problems = config.end_iter.iterations(epoch_steps), list[str]()
    late: list[tuple[str, Duration]] = [("rewind", config.rewind), ("warmup", config.warmup)]
    for name, duration in [*late, *(("lr_milestones", milestone) for milestone in config.lr_milestones)]:
        if duration.iterations(epoch_steps, steps) >= steps:
            must = f"{duration} must come before the end of a round, which has {steps} iterations"
            problems.append(Problem(name, must))
    return problems
