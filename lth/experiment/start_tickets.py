"""Experiments that start from a saved ticket (--ticket; Morcos et al. 2019, arXiv:1906.02773).

Round 0 trains the named ticket: the masks of a run and the weights that its survivors started from. The arm `transfer`
also uses that run's tickets of the following rounds. If the number of classes differs, each trial has a new, dense
output layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from lth import pruning
from lth.data.images import Images, fingerprint_arrays, fingerprint_texts
from lth.models.building import State, match_names, state_of
from lth.pruning import Masks
from lth.records import tables
from lth.records.files import UNUSABLE, read_json
from lth.records.store import Store, Ticket
from lth.records.tables import Run
from lth.rng import derive_seed
from lth.settings.arms import ticket_arms
from lth.settings.config import Config, ConfigError
from lth.training.problem import Problem


@dataclass(frozen=True)
class StartTickets:
    """The tickets that --ticket names.

    flag: `--ticket ...`, for messages.
    runs: the run that each trial starts from, by the trial's seed. A single run serves all trials; from the folder of
        an arm each trial takes the run with its own seed, so that trials stay independent.
    first: the round of those runs that round 0 here starts from.
    shared: whether a single run serves all trials.
    """

    flag: str
    runs: Mapping[int, Run]
    first: int
    shared: bool

    @classmethod
    def from_config(cls, config: Config) -> StartTickets:
        """The tickets that the settings name. ConfigError if they do not exist."""
        assert config.ticket is not None
        flag, folder = f"--ticket {config.ticket}", config.ticket.folder
        candidates = tables.runs_in("--ticket", folder)
        single, by_seed = candidates[0], {run.seed: run for run in candidates}
        shared = folder in (single.dumps, single.saves)
        if not shared and (missing := [seed for seed in config.seeds if seed not in by_seed]):
            seeds = ", ".join(map(str, by_seed))
            raise ConfigError(
                f"{flag} has runs of the seeds {seeds} and none for the trial of seed {missing[0]}: each trial takes "
                f"the run of its own seed; the folder of one run, such as {single.dumps.name}, serves all trials"
            )
        runs = {seed: single if shared else by_seed[seed] for seed in config.seeds}
        first = config.ticket.round
        if first is None:
            try:
                last = {Store(run).last_finished() for run in runs.values()}
            except ValueError as error:
                raise ConfigError(f"{flag} must say the round, as :1: {error}") from None
            if len(last) > 1:
                raise ConfigError(f"{flag} must say the round, as :1, since its runs have not finished equally many")
            first = last.pop()
        arms = ticket_arms(config.prune_type)
        needed = config.prune_iterations if arms else 1
        for run in dict.fromkeys(runs.values()):
            numbers = list(Store(run).files_by_round("ticket"))
            if missing := [number for number in range(first, first + needed) if number not in numbers]:
                rounds = f"those of rounds {numbers[0]} to {numbers[-1]}" if numbers else "none"
                reason = f", which --prune_iterations {needed} with {arms[0]} needs" if needed > 1 else ""
                raise ConfigError(
                    f"{flag} has no ticket of round {missing[0]}{reason}: in {run.saves} there are {rounds}"
                )
        return cls(flag, runs, first, shared)

    def ticket(self, seed: int, number: int, names: Iterable[str] = ()) -> Ticket:
        """The ticket that round `number` of a trial starts from, with the parameters renamed to `names`
        (building.match_names). ConfigError if its file cannot be used."""
        try:
            store = Store(self.runs[seed])
            ticket, masks = store.ticket(self.first + number), store.masks(self.first + number)
        except UNUSABLE as error:
            raise ConfigError(f"{self.flag}: {error}") from None
        return replace(ticket, masks=match_names(masks, names), start=match_names(ticket.start, names))

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the masks and weights of each ticket that round 0 starts from, of their round, and of the
        ticket itself if all trials start from the same one."""
        result = {"ticket_round": str(self.first)}
        for seed in self.runs:
            ticket = self.ticket(seed, 0)
            parts = ([tensors[name] for name in sorted(tensors)] for tensors in (ticket.masks, ticket.start))
            result[f"ticket_of_seed_{seed}"] = fingerprint_texts(map(fingerprint_arrays, parts))
            if self.shared:
                result["ticket"] = result[f"ticket_of_seed_{seed}"]
        return result


def problem(config: Config, images: Images) -> Problem:
    """The problem of the settings, with the tickets that it starts from. ConfigError if these do not exist or do not
    fit the model."""
    problem = Problem.of(config, images)
    if config.ticket is None:
        return problem
    source = StartTickets.from_config(config)
    dense = pruning.dense(pruning.prunable(problem.make(), config.prune_embeddings))
    for seed in source.runs:
        new = _new_output(source, seed, config, problem.make())
        remaining = pruning.remaining(source.ticket(seed, 0).masks)
        if config.target_remaining is not None and remaining < 100:  # the rate of a round is computed from 100%
            raise ConfigError(
                f"--target_remaining is reached from a dense network, but {source.flag} begins with {remaining:.3g}% "
                "of the weights: name a dense ticket, such as :0, or say --prune_percent instead"
            )

    def start(seed: int, number: int) -> tuple[Masks, State]:
        fresh = problem.initial(derive_seed(seed, "weights", 0))
        ticket = source.ticket(seed, number, fresh)
        masks = {name: mask if name in new else ticket.masks.get(name, mask) for name, mask in dense.items()}
        return masks, {name: fresh[name] if name in new else ticket.start[name] for name in fresh}

    compute = problem.compute_fingerprint
    return replace(problem, start_tickets=start, compute_fingerprint=lambda: {**compute(), **source.fingerprints()})


def refuse_moved(config: Config, runs: Iterable[Run]) -> None:
    """ConfigError if the settings start from a ticket of one of these `runs`, which --overwrite is to move aside."""
    if config.ticket is None:
        return
    source, moved = StartTickets.from_config(config), {run.saves.resolve() for run in runs}
    if any(run.saves.resolve() in moved for run in source.runs.values()):
        raise ConfigError(f"{source.flag} is of a run that --overwrite would move aside: use another --name")


def refuse_later_round(path: str, config: Config) -> None:
    """ConfigError if the run with the config.json at `path` began with another round of its ticket than these settings,
    which name none, mean now: the last finished one."""
    if config.ticket is None or config.ticket.round is not None:
        return
    recorded = read_json(Path(path)).get("fingerprint")
    old = recorded.get("ticket_round") if isinstance(recorded, dict) else None
    new = str(StartTickets.from_config(config).first)
    if old not in (None, new):
        raise ConfigError(
            f"--config {path} is of a run that began with round {old} of --ticket {config.ticket}, whose last finished "
            f"round is {new} by now: add --ticket {config.ticket}:{old}"
        )


def _new_output(source: StartTickets, seed: int, config: Config, model: nn.Module) -> list[str]:
    """The parameters of the output layer if the ticket's network has another number of classes. ConfigError if anything
    else differs from the ticket."""
    state, run = state_of(model), source.runs[seed]
    ticket = source.ticket(seed, 0, state)
    kinds = pruning.layer_kinds(model, config.prune_embeddings)
    old = {name: tuple(tensor.shape) for name, tensor in ticket.start.items()}
    new = {name: tuple(tensor.shape) for name, tensor in state.items()}
    output = next((name.rpartition(".")[0] for name, kind in kinds.items() if kind == "output"), None)
    of_output = [name for name in new if name.rpartition(".")[0] == output]
    different = [name for name in {**new, **old} if new.get(name) != old.get(name)]
    if different and all(name in of_output and old.get(name, ())[1:] == new[name][1:] for name in different):
        return of_output
    if different:
        name = different[0]
        has, needs = old.get(name, "missing"), new.get(name, "missing")
        raise ConfigError(
            f"{source.flag} does not fit {config.arch_type} for {config.dataset}: it is of {run.arch_type} for "
            f"{run.dataset}, where {name} is {has}, here {needs}"
        )
    if foreign := [name for name in ticket.masks if name not in kinds]:
        raise ConfigError(f"{source.flag} prunes {foreign[0]}, which these settings leave alone (--prune_embeddings)")
    return []
