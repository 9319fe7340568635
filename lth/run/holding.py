"""Who may write which run, and when: all of them from start to end, or each while it is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lth.data.images import Images
from lth.records import recording, resume, same, tables
from lth.records.files import RecordError, read_json, write_json
from lth.records.lock import Locks
from lth.records.tables import Run
from lth.run import refusals
from lth.run.about import about
from lth.settings.config import Config
from lth.training.problem import Problem, stack_size


def mend(runs: Sequence[Run], config: Config, warn: Callable[[str], object]) -> None:
    """Write again what is damaged of the tables of these runs, which are not held; `warn` gets a sentence for each.
    With --dry_run that is all. RecordError if another process has the run, unless it --joins."""
    for run in runs:
        if not (wrong := tables.damage(run)):
            continue
        if config.dry_run:
            warn(f"{wrong}: it would be written again")
            continue
        with Locks(alone=not config.join) as locks:
            if config.join and not locks.try_take(run.dumps):
                continue
            if not config.join:
                locks.take(run.dumps)
            recording.mend(run, warn)


@dataclass(frozen=True)
class Prepared:
    """An experiment that can be done: its settings as they were asked for and as the data settle them, and what they
    name."""

    asked: Config
    config: Config
    runs: list[Run]
    images: Images
    problem: Problem


class Alone:
    """Holds all runs from the start to the end: nobody else works on them. RecordError if somebody does."""

    def __init__(
        self, prepared: Sequence[Prepared], locks: Locks, device: torch.device, command: Sequence[str]
    ) -> None:
        self.held = _take_all(prepared, locks)
        stacked = any(stack_size(one.config, one.problem, device) > 1 for one in prepared)
        self.size = len(self.held) if device.type != "cpu" or stacked else 1
        _begin(prepared, device, command)

    def hold(self, run: Run) -> Run:
        """The run with the right to write it."""
        return run

    def let_go(self, run: Run) -> None:
        """Nothing: until the end it is this process's."""

    def together(self, config: Config) -> int:
        """How many runs may be given to one worker."""
        return self.size


class Shared:
    """Holds a run only while it is trained here; all others are other processes' to take. `facts` are what its
    config.json says beside, or in place of, what is found out here."""

    def __init__(
        self,
        prepared: Sequence[Prepared],
        locks: Locks,
        device: torch.device,
        command: Sequence[str],
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.locks = locks
        self.stacks = {one.asked: stack_size(one.config, one.problem, device) for one in prepared}
        self.about: dict[Run, tuple[Config, dict[str, Any]]] = {}
        for one in prepared:
            self.about |= dict.fromkeys(one.runs, (one.config, {**_facts(one, device, command), **(facts or {})}))

    def hold(self, run: Run) -> Run | None:
        """The run with the right to write it, or None if another process has that."""
        if not self.locks.try_take(run.dumps):
            return None
        config, facts = self.about[run]
        _check_same([run], config, facts)
        _write_config(run, config, facts)
        return run

    def let_go(self, run: Run) -> None:
        """Give that right back."""
        self.locks.release(run.dumps)

    def together(self, config: Config) -> int:
        """How many runs may be given to one worker."""
        return self.stacks[config]


class Elsewhere:
    """Holds nothing: those who do the work do. Says which runs they could take."""

    def __init__(
        self, prepared: Sequence[Prepared], locks: Locks, device: torch.device, command: Sequence[str]
    ) -> None:
        self.locks = locks
        self.stacks = {one.asked: stack_size(one.config, one.problem, device) for one in prepared}
        if prepared[0].config.overwrite:
            with Locks() as for_now:
                _take_all(prepared, for_now)
                _begin(prepared, device, command)

    def hold(self, run: Run) -> Run | None:
        """The run, or None if another process has it."""
        if not self.locks.try_take(run.dumps):
            return None
        self.locks.release(run.dumps)
        return run

    def let_go(self, run: Run) -> None:
        """Nothing: it is not held."""

    def together(self, config: Config) -> int:
        """How many runs may be given to one worker."""
        return self.stacks[config]


def _take_all(prepared: Sequence[Prepared], locks: Locks) -> list[Run]:
    """Take the locks of all runs."""
    runs = list(dict.fromkeys(run for one in prepared for run in one.runs))
    for run in runs:
        locks.take(run.dumps)
    return runs


def _begin(prepared: Sequence[Prepared], device: torch.device, command: Sequence[str]) -> None:
    """Move old results aside where --overwrite asks for it, and say in every config.json what is trained."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for run in (run for one in prepared if one.config.overwrite for run in one.runs):
        tables.move_aside(run, stamp)
    for one in prepared:
        facts = _facts(one, device, command)
        _check_same(one.runs, one.config, facts)
        for run in one.runs:
            _write_config(run, one.config, facts)


def _facts(one: Prepared, device: torch.device, command: Sequence[str]) -> dict[str, Any]:
    """What the config.json of each run of an experiment says."""
    stack = stack_size(one.config, one.problem, device)
    prints = {"fingerprint": one.problem.fingerprint, **refusals.facts(one.images, one.config)}
    return {**about(one.asked, one.config, device, command), "stack": stack, **prints}


def _check_same(runs: Sequence[Run], config: Config, facts: Mapping[str, Any]) -> None:
    """RecordError if their results, or others beside them, are of another experiment or of other settings, begun since
    the command looked."""
    for run in runs:
        if copy := tables.copied(run):
            raise RecordError(copy)
    if changed := same.other_settings(runs, config):
        other, changes = changed
        those = ", ".join(f"{key} {theirs}, here {ours}" for key, (theirs, ours) in changes.items())
        raise RecordError(f"{other.dumps} holds results of other settings since ({those})")
    if found := same.other_results(runs, facts["fingerprint"]):
        other, differ = found
        raise RecordError(f"{other.dumps} holds results of another experiment, {same.said(differ)} since")


def _write_config(run: Run, config: Config, facts: Mapping[str, Any]) -> None:
    """Say in config.json what the run is trained with, unless it is finished."""
    file = run.dumps / "config.json"
    if read_json(file) and tables.done_rounds(run, config.connectivity) >= config.prune_iterations:
        return
    own = {"meaning": config.meaning(run.arm), "arm": run.arm, "seed": run.seed}
    own["sparse_up_to"] = resume.sparse_up_to(run, facts["sparse_up_to"])
    write_json(file, {**facts, **own})
