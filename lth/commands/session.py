"""One command from its settings to its results: checks before any work, the locks, the rounds, what is shown of them.

All front doors (main.py, `python lth`, ExperimentRunner) come through `run`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from lth.commands import cluster, forecast, loop
from lth.commands import device as devices
from lth.commands.prepare import Loaded, fingerprints_now, on_machine, settled, with_threads, work_of
from lth.commands.progress import Board, Progress
from lth.commands.queue import Queue, Work
from lth.commands.terminal import say
from lth.experiment import start_tickets
from lth.experiment.trainer import Callback, Event, as_dict
from lth.records import identity, journal, tables
from lth.records.lock import Locked, Locks, probe
from lth.records.tables import Run
from lth.settings import checks
from lth.settings.config import Config, ConfigError
from lth.settings.values import TicketName


class TrialsFailed(Exception):
    """Some trials ended early, as has been reported; the others are complete."""


def run(
    asked: Config | Mapping[Config, str], command: Sequence[str] = (), callback: Callback | None = None
) -> list[Run]:
    """Do or continue the experiment of these settings, or several side by side, each with what tells its runs from the
    others' in messages, and return their runs. What concerns the machine and the output is the first one's. `callback`
    gets each evaluation and each finished round as lth.experiment.trainer.as_dict gives them.

    ConfigError if it cannot be done, before anything is written; RecordError if a file cannot be written or another
    process works on it; loop.Interrupted after a signal; TrialsFailed if a trial ended early.
    """
    asked = {asked: ""} if isinstance(asked, Config) else asked
    first = next(iter(asked))

    def inform(text: str) -> None:
        if text and not first.quiet:
            say(text, sys.stdout)

    with loop.signals() as signalled:
        runs = list(dict.fromkeys(run for config, about in asked.items() for run in tables.runs_of(config, about)))
        todo = _todo(asked, runs)
        if not todo:
            loop.finish([], signalled)
            inform("Nothing to do: all rounds are finished. Raise --prune_iterations or --trials to continue.")
            return runs
        loaded: Loaded = {}
        (device, remark), *works = checks.together(
            partial(_device, first),
            *(partial(work_of, config, about, command, loaded) for config, about in todo.items()),
        )
        inform(remark)
        count = len({run for work in works for run in work.runs if _left(work.config, run)})
        works = [
            replace(work, config=with_threads(work.config, work.problem, work.runs[0], count, device)) for work in works
        ]
        cpu = device.type == "cpu"
        side_by_side = min(max(loop.at_once(work.config) for work in works), count) if cpu else 1
        if first.dry_run:
            print("\n".join(forecast.planned(works, device, side_by_side)))
        loop.finish([], signalled)
        if first.dry_run:
            return runs
        shared = bool(first.join or first.ray)
        alone = not shared and side_by_side == 1  # no other process is to share the work
        if of_locks := probe(first.root, alone):
            _warn(of_locks)
        with cluster.connected(first) if first.ray else nullcontext() as there:
            if not shared or first.overwrite:
                claim(works, alone)
            if there:
                device, works = there.device, there.stacked(works)
            else:
                works = [on_machine(work, device) for work in works]
                if not shared and (not cpu or any(work.together > 1 for work in works)):
                    # one process alone trains all runs side by side, round by round
                    works = [replace(work, together=len(runs)) for work in works]
            for line in forecast.announced(works, device, f"{there or devices.name(device)}"):
                (_warn if line.startswith("warning: ") else inform)(line)
            queue = Queue(works)
            left = queue.left()
            if cpu and not there and not first.quiet:
                inform(forecast.sentence(works, left, side_by_side))
            queue.try_again()
            size = min(side_by_side, len(queue.work) if works[0].together == 1 else len(works))  # have work at once
            with shown(first, left, runs, callback) as tell, Locks(alone) as locks:
                if there:
                    there.work(queue, tell, signalled)
                elif size > 1:
                    # this process only waits: what draws the figures can be loaded meanwhile
                    threading.Thread(target=import_module, args=["lth.plots.comparison"]).start()
                    threads = max(work.config.threads or 1 for work in works)
                    loop.work_in_processes(queue, size, threads, tell, signalled)
                else:
                    queue.locks = locks
                    loop.work_here(queue, device, tell, signalled)
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


def mend(runs: Sequence[Run], config: Config, warn: Callable[[str], object]) -> None:
    """Write damaged tables of these runs again, but for --dry_run; `warn` gets a sentence for each. Locked if another
    process has the run; with --join, that one is left to it."""
    for run in runs:
        if not config.dry_run and journal.damage(run):
            with suppress(Locked) if config.join else nullcontext(), Locks(alone=not config.join) as locks:
                locks.take(run.dumps)
                journal.mend(run, warn)


def claim(works: Sequence[Work], alone: bool) -> None:
    """Make sure that nobody works on these runs, and, with --overwrite, move the old ones aside, all of it under their
    locks. Locked, with nothing written, if another process has one."""
    with Locks(alone) as locks:
        for run in dict.fromkeys(run for work in works for run in work.runs):
            locks.take(run.dumps)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for run in (run for work in works if work.config.overwrite for run in work.runs):
            tables.move_aside(run, stamp)


@contextmanager
def shown(
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
            _warn(f"the results so far are in {forecast.where(runs)}")
            raise


def _device(config: Config) -> tuple[torch.device, str]:
    """Where to train, and a sentence about it; with --ray the cluster decides later."""
    if config.ray:
        cluster.installed()
        return torch.device("cpu"), ""
    return devices.choose(config.gpu)


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
    say(text, sys.stderr)
