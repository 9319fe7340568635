"""The command line of main.py: flags made from the fields of `Config`, presets and sweeps."""

import argparse
import itertools
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from lth.settings import VERSION, names
from lth.settings.arms import ARMS, CONTROLS, CRITERIA
from lth.settings.checks import ConfigError, Problem, collect_errors, did_you_mean
from lth.settings.config import PRUNE, RATES, RUN, Config
from lth.settings.values import as_text, number

T = TypeVar("T")
FIELDS = {spec.name: spec for spec in fields(Config)}

# Figure 2 of Frankle & Carbin (arXiv:1803.03635), evaluated every 100 iterations as in their figures.
EVERY = "--valid_freq 100it --test_freq 500it --prune_percent 20"  # in all presets
_ADAM = "--batch_size 60 --output_percent 10"
_SGD = "--optimizer sgd --lr 0.1 --momentum 0.9 --weight_decay 1e-4 --augment --output_percent 0 --prune_scope global"
PRESETS = {
    "lenet": f"--arch_type fc1 --dataset mnist --end_iter 50000it --lr 1.2e-3 --pixels unit {_ADAM}",
    "conv2": f"--arch_type conv2 --dataset cifar10 --end_iter 20000it --lr 2e-4 --conv_percent 10 {_ADAM}",
    "conv4": f"--arch_type conv4 --dataset cifar10 --end_iter 25000it --lr 3e-4 --conv_percent 10 {_ADAM}",
    "conv6": f"--arch_type conv6 --dataset cifar10 --end_iter 30000it --lr 3e-4 --conv_percent 15 {_ADAM}",
    "resnet18": "--arch_type resnet20 --dataset cifar10 --end_iter 30000it --lr_milestones 20000it 25000it "
    f"--batch_size 128 {_SGD}",
    "vgg19": "--arch_type vgg19 --dataset cifar10 --end_iter 112000it --lr_milestones 56000it 84000it "
    f"--batch_size 64 {_SGD}",
}
METAVARS = {"int": "N", "float": "X", "Duration": "TIME", "Path": "FOLDER", "TicketName": "RUN", "str": "NAME"}
COMMANDS = {"main.py": "run", "combine_plots.py": "plot", "reproduce.py": "reproduce"}  # scripts as commands of lth
LTH = ("lth", "__main__")  # the stem of sys.argv[0] in the program lth


class _Help(argparse.RawDescriptionHelpFormatter):
    """One line per flag where possible, without `--no-NAME`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        flags = ", ".join(name for name in action.option_strings if not name.startswith("--no-"))
        value = f"{action.metavar or '|'.join(action.choices or [])}{' ...' if action.nargs == '+' else ''}"
        return f"{flags} {value}".strip() or action.dest


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError, has --version, and accepts hyphens in flags. Its name is that of the script,
    `prog`, or `lth run`, `lth plot` or `lth reproduce` if it was started by such a command."""

    def __init__(self, prog: str, **options: Any) -> None:
        self.script, name = prog, prog
        if Path(sys.argv[0]).stem in LTH and sys.argv[1:2] == [COMMANDS.get(prog)]:
            name = f"lth {COMMANDS[prog]}"
        super().__init__(prog=name, allow_abbrev=False, formatter_class=_Help, **options)
        self.description = self.as_called(self.description or "")
        self.color = False  # Python 3.14 would colour --help
        self.add_argument("--version", action="version", version=f"{self.prog} {VERSION}", help="print the version")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, with hyphens and underscores alike."""
        known = {name.replace("_", "-"): name for name in self._option_string_actions}
        words = []
        for word in args:
            flag, equals, value = word.partition("=")
            words.append(f"{known.get(flag.replace('_', '-'), flag)}{equals}{value}" if flag[:2] == "--" else word)
        return super().parse_known_args(words, namespace)

    def as_called(self, text: str) -> str:
        """`text` with `python main.py` and the like replaced by the command that started the program."""
        return text if self.prog == self.script else text.replace(f"python {self.script}", self.prog)

    def error(self, message: str) -> NoReturn:
        text = re.sub(r"^argument (\S+?)(/\S+)?: ", r"\1 ", message)
        raise ConfigError(re.sub(r"not allowed with argument (\S+?)(/\S+)?$", r"cannot be given with \1", text))


def argparse_type(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse` as a type for argparse, which would not show the message of a ValueError."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None

    return parsed


def make_parser(prog: str = "main.py") -> Parser:
    """The parser of all flags, in groups. It leaves values as text, so that `parse` can report all problems at once."""
    arms_by_family: dict[str, dict[str, str]] = {}
    for name, arm in ARMS.items():
        if not name.startswith("ticket_"):
            arms_by_family.setdefault(arm.family, {})[name] = arm.help
    arms = "\n".join(f" {family}\n{_table(members)}" for family, members in arms_by_family.items())
    controls = {f"ARM_{name}": control.help for name, control in CONTROLS.items() if name not in ARMS}
    controls[", ".join(f"ARM_{name}" for name in CONTROLS if name in ARMS)] = "the same masks, starts as in that arm"
    criteria = {name: score.__doc__ or "" for name, score in CRITERIA.items()}
    parser = Parser(
        prog=prog,
        usage="%(prog)s [flags]",
        description="Lottery tickets: train, prune, reset, train again (Frankle & Carbin, ICLR 2019).\n\n"
        f"  python {prog} --prune_type lt reinit --prune_percent 20 --prune_iterations 10 --end_iter 5\n"
        f"  python {prog} --preset lenet --trials 5\n\n"
        "The same command again continues where it stopped. Times are durations: 5 or 5ep is epochs, 500it\n"
        "iterations, 1% of a round. --no-NAME turns a switch off.",
        epilog=f"Arms (--prune_type):\n{arms}\n"
        f"and controls of any that finds masks (those of lt: ticket_reinit, ...):\n{_table(controls)}\n\n"
        f"Criteria (--prune_method); the lowest are pruned:\n{_table(criteria)}\n\n"
        f"Presets, all with {EVERY}; given flags win:\n{_table(PRESETS)}",
    )
    groups: dict[str, Any] = {}
    for spec in FIELDS.values():
        facts, default = spec.metadata, "data beside main.py" if spec.name == "data" else spec.default
        default_text = "" if default in (None, ()) or default is False else f" (default: {as_text(default)})"
        help = (facts["help"] + default_text).replace("%", "%%")
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help}
        if spec.type == "bool":
            options["action"] = argparse.BooleanOptionalAction
        else:
            short = "choices" in facts and len(facts["choices"]) < 6
            kind = str(spec.type).partition(" ")[0].removeprefix("tuple[").rstrip(",")
            options["metavar"] = "|".join(facts["choices"]) if short else METAVARS[kind]
            options["nargs"] = "+" if facts.get("many") else None
        if facts["group"] not in groups:
            groups[facts["group"]] = parser.add_argument_group(facts["group"])
        groups[facts["group"]].add_argument(f"--{spec.name}", *facts.get("aliases", ()), dest=spec.name, **options)

    def add_option(group: str, name: str, metavar: str, help: str, **options: Any) -> None:
        groups[group].add_argument(f"--{name}", metavar=metavar, help=help, default=argparse.SUPPRESS, **options)

    fraction, count = number(float, 0, 1, above=True, below=True), number(int, 1, 9998)
    add_option(RUN, "preset", "NAME", "settings of a published experiment, listed below")
    add_option(RUN, "config", "FILE", "repeat the run of this config.json")
    combinations = "an experiment per combination: lr=1e-3,1e-4 arch_type=fc1,lenet5"
    add_option(RUN, "sweep", "NAME=VALUE,VALUE", combinations, nargs="+")
    in_all = "fraction pruned in all, instead of a percent per round"
    add_option(PRUNE, "prune_pc", "P", in_all, type=argparse_type(fraction))
    add_option(PRUNE, "prune_rounds", "N", "prunings that --prune_pc takes (default: 5)", type=argparse_type(count))
    return parser


def experiments(argv: Sequence[str]) -> dict[Config, dict[str, str]]:
    """The experiments of a command line, one per combination of --sweep, each with the values, as text, of the swept
    settings. Raises ConfigError with the problems of all combinations."""
    arguments = vars(make_parser().parse_known_args(argv)[0])
    if not arguments.get("sweep"):
        return {parse(argv): {}}
    problems = list[str]()
    if arguments.get("name"):
        problems.append("--name would give all combinations of --sweep one folder: leave it out")
    choices = _choices(arguments, problems)
    configs: dict[Config, dict[str, str]] = {}
    for values in itertools.product(*choices.values()):
        texts = dict(zip(choices, values, strict=True))
        with collect_errors(problems):
            config = parse(argv, combination={name: _sweep_value(name, text) for name, text in texts.items()})
            # fc1,FC1 is one experiment.
            model = names.canonical_model(config.arch_type, config.dataset, config.data)
            configs.setdefault(replace(config, arch_type=model, dataset=names.canonical_dataset(config.dataset)), texts)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return configs


def label(texts: Mapping[str, str]) -> str:
    """A short label of a combination: `lenet5 lr=1e-4`."""
    return " ".join(text if name in ("arch_type", "dataset") else f"{name}={text}" for name, text in texts.items())


def _choices(arguments: Mapping[str, Any], problems: list[str]) -> dict[str, list[str]]:
    """The values, as text, of each setting in --sweep. Problems are appended to `problems`."""
    flags, choices = make_parser()._option_string_actions, dict[str, list[str]]()
    words = [word.partition("=") for word in arguments["sweep"]]
    allowed = {"arch_type", "dataset", "seed"}  # besides the settings that decide a run's results
    if "target_remaining" in [*arguments, *(word for word, _, _ in words)]:
        allowed.add("prune_iterations")  # which then decides how much each round prunes
    for word, equals, values in words:
        name = flags[f"--{word}"].dest if f"--{word}" in flags else ""
        # A comma within a folder's name is not followed by a folder of results.
        texts = re.split(r",(?=[^,]*(?:saves|dumps)/)" if name == "ticket" else ",", values)
        if not equals or not all(texts):
            problems.append(f"--sweep must be NAME=VALUE,VALUE,..., not {word + equals + values!r}")
        elif name not in FIELDS:
            problems.append(f"--sweep {word} is no setting{did_you_mean(word, FIELDS)}")
        elif not FIELDS[name].metadata.get("changes_numbers", True) and name not in allowed:
            problems.append(f"--sweep {name} does not change what is trained: give --{name} itself, once for all")
        elif name in choices:
            problems.append(f"--sweep {name} is given twice: give all its values at once")
        else:
            choices[name] = list(dict.fromkeys(texts))
    return choices


def _sweep_value(name: str, text: str) -> Any:
    """A value in --sweep as the parser returns it for the flag."""
    if FIELDS[name].type == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    return text.split("+") if FIELDS[name].metadata.get("many") else text


def parse(argv: Sequence[str], prog: str = "main.py", combination: Mapping[str, Any] | None = None) -> Config:
    """The settings of a command line, with the values of a `combination` of --sweep. Raises ConfigError with all
    problems."""
    parser = make_parser(prog)
    namespace, unknown = parser.parse_known_args(argv)
    arguments, problems = vars(namespace), unknown_problems(parser, unknown)
    if arguments.pop("sweep", None) and combination is None:
        problems.append("--sweep asks for several experiments, and this is one")
    arguments |= combination or {}

    settings: dict[str, Any] = {}
    if "config" in arguments:
        with collect_errors(problems):
            settings |= _config_file(arguments.pop("config"), arguments)
    if (preset := arguments.pop("preset", None)) in PRESETS:
        settings |= vars(parser.parse_args([*EVERY.split(), *PRESETS[preset].split()]))
    elif preset is not None:
        expected = f"must be one of {', '.join(PRESETS)}, not {preset!r}{did_you_mean(preset, PRESETS)}"
        problems.append(Problem("preset", expected))
    if combination is not None:  # the name in a config.json belongs to one experiment
        settings.pop("name", None)
    has_prune_pc = "prune_pc" in arguments
    with collect_errors(problems):
        arguments |= _from_prune_pc(arguments)
    # A flag overrides the settings of a preset or config.json that it excludes.
    excluded = {*RATES} if has_prune_pc or "target_remaining" in arguments else set[str]()
    excluded |= {"target_remaining"} if RATES & arguments.keys() else set()
    excluded |= {"lr_milestones", "lr_gamma"} if arguments.get("lr_schedule") == "cosine" else set()
    excluded |= {"lr_schedule"} if "lr_milestones" in arguments else set()
    excluded |= {"momentum", "nesterov"} if arguments.get("optimizer", "sgd") != "sgd" else set()
    settings = {name: value for name, value in settings.items() if name not in excluded} | arguments

    with collect_errors(problems):
        config = Config(**settings)
        # Config cannot tell a prune_percent that is typed from its default.
        if config.target_remaining is not None and "prune_percent" in arguments:
            problems.append(Problem("target_remaining", "already decides what a round prunes: leave out prune_percent"))
    model = {name: settings.get(name, getattr(Config, name)) for name in ("arch_type", "dataset", "data")}
    if not model.keys() & {getattr(problem, "setting", "") for problem in problems}:
        problems += names.name_problems(model["arch_type"], model["dataset"], Path(model["data"]))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return config


def unknown_problems(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Problems for the words of a command line that the parser did not recognise."""
    problems, after_unknown = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        if word.startswith("-"):
            problems.append(f"{flag} is no flag of this program{did_you_mean(flag, parser._option_string_actions)}")
            after_unknown = not equals  # the next words are its values
        elif not after_unknown:
            problems.append(f"{word!r} does not belong to any flag")
    return problems


def _table(rows: Mapping[str, str]) -> str:
    """A line per name, wrapped at the width of the terminal."""
    columns, wide = max(shutil.get_terminal_size().columns - 2, 40), max(map(len, rows)) + 4
    return "\n".join(
        textwrap.fill(f"  {name:{wide - 2}}{text}", columns, subsequent_indent=" " * wide, break_on_hyphens=False)
        for name, text in rows.items()
    )


def as_argv(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the words of a command line; True and False are --name and --no-name."""
    argv: list[str] = []
    for name, value in settings.items():
        argv.append(f"--no-{name}" if value is False else f"--{name}")
        if not isinstance(value, bool):
            argv += map(str, value) if isinstance(value, (list, tuple)) else [str(value)]
    return argv


def _config_file(path: str, arguments: Collection[str]) -> dict[str, Any]:
    """The settings in a run's config.json, without `data` if that is among the `arguments` or is the default."""
    try:
        settings = dict(json.loads(Path(path).read_text(encoding="utf-8"))["settings"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(Problem("config", f"{path} cannot be read as the config.json of a run: {error}")) from None
    if unknown := [name for name in settings if name not in FIELDS]:
        text = f"{path} has settings that this version does not know: {', '.join(unknown)}"
        raise ConfigError(Problem("config", text))
    if settings.get("data") is None or "data" in arguments:
        settings.pop("data", None)
    elif not Path(str(settings["data"])).is_dir():
        text = f"{path} used the data in {settings['data']}, which is no folder here: give --data"
        raise ConfigError(Problem("config", text))
    return settings


def _from_prune_pc(arguments: dict[str, Any]) -> dict[str, Any]:
    """The prune_percent and prune_iterations for --prune_pc and --prune_rounds, which are removed from `arguments`."""
    fraction, rounds = arguments.pop("prune_pc", None), arguments.pop("prune_rounds", None)
    if fraction is None:
        if rounds is not None:
            raise ConfigError(Problem("prune_rounds", "is the number of prunings of --prune_pc: give --prune_pc too"))
        return {}
    if clash := [name for name in ("prune_percent", "prune_iterations", "target_remaining") if name in arguments]:
        text = f"already decides the number of rounds and what each prunes: leave out --{' --'.join(clash)}"
        raise ConfigError(Problem("prune_pc", text))
    rounds = rounds or 5
    return {"prune_percent": 100 * (1 - (1 - fraction) ** (1 / rounds)), "prune_iterations": rounds + 1}
