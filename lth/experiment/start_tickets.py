"""Saved tickets as the beginning of another experiment (--ticket; Morcos et al. 2019, arXiv:1906.02773).

Round 0 trains the named ticket: the masks of a run, and the weights that its survivors started from. The arm `transfer`
also takes over that run's tickets of the following rounds. Where the number of classes differs, the output layer is new
in each trial, and dense.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from lth import pruning
from lth.data.images import Images, of_arrays, of_texts
from lth.models.building import State, renamed, state_of
from lth.pruning import Masks
from lth.records import tables
from lth.records.files import UNUSABLE, read_json
from lth.records.store import Store, Ticket
from lth.records.tables import Run
from lth.rng import derive_seed
from lth.settings.arms import of_ticket
from lth.settings.config import Config, ConfigError
from lth.training.problem import Problem


@dataclass(frozen=True)
class StartTickets:
    """The tickets that --ticket names.

    runs: whose, by the seed of the trial that starts from them. One run serves all trials; of the folder of an arm each
        trial takes the run with its own seed, so that trials stay independent.
    first: the round that round 0 here starts from.
    alone: whether one run serves all trials.
    """

    named: str
    runs: Mapping[int, Run]
    first: int
    alone: bool

    @classmethod
    def of(cls, config: Config) -> StartTickets:
        """The tickets that the settings name. ConfigError, in one sentence, if they are not there."""
        assert config.ticket is not None
        named, folder = f"--ticket {config.ticket}", config.ticket.folder
        try:
            there = tables.runs_in("--ticket", folder)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        alone, own = folder in (there[0].dumps, there[0].saves), {run.seed: run for run in there}
        if not alone and (missing := [seed for seed in config.seeds if seed not in own]):
            seeds = ", ".join(map(str, own))
            raise ConfigError(
                f"{named} has runs of the seeds {seeds} and none for the trial of seed {missing[0]}: each trial takes "
                f"the run of its own seed; the folder of one run, such as {there[0].dumps.name}, serves all trials"
            )
        runs = {seed: there[0] if alone else own[seed] for seed in config.seeds}
        first = config.ticket.round
        if first is None:
            try:
                last = {Store(run).last_finished() for run in runs.values()}
            except ValueError as error:
                raise ConfigError(f"{named} must say the round, as :1: {error}") from None
            if len(last) > 1:
                raise ConfigError(f"{named} must say the round, as :1, since its runs have not finished equally many")
            first = last.pop()
        takers = of_ticket(config.prune_type)
        needed = config.prune_iterations if takers else 1
        for run in dict.fromkeys(runs.values()):
            have = list(Store(run).of_rounds("ticket"))
            if absent := [number for number in range(first, first + needed) if number not in have]:
                rounds = f"those of rounds {have[0]} to {have[-1]}" if have else "none"
                why = f", which --prune_iterations {needed} with {takers[0]} needs" if needed > 1 else ""
                raise ConfigError(f"{named} has no ticket of round {absent[0]}{why}: in {run.saves} there are {rounds}")
        return cls(named, runs, first, alone)

    def ticket(self, seed: int, number: int, names: Iterable[str] = ()) -> Ticket:
        """What round `number` of a trial starts from, under `names` of parameters (building.renamed). ConfigError if
        its file cannot be used."""
        try:
            store = Store(self.runs[seed])
            ticket, masks = store.ticket(self.first + number), store.masks(self.first + number)
        except UNUSABLE as error:
            raise ConfigError(f"{self.named}: {error}") from None
        return replace(ticket, masks=renamed(masks, names), start=renamed(ticket.start, names))

    def fingerprints(self) -> dict[str, str]:
        """A fingerprint of the masks and weights of each ticket that round 0 starts from, and what trials of other
        seeds must have in common with these: the round, and the ticket itself where all start from the same."""
        prints = {"ticket_round": str(self.first)}
        for seed in self.runs:
            ticket = self.ticket(seed, 0)
            parts = ([tensors[name] for name in sorted(tensors)] for tensors in (ticket.masks, ticket.start))
            prints[f"ticket_of_seed_{seed}"] = of_texts(map(of_arrays, parts))
            if self.alone:
                prints["ticket"] = prints[f"ticket_of_seed_{seed}"]
        return prints


def fingerprints(config: Config) -> dict[str, str]:
    """Fingerprints of the tickets that the settings start from, if any."""
    return StartTickets.of(config).fingerprints() if config.ticket else {}


def problem(config: Config, images: Images) -> Problem:
    """The problem that the settings name, with the tickets that it starts from. ConfigError, in one sentence, if they
    are not there or do not fit the model."""
    problem = Problem.of(config, images)
    if config.ticket is None:
        return problem
    source, dense = StartTickets.of(config), pruning.dense(pruning.prunable(problem.make(), config.prune_embeddings))
    for seed in source.runs:
        new = _new_layer(source, seed, config, problem.make())
        left = pruning.remaining(source.ticket(seed, 0).masks)
        if config.target_remaining is not None and left < 100:  # the settings alone do not tell where rounds begin
            raise ConfigError(
                f"--target_remaining is reached from a dense network, but {source.named} begins with {left:.3g}% "
                "of the weights: name a dense ticket, such as :0, or say --prune_percent instead"
            )

    def start(seed: int, number: int) -> tuple[Masks, State]:
        own = problem.initial(derive_seed(seed, "weights", 0))
        ticket = source.ticket(seed, number, own)
        masks = {name: mask if name in new else ticket.masks.get(name, mask) for name, mask in dense.items()}
        return masks, {name: own[name] if name in new else ticket.start[name] for name in own}

    before = problem.prints
    return replace(problem, start_tickets=start, prints=lambda: {**before(), **source.fingerprints()})


def refuse_moved(config: Config, runs: Iterable[Run]) -> None:
    """ConfigError if the settings start from a ticket of one of these `runs`, which are to be moved aside."""
    if config.ticket is None:
        return
    source, moved = StartTickets.of(config), {run.saves.resolve() for run in runs}
    if any(run.saves.resolve() in moved for run in source.runs.values()):
        raise ConfigError(f"{source.named} is of a run that --overwrite would move aside: use another --name")


def refuse_later_round(path: str, config: Config) -> None:
    """ConfigError if the run whose config.json is at `path` began with another round of its ticket, that of these
    settings, than they mean by now: the last that is finished."""
    if config.ticket is None or config.ticket.round is not None:
        return
    began = read_json(Path(path)).get("fingerprint")
    was = began.get("ticket_round") if isinstance(began, dict) else None
    now = str(StartTickets.of(config).first)
    if was not in (None, now):
        raise ConfigError(
            f"--config {path} is of a run that began with round {was} of --ticket {config.ticket}, whose last finished "
            f"round is {now} by now: add --ticket {config.ticket}:{was}"
        )


def _new_layer(source: StartTickets, seed: int, config: Config, model: nn.Module) -> list[str]:
    """The parameters of the output layer, where the ticket is of a network with another number of classes. ConfigError
    if anything else is not as in the ticket."""
    state, run = state_of(model), source.runs[seed]
    ticket = source.ticket(seed, 0, state)
    kinds = pruning.layer_kinds(model, config.prune_embeddings)
    there = {name: tuple(tensor.shape) for name, tensor in ticket.start.items()}
    here = {name: tuple(tensor.shape) for name, tensor in state.items()}
    output = next((name.rpartition(".")[0] for name, kind in kinds.items() if kind == "output"), None)
    new = [name for name in here if name.rpartition(".")[0] == output]
    other = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if other and all(name in new and there.get(name, ())[1:] == here[name][1:] for name in other):
        return new
    if other:
        has, needs = (str(shapes.get(other[0], "missing")) for shapes in (there, here))
        raise ConfigError(
            f"{source.named} does not fit {config.arch_type} for {config.dataset}: it is of {run.arch_type} for "
            f"{run.dataset}, where {other[0]} is {has}, here {needs}"
        )
    if foreign := [name for name in ticket.masks if name not in kinds]:
        raise ConfigError(f"{source.named} prunes {foreign[0]}, which these settings leave alone (--prune_embeddings)")
    return []
