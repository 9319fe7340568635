"""A command from its arguments to its last line on the terminal: what main.py, `lth` and the other scripts share."""

from __future__ import annotations

import io
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth.run.terminal import wrapped
from lth.settings import flags, sweep
from lth.settings.config import Config, ConfigError, same_command

if TYPE_CHECKING:
    import pandas as pd

    from lth.records.tables import Run


def exit_code(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a program; turn what it raises into one message and the exit code: 2 for bad input, 1 for a failure, 130 and
    143 for Ctrl-C and SIGTERM. Tracebacks only with --debug."""
    _mend_output()
    try:
        return main(argv)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        if isinstance(error, ConfigError):
            _complain("\n".join(f"error: {problem}" for problem in error.problems))
            return 2
        signum = getattr(error, "signum", None)
        if signum:
            again = same_command("--overwrite" in argv)
            _complain(f"stopped by {error}: finished rounds are kept, {again} continues from here")
            return 128 + signum
        ours = type(error).__module__.startswith("lth.")
        kind = "" if ours else f"{type(error).__name__}: "
        _complain(f"error: {kind}{error}{'' if ours else ' (--debug shows where)'}")
        return 1


class _Pipe(io.FileIO):
    """An output whose reader may go away, as in `main.py | head`: the rest goes nowhere, and the program continues."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def _mend_output() -> None:
    """Write to nobody where a stream is closed or its reader goes away, and escapes where its encoding lacks a
    character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or Path(os.devnull).open("w")  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            if stream is getattr(sys, f"__{name}__") and not stream.isatty():
                raw = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
                stream = io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=name == "stderr")
        setattr(sys, name, stream)


def _complain(text: str) -> None:
    print(wrapped(text, sys.stderr), file=sys.stderr)


def conclude(runs: Sequence[Run], format: str, quiet: bool = False, about: str = "") -> list[Path]:
    """Draw the figures of runs of one model, data set and settings and write their verdict and report.html, unless all
    are there already or another process is just doing so, and print the verdict; `about` heads every sentence where
    verdicts of others stand beside it. Gives what it has written."""
    from lth.plots import draw
    from lth.records import labels, printed, sentences, verdict

    folder = runs[0].plots
    figures = draw.up_to_date(runs, folder, format)
    table = verdict.table(runs)
    pages, told = [folder / "verdict.csv", folder / "report.html"], sentences.sentences(table)
    current = figures is not None and verdict.written(table, folder) and pages[1].is_file()
    if not quiet:
        print(wrapped(f"\n{labels.title(runs[0])}: {labels.settings(*runs)}\n", sys.stdout))
        print(f"{printed.render(table, shutil.get_terminal_size((100, 24)).columns)}\n")
    for sentence in told:
        print(wrapped(f"{about}: {sentence}" if about else sentence, sys.stdout))
    written = [] if current else _draw(runs, format, table, told)  # after what needs no disk has been said
    if current:
        print("\n".join(["", "up to date:", *(f"  {path}" for path in [*(figures or []), *pages])]))
    elif written:
        print("\n".join(["", "written:", *(f"  {path}" for path in written)]))
    else:
        print(f"\nanother process is drawing the figures: {folder}")
    return written


def _draw(runs: Sequence[Run], format: str, table: pd.DataFrame, told: Sequence[str]) -> list[Path]:
    """The figures, verdict.csv and report.html; nothing where another process is at them."""
    from lth.plots import draw, report
    from lth.records import files, verdict
    from lth.records.lock import Locked, Locks

    folder = runs[0].plots
    with Locks() as locks:
        try:
            locks.take(folder)
        except Locked:
            return []
        files.drop_partials(folder)  # of one that was killed here
        pages = [verdict.write(table, folder), report.write(runs, table, told, folder)]
        figures = draw.draw_all(runs, folder, format, lambda problem: _complain(f"warning: {problem}"))
        return [*figures, *pages]  # these were written first: who finds the figures recorded finds all there


def side_by_side(groups: Sequence[Sequence[Run]], folder: Path, format: str) -> None:
    """Draw runs of several models, data sets and settings in one figure, unless it is there already."""
    from lth.plots import draw

    runs = [run for group in groups for run in group]
    written = draw.up_to_date(runs, folder, format)
    if written is None:
        from lth.plots.connectivity import rewind_points
        from lth.plots.grid import grid
        from lth.records.lock import Locked, Locks

        with Locks() as locks:
            try:
                locks.take(folder / "grid")
            except Locked:
                print(f"another process is drawing the figure: {folder / f'grid.{format}'}")
                return
            source = draw.fingerprint(runs)
            (folder / f"connectivity.{format}").unlink(missing_ok=True)  # of settings that are no longer among these
            written = [*grid(groups, folder, format), *rewind_points(groups, folder, format)]
            draw.record(folder, format, source, written)
    print("\n".join(f"  {path}" for path in written))


def perform(config: Config, argv: Sequence[str]) -> int:
    """Run or continue the experiment of these settings, which the command line `argv` gave, and show its results."""
    from lth.run import session, tensorboard  # PyTorch loads here, once the flags have been found good
    from lth.training.train import TrialError

    failure: Exception | None = None
    _check_repeated([config], argv)
    try:
        session.run(config, argv)
    except (session.TrialsFailed, TrialError) as error:  # the others are complete and can be looked at
        failure = error
    if config.dry_run:
        return 0
    if runs := _finished(config):
        written = conclude(runs, config.format, config.quiet)
        if config.tensorboard and written:
            tensorboard.add_figures(runs[0], written)
    if failure:
        raise failure
    return 0


def perform_all(asked: Mapping[Config, Mapping[str, str]], argv: Sequence[str]) -> int:
    """The same for the experiments of a sweep, each with the values that tell it from the others: they end with the
    verdicts in words, one figure, and sweep.csv."""
    from lth.records import files, sentences, verdict
    from lth.records import sweep as records
    from lth.run import session
    from lth.training.train import TrialError

    first, failure = next(iter(asked)), None
    own = {config: {name: text for name, text in values.items() if name != "seed"} for config, values in asked.items()}
    _check_repeated([config for config, values in asked.items() if "ticket" not in values], argv)
    try:
        session.run_all({config: sweep.label(values) for config, values in own.items()}, argv)
    except (session.TrialsFailed, TrialError) as error:
        failure = error
    groups = {}
    for config, values in own.items():  # seeds of one setting are trials of it
        if not first.dry_run and (runs := _finished(config)):
            groups[sweep.label(values) or "all seeds"] = values, runs
    for name, (_, runs) in groups.items():
        for sentence in sentences.sentences(verdict.table(runs)):
            print(wrapped(f"{name}: {sentence}", sys.stdout))
    if groups:
        folder = first.root / "plots"
        table, text = folder / "sweep.csv", records.text(records.table(groups.values()))
        if not table.exists() or table.read_bytes() != text.encode():  # whatever a spreadsheet has made of it
            files.write(table, text.encode())
        print(f"\nall settings:\n  {table}")
        side_by_side([runs for _, runs in groups.values()], folder, first.format)
    if failure:
        raise failure
    return 0


def _check_repeated(asked: Iterable[Config], argv: Sequence[str]) -> None:
    """ConfigError if --config would repeat a run with another ticket than it had."""
    if not any(word.split("=")[0] == "--config" for word in argv):
        return
    given = vars(flags.parser().parse_known_args(argv)[0])
    if "ticket" in given:
        return
    from lth.run import refusals

    for config in asked:
        refusals.refuse_later_ticket(given["config"], config)


def _finished(config: Config) -> list[Run]:
    """All runs of these settings with a finished round, also those of other commands, but for those that are damaged:
    these are said."""
    from lth.records import tables
    from lth.run import tasks

    one = tasks.runs_of(config)[0]
    found = tables.find(
        config.root, one.arch_type, one.dataset, one.settings, lambda error: _complain(f"warning: {error}")
    )
    return [run for run in found if run.plots == one.plots]
