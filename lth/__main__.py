"""`python lth lenet mnist --rounds 20 --prune_rate 0.2`: a short command line, translated into that of main.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # `python lth` looks for modules in lth/, where they would be found under the wrong names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from lth.commands import command
from lth.settings import checks, flags, names
from lth.settings.checks import ConfigError
from lth.settings.config import Config
from lth.settings.values import LONGEST, number

NETS = {"lenet": "fc1", "resnet": "resnet20", "vgg": "vgg16"}  # other names of models under archs/
DATASETS = {"fashion": "fashionmnist"}
COMMANDS = {  # with the flags of a script, and the module whose `main` they are
    "run": "lth.commands.command",
    "plot": "lth.commands.combine",
    "reproduce": "lth.claims.reproduce",
    "audit": "lth.api.audit_files",
}
ABOUT = """Find lottery tickets. The same command again continues where it stopped. More flags, and other programs:

  lth run        as python main.py
  lth plot       as python combine_plots.py
  lth reproduce  as python reproduce.py
  lth audit      check saved tickets: lth audit --help"""


def _percent(text: str) -> str:
    return str(round(100 * number(float, 0, 1, below=True)(text), 10))


def _iterations(text: str) -> str:
    return f"{number(int, 1, LONGEST)(text)}it"


def _frequency(text: str) -> str:
    return "1" if text == "-1" else _iterations(text)


def _trainings(text: str) -> str:
    return str(number(int, 0, 9998)(text) + 1)


def _point(text: str) -> float | int:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ValueError("must be a number of iterations, or a fraction of a round below 1") from None


# The flags, the setting of main.py, the default, the help, and what turns the text into main.py's.
OPTIONS = (
    ("--data -p", "data", "./datasets/", "folder of the data sets; mnist comes with the project", str),
    ("--batch_size", "batch_size", "60", "images per step", str),
    ("--optim -o", "optimizer", "adam", "the optimiser: adam, adamw or sgd", str.lower),
    ("--learn_rate -lr", "lr", "0.0012", "learning rate", str),
    ("--iter -i", "end_iter", "50000", "iterations of each round", _iterations),
    ("--rounds -r", "prune_iterations", "26", "prunings, one less than trainings", _trainings),
    ("--step -es", "valid_freq", "-1", "iterations between evaluations; -1: every epoch", _frequency),
    ("--rewind -rw", "rewind", "0", "iteration of round 0 to reset to, or fraction of a round below 1", _point),
    ("--prune_rate -pr", "prune_percent", "0.2", "fraction of surviving weights pruned per round", _percent),
    ("--fc_rate -fc", "fc_percent", None, "the same for fully connected layers (default: the same)", _percent),
    ("--save -s", "root", "./experiments/", "folder that gets the results", str),
    ("--recover", "recover", None, "continue the results in this folder, an earlier --save", str),
    ("--seed -rs", "seed", "0", "of initial weights, validation split and data order", str),
)


def parser() -> flags.Parser:
    """The parser of this command line, which gives the text of main.py's settings."""
    made = flags.Parser(prog="lth", description=ABOUT)
    nets, sets = "lenet (fc1), resnet (resnet20), vgg (vgg16) or any model under archs/", ", ".join(names.KNOWN)
    made.add_argument("arch_type", metavar="net", type=lambda net: NETS.get(net.lower(), net), help=nets)
    about = f"{sets} or a file of yours: see --data"
    made.add_argument("dataset", type=lambda name: DATASETS.get(name.lower(), name), help=about)
    start, place = made.add_mutually_exclusive_group(), made.add_mutually_exclusive_group()
    groups: Any = {"rewind": start, "root": place, "recover": place}
    for spelled, setting, default, help, parse in OPTIONS:
        told, metavar = f"{help} (default: {default})" if default else help, spelled.split()[0][2:].upper()
        options: Any = {"default": default, "type": flags.typed(parse), "metavar": metavar, "help": told}
        groups.get(setting, made).add_argument(*spelled.split(), dest=setting, **options)
    gpu = "number of the GPU, or cpu (default: a GPU where there is one)"
    made.add_argument("--gpu", nargs="?", const="0", metavar="GPU", help=gpu)
    switches: Any = (
        (made, "prune_global", "prune_scope", "layer", "global", "compare the weights of all layers with each other"),
        (start, "random", "prune_type", "lt", "reinit", "give survivors fresh random weights, not their initial ones"),
        (made, "quiet", "quiet", False, True, "print the verdict and the files only"),
        (made, "debug", "debug", False, True, "tracebacks with error messages"),
    )
    for group, name, setting, default, const, help in switches:
        group.add_argument(f"--{name}", action="store_const", dest=setting, default=default, const=const, help=help)
    return made


NAMES = {name: f"--{name}" for name in flags.FIELDS} | {setting: words.split()[0] for words, setting, *_ in OPTIONS}
NAMES |= {"arch_type": "net", "dataset": "dataset"}  # what messages call the settings


def parse(argv: Sequence[str]) -> Config:
    """The settings that the command line asks for; ConfigError if it is not valid."""
    made = parser()
    known, unknown = made.parse_known_args(argv)
    problems, given = flags.unknown_problems(made, unknown), vars(known)
    given["data"] = str(names.holder(known.dataset, Path(known.data)))
    try:
        given["rewind"] = checks.rewind("--rewind", known.rewind, int(known.end_iter.removesuffix("it")))
    except ValueError as error:
        problems.append(str(error))
    if (recover := given.pop("recover")) is not None:
        given["root"] = recover
    try:
        config = flags.parse(flags.as_argv({name: value for name, value in given.items() if value is not None}))
    except ConfigError as error:
        problems += error.named(NAMES).problems
    if problems:
        raise ConfigError(*problems)
    if recover is not None:
        from lth.records import tables

        (run,) = tables.runs_of(config)
        if not (run.dumps / "config.json").exists():
            raise ConfigError(f"--recover must hold results of these settings, but there are none in {run.dumps}")
    return config


def main(argv: Sequence[str]) -> int:
    """Run or continue the experiment that the command line asks for, and show its results; or be one of COMMANDS."""
    if argv and argv[0] in COMMANDS:
        return int(importlib.import_module(COMMANDS[argv[0]]).main(argv[1:]))
    config = parse(argv)
    try:
        return command.perform({config: {}}, argv)
    except ConfigError as error:
        raise error.named(NAMES) from error.__cause__


def installed() -> None:
    """The command `lth` that pip installs."""
    sys.exit(command.exit_code(main, sys.argv[1:]))


if __name__ == "__main__":
    installed()
