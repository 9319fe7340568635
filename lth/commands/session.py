"""One command from its settings to its results: checks before any work, the locks, the rounds, what is shown of them.

All front doors (main.py, `python lth`, ExperimentRunner) come through `run`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from lth import data
from lth.commands import cluster, forecast, loop, outlook
from lth.commands import device as devices
from lth.commands.holding import Prepared, claim, facts, fingerprints_now, images_of, mend, with_stack, with_threads
from lth.commands.progress import Progress
from lth.commands.queue import Queue, Work
from lth.commands.tensorboard import Board
from lth.commands.terminal import wrapped
from lth.data.images import Images
from lth.experiment import start_tickets
from lth.experiment.trainer import Callback, Event, as_dict
from lth.records import identity, tables
from lth.records.lock import Locks, probe
from lth.records.tables import Run
from lth.settings import checks
from lth.settings.config import Config, ConfigError, usual_valid_size
from lth.settings.values import TicketName
from lth.training import fit
from lth.training.problem import Problem, stack_size
from lth.training.schedule import check_plan


class TrialsFailed(Exception):
    """Some trials ended early, as has been reported; the others are complete."""


def run(
    asked: Config | Mapping[Config, str], command: Sequence[str] = (), callback: Callback | None = None
) -> list[Run]:
    """Do or continue the experiment of these settings, or several side by side, each with what tells its runs from the
    others' in messages, and return their runs. What concerns the machine and the output is the first one's. `callback`
    gets each evaluation and each finished round as events.as_dict gives them.

    ConfigError if it cannot be done, before anything is written; RecordError if a file cannot be written or another
    process works on it; loop.Interrupted after a signal; TrialsFailed if a trial ended early.
    """
    asked = {asked: ""} if isinstance(asked, Config) else asked
    first = next(iter(asked))

    def say(text: str) -> None:
        if text and not first.quiet:
            print(wrapped(text, sys.stdout), flush=True)

    with loop.signals() as signalled:
        runs = list(dict.fromkeys(run for config, about in asked.items() for run in tables.runs_of(config, about)))
        todo = _todo(asked, runs)
        if not todo:
            loop.stop_if(signalled)
            say("Nothing to do: all rounds are finished. Raise --prune_iterations or --trials to continue.")
            return runs
        loaded: dict[tuple[object, ...], Images] = {}
        (device, remark), *prepared = checks.together(
            partial(_device, first), *(partial(_prepared, *one, loaded) for one in todo.items())
        )
        say(remark)
        count = len({run for one in prepared for run in one.runs if _left(one.config, run)})
        prepared = [
            replace(one, config=with_threads(one.config, one.problem, one.runs[0], count, device)) for one in prepared
        ]
        threads = [one.config.threads or 1 for one in prepared]
        side_by_side = min(loop.at_once(replace(first, threads=min(threads))), count)
        if first.dry_run:
            print("\n".join(outlook.planned(prepared, device, side_by_side)))
        loop.stop_if(signalled)
        if first.dry_run:
            return runs
        alone = not (first.join or first.ray)
        if of_locks := probe(first.root, alone):
            _warn(of_locks)
        with cluster.connected(first) if first.ray else nullcontext() as there:
            if alone or first.overwrite:
                claim(prepared, alone)
            if there:
                device, works = there.device, there.works(prepared, todo, command)
            else:
                prepared = [with_stack(one, device) for one in prepared]
                works = _works(prepared, todo, device, command)
            outlook.announce(prepared, device, f"{there or devices.name(device)}", say, _warn)
            queue = Queue(works)
            left = queue.left()
            if device.type == "cpu" and not there and not first.quiet:
                say(forecast.sentence(prepared, left, side_by_side))
            queue.try_again()
            most = len(queue.work) if works[0].together == 1 else len(works)  # processes that can have work at once
            size = 1 if device.type != "cpu" else min(side_by_side, most)
            with _shown(first, left, runs, callback) as tell, Locks(alone) as locks:
                if there:
                    there.work(works, queue, tell, signalled)
                elif size == 1:
                    queue.locks = locks
                    loop.work_here(queue, works, device, tell, signalled)
                else:
                    probe(first.root, alone=False)  # they share the work by their locks
                    # this process only waits: what draws the figures can be loaded meanwhile
                    threading.Thread(target=import_module, args=["lth.plots.comparison"]).start()
                    loop.work_in_processes(size, max(threads), works, queue, tell, signalled)
        if queue.failed:
            raise TrialsFailed(f"{len(queue.failed)} of {len(runs)} runs ended early; what they finished is kept")
    return runs


def _todo(asked: Mapping[Config, str], runs: Sequence[Run]) -> dict[Config, str]:
    """Those of the experiments of which something is left to do, after damaged tables were written again. ConfigError
    if two of them would share a folder, if a folder holds results of other settings, or if --overwrite would take away
    from one of all these `runs` what another starts from."""
    places: dict[Path, TicketName] = {}
    for config in asked:
        ticket, place = config.ticket, tables.runs_of(config)[0].plots
        if ticket and places.setdefault(place, ticket) != ticket:
            raise ConfigError(
                f"--ticket {places[place]} and --ticket {ticket} have one name, so that their results would be in one "
                f"folder, {place.name}: ask for them with different --root"
            )

    def refuse(config: Config) -> None:
        if config.overwrite:
            start_tickets.refuse_moved(config, runs)
        identity.check(tables.runs_of(config), settled(config), overwrite=config.overwrite)

    checks.together(*(partial(refuse, config) for config in asked))
    todo: dict[Config, str] = {}
    for config, about in asked.items():
        mine = tables.runs_of(config)
        mend([] if config.overwrite else mine, config, _warn)
        if any(_left(config, run) for run in mine):
            todo[config] = about
        else:
            identity.check(mine, settled(config), fingerprints_now(config, mine[0]))
    return todo


def _left(config: Config, run: Run) -> bool:
    return config.overwrite or tables.done_rounds(run, config.connectivity) < config.prune_iterations


@contextmanager
def _shown(
    config: Config, left: Mapping[Run, int], runs: Sequence[Run], callback: Callback | None
) -> Iterator[loop.Tell]:
    """Within it, the events of the trainings that are `left` are shown, given to `callback` and, with --tensorboard,
    logged."""
    with (
        closing(Progress(left, config.print_freq, config.quiet)) as progress,
        closing(Board()) if config.tensorboard else nullcontext() as board,
    ):

        def tell(event: Event) -> None:
            progress(event)
            if board:
                board(event)
            if callback and (plain := as_dict(event)):
                callback(plain)

        try:
            yield tell
        except loop.Interrupted:
            progress.close()
            _warn(f"the results so far are in {outlook.where(runs)}")
            raise


def _works(
    prepared: Sequence[Prepared], about: Mapping[Config, str], device: torch.device, command: Sequence[str]
) -> list[Work]:
    """The experiments for the loop on this machine. One process alone trains all runs of an experiment side by side,
    round by round, where they are stacked or on a GPU; one that joins leaves what is no part of its stack to others."""
    stacks = [stack_size(one.config, one.problem, device) for one in prepared]
    if not prepared[0].asked.join and (device.type != "cpu" or max(stacks) > 1):
        stacks = [sum(len(one.runs) for one in prepared)] * len(stacks)
    return [
        Work(one.asked, one.config, about[one.asked], stack, facts(one, device, command), one.images)
        for one, stack in zip(prepared, stacks, strict=True)
    ]


def _device(config: Config) -> tuple[torch.device, str]:
    """Where to train, and a sentence about it; with --ray the cluster decides later."""
    if config.ray:
        cluster.installed()
        return torch.device("cpu"), ""
    return devices.choose(config.gpu)


def _prepared(asked: Config, about: str, loaded: dict[tuple[object, ...], Images]) -> Prepared:
    """An experiment, checked. `loaded` keeps the images for the next one."""
    images_of(asked, loaded)  # how many there are decides the validation split
    config, runs = settled(asked), tables.runs_of(asked, about)
    images, problem = prepare(config, loaded)
    identity.check(runs, config, problem.fingerprint, config.overwrite)
    return Prepared(asked, config, runs, images, problem)


def settled(config: Config) -> Config:
    """The settings with what the data alone tell: the size of the validation split where none is given."""
    if config.valid_size is not None:
        return config
    count = data.training_count(config.dataset, config.data, config.image_size)
    return replace(config, valid_size=usual_valid_size(count))


def prepare(config: Config, loaded: dict[tuple[object, ...], Images] | None = None) -> tuple[Images, Problem]:
    """The images and the model of the settings, and every check that needs them. ConfigError with all that is wrong.
    `loaded` keeps images from one call for the next."""
    images = images_of(config, {} if loaded is None else loaded)
    problem = start_tickets.problem(config, images)
    held_back = usual_valid_size(len(images.train)) if config.valid_size is None else config.valid_size
    problems = data.check_sizes(images, held_back, config.batch_size)
    if not problems:
        problems += check_plan(config, (len(images.train) - held_back) // config.batch_size)
    try:
        name, embeddings = f"--arch_type {config.arch_type}", config.prune_embeddings
        model = problem.make()
        fit.check_fit(model, images.shape, images.classes, name, embeddings, config.batch_size)
        assert problem.build
        fit.check_seeded(problem.build, name)  # the user's code may fail: now, and not after files are written
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return images, problem


def check_finished(config: Config) -> None:
    """ConfigError or RecordError if what is finished of these runs is not of one experiment with these settings, or
    its tables are not as they were written; for commands that only read them."""
    runs = tables.runs_of(config)
    identity.check(runs, settled(config))
    if reason := identity.mixed(runs):
        raise ConfigError(reason)
    for run in runs:
        tables.entries(run)


def _warn(text: str) -> None:
    print(wrapped(text, sys.stderr), file=sys.stderr)
