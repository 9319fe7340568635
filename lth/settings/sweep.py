"""--sweep: the command lines of several experiments in one."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lth.settings import flags, names
from lth.settings.config import Config
from lth.settings.problems import ConfigError, nearest

ALLOWED = ("arch_type", "dataset", "seed")  # beside the settings that decide numbers
NAMES = {
    flag.lstrip("-"): spec.name
    for spec in flags.FIELDS.values()
    for flag in (spec.name, *spec.metadata.get("aliases", ()))
}


def parse(argv: Sequence[str]) -> dict[Config, dict[str, str]]:
    """The experiments that a command line asks for, each with the values, as text, that tell it from the others.

    One without values where there is no --sweep. ConfigError with the mistakes of all combinations.
    """
    given = vars(flags.parser().parse_known_args(argv)[0])
    if not given.get("sweep"):
        return {flags.parse(argv): {}}
    problems = ["--name would give all combinations of --sweep one folder: leave it out"] if given.get("name") else []
    choices = _choices(given, problems)
    count = math.prod(map(len, choices.values()))
    found: dict[Config, dict[str, str]] = {}
    wrong: dict[str, list[str]] = {}
    for values in itertools.product(*choices.values()):
        texts = dict(zip(choices, values, strict=True))
        try:
            config = flags.parse(argv, swept={name: _value(name, text) for name, text in texts.items()})
        except ConfigError as error:
            for problem in error.problems:
                wrong.setdefault(problem, []).append(label(texts))
        else:  # in one spelling: fc1,FC1 is one experiment
            model = names.model(config.arch_type, config.dataset, config.data)
            spelled = dataclasses.replace(config, arch_type=model, dataset=names.dataset(config.dataset))
            found.setdefault(spelled, texts)
    for problem, where in wrong.items():
        others = f" and {len(where) - 1} more" if len(where) > 1 else ""
        problems.append(problem if len(where) == count else f"{problem} (with {where[0]}{others})")
    if problems:
        raise ConfigError(*problems)
    return found


def label(texts: Mapping[str, str]) -> str:
    """A combination in a few words: `lenet5 lr=1e-4`."""
    return " ".join(text if name in ("arch_type", "dataset") else f"{name}={text}" for name, text in texts.items())


def _choices(given: Mapping[str, Any], problems: list[str]) -> dict[str, list[str]]:
    """The values, as text, of each setting that is swept; what is wrong with the words is added to `problems`."""
    choices: dict[str, list[str]] = {}
    words = [word.partition("=") for word in given["sweep"]]
    target = "target_remaining" in given or "target_remaining" in [typed for typed, _, _ in words]
    for typed, equals, values in words:
        name = NAMES.get(typed, "")
        # A comma within a folder's name is not followed by a folder of results.
        texts = re.split(r",(?=[^,]*(?:saves|dumps)/)" if name == "ticket" else ",", values)
        if not equals or not all(texts):
            problems.append(f"--sweep must be NAME=VALUE,VALUE,..., not {typed + equals + values!r}")
        elif not name:
            problems.append(f"--sweep {typed} is no setting{nearest(typed, NAMES)}")
        elif not (
            flags.FIELDS[name].metadata.get("changes_numbers", True)
            or name in ALLOWED
            or (name == "prune_iterations" and target)  # the number of rounds decides how much each prunes
        ):
            problems.append(f"--sweep {name} does not change what is trained: give --{name} itself, once for all")
        elif name in choices:
            problems.append(f"--sweep {name} is given twice: give all its values at once")
        else:
            choices[name] = list(dict.fromkeys(texts))
    return choices


def _value(name: str, text: str) -> Any:
    """A value as the flag would give it."""
    spec = flags.FIELDS[name]
    if spec.type == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    return text.split("+") if spec.metadata.get("many") else text
