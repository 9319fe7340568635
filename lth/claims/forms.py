"""A claim as settings: as published, in its quick form, or with whatever flags of main.py a user adds."""

from __future__ import annotations

import hashlib
import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lth.claims.claim import Claim
from lth.settings import flags, names
from lth.settings.arms import ARMS
from lth.settings.config import MACHINE, OUTPUT, Config, ConfigError

HOW_COMPUTED = ("precision", "sparse")
HERE = [name for name, spec in flags.FIELDS.items() if spec.metadata["group"] in (MACHINE, OUTPUT)]


@dataclass(frozen=True)
class Form:
    """A claim and its settings. `changes` are those that differ from the published experiment, as text: with any,
    another experiment is measured, and every table says so."""

    claim: Claim
    configs: dict[str, Config]
    quick: bool
    changes: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def published(self) -> bool:
        """Whether this is the experiment as published (the number of trials does not count)."""
        return not self.changes

    @property
    def slug(self) -> str:
        """A name for files: the claim's, and what is changed."""
        config = next(iter(self.configs.values()))
        changes = self.changes
        if self.quick:  # said as such; what differs from it is not
            usual = form(self.claim, quick=True).configs
            found = (differences(usual[name], asked) for name, asked in self.configs.items())
            changes = tuple(dict.fromkeys(itertools.chain(*found)))
        changed = [change.split(",")[0] for change in changes]
        how = {name: getattr(config, name) for name in HOW_COMPUTED}
        changed += [f"{name}={value}" for name, value in how.items() if value != getattr(Config, name)]
        named = re.sub(r"[^\w=.+]+", "-", "-".join([self.claim.name, *(["quick"] if self.quick else []), *changed]))
        return named if len(named) <= 80 else f"{named[:60]}-{hashlib.sha256(named.encode()).hexdigest()[:8]}"

    @property
    def command(self) -> str:
        """The command line for it on any machine: without folders, devices and output."""
        given = vars(flags.parser("reproduce.py").parse_args(self.flags))
        portable = flags.as_argv({name: value for name, value in given.items() if name not in HERE})
        return shlex.join(["python", "reproduce.py", self.claim.name, *["--quick"] * self.quick, *portable])

    @property
    def trainings(self) -> int:
        """How many trainings the whole form has; the dense round of a trial is shared by its arms."""
        return sum(trainings(config) for config in self.configs.values())

    @property
    def dataset(self) -> str:
        """The images that it needs."""
        return next(iter(self.configs.values())).dataset


def trainings(config: Config) -> int:
    """How many trainings an experiment has; with the arms whose masks others take, and all twice where the line
    between two of a ticket is measured."""
    arms = {*config.prune_type, *(ARMS[arm].mask_of for arm in config.prune_type)} - {""}
    return config.trials * (len(arms) * (config.prune_iterations - 1) + 1) * (1 + config.connectivity)


def form(claim: Claim, given: Sequence[str] = (), quick: bool = False) -> Form:
    """A claim with the flags `given` of main.py behind its own. ConfigError with all that is wrong with them."""
    configs: dict[str, Config] = {}
    changes: dict[str, None] = {}
    problems: dict[str, None] = {}
    for name, own in claim.experiments.items():
        argv = [*own.split(), *(claim.quick.split() if quick else []), *given]
        try:
            asked = flags.parse(argv, "reproduce.py")
            dataset = names.dataset(asked.dataset)
            arch_type = names.model(asked.arch_type, dataset, asked.data)
            configs[name] = replace(asked, dataset=dataset, arch_type=arch_type)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
        else:
            changes |= dict.fromkeys(differences(flags.parse(own.split()), configs[name]))
    if len(claim.experiments) > 1 and any(config.name for config in configs.values()):
        problems["--name cannot be given: this claim has experiments of several settings, each with its folder"] = None
    if problems:
        raise ConfigError(*problems)
    return Form(claim, configs, quick, tuple(changes), tuple(given))


def differences(published: Config, asked: Config) -> list[str]:
    """Settings that affect results and differ from the published experiment, as `lr=0.1, published 0.0012`; without
    --precision and --sparse, which every measurement names."""
    before, now = published.deciding(), asked.deciding()
    pairs = {}
    for name in sorted({**before, **now}.keys() - set(HOW_COMPUTED)):
        usual = Config().deciding().get(name, str(getattr(Config(), name)))
        pairs[name] = before.get(name, usual), now.get(name, usual)
    if asked.prune_iterations < published.prune_iterations:
        pairs.setdefault("prune_iterations", (str(published.prune_iterations), str(asked.prune_iterations)))
    for name in ("arch_type", "dataset"):
        pairs[name] = getattr(published, name), getattr(asked, name)
    said = [f"{name}={new}, published {old}" for name, (old, new) in pairs.items() if old != new]
    missing = [arm for arm in published.prune_type if arm not in asked.prune_type]
    return said + ([f"without {' '.join(missing)}"] if missing else [])
