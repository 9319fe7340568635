"""Draw the figures and give the verdict of every run under dumps/, finished or not: one set per folder of settings.

    python combine_plots.py
    python combine_plots.py --arch_type fc1 --dataset mnist --format pdf

Different settings are never averaged; --grid puts them side by side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lth.commands import command
from lth.settings.config import ConfigError
from lth.settings.flags import FIELDS, Parser, typed, unknown_problems
from lth.settings.values import folder_path


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="combine_plots.py", description=__doc__ or "")
    where = "folder with dumps/ and plots/ (default: this one)"
    made.add_argument("--root", type=typed(folder_path), default=Path(), metavar="ROOT", help=where)
    made.add_argument("--arch_type", metavar="NAME", help="only runs of this model")
    made.add_argument("--dataset", metavar="NAME", help="only runs on this data set")
    made.add_argument("--name", metavar="FOLDER", help="only runs in this folder of settings")
    formats, axes = FIELDS["format"].metadata["choices"], ("remaining", "flops", "compression")
    made.add_argument("--format", choices=formats, default="png", help="file format of the figures (default: png)")
    made.add_argument("--grid", action="store_true", help="also draw all of them side by side")
    also = "also draw the comparison against multiply-adds or compression (default: weights remaining alone)"
    masks = "also compare the masks of arms and trials: masks.csv and its figure"
    made.add_argument("--masks", action="store_true", help=masks)
    made.add_argument("--x", choices=axes, default="remaining", help=also)
    made.add_argument("--quiet", action="store_true", help="print the verdicts' sentences and the files only")
    made.add_argument("--debug", action="store_true", help="tracebacks with error messages")
    return made


def main(argv: Sequence[str]) -> int:
    """Draw what the flags ask for. Runs that cannot be read are reported and left out; the exit code is then 2."""
    made = parser()
    flags, unknown = made.parse_known_args(argv)
    if problems := unknown_problems(made, unknown):
        raise ConfigError(*problems)

    from lth.analysis import labels
    from lth.records import tables

    spoiled: list[tables.RecordError] = []
    found = tables.find(flags.root, flags.arch_type, flags.dataset, flags.name, spoiled.append)
    if not found and not spoiled:
        raise ConfigError(_nothing(flags))
    groups, reasons = command.grouped(found)
    for error in (*spoiled, *reasons):
        print(f"error: {error}", file=sys.stderr)
    abouts = labels.told_apart(groups) if len(groups) > 1 else [""]
    for runs, about in zip(groups, abouts, strict=False):
        command.conclude(runs, flags.format, flags.quiet, about, flags.masks, flags.x)
    if groups and not (flags.arch_type or flags.dataset or flags.name):
        from lth.plots import report

        print(command.listed("\nall experiments in", [report.write_index(groups, flags.root / "plots")]))
    if flags.grid and groups:
        command.side_by_side(groups, flags.root / "plots", flags.format)
    return 2 if spoiled or reasons else 0


def _nothing(flags: argparse.Namespace) -> str:
    asked = [f"--{name} {value}" for name in ("arch_type", "dataset", "name") if (value := getattr(flags, name))]
    where = flags.root / "dumps"
    if asked:
        return f"no run under {where} matches {' '.join(asked)}"
    return f"no run with a finished round under {where}: main.py writes them there, and --root says where else to look"
