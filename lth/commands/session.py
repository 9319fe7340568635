"""One command from its settings to its results: checks before anything is written, locks, rounds, progress.

All front doors (main.py, `python lth`, ExperimentRunner) call `run`.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

from lth.commands import cluster, forecast, loop
from lth.commands import device as devices
from lth.commands.prepare import Loaded, current_fingerprints, make_work, on_machine, with_threads, with_valid_size
from lth.commands.progress import Board, Progress
from lth.commands.queue import Queue, Work
from lth.commands.terminal import say
from lth.experiment import start_tickets
from lth.experiment.trainer import Callback, Event, as_dict
from lth.records import identity, journal, tables
from lth.records.lock import Locked, Locks, check_locks
from lth.records.tables import Run
from lth.settings import checks
from lth.settings.config import Config, ConfigError
from lth.settings.values import TicketName


class TrialsFailed(Exception):
    """Some trials ended early, as has been reported; the others are complete."""


def run(
    configs: Config | Mapping[Config, str], command: Sequence[str] = (), callback: Callback | None = None
) -> list[Run]:
    """Run or continue the experiment of these settings, or several side by side, each with a label for its runs in
    messages, and return their runs. Settings of the machine and the output are taken from the first. `callback` gets
    each evaluation and each finished round as lth.experiment.trainer.as_dict returns them.

    ConfigError if that is impossible, before anything is written; RecordError if a file cannot be written or another
    process trains a run; loop.Interrupted after a signal; TrialsFailed if a trial ended early.
    """
    configs = {configs: ""} if isinstance(configs, Config) else configs
    first = next(iter(configs))

    def inform(text: str) -> None:
        if text and not first.quiet:
            say(text, sys.stdout)

    with loop.signals() as signalled:
        runs = list(dict.fromkeys(run for config, label in configs.items() for run in tables.runs_of(config, label)))
        todo = _unfinished(configs, runs)
        if not todo:
            loop.raise_errors([], signalled)
            inform("Nothing to do: all rounds are finished. Raise --prune_iterations or --trials to continue.")
            return runs
        loaded: Loaded = {}
        (device, remark), *works = checks.run_all(
            cluster.local_device if first.ray else partial(devices.choose, first.gpu),
            *(partial(make_work, config, label, command, loaded) for config, label in todo.items()),
        )
        inform(remark)
        count = len({run for work in works for run in work.runs if _is_unfinished(work.config, run)})
        works = [
            replace(work, config=with_threads(work.config, work.problem, work.runs[0], count, device)) for work in works
        ]
        cpu = device.type == "cpu"
        side_by_side = min(max(loop.process_count(work.config) for work in works), count) if cpu else 1
        if first.dry_run:
            print("\n".join(forecast.dry_run(works, device, side_by_side)))
        loop.raise_errors([], signalled)
        if first.dry_run:
            return runs
        shared = bool(first.join or first.ray)
        locks_optional = not shared and side_by_side == 1  # no other process shares the work
        if warning := check_locks(first.root, locks_optional):
            _warn(warning)
        with cluster.connected(first) if first.ray else nullcontext() as ray_cluster:
            if not shared or first.overwrite:
                prepare_folders(works, locks_optional)
            if ray_cluster:
                device, works = ray_cluster.device, ray_cluster.stacked(works)
            else:
                works = [on_machine(work, device) for work in works]
                if not shared and (not cpu or any(work.piece_size > 1 for work in works)):
                    # This process is the only one: it trains all runs side by side, round by round.
                    works = [replace(work, piece_size=len(runs)) for work in works]
            for line in forecast.announcement(works, device, f"{ray_cluster or devices.name(device)}"):
                (_warn if line.startswith("warning: ") else inform)(line)
            queue = Queue(works)
            left = queue.left()
            if cpu and not ray_cluster and not first.quiet:
                inform(forecast.time_needed(works, left, side_by_side))
            queue.clear_failures()
            pieces = len(queue.work) if works[0].piece_size == 1 else len(works)
            size = min(side_by_side, pieces)
            with reporting(first, left, runs, callback) as tell, Locks(locks_optional) as locks:
                if ray_cluster:
                    ray_cluster.work(queue, tell, signalled)
                elif size > 1:
                    # This process only waits; meanwhile it can import what draws the figures.
                    threading.Thread(target=import_module, args=["lth.plots.comparison"]).start()
                    threads = max(work.config.threads or 1 for work in works)
                    loop.work_in_processes(queue, size, threads, tell, signalled)
                else:
                    queue.locks = locks
                    loop.work_here(queue, device, tell, signalled)
        if queue.failed:
            raise TrialsFailed(f"{len(queue.failed)} of {len(runs)} runs ended early; what they finished is kept")
    return runs


def _unfinished(configs: Mapping[Config, str], runs: Sequence[Run]) -> dict[Config, str]:
    """The experiments that are not finished, after their damaged tables have been written again. ConfigError if two of
    them would share a folder, if a folder holds results of another experiment, or if --overwrite would move aside one
    of all these `runs` that another starts from."""
    tickets: dict[Path, TicketName] = {}
    for config in configs:
        ticket, folder = config.ticket, tables.runs_of(config)[0].plots
        if ticket and tickets.setdefault(folder, ticket) != ticket:
            raise ConfigError(
                f"--ticket {tickets[folder]} and --ticket {ticket} have one name, so that their results would be in "
                f"one folder, {folder.name}: ask for them with different --root"
            )

    def refuse(config: Config) -> None:
        if config.overwrite:
            start_tickets.refuse_moved(config, runs)
        identity.check(tables.runs_of(config), with_valid_size(config), overwrite=config.overwrite)

    checks.run_all(*(partial(refuse, config) for config in configs))
    unfinished: dict[Config, str] = {}
    for config, label in configs.items():
        own = tables.runs_of(config)
        repair([] if config.overwrite else own, config, _warn)
        if any(_is_unfinished(config, run) for run in own):
            unfinished[config] = label
        else:
            identity.check(own, with_valid_size(config), current_fingerprints(config, own[0]))
    return unfinished


def _is_unfinished(config: Config, run: Run) -> bool:
    return config.overwrite or tables.done_rounds(run, config.connectivity) < config.prune_iterations


def repair(runs: Sequence[Run], config: Config, warn: Callable[[str], object]) -> None:
    """Write damaged tables of these runs again, except with --dry_run; `warn` gets a sentence for each. Locked if
    another process has the run; with --join, the tables are left to that process."""
    for run in runs:
        if not config.dry_run and journal.is_damaged(run):
            with suppress(Locked) if config.join else nullcontext(), Locks(optional=not config.join) as locks:
                locks.take(run.dumps)
                journal.repair(run, warn)


def prepare_folders(works: Sequence[Work], locks_optional: bool) -> None:
    """Check that no other process trains these runs and, with --overwrite, move the old results aside while all runs
    are locked. Locked, with nothing written, if another process has one."""
    with Locks(locks_optional) as locks:
        for run in dict.fromkeys(run for work in works for run in work.runs):
            locks.take(run.dumps)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for run in (run for work in works if work.config.overwrite for run in work.runs):
            tables.move_aside(run, stamp)


@contextmanager
def reporting(
    config: Config, left: Mapping[Run, int], runs: Sequence[Run], callback: Callback | None
) -> Iterator[loop.Tell]:
    """Yields a function that shows an event, passes it to `callback` and, with --tensorboard, logs it. `left`: the
    number of trainings that each run needs."""
    with (
        closing(Progress(left, config.print_freq, config.quiet)) as progress,
        closing(Board()) if config.tensorboard else nullcontext() as board,
    ):

        def tell(event: Event) -> None:
            progress(event)
            if board:
                board(event)
            if callback and (event_dict := as_dict(event)):
                callback(event_dict)

        try:
            yield tell
        except loop.Interrupted:
            progress.close()
            _warn(f"the results so far are in {forecast.common_folder(runs)}")
            raise


def check_finished(config: Config) -> None:
    """ConfigError if finished rounds of these runs are not of one experiment with these settings, RecordError if their
    journals are damaged; for commands that only read them."""
    runs = tables.runs_of(config)
    identity.check(runs, with_valid_size(config))
    if reason := identity.mixed(runs):
        raise ConfigError(reason)
    for run in runs:
        tables.entries(run)


def _warn(text: str) -> None:
    say(text, sys.stderr)
