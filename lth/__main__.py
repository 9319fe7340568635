"""`python lth lenet mnist --rounds 20 --prune_rate 0.2`: a short command line, translated into that of main.py."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
if not __package__:  # `python lth` looks for modules in lth/, where they would be found under the wrong names
    sys.path[0] = str(PROJECT)
elif str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

from lth.run import command  # noqa: E402
from lth.settings import checks, flags, names  # noqa: E402
from lth.settings.config import Config  # noqa: E402
from lth.settings.problems import ConfigError  # noqa: E402
from lth.settings.values import LONGEST, number  # noqa: E402

NETS = {"lenet": "fc1", "resnet": "resnet20", "vgg": "vgg16"}  # other names of models under archs/
DATASETS = {"fashion": "fashionmnist"}


class Option(NamedTuple):
    """A flag with a value: its short name, its default, the setting that it gives, its help, and what turns its text
    into main.py's (ValueError if it cannot be)."""

    short: str | None
    default: str | None
    setting: str
    help: str
    translate: Callable[[str], str] = str


def _percent(text: str) -> str:
    return str(round(100 * number(float, 0, 1, below=True)(text), 10))


def _rounds(text: str) -> str:
    return str(number(int, 0, 9998)(text) + 1)


def _iterations(text: str) -> str:
    return f"{number(int, 1, LONGEST)(text)}it"


def _every(text: str) -> str:
    return "1" if text == "-1" else _iterations(text)


def _moment(text: str) -> float:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ValueError(
            f"--rewind must be a number of iterations, or a fraction of a round below 1, not {text!r}"
        ) from None


def _root(text: str) -> str:
    from lth.records import folders  # with pandas

    return str(folders.root_of("", Path(text))) if text else text


OPTIONS = {
    "data": Option("p", "./datasets/", "data", "folder of the data sets; mnist comes with the project"),
    "batch_size": Option(None, "60", "batch_size", "images per step"),
    "optim": Option("o", "adam", "optimizer", "the optimiser: adam, adamw or sgd", str.lower),
    "learn_rate": Option("lr", "0.0012", "lr", "learning rate"),
    "iter": Option("i", "50000", "end_iter", "iterations of each round", _iterations),
    "rounds": Option("r", "26", "prune_iterations", "prunings; there is one more training", _rounds),
    "step": Option("es", "-1", "valid_freq", "evaluate after so many steps; -1: every epoch", _every),
    "rewind": Option(
        "rw", "0", "rewind", "reset to the weights of this iteration, or this fraction of a round below 1"
    ),
    "prune_rate": Option(
        "pr", "0.2", "prune_percent", "fraction of the surviving weights that a round prunes", _percent
    ),
    "fc_rate": Option("fc", None, "fc_percent", "the same for fully connected layers (default: the same)", _percent),
    "recover": Option(
        None, None, "root", "continue from the results in this folder, the --save of an earlier command", _root
    ),
    "save": Option("s", "./experiments/", "root", "folder that gets the results"),
    "seed": Option("rs", "0", "seed", "of initial weights, validation split and data order"),
    "gpu": Option(None, None, "gpu", "number of the GPU, or cpu (default: a GPU where there is one)"),
}
SWITCHES = {
    "prune_global": "compare the weights of all layers with each other",
    "random": "give survivors fresh random weights rather than their initial ones",
    "quiet": "print the verdict and the files only",
    "debug": "tracebacks with error messages",
}
NAMES = {name: f"--{name}" for name in flags.FIELDS} | {option.setting: f"--{name}" for name, option in OPTIONS.items()}
NAMES |= {"arch_type": "net", "dataset": "dataset"}  # what messages call the settings


def parser() -> flags.Parser:
    """The parser of this command line. Values stay text: `parse` checks them all together."""
    about = "Find lottery tickets. The same command again continues where it stopped."
    made = flags.Parser(prog="python lth", description=about)
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
    dataset = DATASETS.get(known.dataset.lower(), known.dataset)
    known.data = str(names.holder(dataset, Path(known.data)))
    asked = {
        "arch_type": NETS.get(known.net.lower(), known.net),
        "dataset": dataset,
        "prune_type": "reinit" if known.random else "lt",
        "prune_scope": "global" if known.prune_global else "layer",
    }
    if known.random and known.rewind != OPTIONS["rewind"].default:
        problems.append("--rewind is the point to reset to, and --random resets to fresh weights: leave out one")
    if known.recover is not None and known.save != OPTIONS["save"].default:
        problems.append("--recover is the folder that gets the results: leave out --save")
    known.save = known.save if known.recover is None else None
    for name, option in OPTIONS.items():
        if (text := getattr(known, name)) is not None:
            try:
                asked[option.setting] = option.translate(text)
            except ValueError as error:
                problems.append(f"--{name} {str(error).strip()}, not {text!r}")
    if "end_iter" in asked:
        try:
            asked["rewind"] = str(checks.rewind("--rewind", _moment(known.rewind), int(known.iter)))
        except ValueError as error:
            problems.append(str(error))
    try:
        config = flags.parse([f"--{name}={value}" for name, value in asked.items()])
    except ConfigError as error:
        problems += error.named(NAMES).problems
    if problems:
        raise ConfigError(*problems)
    config = replace(config, quiet=known.quiet, debug=known.debug)
    if known.recover is not None:
        _check_recovered(config)
    return config


def _check_recovered(config: Config) -> None:
    """ConfigError unless there are results of these settings to continue."""
    from lth.records import tables
    from lth.run import tasks

    (run,) = tasks.runs_of(config)
    if not (run.dumps / "config.json").exists():
        have = "".join(f"\n  {run.dumps}" for run in tables.find(config.root))
        raise ConfigError(
            f"--recover must hold results of these settings, in {run.dumps}, not only{have or ' nothing'}"
        )


def main(argv: Sequence[str]) -> int:
    """Run or continue the experiment that the command line asks for, and show its results."""
    config = parse(argv)
    try:
        return command.perform(config, argv)
    except ConfigError as error:
        raise error.named(NAMES) from error.__cause__


def installed() -> None:
    """The command `lth` that pip installs."""
    sys.exit(command.exit_code(main, sys.argv[1:]))


if __name__ == "__main__":
    installed()
