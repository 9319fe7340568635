"""Whether results belong to the same experiment: equal settings, and the same model, data and pruning rule.

A fingerprint of each (lth.models.fingerprints, lth.data.images) is in config.json and in every file under saves/.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType

from lth.records.files import read_json
from lth.records.tables import Run, read_config, runs_at
from lth.settings.arms import ARMS, unused_settings
from lth.settings.checks import Problem
from lth.settings.config import Config, ConfigError

PHRASES = {  # how messages name the parts of an experiment that have fingerprints, where they differ
    "model": "a different model",
    "data": "different data",
    "rule": "a different pruning rule",
    "optimizer": "a different optimiser",
    "loss": "a different loss",
    "masks": "different masks",
    "ticket_round": "a different round of the ticket",
}
Fingerprints = Mapping[str, str]  # by the parts of an experiment, such as those in PHRASES
UNKNOWN: Fingerprints = MappingProxyType({})


def read_fingerprints(run: Run) -> dict[str, str]:
    """The fingerprints in the config.json of a run; empty if there are none."""
    return {str(part): str(value) for part, value in read_config(run).get("fingerprint", {}).items()}


def neighbours(run: Run) -> list[Run]:
    """All runs, started or finished, in the settings' folder of `run`: other arms, other trials, itself."""
    return runs_at(run.dumps.parents[1], "*/seed*")


def differing(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The names in both mappings, of settings or of parts with fingerprints, whose values differ."""
    return [name for name in new if old.get(name, new[name]) != new[name]]


def in_words(parts: Sequence[str]) -> str:
    """Parts that differ, as `a different model and different data`."""
    of_ticket = sorted(part for part in parts if part.startswith("ticket"))  # of several, name the last: the round
    parts = [part for part in parts if part not in of_ticket[:-1]]
    phrases = [PHRASES.get(part, f"a different {part.replace('_', ' ')}") for part in parts]
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def experiment_id(settings: Mapping[str, str], run: Run, fingerprints: Fingerprints) -> str:
    """The experiment that every file of `run` under saves/ names: a hash of model, data set, seed and the settings that
    change numbers, then the fingerprints: `012345... data=... model=...`"""
    content = {**settings, "arch_type": run.arch_type, "dataset": run.dataset, "seed": run.seed}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return " ".join([digest, *(f"{part}={value}" for part, value in sorted(fingerprints.items()))])


def difference(old_id: str, new_id: str) -> str:
    """How the experiment `old_id` differs from `new_id`, in words; empty if it does not."""
    (old_digest, *old), (new_digest, *new) = old_id.split(), new_id.split()
    if old_digest != new_digest:
        return "different settings"
    parts = differing(*(dict(text.split("=", 1) for text in texts) for texts in (old, new)))
    return in_words(parts) if parts else ""


def mismatch(
    runs: Sequence[Run], config: Config, fingerprints: Fingerprints, overwrite: bool = False
) -> tuple[Run, str] | None:
    """The first run with results of another experiment than that of the settings `config` and the known fingerprints,
    and a sentence about it; None if there is none.

    It looks at `runs`, which share one folder of settings, unless they are to be overwritten, and at all other arms and
    trials in that folder, which may differ in settings that one of them does not use.
    """
    unused = set[str].intersection(*(_unused(run.arm) for run in runs))
    others = [run for run in neighbours(runs[0]) if run not in runs]
    for run in [*([] if overwrite else runs), *others]:
        where, file = f"{run.dumps}{'' if run in runs else ', beside these runs,'}", run.dumps / "config.json"
        if run in runs and (file.exists() or (run.dumps / "rounds.csv").exists()) and not read_json(file):
            return run, f"{file} is missing or damaged"
        old, new = _deciding(run), config.deciding()
        ignored = set[str]() if run in runs else unused | _unused(run.arm)
        if names := [name for name in differing(old, new) if name not in ignored]:
            changes = ", ".join(f"{name} {old[name]}, now {new[name]}" for name in names)
            return run, f"{where} holds results of different settings ({changes})"
        if parts := differing(read_fingerprints(run), fingerprints):
            return run, f"{where} holds results of {in_words(parts)}"
    return None


def check(runs: Sequence[Run], config: Config, fingerprints: Fingerprints = UNKNOWN, overwrite: bool = False) -> None:
    """ConfigError, with what can be done, where `mismatch` finds something. Called before a run is locked and after."""
    if (result := mismatch(runs, config, fingerprints, overwrite)) is not None:
        run, sentence = result
        remedy = "overwritten" if run in runs else "moved away"
        raise ConfigError(Problem("name", f"must be new, or the old results {remedy}, since {sentence}"))


def mixed(runs: Sequence[Run]) -> str:
    """Why these runs must not be averaged: the first difference between them. Empty if they may be."""
    first_values: dict[str, tuple[str, Run]] = {}
    for run in runs:
        parts = {PHRASES.get(part, part): value for part, value in read_fingerprints(run).items()}
        used = {name: value for name, value in deciding(run).items() if name not in _unused(run.arm)}
        for name, value in {**parts, **used}.items():
            first_value, first_run = first_values.setdefault(name, (value, run))
            if first_value != value:
                reason = name if name in parts else f"{name} {first_value} and {value}"
                pair = f"{first_run.dumps} and {run.dumps} are of different experiments ({reason})"
                return f"{pair} and are not averaged: move one of them away"
    return ""


@cache
def default_settings() -> dict[str, str]:
    """The defaults of the settings that change numbers, in the order of the flags."""
    return Config().deciding()


def deciding(*runs: Run) -> dict[str, str]:
    """The settings that change the numbers of runs of one folder, in the order of the flags, at their defaults where no
    run names them; empty if no config.json has them. Arms may differ in settings that one of them does not use: the
    value of an arm that uses them counts."""
    recorded = {run: settings for run in runs if (settings := _deciding(run))}
    if not recorded:
        return {}
    values = {**default_settings(), **next(iter(recorded.values()))}
    for run, settings in reversed(recorded.items()):
        values |= {name: value for name, value in settings.items() if name not in _unused(run.arm)}
    overruled = "prune_percent" if values.get("target_remaining", "None") != "None" else "prune_iterations"
    return {name: value for name, value in values.items() if name != overruled}


def _deciding(run: Run) -> dict[str, str]:
    """The settings that change numbers, from the run's config.json; empty if they are not there."""
    return {name: str(value) for name, value in read_config(run).get("deciding", {}).items()}


def _unused(arm: str) -> set[str]:
    """The settings that decide a folder and that an arm does not use, except --rewind, which --connectivity uses."""
    return unused_settings(arm) - {"rewind"} if arm in ARMS else set()
