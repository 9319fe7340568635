"""What a claim is: a published experiment, the statements that the paper makes of it, how each is measured, and its
settings: as published, in its quick form, or with whatever flags of main.py a user adds.

This module and published.py do not load PyTorch, so that a mistyped name is answered at once.
"""

import hashlib
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from lth.records import tables
from lth.settings import flags, names
from lth.settings.arms import ARMS
from lth.settings.checks import collect_errors
from lth.settings.config import MACHINE, OUTPUT, Config, ConfigError
from lth.settings.values import TicketName, absolute_folder

POINTS, TIMES, PERCENT = "points", "times", "percent"  # units: differences of accuracy; ratios; accuracies

# A measure gives one value per trial, by seed, from the records of a claim's runs (lth.claims.findings.Records, untyped
# here, since it loads PyTorch). An arm is named `lt`, or `large_init/lt` where a claim has several experiments.
Measure = Callable[[Any], pd.Series]


def early_stop(which: str, relative_to: str = "") -> Measure:
    """An arm's early-stop iteration divided by that of the trial's dense network, or of another arm in that round."""
    if relative_to:
        return lambda records: records.arm(which)["ES"] / records.arm(relative_to)["ES"]
    return lambda records: records.arm(which)["ES_ratio"]


def accuracy(which: str, relative_to: str = "") -> Measure:
    """An arm's test accuracy, in points above that of the trial's dense network, or of another arm in that round."""
    if relative_to:
        return lambda records: records.arm(which)["test"] - records.arm(relative_to)["test"]
    return lambda records: records.arm(which)["difference"]


def barrier(which: str) -> Measure:
    """The error barrier between two trainings of an arm's ticket, on training or test images, whichever is higher; for
    experiments with --connectivity."""
    return lambda records: records.barriers(which)


def reached(which: str) -> Measure:
    """An arm's test accuracy, in percent."""
    return lambda records: records.arm(which)["test"]


def untrained(which: str) -> Measure:
    """The test accuracy, in percent, of an arm's best ticket before any training, except for round 0."""
    return lambda records: records.arm(which).query("round > 0").groupby("seed")["supermask"].max()


def overlap(which: str) -> Measure:
    """The Jaccard index of the masks of two trials of an arm, relative to random masks; each trial is in one pair, so
    that the values are independent."""
    return lambda records: records.overlaps(which)


def towards(published: float, none: float) -> tuple[float, float]:
    """The values that show an effect at least half as large as the published one; `none` is no effect."""
    half = (published + none) / 2
    return (-math.inf, half) if published < none else (half, math.inf)


@dataclass(frozen=True)
class Statement:
    """One sentence of a paper, and how it is measured here.

    says: the sentence, in short.
    measure: returns a value per trial from the records, narrowed to the round nearest to `at`.
    at: percent of the weights that the sentence is about; None: `measure` gets all rounds.
    holds: the lowest and the highest value for which the sentence is true. `towards` derives it from a figure.
    published: the paper's figure, if it has one.
    unit: POINTS; TIMES for ratios (geometric mean); PERCENT for test accuracies.
    """

    says: str
    measure: Measure
    at: float | None
    holds: tuple[float, float]
    published: float | None = None
    unit: str = POINTS


@dataclass(frozen=True)
class Claim:
    """A published experiment.

    experiments: the flags of main.py that repeat each, by name. Most claims have one, named "".
    start_of: for an experiment, an earlier one; all trials start from the initial weights of its first trial.
    quick: flags that follow them for a form of less than three minutes on two cores.
    source: where to find the paper. note: what differs from the paper.
    needs: what the published form needs beyond any computer.
    """

    name: str
    about: str
    paper: str
    where: str
    source: str
    experiments: Mapping[str, str]
    quick: str
    statements: Sequence[Statement]
    note: str = ""
    needs: str = ""
    start_of: Mapping[str, str] = field(default_factory=dict)


HOW_COMPUTED = ("precision", "sparse")  # named in every measurement, but no change of the experiment
HERE = [name for name, spec in flags.FIELDS.items() if spec.metadata["group"] in (MACHINE, OUTPUT)]


@dataclass(frozen=True)
class Form:
    """A claim and its settings.

    changes: settings that differ from the published experiment, as text; every table names them. The number of trials
        does not count.
    slug: a name for files: the claim's, and the changes.
    command: the command line for it on any machine, without folders, devices and output.
    """

    claim: Claim
    configs: dict[str, Config]
    quick: bool
    changes: tuple[str, ...]
    slug: str
    command: str


def trainings(config: Config) -> int:
    """How many trainings an experiment has, including arms whose masks others take, with one dense round per trial;
    twice as many with --connectivity."""
    arms = {*config.prune_type, *(ARMS[arm].mask_of for arm in config.prune_type)} - {""}
    return config.trials * (len(arms) * (config.prune_iterations - 1) + 1) * (1 + config.connectivity)


def form(claim: Claim, argv: Sequence[str] = (), quick: bool = False) -> Form:
    """A claim with the flags `argv` of main.py behind its own. ConfigError names all problems with them."""
    configs: dict[str, Config] = {}
    changes, tags, problems = list[str](), list[str](), list[str]()
    for name, text in claim.experiments.items():
        defaults = [*text.split(), *(claim.quick.split() if quick else [])]
        with collect_errors(problems):
            parsed = flags.parse([*defaults, *argv], "reproduce.py")
            dataset = names.canonical_dataset(parsed.dataset)
            model = names.canonical_model(parsed.arch_type, dataset, parsed.data)
            config = replace(parsed, dataset=dataset, arch_type=model)
            changes += differences(flags.parse(text.split()), config)
            tags += [change.split(",")[0] for change in differences(flags.parse(defaults), config)]
            tags += [
                f"{how}={value}" for how in HOW_COMPUTED if (value := getattr(config, how)) != getattr(Config, how)
            ]
            if name in claim.start_of:  # its files need not exist yet
                first = tables.runs_of(configs[claim.start_of[name]])[0]
                config = replace(config, ticket=TicketName(absolute_folder(first.saves), 0))
            configs[name] = config
    if len(claim.experiments) > 1 and any(config.name for config in configs.values()):
        problems += ["--name cannot be given: this claim has experiments of several settings, each with its folder"]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    slug = re.sub(r"[^\w=.+]+", "-", "-".join([claim.name, *["quick"] * quick, *dict.fromkeys(tags)]))
    if len(slug) > 80:
        slug = f"{slug[:60]}-{hashlib.sha256(slug.encode()).hexdigest()[:8]}"
    typed = vars(flags.make_parser("reproduce.py").parse_args(argv))
    portable = flags.as_argv({name: value for name, value in typed.items() if name not in HERE})
    command = shlex.join(["python", "reproduce.py", claim.name, *["--quick"] * quick, *portable])
    return Form(claim, configs, quick, tuple(dict.fromkeys(changes)), slug, command)


def differences(published: Config, asked: Config) -> list[str]:
    """Settings that affect results and differ from the published experiment, as `lr=0.1, published 0.0012`; without
    HOW_COMPUTED."""
    values = [{name: str(getattr(config, name)) for name in flags.FIELDS} for config in (published, asked)]
    before, now = values[0] | published.deciding(), values[1] | asked.deciding()
    compared = {*published.deciding(), *asked.deciding(), "arch_type", "dataset"} - set(HOW_COMPUTED)
    if asked.prune_iterations < published.prune_iterations:
        compared.add("prune_iterations")
    changed = [name for name in sorted(compared) if now[name] != before[name]]
    missing = [arm for arm in published.prune_type if arm not in asked.prune_type]
    texts = [f"{name}={now[name]}, published {before[name]}" for name in changed]
    return texts + ([f"without {' '.join(missing)}"] if missing else [])
