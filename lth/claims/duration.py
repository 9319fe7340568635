"""How long a claim will take on this machine, from a few measured steps and evaluations of its networks."""

from __future__ import annotations

from dataclasses import replace

from lth.claims.forms import Form, trainings
from lth.commands import device as devices
from lth.commands import forecast, loop, session
from lth.settings import names

Known = dict[tuple[object, ...], forecast.Cost]  # what was measured before, by the settings that matter


def told(form: Form, known: Known) -> str:
    """`18 trainings, at most 3 minutes here`."""
    needed = minutes(form, known)
    dataset = next(iter(form.configs.values())).dataset
    time = f"its images ({dataset}) are not here" if needed is None else f"at most {forecast.in_words(needed)} here"
    return f"{form.trainings} trainings, {time}"


def minutes(form: Form, known: Known) -> float | None:
    """At most how long the form will take with these jobs; None if its images are not here (nothing is downloaded).
    `known` keeps the measurements for the next claim."""
    total = 0.0
    for config in (session.settled(replace(config, ticket=None)) for config in form.configs.values()):
        if not names.npz(config.data, config.dataset).exists():
            return None
        what = (config.arch_type, config.dataset, config.batch_size, config.precision, config.gpu, config.augment)
        images, problem = session.prepare(config)
        device, _ = devices.choose(config.gpu)
        if what not in known:
            known[what] = forecast.measured(config, images, problem, device)
        at_once = min(loop.at_once(config), config.trials) if device.type == "cpu" else 1
        total += trainings(config) * known[what].training(config, images) / at_once
    return total / 60
