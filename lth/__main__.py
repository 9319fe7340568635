"""`python lth lenet mnist --rounds 20 --prune_rate 0.2`: a short command line, translated into that of main.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
if not __package__:  # `python lth` looks for modules in lth/, where they would be found under the wrong names
    sys.path[0] = str(PROJECT)

from lth.commands import command  # noqa: E402
from lth.settings import checks, flags, names  # noqa: E402
from lth.settings.config import Config  # noqa: E402
from lth.settings.problems import ConfigError  # noqa: E402
from lth.settings.values import LONGEST, number  # noqa: E402

NETS = {"lenet": "fc1", "resnet": "resnet20", "vgg": "vgg16"}  # other names of models under archs/
DATASETS = {"fashion": "fashionmnist"}


COMMANDS = {  # with the flags of a script, and the module whose `main` they are
    "run": "lth.commands.command",
    "plot": "lth.commands.combine",
    "reproduce": "lth.claims.reproduce",
    "audit": "lth.api.audit_files",
}


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


def _iterations(text: str) -> str:
    return f"{number(int, 1, LONGEST)(text)}it"


def _recovered(text: str) -> str:
    from lth.records import folders  # with pandas

    return str(folders.root_of("", Path(text)))


def _number(text: str) -> int | float | str:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


OPTIONS = {
    "data": Option("p", "./datasets/", "data", "folder of the data sets; mnist comes with the project"),
    "batch_size": Option(None, "60", "batch_size", "images per step"),
    "optim": Option("o", "adam", "optimizer", "the optimiser: adam, adamw or sgd", str.lower),
    "learn_rate": Option("lr", "0.0012", "lr", "learning rate"),
    "iter": Option("i", "50000", "end_iter", "iterations of each round", _iterations),
    "rounds": Option(
        "r", "26", "prune_iterations", "prunings, one less than trainings", lambda n: str(number(int, 0, 9998)(n) + 1)
    ),
    "step": Option(
        "es",
        "-1",
        "valid_freq",
        "iterations between evaluations; -1: every epoch",
        lambda n: "1" if n == "-1" else _iterations(n),
    ),
    "rewind": Option("rw", "0", "rewind", "iteration of round 0 to reset to, or fraction of a round below 1"),
    "prune_rate": Option("pr", "0.2", "prune_percent", "fraction of surviving weights pruned per round", _percent),
    "fc_rate": Option("fc", None, "fc_percent", "the same for fully connected layers (default: the same)", _percent),
    "recover": Option(None, None, "root", "continue the results in this folder, an earlier --save", _recovered),
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
    about = (
        "Find lottery tickets. The same command again continues where it stopped. More flags, and other programs:\n\n"
    )
    about += "  lth run        as python main.py\n  lth plot       as python combine_plots.py\n"
    about += "  lth reproduce  as python reproduce.py\n  lth audit      check saved tickets: lth audit --help"
    made = flags.Parser(prog="lth", description=about)
    made.add_argument("net", help="lenet (fc1), resnet (resnet20), vgg (vgg16) or any model under archs/")
    made.add_argument("dataset", help=f"{', '.join(names.KNOWN)} or a file of yours: see --data")
    for name, (short, default, _, help, _) in OPTIONS.items():
        told = f"{help} (default: {default})" if default else help
        spelled = [f"-{short}"] * bool(short) + [f"--{name}"]
        alone: dict[str, str] = {"nargs": "?", "const": "0"} if name == "gpu" else {}
        made.add_argument(*spelled, dest=name, metavar=name.upper(), default=default, help=told, **alone)  # type: ignore
    for name, help in SWITCHES.items():
        made.add_argument(f"--{name}", action="store_true", help=help)
    return made


def parse(argv: Sequence[str]) -> Config:
    """The settings that the command line asks for. ConfigError with all mistakes at once."""
    made = parser()
    known, unknown = made.parse_known_args(argv)
    problems = flags.unknown_problems(made, unknown)
    if known.random and known.rewind != OPTIONS["rewind"].default:
        problems.append("--rewind is the point to reset to, and --random resets to fresh weights: leave out one")
    if known.recover is not None and known.save != OPTIONS["save"].default:
        problems.append("--recover is the folder that gets the results: leave out --save")
    dataset = DATASETS.get(known.dataset.lower(), known.dataset)
    asked = {"arch_type": NETS.get(known.net.lower(), known.net), "dataset": dataset}
    asked["data"] = str(names.holder(dataset, Path(known.data)))
    asked["prune_type"] = "reinit" if known.random else "lt"
    asked["prune_scope"] = "global" if known.prune_global else "layer"
    for name, option in OPTIONS.items():
        text = getattr(known, name)
        if text is None or option.setting in asked:  # --save, with --recover
            continue
        try:
            asked[option.setting] = option.translate(text)
        except ValueError as error:
            problems.append(f"--{name} {str(error).strip()}, not {text!r}")
    if "end_iter" in asked:
        try:
            asked["rewind"] = str(checks.rewind("--rewind", _number(known.rewind), int(known.iter)))
        except (TypeError, ValueError) as error:
            problems.append(str(error))
    try:
        config = flags.parse([f"--{name}={value}" for name, value in asked.items()])
    except ConfigError as error:
        problems += error.named(NAMES).problems
    if problems:
        raise ConfigError(*problems)
    if known.recover is not None:
        _check_recovered(config)
    return replace(config, quiet=known.quiet, debug=known.debug)


def _check_recovered(config: Config) -> None:
    from lth.commands import tasks
    from lth.records import tables

    (run,) = tasks.runs_of(config)
    if not (run.dumps / "config.json").exists():
        have = "".join(f"\n  {run.dumps}" for run in tables.find(config.root)) or " nothing"
        raise ConfigError(f"--recover must hold results of these settings, in {run.dumps}, not only{have}")


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
