"""How long a claim will take on this machine, from a few measured steps and one evaluation of its networks."""

from __future__ import annotations

from lth import pruning
from lth.claims.forms import Form, trainings
from lth.commands import device as devices
from lth.commands import loop, session
from lth.settings import names
from lth.settings.config import Config
from lth.training import memory
from lth.training.layout import channels_last
from lth.training.network import Network
from lth.training.numerics import numerics
from lth.training.schedule import Plan
from lth.training.train import Training

WARM_UP, STEPS = 5, 40
Known = dict[tuple[object, ...], tuple[float, float, int]]  # what was measured before, by the settings that matter


def measured(config: Config) -> tuple[float, float, int]:
    """Seconds of a step and of an evaluation of the dense network, and the steps of an epoch. Nothing is written."""
    images, problem = session.prepare(config)
    device, _ = devices.choose(config.gpu)
    with numerics(config.precision, config.threads), memory.kept():
        feed = images.feed([0], config.valid_size, config.batch_size, device, config.augment)
        network = Network(
            problem.make(),
            [problem.initial(0)],
            [pruning.dense(pruning.prunable(problem.make()))],
            device,
            problem.criterion,
            autocast=config.precision == "bf16",
            channels_last=channels_last(problem.make, feed.example()),
        )
        optimizer = problem.optimizer(network)
        for steps in (WARM_UP, STEPS):
            training = Training(network, optimizer, feed, Plan(steps, steps, lambda _: config.lr), [(0, "cost")], 0)
            (trained,) = training.run()
    return trained.seconds["training"] / STEPS, trained.seconds["evaluation"], feed.epoch_steps


def told(form: Form, known: Known) -> str:
    """`18 trainings, at most 3 minutes here`."""
    needed = minutes(form, known)
    dataset = next(iter(form.configs.values())).dataset
    time = f"its images ({dataset}) are not here" if needed is None else f"at most {in_words(needed)} here"
    return f"{form.trainings} trainings, {time}"


def in_words(minutes: float) -> str:
    """`1 minute`, `90 minutes`, `3 hours`: rounded, at least a minute."""
    number, unit = (minutes / 60, "hour") if minutes > 120 else (max(minutes, 1), "minute")
    return f"{number:,.0f} {unit}{'s' * (round(number) != 1)}"


def minutes(form: Form, known: Known) -> float | None:
    """At most how long the form will take with these jobs; None if its images are not here (nothing is downloaded).
    `known` keeps the measurements for the next claim."""
    total = 0.0
    for config in form.configs.values():
        if not names.npz(config.data, config.dataset).exists():
            return None
        what = (config.arch_type, config.dataset, config.batch_size, config.precision, config.gpu, config.augment)
        if what not in known:
            known[what] = measured(config)
        step, evaluation, epoch = known[what]
        steps = config.end_iter.iterations(epoch)
        evaluations = -(-steps // config.valid_freq.iterations(epoch, steps))
        at_once = min(loop.at_once(config), config.trials) if devices.choose(config.gpu)[0].type == "cpu" else 1
        total += trainings(config) * (steps * step + evaluations * evaluation) / at_once
    return total / 60
