"""Values of settings: durations, saved tickets, numbers in a range, names; from text, and as text."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lth.settings.checks import did_you_mean, short_repr

LONGEST = 10**9  # iterations or epochs that anything may last


@dataclass(frozen=True)
class Duration:
    """How long: `5` or `5ep` epochs, `500it` iterations, `1%` of a round: an `amount` of a `unit` (ep, it or %)."""

    amount: float
    unit: str = "ep"

    @classmethod
    def parse(cls, text: str) -> Duration:
        """The duration that `text` says; ValueError if it says none."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(ep|it|%)?", str(text).strip())
        if not found:
            raise ValueError("must be a duration such as 5 or 5ep (epochs), 500it (iterations) or 1% (of a round)")
        amount, unit = float(found[1]), found[2] or "ep"
        limit = 100 if unit == "%" else LONGEST
        if amount > limit:
            raise ValueError(f"must be at most {limit}{'' if unit == 'ep' else unit}")
        if unit == "it" and amount != int(amount):
            raise ValueError("must be a whole number of iterations")
        return cls(amount, unit)

    def iterations(self, epoch: int, whole: int = 0) -> int:
        """In iterations, for epochs of `epoch` and rounds of `whole` iterations; at least 1 unless it is zero."""
        scale = {"ep": epoch, "it": 1, "%": whole / 100}[self.unit]
        return max(round(self.amount * scale), 1 if self.amount else 0)

    def __str__(self) -> str:
        return f"{self.amount:.12g}{'' if self.unit == 'ep' else self.unit}"


def absolute_folder(folder: Path) -> Path:
    """The absolute path of a folder of results. Links are resolved unless dumps/ or saves/ itself is one (to another
    disk, say), whose target need not be beside the other."""
    here, there = Path(os.path.normpath(folder.absolute())), folder.resolve()
    return here if {"dumps", "saves"} & {*here.parts[-6:]} and here.resolve() == there else there


@dataclass(frozen=True)
class TicketName:
    """The saved ticket that --ticket names, `RUN` or `RUN:ROUND`; without a round the last finished one.

    folder: of a run, <root>/saves/<model>/<data>/<settings>/<arm>/seed<k>, or of an arm, without seed<k>; or the same
        under dumps/.
    """

    folder: Path
    round: int | None = None

    @classmethod
    def parse(cls, text: str) -> TicketName:
        """What `text` names; ValueError if there is no such folder."""
        folder, round = re.fullmatch(r"(.*?)(?::(\d{1,6}))?", text.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
        try:
            made = cls(absolute_folder(Path(folder)), int(round) if round else None)
            there = bool(folder) and made.folder.is_dir() and bool(made._parts)
        except (OSError, RuntimeError, ValueError):  # too long a name, links in a circle, a zero byte
            there = False
        if not there:
            raise ValueError(
                "must be the folder of an existing run, saves/<model>/<data>/<settings>/<arm>/seed<k>, or of its arm, "
                "and may end in :ROUND"
            )
        return made

    @property
    def _parts(self) -> tuple[str, ...]:
        """The 4 folders of an arm, or 5 of a run, that follow dumps/ or saves/."""
        parts = self.folder.parts
        return next((parts[-n:] for n in (4, 5) if len(parts) > n and parts[-n - 1] in ("dumps", "saves")), ())

    @property
    def name(self) -> str:
        """What the ticket is called wherever its files lie: `fc1/mnist/default/lt/seed0:7`."""
        return "/".join(self._parts) + (f":{self.round}" if self.round is not None else "")

    def __str__(self) -> str:
        return str(self.folder) + (f":{self.round}" if self.round is not None else "")


def rewind(name: str, value: Any, iterations: int) -> Duration:
    """Iterations, or a fraction below 1 of a round of `iterations`, as a duration."""
    must = f"{name} must be a number of iterations below {iterations}, the length of a round, or a fraction of a round "
    must += "below 1, not"
    if isinstance(value, bool) or not (hasattr(value, "__index__") or isinstance(value, float)):
        raise TypeError(f"{must} {short_repr(value)}")
    if not 0 <= value < iterations or (value >= 1 and value != int(value)):
        raise ValueError(f"{must} {value}")
    if not value:
        return Duration(0)
    return Duration(value if value >= 1 else min(max(round(value * iterations), 1), iterations - 1), "it")


def number(
    kind: type, low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Callable[[str], Any]:
    """A parser of numbers from `low` (exclusive if `above`) to `high` (exclusive if `below`)."""
    limits = f"{'a whole number' if kind is int else 'a number'} {'above' if above else 'at least'} {low}"
    limits += "" if high == math.inf else f", {'below' if below else 'at most'} {high}"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        fits = (low < value if above else low <= value) and (value < high if below else value <= high)
        if not fits or value == math.inf:
            raise ValueError(f"must be {limits}")
        return value

    return parse


def duration(*, zero: bool = False, percent: bool = False) -> Callable[[str], Duration]:
    """A parser of durations, which may be `zero` or a `percent` of a round."""

    def parse(text: str) -> Duration:
        value = Duration.parse(text)
        if not zero and value.amount == 0:
            raise ValueError("must be longer than 0")
        if not percent and value.unit == "%":
            raise ValueError("must be in epochs (5) or iterations (500it)")
        return value

    return parse


def matching(pattern: str, must: str) -> Callable[[str], str]:
    """A parser of words that match a regular expression."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {must}")
        return text

    return parse


def folder_path(text: str) -> Path:
    """The path of a folder, existing or new."""
    path = Path(text)
    there = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not there.is_dir():
        raise ValueError("must be a folder, or a new one")
    return path


def plain_name(text: str) -> str:
    """A word that may be the name of a folder."""
    if re.fullmatch(r"[\w.+=,-]{1,100}", text) and text.strip(".") and len(text.encode()) <= 200:
        return text
    raise ValueError("must be a plain name: at most 100 letters (200 bytes), digits and . _ - + = ,")


def as_plain_name(text: str) -> str:
    """The plain name that is nearest to `text`, which may be one."""
    plain = re.sub(r"[^\w.+=,-]", "_", text)[:50]  # of at most 4 bytes each
    return plain if plain.strip(".") else "_"


def dataset_name(text: str) -> str:
    """The name of a data set."""
    if text.endswith(".npz") or "/" in text:
        name = Path(text).name.removesuffix(".npz")
        raise ValueError(f"must be the name alone, {name}, and data the folder that it is in")
    return plain_name(text)


def parse_value(spec: dataclasses.Field[Any], value: Any) -> Any:
    """The value of the setting `spec` that `value` (text or already a value) stands for; ValueError if none."""
    if value is None and spec.default is None:
        return None
    if spec.metadata.get("many"):
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(dict.fromkeys(_parse_item(spec, item) for item in items))
    return _parse_item(spec, value)


def _parse_item(spec: dataclasses.Field[Any], item: Any) -> Any:
    facts = spec.metadata
    if "choices" in facts:
        if item not in facts["choices"]:
            known = f"{', '.join(facts['choices'])}{facts.get('or_else', '')}"
            raise ValueError(f"must be one of {known}, not {item!r}{did_you_mean(str(item), facts['choices'])}")
        return item
    if isinstance(item, bool) != (spec.type == "bool") or item is None:
        raise ValueError(f"must be {'True or False' if spec.type == 'bool' else 'a value'}, not {item!r}")
    if isinstance(item, (bool, TicketName)):  # a ticket may be of a run that is yet to be trained (lth.claims)
        return item
    try:
        return facts["parse"](str(item))
    except ValueError as error:
        raise ValueError(f"{error}, not {item!r}") from None


def as_text(value: Any) -> str:
    """A setting's value in one word, for a folder's name."""
    if isinstance(value, tuple):
        return "+".join(map(as_text, value))
    if isinstance(value, TicketName):
        return value.name
    return f"{value:.12g}" if isinstance(value, float) else str(value)
