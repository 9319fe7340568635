"""A command from its arguments to its last line on the terminal: what main.py, `lth` and the other scripts share."""

from __future__ import annotations

import io
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth.run.terminal import wrapped
from lth.settings import flags, sweep
from lth.settings.config import Config, ConfigError, same_command

if TYPE_CHECKING:
    from lth.records.tables import Run


def exit_code(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a program and return its exit code, with one message for what it raises: 2 for bad input, 1 for a failure,
    130 and 143 for Ctrl-C and SIGTERM. Tracebacks only with --debug."""
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
        if signum := getattr(error, "signum", 0):
            again = same_command("--overwrite" in argv)
            _complain(f"stopped by {error}: finished rounds are kept, {again} continues from here")
            return 128 + int(signum)
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


def listed(told: str, files: Sequence[Path]) -> str:
    """The folder of these files, then their names, report.html first."""
    names = sorted({file.name for file in files}, key=lambda name: (name != "report.html", name))
    return "\n".join([f"{told} {files[0].parent}:", *(f"  {name}" for name in names)])


@contextmanager
def _drawing(folder: Path) -> Iterator[bool]:
    """Within it, no other process draws what this folder stands for; False, and a line, if one does already."""
    from lth.records.lock import Locked, Locks

    with Locks() as locks:
        try:
            locks.take(folder)
        except Locked:
            print(f"\nanother process is drawing the figures: {folder}")
            yield False
        else:
            yield True


def conclude(runs: Sequence[Run], format: str, quiet: bool = False, about: str = "") -> list[Path]:
    """Draw the figures of runs of one model, data set and settings and write their verdict and report.html, unless all
    are there already or another process is just doing so, and print the verdict; `about` heads every sentence where
    verdicts of others stand beside it. Returns the files that were written."""
    from lth.analysis import labels, printed, sentences, verdict
    from lth.plots import draw
    from lth.records import files

    folder = runs[0].plots
    figures = draw.up_to_date(runs, folder, format)
    table = verdict.table(runs)
    told = [*sentences.sentences(table), *sentences.about_ties(runs)]
    pages = [folder / "verdict.csv", folder / "report.html"]
    if not quiet:
        print(wrapped(f"\n{labels.title(runs[0])}: {labels.settings(*runs)}\n", sys.stdout))
        print(f"{printed.render(table, shutil.get_terminal_size((100, 24)).columns)}\n")
    for sentence in told:
        print(wrapped(f"{about}: {sentence}" if about else sentence, sys.stdout))
    if figures is not None and verdict.written(table, folder) and pages[1].is_file():
        print(listed("\nup to date in", [*figures, *pages]))
        return []
    with _drawing(folder) as mine:  # after what needs no disk has been printed
        if not mine:
            return []
        from lth.plots import report

        files.drop_partials(folder)  # of a process that was killed here
        pages = [verdict.write(table, folder), report.write(runs, table, told, folder)]
        # These come first: where the figures are recorded, all is there.
        written = [*draw.draw_all(runs, folder, format, lambda problem: _complain(f"warning: {problem}")), *pages]
    print(listed("\nwritten to", written))
    return written


def side_by_side(groups: Sequence[Sequence[Run]], folder: Path, format: str, more: Sequence[Path] = ()) -> None:
    """Draw runs of several models, data sets and settings in one figure, unless it is there already, and print its
    name, with those of `more` files."""
    from lth.plots import draw

    runs = [run for group in groups for run in group]
    if (found := draw.up_to_date(runs, folder, format)) is None:
        from lth.plots.barriers import rewind_points
        from lth.plots.grid import grid

        with _drawing(folder / "grid") as mine:
            found = []
            if mine:
                source = draw.fingerprint(runs)
                (folder / f"connectivity.{format}").unlink(missing_ok=True)  # of settings no longer among these
                found = [*grid(groups, folder, format), *rewind_points(groups, folder, format)]
                draw.record(folder, format, source, found)
    if found or more:
        print(listed("\nall settings in", [*more, *found]))


def perform(asked: Mapping[Config, Mapping[str, str]], argv: Sequence[str]) -> int:
    """Run or continue the experiments that the command line `argv` asked for, and show their results. Those of a sweep,
    each with the values that tell it from the others, end with the verdicts in words, one figure, and sweep.csv."""
    from lth.run import session, tensorboard  # PyTorch loads here, once the flags have been found good
    from lth.training.train import TrialError

    first, failure = next(iter(asked)), None
    own = {config: {name: text for name, text in values.items() if name != "seed"} for config, values in asked.items()}
    _check_repeated([config for config, values in asked.items() if "ticket" not in values], argv)
    try:
        session.run_all({config: sweep.label(values) for config, values in own.items()}, argv)
    except (session.TrialsFailed, TrialError) as error:  # the others are complete and can be looked at
        failure = error
    groups = {}
    for config, values in own.items():  # seeds of one setting are trials of it
        if not first.dry_run and (runs := _finished(config)):
            groups[sweep.label(values) or "all seeds"] = values, runs
    if groups and any(asked.values()):
        _show_sweep(groups, first)
    elif groups:
        ((_, runs),) = groups.values()
        written = conclude(runs, first.format, first.quiet)
        if first.tensorboard and written:
            tensorboard.add_figures(runs[0], written)
    if failure:
        raise failure
    return 0


def _show_sweep(groups: Mapping[str, tuple[Mapping[str, str], list[Run]]], config: Config) -> None:
    from lth.analysis import sentences, verdict
    from lth.analysis import sweep_table as records
    from lth.records import files

    for name, (_, runs) in groups.items():
        for sentence in sentences.sentences(verdict.table(runs)):
            print(wrapped(f"{name}: {sentence}", sys.stdout))
    table, text = config.root / "plots" / "sweep.csv", records.text(records.table(groups.values())).encode()
    if not table.exists() or table.read_bytes() != text:  # whatever a spreadsheet has made of it
        files.write(table, text)
    side_by_side([runs for _, runs in groups.values()], table.parent, config.format, [table])


def _check_repeated(asked: Iterable[Config], argv: Sequence[str]) -> None:
    """ConfigError if --config would repeat a run with another ticket than it had."""
    given = vars(flags.parser().parse_known_args(argv)[0])
    if "config" not in given or "ticket" in given:
        return
    from lth.experiment import start_tickets

    for config in asked:
        start_tickets.refuse_later_round(given["config"], config)


def _finished(config: Config) -> list[Run]:
    """All runs of these settings with a finished round, also those of other commands. Damaged ones are reported and
    left out."""
    from lth.records import tables
    from lth.run import tasks

    one = tasks.runs_of(config)[0]
    found = tables.find(
        config.root, one.arch_type, one.dataset, one.settings, lambda error: _complain(f"warning: {error}")
    )
    return [run for run in found if run.plots == one.plots]
