"""The command line of main.py: flags made from the fields of `Config`, presets, one message for all mistakes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from lth.settings import VERSION, names
from lth.settings.arms import ARMS, CONTROLS
from lth.settings.config import Config, rate_twice
from lth.settings.problems import ConfigError, Problem, nearest
from lth.settings.values import number, parse_value

T = TypeVar("T")
FIELDS = {spec.name: spec for spec in dataclasses.fields(Config)}

# Figure 2 of Frankle & Carbin (arXiv:1803.03635), evaluated every 100 iterations as in their figures.
_CONV = {"dataset": "cifar10", "batch_size": "60", "prune_percent": "20", "output_percent": "10"}
_DEEP = {
    "dataset": "cifar10",
    "optimizer": "sgd",
    "lr": "0.1",
    "momentum": "0.9",
    "weight_decay": "1e-4",
    "augment": True,
    "prune_percent": "20",
    "output_percent": "0",
    "prune_scope": "global",
}
_MNIST = {"dataset": "mnist", "batch_size": "60", "prune_percent": "20", "output_percent": "10"}
PRESETS: dict[str, dict[str, Any]] = {
    "lenet": {"arch_type": "fc1", **_MNIST, "end_iter": "50000it", "lr": "1.2e-3", "pixels": "unit"},
    "conv2": {"arch_type": "conv2", **_CONV, "end_iter": "20000it", "lr": "2e-4", "conv_percent": "10"},
    "conv4": {"arch_type": "conv4", **_CONV, "end_iter": "25000it", "lr": "3e-4", "conv_percent": "10"},
    "conv6": {"arch_type": "conv6", **_CONV, "end_iter": "30000it", "lr": "3e-4", "conv_percent": "15"},
    "resnet18": {"arch_type": "resnet20", **_DEEP, "end_iter": "30000it", "batch_size": "128"},
    "vgg19": {"arch_type": "vgg19", **_DEEP, "end_iter": "112000it", "batch_size": "64"},
}
PRESETS["resnet18"]["lr_milestones"] = ["20000it", "25000it"]
PRESETS["vgg19"]["lr_milestones"] = ["56000it", "84000it"]
for _preset in PRESETS.values():
    _preset |= {"valid_freq": "100it", "test_freq": "500it"}


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError, knows --version, and takes flags spelled with hyphens too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.add_argument("--version", action="version", version=f"{self.prog} {VERSION}", help="print the version")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it."""
        known = {name.replace("_", "-"): name for name in self._option_string_actions}
        words = []
        for word in args:
            flag, equals, value = word.partition("=")
            words.append(f"{known.get(flag.replace('_', '-'), flag)}{equals}{value}" if flag[:2] == "--" else word)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(re.sub(r"^argument (\S+?)(/\S+)?: ", r"\1: ", message))


def typed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """A parser of values as argparse takes it, which says in its own words what is wrong."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None

    return parsed


def parser(prog: str = "main.py") -> argparse.ArgumentParser:
    """The parser of all flags, in groups. Values stay text: `parse` checks them all together."""
    controls = {f"ARM_{name}": control.help for name, control in CONTROLS.items()}
    arms = {name: arm.help for name, arm in ARMS.items()} | controls
    presets = {name: " ".join(as_argv(settings)) for name, settings in PRESETS.items()}
    made = Parser(
        prog=prog,
        usage="%(prog)s [flags]",
        description="Lottery tickets: train, prune, reset, train again (Frankle & Carbin, ICLR 2019).\n\n"
        f"  python {prog} --prune_type lt reinit --prune_percent 20 --prune_iterations 10 --end_iter 5\n"
        f"  python {prog} --preset lenet --trials 5\n\n"
        "The same command again continues where it stopped.",
        epilog="Durations: 5 or 5ep is epochs, 500it iterations, 1% of a round.\n\n"
        f"Arms (--prune_type):\n{_table(arms)}\n\n"
        f"Presets; flags given beside them win:\n{_table(presets)}",
    )
    groups: dict[str, Any] = {}
    for spec in FIELDS.values():
        facts = spec.metadata
        if facts["group"] not in groups:
            groups[facts["group"]] = made.add_argument_group(facts["group"])
        shown = "" if spec.default in (None, ()) or spec.default is False else f" (default: {_shown(spec.default)})"
        options: dict[str, Any] = {
            "dest": spec.name,
            "default": argparse.SUPPRESS,
            "help": (facts["help"] + shown).replace("%", "%%"),
        }
        if spec.type == "bool":
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = (
                "|".join(facts["choices"])
                if "choices" in facts and len(facts["choices"]) < 6
                else spec.name.split("_")[-1].upper()
            )
            options["nargs"] = "+" if facts.get("many") else None
        groups[facts["group"]].add_argument(f"--{spec.name}", *facts.get("aliases", ()), **options)
    suppressed: dict[str, Any] = {"default": argparse.SUPPRESS}
    run = groups["experiment"]
    run.add_argument(
        "--preset", metavar="NAME", help=f"settings of a published experiment: {', '.join(PRESETS)}", **suppressed
    )
    run.add_argument("--config", metavar="FILE", help="repeat the run of this config.json", **suppressed)
    prune = groups["pruning and resetting"]
    prune.add_argument(
        "--prune_pc",
        metavar="P",
        help="in place of a percent a round: fraction pruned in all, by --prune_rounds",
        **suppressed,
    )
    prune.add_argument("--prune_rounds", metavar="N", help="prunings that --prune_pc takes (default: 5)", **suppressed)
    run.add_argument(
        "--sweep",
        metavar="NAME=VALUE,VALUE",
        nargs="+",
        help="an experiment for every combination of these values, side by side: lr=1.2e-3,1e-4 arch_type=fc1,lenet5; "
        "they stand in for a flag of the same name",
        **suppressed,
    )
    return made


def parse(argv: Sequence[str], prog: str = "main.py", swept: Mapping[str, Any] | None = None) -> Config:
    """The settings that the command line asks for, with those of one combination of --sweep (`swept`) if it has that.
    Raises ConfigError with all mistakes at once."""
    made = parser(prog)
    known, unknown = made.parse_known_args(argv)
    given = vars(known)
    problems = unknown_problems(made, unknown)
    if given.pop("sweep", None) and swept is None:
        problems.append("--sweep asks for several experiments, and this is one")
    given |= swept or {}

    settings: dict[str, Any] = {}
    for source, read in (("config", _config_file), ("preset", _preset_settings)):
        if source in given:
            try:
                settings |= read(given.pop(source), given)
            except ConfigError as error:
                problems += error.problems
    if swept is not None:  # the name in a config.json was one experiment's
        settings.pop("name", None)
    whole: dict[str, Any] = {}
    try:
        whole = _whole_pruning(given)
    except ConfigError as error:
        problems += error.problems
    given |= whole
    settings = {name: value for name, value in settings.items() if name not in _ruled_out(given, bool(whole))} | given

    values = {}
    for name, value in settings.items():
        try:
            values[name] = parse_value(FIELDS[name], value)
        except ValueError as error:
            meant = _meant(value, FIELDS[name].metadata.get("choices", ()))
            problems.append(Problem(name, f"{error}, not {_joined(value)!r}{meant}"))
    try:
        config = Config(**values)
    except ConfigError as error:
        problems += error.problems
        config = Config()
    problems += rate_twice(given)
    if {"arch_type", "dataset"} & settings.keys() <= values.keys():
        arch_type, dataset, data = (
            values.get(name, getattr(config, name)) for name in ("arch_type", "dataset", "data")
        )
        problems += names.problems(arch_type, dataset, data=data)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return config


def _meant(value: Any, choices: Iterable[str]) -> str:
    words = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return next((hint for word in words if word not in choices and (hint := nearest(str(word), choices))), "")


def unknown_problems(made: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """What to say about words of a command line that the parser could not place."""
    flags = [name for action in made._actions for name in action.option_strings]
    problems, values = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        if word.startswith("-"):
            problems.append(f"{flag} is no flag of this program{nearest(flag, flags)}")
            values = not equals  # the words that follow were meant as its values
        elif not values:
            problems.append(f"{word!r} does not belong to any flag")
    return problems


def _joined(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _table(rows: Mapping[str, str]) -> str:
    """A line per name, broken between words at the width of the terminal."""
    columns, wide = max(shutil.get_terminal_size().columns - 2, 40), max(map(len, rows)) + 4
    return "\n".join(
        textwrap.fill(
            f"  {name:{wide - 2}}{text}",
            columns,
            subsequent_indent=" " * wide,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, text in rows.items()
    )


def _shown(value: Any) -> str:
    return (
        " ".join(map(str, value))
        if isinstance(value, tuple)
        else "data beside main.py"
        if value == FIELDS["data"].default
        else str(value)
    )


def as_argv(given: Mapping[str, Any]) -> list[str]:
    """Settings as the words of a command line; a bool is --name or --no-name."""
    argv: list[str] = []
    for name, value in given.items():
        if isinstance(value, bool):
            argv.append(f"--{name}" if value else f"--no-{name}")
        else:
            argv += [f"--{name}", *(map(str, value) if isinstance(value, (list, tuple)) else [str(value)])]
    return argv


def _preset_settings(name: str, given: Container[str]) -> dict[str, Any]:
    if name not in PRESETS:
        must = f"must be one of {', '.join(PRESETS)}, not {name!r}{nearest(name, PRESETS)}"
        raise ConfigError(Problem("preset", must))
    return PRESETS[name]


def _config_file(path: str, given: Container[str]) -> dict[str, Any]:
    """The settings of a run's config.json, those left out that are `given` beside it or stand for a default."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError("it is not a regular file")
        settings = dict(json.loads(Path(path).read_text(encoding="utf-8"))["settings"].items())
        unknown = [name for name in settings if name not in FIELDS]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(Problem("config", f"{path} cannot be read as the config.json of a run: {error}")) from None
    if unknown:
        raise ConfigError(
            Problem("config", f"{path} has settings that this version does not know: {', '.join(unknown)}")
        )
    data = settings.pop("data", None)
    if data is not None and "data" not in given:
        if not Path(str(data)).is_dir():
            raise ConfigError(
                Problem("config", f"{path} used the data in {data}, which is no folder here: give --data")
            )
        settings["data"] = data
    return settings


def _ruled_out(given: dict[str, Any], whole: bool) -> set[str]:
    """The settings of a preset or a config.json that cannot stand beside a flag that was given: the flag wins. `whole`:
    --prune_pc was."""
    rates = {"prune_percent", "conv_percent", "fc_percent", "output_percent"}
    ruled_out = rates if whole or "target_remaining" in given else set[str]()
    ruled_out |= {"target_remaining"} if rates & given.keys() else set()
    return ruled_out | ({"momentum", "nesterov"} if given.get("optimizer", "sgd") != "sgd" else set())


def _whole_pruning(given: dict[str, Any]) -> dict[str, Any]:
    """--prune_pc and --prune_rounds, taken out of `given`, as the percent and the rounds that they mean."""
    if "prune_pc" not in given and "prune_rounds" not in given:
        return {}
    problems: list[str] = []
    parsed: dict[str, Any] = {}
    for name, parse_one in (
        ("prune_pc", number(float, 0, 1, above=True, below=True)),
        ("prune_rounds", number(int, 1, 9998)),
    ):
        try:
            parsed[name] = parse_one(text) if (text := given.pop(name, None)) is not None else None
        except ValueError as error:
            problems.append(Problem(name, f"{error}, not {text!r}"))
    if parsed.get("prune_pc", 1) is None:
        problems.append(Problem("prune_rounds", "is the number of prunings that reach --prune_pc: give --prune_pc too"))
    clash = [name for name in ("prune_percent", "prune_iterations", "target_remaining") if name in given]
    if clash:
        told = "already decides the number of rounds and what each prunes"
        problems.append(Problem("prune_pc", f"{told}: leave out --{' --'.join(clash)}"))
    if problems:
        raise ConfigError(*problems)
    rounds = parsed["prune_rounds"] or 5
    percent = 100 * (1 - (1 - parsed["prune_pc"]) ** (1 / rounds))
    return {"prune_percent": str(percent), "prune_iterations": str(rounds + 1)}
