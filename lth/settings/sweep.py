"""--sweep: the command lines of several experiments in one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lth.settings import flags, names
from lth.settings.config import Config
from lth.settings.problems import ConfigError, nearest
from lth.settings.values import parse_value

ALLOWED = ("arch_type", "dataset", "seed")  # beside the settings that decide numbers
MOST = 10_000  # combinations
NAMES = {
    flag.lstrip("-"): spec.name
    for spec in flags.FIELDS.values()
    for flag in (spec.name, *spec.metadata.get("aliases", ()))
}
INSTEAD = {
    "prune_type": "give --prune_type all arms",
    "trials": "give --trials the largest number",
    "prune_iterations": "give --prune_iterations the largest number, whose rounds hold the others",
    "name": "a name is for one experiment",
}


def parse(argv: Sequence[str]) -> dict[Config, dict[str, str]]:
    """The experiments that a command line asks for, each with the values, as text, that tell it from the others.

    One without values where there is no --sweep. ConfigError with the mistakes of all combinations.
    """
    given = vars(flags.parser().parse_known_args(argv)[0])
    if not given.get("sweep"):
        return {flags.parse(argv): {}}
    choices, problems = _choices(given["sweep"], "target_remaining" in given)
    if given.get("name"):
        problems.append("--name would give all combinations of --sweep one folder: leave it out")
    if (count := math.prod(map(len, choices.values()))) > MOST:
        raise ConfigError(f"--sweep must have at most {MOST} combinations, not {count}")
    found: dict[Config, tuple[Config, dict[str, str]]] = {}  # by one spelling: fc1,FC1 is one experiment
    wrong: dict[str, list[str]] = {}
    for values in itertools.product(*choices.values()):
        texts = dict(zip(choices, values, strict=True))
        try:
            config = flags.parse(argv, swept={name: _value(name, text) for name, text in texts.items()})
            model = names.model(config.arch_type, config.dataset, config.data)
            spelled = dataclasses.replace(config, arch_type=model, dataset=names.dataset(config.dataset))
            found.setdefault(spelled, (config, texts))
        except ConfigError as error:
            for problem in error.problems:
                wrong.setdefault(problem, []).append(label(texts))
    for problem, where in wrong.items():
        others = f" and {len(where) - 1} more" if len(where) > 1 else ""
        problems.append(problem if len(where) == count else f"{problem} (with {where[0]}{others})")
    if problems:
        raise ConfigError(*problems)
    return dict(found.values())


def label(texts: Mapping[str, str]) -> str:
    """A combination in a few words: `lenet5 lr=1e-4`."""
    return " ".join(text if name in ("arch_type", "dataset") else f"{name}={text}" for name, text in texts.items())


def _choices(words: Sequence[str], target: bool) -> tuple[dict[str, list[str]], list[str]]:
    """The values, as text, of each setting that is swept, and what is wrong with the words. `target`: whether
    --target_remaining is given, where the number of rounds decides how much each prunes."""
    choices: dict[str, list[str]] = {}
    target = target or any(word.startswith("target_remaining=") for word in words)
    allowed = (*ALLOWED, "prune_iterations") if target else ALLOWED
    problems = []
    for word in words:
        said, equals, values = word.partition("=")
        name = NAMES.get(said, "")
        texts = _tickets(values) if name == "ticket" else values.split(",")
        if not equals or not all(texts):
            problems.append(f"--sweep must be NAME=VALUE,VALUE,..., not {word!r}")
        elif not name:
            problems.append(f"--sweep {said} is no setting{nearest(said, NAMES)}")
        elif name not in allowed and not flags.FIELDS[name].metadata.get("changes_numbers", True):
            instead = INSTEAD.get(name, f"give --{name} itself, once for all")
            problems.append(f"--sweep {name} does not change what is trained: {instead}")
        elif name in choices:
            problems.append(f"--sweep {name} is given twice: give all its values at once")
        else:
            choices[name] = list(dict.fromkeys(texts))
    return choices, problems


def _tickets(values: str) -> list[str]:
    """The values of --ticket, folders whose names may have commas themselves: each ends where it names a folder."""
    texts: list[str] = []
    begun = ""
    for piece in values.split(","):
        begun = f"{begun},{piece}" if begun else piece
        try:
            parse_value(flags.FIELDS["ticket"], begun)
        except ValueError:
            continue
        texts, begun = [*texts, begun], ""
    return [*texts, begun] if begun else texts


def _value(name: str, text: str) -> Any:
    """A value as the flag would give it."""
    spec = flags.FIELDS[name]
    if spec.type == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    return text.split("+") if spec.metadata.get("many") else text
