"""What is wrong with what a user asked for. A setting has a problem: its name and a sentence. An argument has an error
that names it, the value received and what is valid: TypeError for a value of the wrong kind, ValueError for others."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

SYNONYMS = {  # settings here, and the words of other programs and libraries for them
    "gpu": "device cuda gpus",
    "lr": "learning_rate learn_rate lrate",
    "jobs": "workers num_workers processes nproc",
    "end_iter": "num_epochs train_epochs epoch iterations iter iters steps",
    "prune_iterations": "rounds num_rounds levels prunings",
    "prune_percent": "prune_rate pruning_rate sparsity amount",
    "arch_type": "model model_name arch net network",
    "batch_size": "batch batchsize train_batch_size",
    "optimizer": "optim opt",
    "weight_decay": "wd l2",
    "root": "out output output_dir save save_dir results_dir logdir",
    "data": "data_dir datadir data_path datasets",
    "trials": "seeds runs repeats repetitions replicates",
    "seed": "trials random_seed manual_seed",
    "recover": "resume restart checkpoint",
    **{f"ticket_{control}": f"lt_{control}" for control in ("reinit", "shuffle", "sign", "shuffled_signs")},
}


class Problem(str):
    """A setting and a sentence that says what is wrong with it: `must be a number above 0, not '-1'`.

    As a string it names the flag of main.py; the other front doors name the setting in their own way.
    """

    setting: str
    sentence: str

    def __new__(cls, setting: str, sentence: str) -> Problem:
        made = super().__new__(cls, f"--{setting} {sentence}")
        made.setting, made.sentence = setting, sentence
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return self.setting, self.sentence


class ConfigError(ValueError):
    """Settings that cannot be run. `problems` holds each Problem, or a sentence about no setting; the message has a
    line for each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def named(self, names: Mapping[str, str]) -> ConfigError:
        """The same problems with the `names` that a front door has for the settings, by default their own."""
        return ConfigError(
            *(f"{names.get(p.setting, p.setting)} {p.sentence}" if isinstance(p, Problem) else p for p in self.problems)
        )


@contextmanager
def collect_errors(problems: list[str]) -> Iterator[None]:
    """Within it, a ConfigError adds its problems to the list."""
    try:
        yield
    except ConfigError as error:
        problems += error.problems


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`: did you mean ...?` with the choice that a mistyped word is nearest to or is a synonym of; else nothing."""
    bare = word.lower().lstrip("-").replace("-", "_")
    known = {choice.lower().lstrip("-"): choice for choice in choices}
    meant = [setting for setting, words in SYNONYMS.items() if setting in known and bare in words.split()]
    meant += difflib.get_close_matches(bare, known, n=1, cutoff=0.65)
    return f": did you mean {known[meant[0]]}?" if meant else ""


def short_repr(value: Any) -> str:
    """A value in a few words."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def error_with_type(error: BaseException) -> str:
    """The kind of an error of other code, and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def error_message(error: BaseException) -> str:
    """The first line of its message, or its kind."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def raised_by_lth(error: BaseException) -> bool:
    """Whether an error was raised by this library itself, not by what it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == "lth"


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number from `low` to `high`."""
    limits = f"a whole number of at least {low}" + (f" and at most {high}" if high is not None else "")
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be {limits}, not {short_repr(value)}")
    if not low <= value.__index__() or (high is not None and value.__index__() > high):
        raise ValueError(f"{name} must be {limits}, not {value}")
    return int(value.__index__())


def fraction(name: str, value: Any) -> float:
    """A number from 0 to below 1."""
    must = f"{name} must be a fraction from 0 to below 1, not"
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{must} {short_repr(value)}")
    if not 0 <= float(value) < 1:
        raise ValueError(f"{must} {value}" + (f": {value} percent is {value / 100:g}" if 1 <= value < 100 else ""))
    return float(value)


def of_type(name: str, value: Any, kind: type[T], told: str) -> T:
    """A value of a type; `told` is its name in the error."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {told}, not {short_repr(value)}")
    return value


def network(name: str, value: Any) -> Any:
    """A torch.nn.Module."""
    from torch import nn

    return of_type(name, value, nn.Module, "a torch.nn.Module")


def boolean(name: str, value: Any) -> bool:
    """True or False."""
    return of_type(name, value, bool, "True or False")


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """One of `choices`."""
    known = f"one of {', '.join(choices)}"
    if of_type(name, value, str, known) not in choices:
        raise ValueError(f"{name} must be {known}, not {value!r}{did_you_mean(value, choices)}")
    return value


def path(name: str, value: Any) -> Path:
    """A path, of a file or a folder, that need not exist."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(value, bytes) or not str(value):
        raise TypeError(f"{name} must be a path, not {short_repr(value)}")
    return Path(value)


def device(name: str, value: Any) -> str | None:
    """The setting --gpu that a device means: None (a GPU where there is one), cpu, cuda, cuda:1, mps, or a number."""
    if value is None:
        return None
    found = re.fullmatch(r"(cpu|mps|cuda)(?::(\d+))?|(\d+)", str(value))
    known = not isinstance(value, bool) and type(value).__name__ in ("str", "int", "device")
    if not known or not found:
        kind = ValueError if known else TypeError
        raise kind(f"{name} must be None, 'cpu', 'cuda', 'cuda:0', 'mps' or a torch.device, not {short_repr(value)}")
    return found[1] if found[1] in ("cpu", "mps") else found[2] or found[3] or "0"


def known_arguments(whose: str, given: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """TypeError if `given`, further arguments of the function `whose`, are not all among `allowed`."""
    for name in given:
        if name not in allowed:
            raise TypeError(f"{whose} has no argument {name!r}{did_you_mean(name, allowed)}")


def run_all(*steps: Callable[[], Any]) -> tuple[Any, ...]:
    """What the steps return; ConfigError with the problems of all of them, each once."""
    results, problems = list[Any](), list[str]()
    for step in steps:
        with collect_errors(problems):
            results.append(step())
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return tuple(results)
