"""The programs main.py (`lth run`) and combine_plots.py (`lth plot`): from the arguments to the last line on the
terminal."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lth.commands.terminal import Output, say
from lth.settings import flags
from lth.settings.config import Config, ConfigError, same_command
from lth.settings.values import folder_path

if TYPE_CHECKING:
    from lth.records.tables import Run

COMBINE = """Draw the figures and give the verdict of every run under dumps/, finished or not: one set per folder of
settings.

    python combine_plots.py
    python combine_plots.py --arch_type fc1 --dataset mnist --format pdf

Different settings are never averaged; --grid puts them side by side.
"""


def exit_code(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a program and return its exit code, with one message for what it raises: 2 for bad input, 1 for a failure,
    130 and 143 for Ctrl-C and SIGTERM. Tracebacks only with --debug."""
    out, err = Output(sys.stdout), Output(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            return main(argv)
        except KeyboardInterrupt:
            say("stopped", sys.stderr)
            return 130
        except SystemExit:
            raise
        except BaseException as error:
            if "--debug" in argv:
                traceback.print_exc()
            if isinstance(error, ConfigError):
                say("\n".join(f"error: {problem}" for problem in error.problems), sys.stderr)
                return 2
            if signum := getattr(error, "signum", 0):
                again = same_command("--overwrite" in argv)
                say(f"stopped by {error}: finished rounds are kept, {again} continues from here", sys.stderr)
                return 128 + int(signum)
            ours = type(error).__module__.startswith("lth.")
            kind = "" if ours else f"{type(error).__name__}: "
            say(f"error: {kind}{error}{'' if ours else ' (--debug shows where)'}", sys.stderr)
            return 1
        finally:
            out.flush()


# main.py


def main(argv: Sequence[str]) -> int:
    """Run the experiments that the flags ask for, or continue them, and show their results."""
    return perform(flags.experiments(argv), argv)


def perform(asked: Mapping[Config, Mapping[str, str]], argv: Sequence[str]) -> int:
    """Run or continue the experiments that the command line `argv` asked for, and show their results. Those of a sweep,
    each with the values that tell it from the others, end with the verdicts in words, one figure, and sweep.csv."""
    from lth.commands import progress, session  # PyTorch loads here, once the flags have been found good
    from lth.experiment import start_tickets
    from lth.training.train import TrialError

    first, failure = next(iter(asked)), None
    given = vars(flags.parser().parse_known_args(argv)[0])
    for config, values in asked.items():
        if "config" in given and not {"ticket"} & {*given, *values}:
            start_tickets.refuse_later_round(given["config"], config)
    own = {config: {name: text for name, text in values.items() if name != "seed"} for config, values in asked.items()}
    try:
        session.run({config: flags.label(values) for config, values in own.items()}, argv)
    except (session.TrialsFailed, TrialError) as error:  # the others are complete and can be looked at
        failure = error
    groups = {}
    for config, values in own.items():  # seeds of one setting are trials of it
        if not first.dry_run and (runs := _finished(config)):
            groups[flags.label(values) or "all seeds"] = values, runs
    if groups and any(asked.values()):
        _show_sweep(groups, first)
    elif groups:
        ((_, runs),) = groups.values()
        written = conclude(runs, first.format, first.quiet)
        if first.tensorboard and written:
            progress.add_figures(runs[0], written)
    if failure:
        raise failure
    return 0


def _finished(config: Config) -> list[Run]:
    """All runs of these settings with a finished round, of other commands too. Damaged ones are reported and
    left out."""
    from lth.records import tables

    one = tables.runs_of(config)[0]
    found = tables.find(config.root, one.arch_type, one.dataset, one.settings, _warn)
    return [run for run in found if run.plots == one.plots]


def _show_sweep(groups: Mapping[str, tuple[Mapping[str, str], list[Run]]], config: Config) -> None:
    from lth.analysis import printed, sentences
    from lth.plots import report
    from lth.records import files, tables

    for name, (_, runs) in groups.items():
        for sentence in sentences.of_runs(runs):
            say(f"{name}: {sentence}", sys.stdout)
    print("\nThe settings, by their sparsest winning ticket, then by validation accuracy:")
    for sentence in printed.ranked([(name, runs) for name, (_, runs) in groups.items()]):
        say(sentence, sys.stdout)
    table = config.root / "plots" / "sweep.csv"
    text = printed.sweep(groups.values()).to_csv(index=False, float_format="%.10g", lineterminator="\n").encode()
    if not table.exists() or table.read_bytes() != text:  # whatever a spreadsheet has made of it
        files.write(table, text)
    everything, _ = grouped(tables.find(config.root, spoiled=lambda error: None))
    index = report.write_index(everything, table.parent)
    side_by_side([runs for _, runs in groups.values()], table.parent, config.format, [table, index])


# combine_plots.py


def parser() -> argparse.ArgumentParser:
    """The flags of combine_plots.py."""
    made = flags.Parser(prog="combine_plots.py", description=COMBINE)
    where = "folder with dumps/ and plots/ (default: this one)"
    made.add_argument("--root", type=flags.typed(folder_path), default=Path(), metavar="ROOT", help=where)
    made.add_argument("--arch_type", metavar="NAME", help="only runs of this model")
    made.add_argument("--dataset", metavar="NAME", help="only runs on this data set")
    made.add_argument("--name", metavar="FOLDER", help="only runs in this folder of settings")
    formats, axes = flags.FIELDS["format"].metadata["choices"], ("remaining", "flops", "compression")
    made.add_argument("--format", choices=formats, default="png", help="file format of the figures (default: png)")
    made.add_argument("--grid", action="store_true", help="also draw all of them side by side")
    also = "also draw the comparison against multiply-adds or compression (default: weights remaining alone)"
    masks = "also compare the masks of arms and trials: masks.csv and its figure"
    made.add_argument("--masks", action="store_true", help=masks)
    made.add_argument("--x", choices=axes, default="remaining", help=also)
    made.add_argument("--quiet", action="store_true", help="print the verdicts' sentences and the files only")
    made.add_argument("--debug", action="store_true", help="tracebacks with error messages")
    return made


def combine(argv: Sequence[str]) -> int:
    """Draw what the flags ask for. Runs that cannot be read are reported and left out; the exit code is then 2."""
    made = parser()
    given, unknown = made.parse_known_args(argv)
    if problems := flags.unknown_problems(made, unknown):
        raise ConfigError(*problems)

    from lth.analysis import labels
    from lth.plots import report
    from lth.records import tables

    spoiled: list[tables.RecordError] = []
    asked = {name: value for name in ("arch_type", "dataset", "name") if (value := getattr(given, name))}
    found = tables.find(given.root, **asked, spoiled=spoiled.append)
    if not found and not spoiled:
        where, words = given.root / "dumps", " ".join(f"--{name} {value}" for name, value in asked.items())
        if asked:
            raise ConfigError(f"no run under {where} matches {words}")
        there = "main.py writes them there, and --root says where else to look"
        raise ConfigError(f"no run with a finished round under {where}: {there}")
    groups, reasons = grouped(found)
    for error in (*spoiled, *reasons):
        print(f"error: {error}", file=sys.stderr)
    abouts = labels.told_apart(groups) if len(groups) > 1 else [""]
    for runs, about in zip(groups, abouts, strict=False):
        conclude(runs, given.format, given.quiet, about, given.masks, given.x)
    if groups and not asked:
        print(_listed("\nall experiments in", [report.write_index(groups, given.root / "plots")]))
    if given.grid and groups:
        side_by_side(groups, given.root / "plots", given.format)
    return 2 if spoiled or reasons else 0


def grouped(runs: Sequence[Run]) -> tuple[list[list[Run]], list[str]]:
    """Runs in groups of one model, data set and settings that may be averaged, and why others must not be."""
    from lth.records import identity

    groups = [list(found) for _, found in itertools.groupby(runs, lambda run: run.plots)]
    return [group for group in groups if not identity.mixed(group)], list(filter(None, map(identity.mixed, groups)))


# What both show


def conclude(
    runs: Sequence[Run], format: str, quiet: bool = False, about: str = "", masks: bool = False, x: str = "remaining"
) -> list[Path]:
    """Draw the figures of runs of one model, data set and settings and write their verdict and report.html, unless all
    are there already or another process is drawing them, and print the verdict; `about` heads every sentence where
    verdicts of others stand beside it. With `masks`, or where there is a masks.csv already, masks are compared too. The
    comparison is also drawn against `x`. Returns the files that were written."""
    from lth.analysis import labels, printed, sentences, verdict
    from lth.plots import draw
    from lth.records import files
    from lth.records.lock import Locks

    folder = runs[0].plots
    figures = draw.up_to_date(runs, folder, format)
    compared = folder / "masks.csv"
    table = verdict.table(runs)
    verdicts = sentences.of_runs(runs, table)
    if not quiet:
        say(f"\n{labels.title(runs[0])}: {labels.settings(*runs)}\n", sys.stdout)
        print(f"{printed.render(table, shutil.get_terminal_size((100, 24)).columns)}\n")
    for sentence in verdicts:
        say(f"{about}: {sentence}" if about else sentence, sys.stdout)
    if x == "flops" and table["speedup"].isna().all():
        _warn("no comparison against multiply-adds, which were not counted in these runs")
        x = "remaining"
    asked = [compared] if masks else []
    asked += [] if x == "remaining" else [folder / f"comparison_{x}.{format}"]
    if figures is not None and all(file.is_file() for file in asked):
        print(_listed("\nup to date in", figures))
        return []
    with Locks(alone=True) as locks:
        if not locks.try_take(runs[0].dumps.parent.parent):  # beside the folder of the settings
            print(f"\nanother process is drawing the figures: {folder}")
            return []
        from lth.plots import report

        files.drop_partials(folder)  # of a process that was killed here
        more = [compared] if (masks or compared.is_file()) and _compare_masks(runs, folder) else []
        source, problems = draw.fingerprint(runs), list[str]()
        drawn = draw.draw_all(runs, folder, format, problems.append, x)
        written = [*drawn, verdict.write(table, folder), report.write(runs, table, verdicts, folder, drawn), *more]
        for problem in problems:  # which is reported again by the next command
            _warn(problem)
        if not problems:
            draw.record(folder, format, source, written)
    print(_listed("\nwritten to", written))
    return written


def _compare_masks(runs: Sequence[Run], folder: Path) -> bool:
    """Whether masks.csv has been written."""
    from lth.analysis import overlap
    from lth.records import files

    try:
        if overlap.write(runs, folder):
            return True
        _warn("no masks.csv: no two of these runs have a mask of the same round")
    except files.Unwritable:
        raise
    except files.UNUSABLE as error:
        _warn(f"no new masks.csv: {error}")
    return False


def side_by_side(groups: Sequence[Sequence[Run]], folder: Path, format: str, more: Sequence[Path] = ()) -> None:
    """Draw runs of several models, data sets and settings in one figure, unless it is there already, and print its
    name, with `more` files."""
    from lth.plots import draw
    from lth.records import files

    runs = [run for group in groups for run in group]
    if (found := draw.up_to_date(runs, folder, format)) is None:
        from lth.plots.comparison import grid
        from lth.plots.pairs import rewind_points

        source = draw.fingerprint(runs)
        drawings = {folder / f"grid.{format}": grid, folder / f"connectivity.{format}": rewind_points}
        files.delete(folder / f"connectivity.{format}")  # of settings no longer among these
        found = [file for file, drawing in drawings.items() if drawing(groups, file)]
        draw.record(folder, format, source, found)
    if found or more:
        print(_listed("\nall settings in", [*more, *found]))


def _listed(heading: str, files: Sequence[Path]) -> str:
    """The folder of these files, then their names, report.html first."""
    names = sorted({file.name for file in files}, key=lambda name: (name != "report.html", name))
    return "\n".join([f"{heading} {files[0].parent}:", *(f"  {name}" for name in names)])


def _warn(problem: object) -> None:
    say(f"warning: {problem}", sys.stderr)
