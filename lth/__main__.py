"""`python lth lenet mnist --rounds 20 --prune_rate 0.2`: a short command line on the settings of main.py."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
if not __package__:  # `python lth` looks for modules in lth/, where they would be found under the wrong names
    sys.path[0] = str(PROJECT)
elif str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

from lth.run import command  # noqa: E402
from lth.settings import checks, flags, names  # noqa: E402
from lth.settings.config import Config, ConfigError  # noqa: E402
from lth.settings.values import LONGEST, Duration, device, number  # noqa: E402

NETS = {"lenet": "fc1", "resnet": "resnet20", "vgg": "vgg16"}  # other names of models under archs/
DATASETS = {"fashion": "fashionmnist"}
SETTINGS = {  # what messages about settings call them
    "arch_type": "net",
    "dataset": "dataset",
    "prune_percent": "--prune_rate",
    "fc_percent": "--fc_rate",
    "prune_iterations": "--rounds",
    "prune_scope": "--prune_global",
    "rewind": "--rewind",
    "optimizer": "--optim",
    "lr": "--learn_rate",
    "batch_size": "--batch_size",
    "end_iter": "--iter",
    "valid_freq": "--step",
    "seed": "--seed",
    "gpu": "--gpu",
    "data": "--data",
    "root": "--save",
    "name": "--save",
    "quiet": "--quiet",
    "debug": "--debug",
}


def _every(text: str) -> Duration:
    """How often to evaluate: steps, or -1 for once an epoch."""
    if text == "-1":
        return Duration(1)
    try:
        return Duration(number(int, 1, LONGEST)(text), "it")
    except ValueError:
        raise ValueError(f"must be a whole number from 1 to {LONGEST}, or -1 for once an epoch") from None


def _moment(text: str) -> float:
    """An iteration, or a fraction of a round."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number of iterations, or a fraction of a round below 1") from None
    return int(value) if value.is_integer() else value


def _optimizer(text: str) -> str:
    choices = ("adam", "adamw", "sgd")
    if text.lower() not in choices:
        raise ValueError(f"must be one of {', '.join(choices)}")
    return text.lower()


class Option(NamedTuple):
    """A flag that takes a value: its short name, its default (text), how to read it, its help."""

    short: str | None
    default: str | None
    parse: Callable[[str], Any]
    help: str


FRACTION = number(float, 0, 1, below=True)
OPTIONS = {
    "data": Option("p", "./datasets/", Path, "folder of the data sets; mnist comes with the project"),
    "batch_size": Option(None, "60", number(int, 1), "images a step"),
    "optim": Option("o", "adam", _optimizer, "the optimiser: adam, adamw or sgd"),
    "learn_rate": Option("lr", "0.0012", number(float, 0, above=True), "learning rate"),
    "iter": Option("i", "50000", number(int, 1, LONGEST), "iterations of each round"),
    "rounds": Option("r", "26", number(int, 0, 9998), "prunings; there is one training more"),
    "step": Option("es", "-1", _every, "evaluate every so many steps; -1: every epoch"),
    "rewind": Option("rw", "0", _moment, "reset to the weights of this iteration, or this fraction of a round below 1"),
    "prune_rate": Option("pr", "0.2", FRACTION, "fraction of the surviving weights that a round prunes"),
    "fc_rate": Option("fc", None, FRACTION, "the same for fully connected layers (default: the same)"),
    "recover": Option(None, None, Path, "go on from the results in this folder, the --save of an earlier command"),
    "save": Option("s", "./experiments/", Path, "folder that gets the results"),
    "seed": Option("rs", "0", number(int, 0, 2**62), "of initial weights, validation split and data order"),
    "gpu": Option(None, None, device, "number of the GPU, or cpu (default: a GPU where there is one)"),
}
SWITCHES = {
    "prune_global": "compare the weights of all layers with each other",
    "random": "give survivors fresh random weights rather than their initial ones",
    "quiet": "print the verdict and the files only",
    "debug": "tracebacks with error messages",
}


def parser() -> argparse.ArgumentParser:
    """The parser of this command line. Values stay text: `parse` checks them all together."""
    made = flags.Parser(
        prog="python lth",
        allow_abbrev=False,
        description="Find lottery tickets. The same command again goes on where it stopped.",
    )
    made.add_argument("net", help="lenet (fc1), resnet (resnet20), vgg (vgg16) or any model under archs/")
    made.add_argument("dataset", help=f"{', '.join(names.KNOWN)} or a file of yours: see --data")
    for name, option in OPTIONS.items():
        spelled = [f"-{option.short}"] * bool(option.short) + [f"--{name}"]
        default = f" (default: {option.default})" if option.default else ""
        made.add_argument(*spelled, dest=name, metavar=name.upper(), default=option.default, help=option.help + default)
    for name, help in SWITCHES.items():
        made.add_argument(f"--{name}", action="store_true", help=help)
    return made


def parse(argv: Sequence[str]) -> Config:
    """The settings that the command line asks for. ConfigError with all mistakes at once."""
    made = parser()
    words = list(argv)
    for place, word in enumerate(words):  # --gpu alone is GPU 0, also before `lenet`
        if word == "--gpu" and not re.fullmatch(r"cpu|mps|\d+", "".join(words[place + 1 : place + 2])):
            words[place] = "--gpu=0"
    known, unknown = made.parse_known_args(words)
    problems = flags.unknown_problems(made, unknown)
    values: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        text = getattr(known, name)
        try:
            values[name] = None if text is None else option.parse(text)
        except ValueError as error:
            problems.append(f"--{name} {error}, not {text!r}")
    arch_type, dataset = NETS.get(known.net.lower(), known.net), DATASETS.get(known.dataset.lower(), known.dataset)
    if "data" in values:
        values["data"] = names.holder(dataset, values["data"])
    problems += names.problems(arch_type, dataset, ("net", "dataset"), (NETS, DATASETS), values.get("data"))
    if {"iter", "rewind"} <= values.keys():
        try:
            values["rewind"] = checks.rewind("--rewind", values["rewind"], values["iter"])
        except ValueError as error:
            problems.append(str(error))
    if known.random and known.rewind != OPTIONS["rewind"].default:
        problems.append("--rewind says which weights to reset to, and --random that it is to fresh ones: leave out one")
    if known.recover is not None and known.save != OPTIONS["save"].default:
        problems.append("--recover says where the results are and go on: leave out --save")
    if problems:
        raise ConfigError(*problems)

    config = checks.config(
        SETTINGS,
        arch_type=arch_type,
        dataset=dataset,
        prune_type=("reinit" if known.random else "lt",),
        prune_percent=round(100 * values["prune_rate"], 10),
        fc_percent=None if values["fc_rate"] is None else round(100 * values["fc_rate"], 10),
        prune_iterations=values["rounds"] + 1,
        prune_scope="global" if known.prune_global else "layer",
        end_iter=Duration(values["iter"], "it"),
        valid_freq=values["step"],
        rewind=values["rewind"],
        optimizer=values["optim"],
        lr=values["learn_rate"],
        batch_size=values["batch_size"],
        data=values["data"],
        root=values["save"] if values["recover"] is None else _recovered(values["recover"]),
        seed=values["seed"],
        gpu=values["gpu"],
        quiet=known.quiet,
        debug=known.debug,
    )
    if values["recover"] is not None:
        _check_recovered(config)
    return config


def _recovered(folder: Path) -> Path:
    """The folder that has the dumps/ and saves/ to go on with."""
    from lth.records import folders

    try:
        return folders.root_of("--recover", folder)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _check_recovered(config: Config) -> None:
    """ConfigError unless there are results of these settings to go on with."""
    from lth.records import tables
    from lth.run import tasks

    if not any((run.dumps / "config.json").exists() for run in tasks.runs_of(config)):
        have = "".join(f"\n  {run.dumps}" for run in tables.find(config.root))
        raise ConfigError(
            f"--recover must hold results of these settings, in {tasks.runs_of(config)[0].dumps}, not only"
            f"{have or ' nothing'}"
        )


def main(argv: Sequence[str]) -> int:
    """Run the experiment that the command line asks for, or go on with it, and show what came of it."""
    config = parse(argv)
    try:
        return command.perform(config, argv, lambda text: checks.in_words(text, SETTINGS))
    except Exception as error:
        raise checks.reworded(error, SETTINGS) from error.__cause__


def installed() -> None:
    """The command `lth` that pip installs."""
    sys.exit(command.exit_code(main, sys.argv[1:]))


if __name__ == "__main__":
    installed()
