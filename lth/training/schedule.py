"""How long a round is, when it is evaluated, and its learning rate: the settings' durations in iterations."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lth.settings.arms import unused_settings
from lth.settings.checks import Problem
from lth.settings.config import Config
from lth.settings.values import Duration
from lth.training.updates import Updates


@dataclass(frozen=True)
class Rates:
    """The learning rate of the step that follows an iteration: it rises linearly for `warmup` iterations, and is
    multiplied by `gamma` at each of `drops`. With `zero_at`, it follows half a cosine instead from the end of the
    warm-up to 0 at that iteration (Loshchilov & Hutter, arXiv:1608.03983, Equation 5)."""

    lr: float
    warmup: int = 0
    drops: tuple[int, ...] = ()
    gamma: float = 0.1
    zero_at: int | None = None

    def __call__(self, iteration: int) -> float:
        if self.zero_at and iteration >= self.warmup:
            return self.lr * (1 + math.cos(math.pi * (iteration - self.warmup) / (self.zero_at - self.warmup))) / 2
        rise = min(1.0, (iteration + 1) / self.warmup) if self.warmup else 1.0
        return self.lr * rise * self.gamma ** sum(iteration >= drop for drop in self.drops)


@dataclass(frozen=True)
class Plan:
    """The training of a round: from iteration `start` to `steps`, evaluated every `evaluate_every` iterations, on the
    test images at least every `test_every`. Trials with equal plans can be trained as one network."""

    steps: int
    evaluate_every: int
    lr: Callable[[int], float]  # learning rate of the step that follows an iteration
    start: int = 0
    rewind_at: int | None = None  # the iteration whose weights later rounds are reset to
    test_every: int = 1
    draw_at: int | None = None  # the iteration whose weights the next pruning looks at; None: the last
    updates: Updates | None = None  # of the masks
    learn: str = ""  # how the masks are learned (lth/training/learned.py), where weights are not trained

    @property
    def settled(self) -> int:
        """The iteration after which the masks stay as they are; earlier evaluations do not count for early stop."""
        return self.updates.last if self.updates else 0

    def next_evaluation(self, iteration: int) -> int:
        """The first evaluation after `iteration`; the last iteration is always evaluated."""
        return min((iteration // self.evaluate_every + 1) * self.evaluate_every, self.steps)

    def tests(self, iteration: int, before: int) -> bool:
        """Whether the evaluation at `iteration` always includes the test images: if it is the last, or if a multiple of
        `test_every` was reached since the evaluation at iteration `before`."""
        return iteration // self.test_every > before // self.test_every or iteration == self.steps


def make_plan(config: Config, epoch_steps: int, schedule: str, number: int, update: str = "") -> Plan:
    """The training of round `number` in an arm with that `schedule` and `update` (lth.settings.arms.Arm), with
    `epoch_steps` steps per epoch."""
    steps = config.end_iter.iterations(epoch_steps)
    warmup = config.warmup.iterations(epoch_steps, steps)
    drops = tuple(milestone.iterations(epoch_steps, steps) for milestone in config.lr_milestones)
    rewind = config.rewind.iterations(epoch_steps, steps)
    cosine = config.lr_schedule == "cosine"
    lr = Rates(config.lr, warmup, drops, config.lr_gamma, steps if cosine else None)
    if number and schedule == "final":
        last = max(steps - epoch_steps, warmup) if cosine else steps - 1  # the cosine's last steps train nothing
        lr = Rates(lr(last))
    start = rewind if number and schedule == "rewound" else 0
    return Plan(
        steps=steps,
        evaluate_every=config.valid_freq.iterations(epoch_steps, steps),
        lr=lr,
        start=start,
        rewind_at=rewind if number == 0 and rewind else None,
        test_every=config.test_freq.iterations(epoch_steps, steps) if config.test_freq else 1,
        draw_at=config.draw_at.iterations(epoch_steps, steps) if config.draw_at else None,
        updates=_updates(config, epoch_steps, update, start) if number and update else None,
    )


def _updates(config: Config, epoch_steps: int, update: str, start: int) -> Updates:
    steps = config.end_iter.iterations(epoch_steps)
    every, end = (each.iterations(epoch_steps, steps) for each in (config.update_freq, config.update_end))
    return Updates(update, every, start, min(end, steps), config.update_fraction)


def remarks(config: Config, epoch_steps: int) -> Iterator[str]:
    """Sentences about durations that are allowed but unlikely to be intended: a single evaluation per round, and scores
    from more batches than an epoch has."""
    steps = config.end_iter.iterations(epoch_steps)
    if config.valid_freq.iterations(epoch_steps, steps) >= steps:
        unit = {"ep": " (epochs)", "it": "", "%": ""}[config.valid_freq.unit]
        yield (
            f"--valid_freq {config.valid_freq}{unit}: each round is evaluated once, at its end after {steps:,} "
            "iterations, so that early stop says nothing"
        )
    used = any("score_batches" not in unused_settings(arm) for arm in config.prune_type)
    if used and config.score_batches > epoch_steps:
        scored = f"scores look at all of an epoch, which has {epoch_steps:,} batches"
        yield f"--score_batches {config.score_batches}: {scored}"


def check_plan(config: Config, epoch_steps: int) -> list[str]:
    """The problems of the settings' durations, given `epoch_steps` steps per epoch."""
    steps, problems = config.end_iter.iterations(epoch_steps), list[str]()
    durations: list[tuple[str, Duration]] = [("rewind", config.rewind), ("warmup", config.warmup)]
    if config.draw_at is not None:
        durations.append(("draw_at", config.draw_at))
        if config.draw_at.iterations(epoch_steps, steps) <= config.rewind.iterations(epoch_steps, steps):
            problems.append(Problem("draw_at", f"{config.draw_at} must come after rewind, {config.rewind}"))
    for name, duration in [*durations, *(("lr_milestones", milestone) for milestone in config.lr_milestones)]:
        if duration.iterations(epoch_steps, steps) >= steps:
            message = f"{duration} must come before the end of a round, which has {steps} iterations"
            problems.append(Problem(name, message))
    updates = _updates(config, epoch_steps, "", config.rewind.iterations(epoch_steps, steps))
    if (
        not problems
        and any("update_freq" not in unused_settings(arm) for arm in config.prune_type)
        and updates.last <= updates.start
    ):
        between = f"iteration {updates.start}, where a round starts, and iteration {updates.end} (update_end)"
        message = f"{config.update_freq}, every {updates.every} iterations, must come at least once between {between}"
        problems.append(Problem("update_freq", message))
    return problems
