#!/usr/bin/env python3
"""Draw the figures and give the verdict of every run under dumps/, finished or not: one set a folder of settings.

    python combine_plots.py
    python combine_plots.py --arch_type fc1 --dataset mnist --format pdf

Different settings are never averaged; --grid puts them side by side.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import utils
from lth.settings.config import ConfigError
from lth.settings.flags import FIELDS


class Parser(argparse.ArgumentParser):
    """Reports bad flags as main.py does: one message, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help lists the flags)")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(
        prog="combine_plots.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--root", type=Path, default=Path(), help="folder with dumps/ and plots/ (default: this one)")
    made.add_argument("--arch_type", metavar="NAME", help="only runs of this model")
    made.add_argument("--dataset", metavar="NAME", help="only runs on this data set")
    made.add_argument("--name", metavar="FOLDER", help="only runs in this folder of settings")
    formats = FIELDS["format"].metadata["choices"]
    made.add_argument("--format", choices=formats, default="png", help="file format of the figures (default: png)")
    made.add_argument("--grid", action="store_true", help="also draw all of them side by side")
    made.add_argument("--quiet", action="store_true", help="print the verdicts' sentences and the files only")
    made.add_argument("--debug", action="store_true", help="tracebacks with error messages")
    return made


def main(argv: Sequence[str]) -> int:
    """Draw what the flags ask for. Runs that cannot be read are reported and left out; the exit code is then 2."""
    flags = parser().parse_args(argv)

    from lth.records import tables  # PyTorch and matplotlib load here, once the flags have been found good

    spoiled: list[tables.RecordError] = []
    found = tables.find(flags.root, flags.arch_type, flags.dataset, flags.name, spoiled.append)
    for error in spoiled:
        print(f"error: {error}", file=sys.stderr)
    if not found and not spoiled:
        raise ConfigError(_nothing(flags))
    groups = [list(runs) for _, runs in itertools.groupby(found, lambda run: run.plots)]
    for runs in groups:
        utils.conclude(runs, flags.format, flags.quiet)
    if flags.grid:
        from lth.plots.grid import grid

        print("\n".join(f"  {path}" for path in grid(groups, flags.root / "plots", flags.format)))
    return 2 if spoiled else 0


def _nothing(flags: argparse.Namespace) -> str:
    asked = [f"--{name} {value}" for name in ("arch_type", "dataset", "name") if (value := getattr(flags, name))]
    where = flags.root / "dumps"
    if asked:
        return f"no run under {where} matches {' '.join(asked)}"
    return f"no run with a finished round under {where}: main.py writes them there, and --root says where else to look"


if __name__ == "__main__":
    sys.exit(utils.exit_code(main, sys.argv[1:]))
