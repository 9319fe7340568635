"""Whether results are of the same experiment: of equal settings, and of one model, one set of data, one rule.

A fingerprint of each (lth.models.fingerprints, lth.data.images) stands in config.json and in every file under saves/.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from types import MappingProxyType

from lth.records.files import read_json
from lth.records.tables import Run, config_of, runs_at
from lth.settings.arms import ARMS, idle
from lth.settings.checks import Problem
from lth.settings.config import Config, ConfigError
from lth.settings.values import as_text

WORDS = {
    "model": "model",
    "data": "data",
    "rule": "pruning rule",
    "optimizer": "optimiser",
    "loss": "loss",
    "masks": "masks",
    "ticket_round": "round of the ticket",
}
Prints = Mapping[str, str]  # fingerprints of the parts of an experiment, by names such as those in WORDS


def recorded(run: Run) -> dict[str, str]:
    """The fingerprints that the results of a run say they are of; empty if there are none."""
    return {str(key): str(value) for key, value in config_of(run).get("fingerprint", {}).items()}


def neighbours(run: Run) -> list[Run]:
    """All runs, begun or finished, of the settings' folder that `run` belongs to: other arms, other trials, itself."""
    folder = run.dumps.parents[1].relative_to(run.root)
    return runs_at(run.root, f"{glob.escape(str(folder))}/*/seed*")


def differing(old: Prints, new: Prints) -> list[str]:
    """The parts of an experiment, such as `model`, whose fingerprint in `new` differs from that in `old`."""
    return [name for name in new if old.get(name, new[name]) != new[name]]


def label(deciding: Mapping[str, str], run: Run, prints: Prints | None = None) -> str:
    """What a file of `run` must say that it belongs to: the names of model and data set, the seed and the settings
    that decide numbers, in one hash, and the fingerprints of what these do not tell: `012345... data=... model=...`"""
    whose = {**deciding, "arch_type": run.arch_type, "dataset": run.dataset, "seed": run.seed}
    settings = hashlib.sha256(json.dumps(whose, sort_keys=True).encode()).hexdigest()[:16]
    return " ".join([settings, *(f"{name}={value}" for name, value in sorted((prints or {}).items()))])


def unlike(old: str, new: str) -> str:
    """What a file labelled `old` belongs to, in words, if not to what the label `new` says; else nothing."""
    (settings, *before), (now, *after) = old.split(), new.split()
    if settings != now:
        return "other settings"
    differ = differing(*(dict(part.split("=", 1) for part in parts) for parts in (before, after)))
    return f"another experiment ({', '.join(differ)})" if differ else ""


def mismatch(runs: Sequence[Run], config: Config, prints: Prints, overwrite: bool = False) -> tuple[Run, str] | None:
    """The first run with results of another experiment than that of the settings `config` and the fingerprints
    `prints` (as far as they are known), and a sentence about it; None if there is none.

    These are `runs` of one folder of settings, unless `overwrite`, and all other arms and trials there, which may
    differ in settings that one of them does not use.
    """
    unused = set[str].intersection(*(_unused(run.arm) for run in runs))
    beside = [run for run in neighbours(runs[0]) if run not in runs]
    for run in [*([] if overwrite else runs), *beside]:
        where, file = f"{run.dumps}{'' if run in runs else ', beside these runs,'}", run.dumps / "config.json"
        if run in runs and (file.exists() or (run.dumps / "rounds.csv").exists()) and not read_json(file):
            return run, f"{file} is missing or damaged"
        old, new = _deciding(run), config.deciding()
        spared = set[str]() if run in runs else unused | _unused(run.arm)
        if differ := [key for key in new if old.get(key, new[key]) != new[key] and key not in spared]:
            changes = ", ".join(f"{key} {old[key]}, now {new[key]}" for key in differ)
            return run, f"{where} holds results of other settings ({changes})"
        if parts := differing(recorded(run), prints):
            return run, f"{where} holds results of another experiment, {changed(parts)} since"
    return None


def check(runs: Sequence[Run], config: Config, prints: Prints = MappingProxyType({}), overwrite: bool = False) -> None:
    """ConfigError, saying what can be done, where `mismatch` finds one. Called before a run is locked and after."""
    if found := mismatch(runs, config, prints, overwrite):
        run, sentence = found
        way = "overwrite them" if run in runs else "move them away"
        raise ConfigError(Problem("name", f"must be another one: {sentence}; or {way}"))


def changed(parts: Sequence[str]) -> str:
    """`the model has changed`, `the data have changed`, `the model and the rule have changed`."""
    of_ticket = sorted(name for name in parts if name.startswith("ticket"))  # the last says most
    parts = [name for name in parts if name not in of_ticket[:-1]]
    names = [f"the {WORDS.get(name, name.replace('_', ' '))}" for name in parts]
    has = "have" if len(names) > 1 or "data" in parts else "has"
    return f"{', '.join(names[:-1])}{' and ' * (len(names) > 1)}{names[-1]} {has} changed"


def mixed(runs: Sequence[Run]) -> str:
    """Why these runs must not be averaged: what of them is not the same in all. Nothing if they may be."""
    known: dict[str, tuple[str, Run]] = {}
    for run in runs:
        prints = {f"another {WORDS.get(name, name)}": value for name, value in recorded(run).items()}
        used = {name: value for name, value in deciding(run).items() if name not in _unused(run.arm)}
        for name, value in {**prints, **used}.items():
            was, other = known.setdefault(name, (value, run))
            if was != value:
                what = name if name in prints else f"{name} {was} and {value}"
                both = f"{other.dumps} and {run.dumps} are of different experiments ({what})"
                return f"{both} and are not averaged: move one of them away"
    return ""


@cache
def usual() -> dict[str, str]:
    """The defaults of the settings that decide numbers, in the order of the flags."""
    specs = [spec for spec in fields(Config) if spec.metadata.get("changes_numbers", True)]
    return {**{spec.name: as_text(spec.default) for spec in specs}, **Config().deciding()}


def deciding(*runs: Run) -> dict[str, str]:
    """The settings that decide the numbers of runs of one folder, in the order of the flags, at their defaults where no
    run names them; empty if no config.json has them. Arms may differ in settings that one of them does not use: the
    value of an arm that uses them counts."""
    found = [(_unused(run.arm), chosen) for run in runs if (chosen := _deciding(run))]
    if not found:
        return {}
    values = {**usual(), **found[0][1]}
    for unused, chosen in reversed(found):
        values |= {name: value for name, value in {**usual(), **chosen}.items() if name not in unused}
    overruled = "prune_percent" if values.get("target_remaining", "None") != "None" else "prune_iterations"
    return {name: value for name, value in values.items() if name != overruled}


def _deciding(run: Run) -> dict[str, str]:
    """The settings that decide numbers, as its config.json has them; none where it does not."""
    return {name: str(value) for name, value in config_of(run).get("deciding", {}).items()}


def _unused(arm: str) -> set[str]:
    """The settings that decide a folder and that an arm does not use, but for --rewind, which --connectivity uses."""
    return idle(arm) - {"rewind"} if arm in ARMS else set()
