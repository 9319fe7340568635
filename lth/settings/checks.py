"""Errors in what a user asked for: problems of settings (a name and a sentence), and checks of function arguments.

The checks return the argument. Their errors name it, the value received and what is valid: TypeError for a value of
the wrong type, ValueError otherwise.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

SYNONYMS = {  # what other programs and libraries call our settings
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
    """A setting and a sentence about its value, such as `must be a number above 0, not '-1'`.

    As a string it starts with the flag of main.py; ConfigError.named replaces this by other names.
    """

    setting: str
    sentence: str

    def __new__(cls, setting: str, sentence: str) -> Problem:
        problem = super().__new__(cls, f"--{setting} {sentence}")
        problem.setting, problem.sentence = setting, sentence
        return problem

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return self.setting, self.sentence


class ConfigError(ValueError):
    """Invalid settings. `problems` has a Problem per setting, or sentences; the message has a line for each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def named(self, names: Mapping[str, str]) -> ConfigError:
        """The same error with settings called by their `names`; a setting without an entry keeps its own name."""
        return ConfigError(
            *(f"{names.get(p.setting, p.setting)} {p.sentence}" if isinstance(p, Problem) else p for p in self.problems)
        )


@contextmanager
def collect_errors(problems: list[str]) -> Iterator[None]:
    """Append the problems of a ConfigError raised within the context to `problems`, and suppress it."""
    try:
        yield
    except ConfigError as error:
        problems += error.problems


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`: did you mean ...?` with the choice that `word` is a synonym of or most similar to; "" if there is none."""
    plain = word.lower().lstrip("-").replace("-", "_")
    spellings = {choice.lower().lstrip("-"): choice for choice in choices}
    matches = [setting for setting, words in SYNONYMS.items() if setting in spellings and plain in words.split()]
    matches += difflib.get_close_matches(plain, spellings, n=1, cutoff=0.65)
    return f": did you mean {spellings[matches[0]]}?" if matches else ""


def short_repr(value: Any) -> str:
    """The repr of a value or, if that is long, its type."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def error_with_type(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def error_message(error: BaseException) -> str:
    """The first line of an error's message, or its type if there is no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def raised_by_lth(error: BaseException) -> bool:
    """Whether the error was raised by a line of this library, not by code that it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == "lth"


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number from `low` to `high`."""
    expected = f"a whole number of at least {low}" + (f" and at most {high}" if high is not None else "")
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be {expected}, not {short_repr(value)}")
    if not low <= value.__index__() or (high is not None and value.__index__() > high):
        raise ValueError(f"{name} must be {expected}, not {value}")
    return int(value.__index__())


def fraction(name: str, value: Any) -> float:
    """A number from 0 to below 1."""
    expected = f"{name} must be a fraction from 0 to below 1, not"
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{expected} {short_repr(value)}")
    if not 0 <= float(value) < 1:
        raise ValueError(f"{expected} {value}" + (f": {value} percent is {value / 100:g}" if 1 <= value < 100 else ""))
    return float(value)


def of_type(name: str, value: Any, kind: type[T], expected: str) -> T:
    """A value of the type `kind`, which the error calls `expected`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {expected}, not {short_repr(value)}")
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
    expected = f"one of {', '.join(choices)}"
    if of_type(name, value, str, expected) not in choices:
        raise ValueError(f"{name} must be {expected}, not {value!r}{did_you_mean(value, choices)}")
    return value


def path(name: str, value: Any) -> Path:
    """The path of a file or folder, which need not exist."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(value, bytes) or not str(value):
        raise TypeError(f"{name} must be a path, not {short_repr(value)}")
    return Path(value)


def device(name: str, value: Any) -> str | None:
    """The value of --gpu for None (a GPU if there is one), cpu, mps, cuda, cuda:1, a number or a torch.device."""
    if value is None:
        return None
    match = re.fullmatch(r"(cpu|mps|cuda)(?::(\d+))?|(\d+)", str(value))
    is_device = not isinstance(value, bool) and type(value).__name__ in ("str", "int", "device")
    if not is_device or not match:
        kind = ValueError if is_device else TypeError
        raise kind(f"{name} must be None, 'cpu', 'cuda', 'cuda:0', 'mps' or a torch.device, not {short_repr(value)}")
    return match[1] if match[1] in ("cpu", "mps") else match[2] or match[3] or "0"


def known_arguments(function: str, arguments: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Raise a TypeError unless all keyword `arguments` of `function` are among `allowed`."""
    for name in arguments:
        if name not in allowed:
            raise TypeError(f"{function} has no argument {name!r}{did_you_mean(name, allowed)}")


def run_all(*steps: Callable[[], Any]) -> tuple[Any, ...]:
    """Call all `steps` and return their results. Raise one ConfigError with the problems of all, each once."""
    results, problems = list[Any](), list[str]()
    for step in steps:
        with collect_errors(problems):
            results.append(step())
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return tuple(results)
