"""Whether results are of the same experiment: of one model, one set of data, one rule, not only of the same settings.

A fingerprint of each (lth.training.fingerprint, lth.data.prints) stands in config.json and in every file under saves/.
Results without any, which older versions wrote, are gone on with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import safetensors

from lth.records.files import RecordError, problem
from lth.records.tables import SEED, Run, config_of
from lth.settings import combinations
from lth.settings.arms import ARMS
from lth.settings.config import Config
from lth.settings.values import as_text

WORDS = {
    "model": "model",
    "data": "data",
    "rule": "pruning rule",
    "optimizer": "optimiser",
    "loss": "loss",
    "ticket_round": "round of the ticket",
}
Prints = Mapping[str, str]  # fingerprints of the parts of an experiment, by names such as those in WORDS
Changes = Mapping[str, tuple[str, str]]  # settings by name: what they were, what they are


def recorded(run: Run) -> dict[str, str]:
    """The fingerprints that the results of a run say they are of; none where an older version wrote them."""
    found = config_of(run).get("fingerprint")
    if found is not None:
        return {str(key): str(value) for key, value in found.items()}
    for file in sorted(run.saves.glob("*.safetensors")):
        if prints := fingerprint_of(file):
            return prints
    return {}


def fingerprint_of(file: Path) -> dict[str, str]:
    """The fingerprints that a file says it belongs to; none if it does not say or cannot be read."""
    return parsed(_said_of_itself(file).get("fingerprint", ""))


def settings_of(file: Path) -> str:
    """The hash of the settings that a file says it belongs to (lth.records.tickets.identity); nothing if it does not
    say or cannot be read."""
    return _said_of_itself(file).get("identity", "")


def _said_of_itself(file: Path) -> dict[str, str]:
    try:
        if problem(file):
            return {}
        with safetensors.safe_open(file, framework="np") as opened:
            return opened.metadata() or {}
    except (safetensors.SafetensorError, RecordError, OSError, ValueError):
        return {}


def parsed(text: str) -> dict[str, str]:
    """`data=... model=...` as a dict."""
    return dict(part.split("=", 1) for part in text.split() if "=" in part)


def neighbours(run: Run) -> list[Run]:
    """All runs, begun or finished, of the settings' folder that `run` belongs to: other arms, other trials, itself."""
    found = set()
    for kind, name in (("dumps", "config.json"), ("saves", "initial.safetensors")):
        for file in run.folder(kind).parent.parent.glob(f"*/seed*/{name}"):
            if number := SEED.fullmatch(file.parent.name):
                place = (run.root, run.arch_type, run.dataset, run.settings, file.parent.parent.name)
                found.add(Run(*place, int(number[1])))
    return sorted(found, key=lambda run: (run.arm, run.seed))


def around(runs: Sequence[Run]) -> list[Run]:
    """These runs of one folder of settings, then all others that are there."""
    return [*runs, *(other for other in neighbours(runs[0]) if other not in runs)]


def differing(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The parts of an experiment that have other fingerprints in `new` than in `old`; those that one lacks do not."""
    return [name for name in new if old.get(name, new[name]) != new[name]]


def another(run: Run, now: Prints) -> list[str]:
    """What of an experiment with the fingerprints `now` the results of `run` are not of: `model`, `data`, ..."""
    return differing(recorded(run), now)


def other_results(runs: Sequence[Run], now: Prints, anew: bool = False) -> tuple[Run, list[str]] | None:
    """The first run whose results are of another experiment than that of the fingerprints `now`, and what of it is
    another: one of `runs` (unless they begin anew), or another arm or trial beside them."""
    for run in around(runs):
        if (differ := another(run, now)) and not (anew and run in runs):
            return run, differ
    return None


def other_settings(runs: Sequence[Run], config: Config, anew: bool = False) -> tuple[Run, Changes] | None:
    """The first run, as in `other_results`, whose results are of other settings than these, and which: what deciding
    ones were and are now. What the name of an arm means matters to its own results only, and to those beside them no
    setting that one of both does not look at."""
    finetune = "with the whole schedule again (now the arm lr_rewind)"
    default = {**usual(), "finetune": finetune}  # of a setting that one of them lacks
    arms, deciding_now = {run.arm for run in runs}, config.deciding()
    idle_here = set[str].intersection(*map(_idle, arms))
    for run in around(runs):
        about = {} if anew and run in runs else config_of(run)
        if not about:
            continue
        old, new = _texts(about.get("deciding")) or deciding_now, deciding_now
        if run.arm in arms:
            old, new = {**old, **_texts(about.get("meaning"))}, {**new, **config.meaning(run.arm)}
        both = {key: (old.get(key, default.get(key, "")), new.get(key, default.get(key, ""))) for key in {**new, **old}}
        spared = set[str]() if run in runs else idle_here | _idle(run.arm)
        if differ := {key: pair for key, pair in both.items() if pair[0] != pair[1] and key not in spared}:
            return run, differ
    return None


def _idle(arm: str) -> set[str]:
    """The settings that decide a folder and that an arm does not look at, but for the point of --rewind, which
    --connectivity looks at in all."""
    return combinations.idle(arm) - {"rewind"} if arm in ARMS else set()


def _texts(found: Mapping[str, Any] | None) -> dict[str, str]:
    """Settings as a config.json says them; none where it does not."""
    return {name: str(value) for name, value in (found or {}).items()}


@cache
def usual() -> dict[str, str]:
    """The defaults of the settings that decide numbers, in the order of the flags."""
    specs = [spec for spec in fields(Config) if spec.metadata.get("changes_numbers", True)]
    return {**{spec.name: as_text(spec.default) for spec in specs}, **Config().deciding()}


def deciding(*runs: Run) -> dict[str, str]:
    """The settings that decide the numbers of runs of one folder, in the order of the flags, those that they do not
    name at their defaults; empty if no config.json says them. Beside each other arms may differ in settings that one of
    them does not look at: what an arm says that looks at them counts."""
    found = [(_idle(run.arm), chosen) for run in runs if (chosen := _texts(config_of(run).get("deciding")))]
    if not found:
        return {}
    told = {**usual(), **found[0][1]}
    for idle, chosen in reversed(found):
        told |= {name: value for name, value in {**usual(), **chosen}.items() if name not in idle}
    overruled = "prune_percent" if told.get("target_remaining", "None") != "None" else "prune_iterations"
    return {name: value for name, value in told.items() if name != overruled}


def said(differ: Sequence[str]) -> str:
    """`the model has changed`, `the data have changed`, `the model and the rule have changed`."""
    of_ticket = sorted(name for name in differ if name.startswith("ticket"))  # the last says most
    differ = [name for name in differ if name not in of_ticket[:-1]]
    names = [f"the {WORDS.get(name, name.replace('_', ' '))}" for name in differ]
    several = len(names) > 1 or "data" in differ
    return f"{', '.join(names[:-1])}{' and ' * (len(names) > 1)}{names[-1]} {'have' if several else 'has'} changed"


def mixed(runs: Sequence[Run]) -> str:
    """Why these runs must not be averaged: what of them is not the same in all. Nothing if they may be."""
    prints: dict[str, tuple[str, Run]] = {}
    settings: dict[str, tuple[str, Run]] = {}
    for run in runs:
        for name, value in recorded(run).items():
            known, other = prints.setdefault(name, (value, run))
            if known != value:
                return _different(other, run, f"another {WORDS.get(name, name)}")
        looked_at = {name: value for name, value in deciding(run).items() if name not in _idle(run.arm)}
        for name, value in looked_at.items():
            known, other = settings.setdefault(name, (value, run))
            if known != value:
                return _different(other, run, f"{name} {known} and {value}")
    return ""


def _different(one: Run, other: Run, what: str) -> str:
    those = f"{one.dumps} and {other.dumps} are of different experiments ({what})"
    return f"{those} and are not averaged: move one of them away"


def unmixed(groups: Sequence[list[Run]]) -> tuple[list[list[Run]], list[str]]:
    """Those of these groups of runs that may be averaged, and why the others must not be."""
    reasons = [mixed(runs) for runs in groups]
    return [runs for runs, reason in zip(groups, reasons, strict=True) if not reason], list(filter(None, reasons))
