"""`python lth lenet mnist --rounds 20 --prune_rate 0.2`: a short command line, translated into that of main.py."""

import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # `python lth` looks for modules in lth/, where they would be found under the wrong names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from lth.commands import command
from lth.settings import flags, names, values
from lth.settings.checks import ConfigError
from lth.settings.config import Config
from lth.settings.values import LONGEST, number

NETS = {"lenet": "fc1", "resnet": "resnet20", "vgg": "vgg16"}  # further names of models under archs/
DATASETS = {"fashion": "fashionmnist"}
COMMANDS = {  # with the flags of a script: its function
    "run": "lth.commands.command:main",
    "plot": "lth.commands.command:combine",
    "reproduce": "lth.claims.reproduce:main",
    "audit": "lth.api.audit_files:main",
}
ABOUT = """Find lottery tickets. The same command again continues where it stopped. More flags, and other programs:

  lth run        as python main.py
  lth plot       as python combine_plots.py
  lth reproduce  as python reproduce.py
  lth audit      check saved tickets: lth audit --help"""


ITERATIONS, FRACTION = number(int, 1, LONGEST), number(float, 0, 1, below=True)
OPTIONS = (  # flags, setting of main.py, default, help, parser of values
    ("--data -p", "data", "./datasets/", "folder of the data sets; mnist comes with the project", str),
    ("--batch_size", "batch_size", "60", "images per step", str),
    ("--optim -o", "optimizer", "adam", "the optimiser: adam, adamw or sgd", str.lower),
    ("--learn_rate -lr", "lr", "0.0012", "learning rate", str),
    ("--iter -i", "end_iter", "50000", "iterations of each round", ITERATIONS),
    ("--rounds -r", "prune_iterations", "26", "prunings, one less than trainings", number(int, 0, 9998)),
    ("--step -es", "valid_freq", "-1", "iterations between evaluations; -1: every epoch", number(int, -1, LONGEST)),
    ("--rewind -rw", "rewind", "0", "iteration of round 0 to reset to, or fraction of it below 1", number(float, 0)),
    ("--prune_rate -pr", "prune_percent", "0.2", "fraction of surviving weights pruned per round", FRACTION),
    ("--fc_rate -fc", "fc_percent", None, "the same for fully connected layers (default: the same)", FRACTION),
    ("--save -s", "root", "./experiments/", "folder that gets the results", str),
    ("--recover", "recover", None, "continue the results in this folder, an earlier --save", str),
    ("--seed -rs", "seed", "0", "of initial weights, validation split and data order", str),
)
SWITCHES = (  # flag, setting, its values without and with the flag, help
    ("--prune_global", "prune_scope", "layer", "global", "compare the weights of all layers with each other"),
    ("--random", "prune_type", "lt", "reinit", "give survivors fresh random weights, not their initial ones"),
    ("--quiet", "quiet", False, True, "print the verdict and the files only"),
    ("--debug", "debug", False, True, "tracebacks with error messages"),
)
RATES = ("prune_percent", "fc_percent")
NAMES = {name: f"--{name}" for name in flags.FIELDS} | {setting: words.split()[0] for words, setting, *_ in OPTIONS}
NAMES |= {"arch_type": "net", "dataset": "dataset"}  # what messages call the settings


def make_parser() -> flags.Parser:
    """The parser of this command line, whose values are text for main.py's parser."""
    parser = flags.Parser(prog="lth", description=ABOUT)
    net = "lenet (fc1), resnet (resnet20), vgg (vgg16) or any model under archs/"
    parser.add_argument("arch_type", metavar="net", type=lambda name: NETS.get(name.lower(), name), help=net)
    dataset = f"{', '.join(names.TORCHVISION)} or a file of yours: see --data"
    parser.add_argument("dataset", type=lambda name: DATASETS.get(name.lower(), name), help=dataset)
    groups: dict[str, Any] = {}
    for exclusive in (("rewind", "prune_type"), ("root", "recover")):
        groups |= dict.fromkeys(exclusive, parser.add_mutually_exclusive_group())
    for words, setting, default, help, parse in OPTIONS:
        groups.get(setting, parser).add_argument(
            *words.split(),
            dest=setting,
            default=default,
            metavar=words.split()[0][2:].upper(),
            type=flags.argparse_type(parse),
            help=f"{help} (default: {default})" if default else help,
        )
    gpu = "number of the GPU, or cpu (default: a GPU if there is one)"
    parser.add_argument("--gpu", nargs="?", const="0", metavar="GPU", help=gpu)
    for flag, setting, without, value, help in SWITCHES:
        groups.get(setting, parser).add_argument(
            flag, dest=setting, action="store_const", default=without, const=value, help=help
        )
    return parser


def parse(argv: Sequence[str]) -> Config:
    """The settings of a command line. Raises ConfigError if it is not valid."""
    parser = make_parser()
    namespace, unknown = parser.parse_known_args(argv)
    problems = flags.unknown_problems(parser, unknown)
    arguments = vars(namespace) | {
        "data": str(names.data_folder(namespace.dataset, Path(namespace.data))),
        "end_iter": f"{namespace.end_iter}it",
        "prune_iterations": namespace.prune_iterations + 1,
        "valid_freq": "1" if namespace.valid_freq == -1 else f"{namespace.valid_freq}it",
        **{name: round(100 * getattr(namespace, name), 10) for name in RATES if getattr(namespace, name) is not None},
    }
    if (recover := arguments.pop("recover")) is not None:
        arguments["root"] = recover
    try:
        arguments["rewind"] = values.rewind("--rewind", namespace.rewind, namespace.end_iter)
    except ValueError as error:
        problems.append(str(error))
    try:
        config = flags.parse(flags.as_argv({name: value for name, value in arguments.items() if value is not None}))
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
    """Run or continue the experiment of a command line and show its results, or run one of COMMANDS."""
    if argv and argv[0] in COMMANDS:
        return int(pkgutil.resolve_name(COMMANDS[argv[0]])(argv[1:]))
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
