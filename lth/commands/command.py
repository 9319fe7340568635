"""The programs main.py (`lth run`) and combine_plots.py (`lth plot`)."""

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
    """Run a program and return its exit code, with one message for an error: 2 for bad input, 1 for a failure, 130 and
    143 for Ctrl-C and SIGTERM. Tracebacks only with --debug."""
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
                command = same_command("--overwrite" in argv)
                say(f"stopped by {error}: finished rounds are kept, {command} continues from here", sys.stderr)
                return 128 + int(signum)
            if type(error).__module__.startswith("lth."):
                say(f"error: {error}", sys.stderr)
            else:
                say(f"error: {type(error).__name__}: {error} (--debug shows where)", sys.stderr)
            return 1
        finally:
            out.flush()


# main.py


def main(argv: Sequence[str]) -> int:
    """Run the experiments that the flags ask for, or continue them, and show their results."""
    return perform(flags.experiments(argv), argv)


def perform(configs: Mapping[Config, Mapping[str, str]], argv: Sequence[str]) -> int:
    """Run or continue the experiments that the command line `argv` asked for, and show their results. `configs` has the
    swept values of each; a sweep ends with the verdicts in words, one figure, and sweep.csv."""
    from lth.commands import progress, session  # which import PyTorch, once the flags have been checked
    from lth.experiment import start_tickets
    from lth.training.train import TrialError

    first, failure = next(iter(configs)), None
    options = vars(flags.make_parser().parse_known_args(argv)[0])
    for config, values in configs.items():
        if "config" in options and not {"ticket"} & {*options, *values}:
            start_tickets.refuse_later_round(options["config"], config)
    swept = {  # seeds are trials of the same settings
        config: {name: text for name, text in values.items() if name != "seed"} for config, values in configs.items()
    }
    try:
        session.run({config: flags.label(values) for config, values in swept.items()}, argv)
    except (session.TrialsFailed, TrialError) as error:  # the others are complete and can be shown
        failure = error
    groups = {}
    for config, values in swept.items():
        if not first.dry_run and (runs := _finished(config)):
            groups[flags.label(values) or "all seeds"] = values, runs
    if groups and any(configs.values()):
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
    """All runs of these settings with a finished round, also those of other commands. Damaged ones are reported and
    left out."""
    from lth.records import tables

    first = tables.runs_of(config)[0]
    runs = tables.find(config.root, first.arch_type, first.dataset, first.settings, _warn)
    return [run for run in runs if run.plots == first.plots]


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
    if not table.exists() or table.read_bytes() != text:  # a spreadsheet may have changed it
        files.write(table, text)
    everything, _ = grouped(tables.find(config.root, on_error=lambda error: None))
    index = report.write_index(everything, table.parent)
    side_by_side([runs for _, runs in groups.values()], table.parent, config.format, [table, index])


# combine_plots.py


def combine_parser() -> argparse.ArgumentParser:
    """The flags of combine_plots.py."""
    parser = flags.Parser(prog="combine_plots.py", description=COMBINE)
    root = "folder with dumps/ and plots/ (default: this one)"
    parser.add_argument("--root", type=flags.argparse_type(folder_path), default=Path(), metavar="ROOT", help=root)
    parser.add_argument("--arch_type", metavar="NAME", help="only runs of this model")
    parser.add_argument("--dataset", metavar="NAME", help="only runs on this data set")
    parser.add_argument("--name", metavar="FOLDER", help="only runs in this folder of settings")
    formats, axes = flags.FIELDS["format"].metadata["choices"], ("remaining", "flops", "compression")
    parser.add_argument("--format", choices=formats, default="png", help="file format of the figures (default: png)")
    parser.add_argument("--grid", action="store_true", help="also draw all of them side by side")
    masks = "also compare the masks of arms and trials: masks.csv and its figure"
    parser.add_argument("--masks", action="store_true", help=masks)
    x = "also draw the comparison against multiply-adds or compression (default: weights remaining alone)"
    parser.add_argument("--x", choices=axes, default="remaining", help=x)
    parser.add_argument("--quiet", action="store_true", help="print the verdicts' sentences and the files only")
    parser.add_argument("--debug", action="store_true", help="tracebacks with error messages")
    return parser


def combine(argv: Sequence[str]) -> int:
    """Draw what the flags ask for. Runs that cannot be read are reported and left out; the exit code is then 2."""
    parser = combine_parser()
    options, unknown = parser.parse_known_args(argv)
    if problems := flags.unknown_problems(parser, unknown):
        raise ConfigError(*problems)

    from lth.analysis import labels
    from lth.plots import report
    from lth.records import tables

    errors: list[tables.RecordError] = []
    filters = {name: value for name in ("arch_type", "dataset", "name") if (value := getattr(options, name))}
    runs = tables.find(options.root, **filters, on_error=errors.append)
    if not runs and not errors:
        folder, words = options.root / "dumps", " ".join(f"--{name} {value}" for name, value in filters.items())
        if filters:
            raise ConfigError(f"no run under {folder} matches {words}")
        hint = "main.py writes them there, and --root says where else to look"
        raise ConfigError(f"no run with a finished round under {folder}: {hint}")
    groups, reasons = grouped(runs)
    for error in (*errors, *reasons):
        print(f"error: {error}", file=sys.stderr)
    group_labels = labels.distinct_names(groups) if len(groups) > 1 else [""]
    for group, label in zip(groups, group_labels, strict=False):
        conclude(group, options.format, options.quiet, label, options.masks, options.x)
    if groups and not filters:
        print(_listed("\nall experiments in", [report.write_index(groups, options.root / "plots")]))
    if options.grid and groups:
        side_by_side(groups, options.root / "plots", options.format)
    return 2 if errors or reasons else 0


def grouped(runs: Sequence[Run]) -> tuple[list[list[Run]], list[str]]:
    """Runs in groups of one model, data set and settings that may be averaged, and why others must not be."""
    from lth.records import identity

    groups = [list(group) for _, group in itertools.groupby(runs, lambda run: run.plots)]
    return [group for group in groups if not identity.mixed(group)], list(filter(None, map(identity.mixed, groups)))


# What both print and draw


def conclude(
    runs: Sequence[Run], format: str, quiet: bool = False, label: str = "", masks: bool = False, x: str = "remaining"
) -> list[Path]:
    """Print the verdict of runs of one model, data set and settings, draw their figures, and write their verdict.csv
    and report.html, unless these are up to date or another process is drawing them. `label` precedes each sentence.
    With `masks`, or if there is a masks.csv already, masks are compared, too. The comparison is also drawn against `x`.
    Returns the files that were written."""
    from lth.analysis import labels, printed, sentences, verdict
    from lth.plots import draw
    from lth.records import files
    from lth.records.lock import Locks

    folder = runs[0].plots
    figures = draw.up_to_date(runs, folder, format)
    mask_table = folder / "masks.csv"
    table = verdict.table(runs)
    verdicts = sentences.of_runs(runs, table)
    if not quiet:
        say(f"\n{labels.title(runs[0])}: {labels.settings(*runs)}\n", sys.stdout)
        print(f"{printed.render(table, shutil.get_terminal_size((100, 24)).columns)}\n")
    for sentence in verdicts:
        say(f"{label}: {sentence}" if label else sentence, sys.stdout)
    if x == "flops" and table["speedup"].isna().all():
        _warn("no comparison against multiply-adds, which were not counted in these runs")
        x = "remaining"
    wanted = [mask_table] if masks else []
    wanted += [] if x == "remaining" else [folder / f"comparison_{x}.{format}"]
    if figures is not None and all(file.is_file() for file in wanted):
        print(_listed("\nup to date in", figures))
        return []
    with Locks(optional=True) as locks:
        if not locks.try_take(runs[0].dumps.parent.parent):  # beside the folder of the settings
            print(f"\nanother process is drawing the figures: {folder}")
            return []
        from lth.plots import report

        files.drop_partials(folder)  # of a process that was killed here
        compared = [mask_table] if (masks or mask_table.is_file()) and _compare_masks(runs, folder) else []
        source, problems = draw.fingerprint(runs), list[str]()
        drawn = draw.draw_all(runs, folder, format, problems.append, x)
        written = [*drawn, verdict.write(table, folder), report.write(runs, table, verdicts, folder, drawn), *compared]
        for problem in problems:  # the next command reports them again
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
    """Draw runs of several models, data sets and settings in one figure, unless it is up to date, and print its name
    and those of `more` files."""
    from lth.plots import draw
    from lth.records import files

    runs = [run for group in groups for run in group]
    if (figures := draw.up_to_date(runs, folder, format)) is None:
        from lth.plots.comparison import grid
        from lth.plots.pairs import rewind_points

        source = draw.fingerprint(runs)
        functions = {folder / f"grid.{format}": grid, folder / f"connectivity.{format}": rewind_points}
        files.delete(folder / f"connectivity.{format}")  # an old one may show settings that are not among these
        figures = [file for file, function in functions.items() if function(groups, file)]
        draw.record(folder, format, source, figures)
    if figures or more:
        print(_listed("\nall settings in", [*more, *figures]))


def _listed(heading: str, files: Sequence[Path]) -> str:
    """Lines with the folder of these files, then their names, report.html first."""
    names = sorted({file.name for file in files}, key=lambda name: (name != "report.html", name))
    return "\n".join([f"{heading} {files[0].parent}:", *(f"  {name}" for name in names)])


def _warn(problem: object) -> None:
    say(f"warning: {problem}", sys.stderr)
