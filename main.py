#!/usr/bin/env python3
"""Find lottery tickets: train, prune, reset, train again, and compare the arms (Frankle & Carbin, ICLR 2019).

    python main.py --prune_type lt reinit --prune_percent 20 --prune_iterations 10 --end_iter 5

The flags are declared in lth/settings/config.py; the method is lth/experiment.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import utils
from lth.settings import flags
from lth.settings.config import Config


def main(argv: Sequence[str]) -> int:
    """Run the experiment that the flags ask for, or go on with it, and show what came of it."""
    return perform(flags.parse(argv), argv)


def perform(config: Config, argv: Sequence[str], words: Callable[[str], str] = str) -> int:
    """The same for settings, which the command line `argv` gave; `words` as in `session.run`."""
    from lth.records import tables  # PyTorch loads here, once the flags have been found good
    from lth.run import session, tasks, tensorboard

    failure = None
    try:
        session.run(config, argv, words)
    except session.TrialsFailed as error:  # the others are complete and can be looked at
        failure = error
    if config.dry_run:
        return 0
    one = tasks.runs_of(config)[0]
    found = tables.find(config.root, one.arch_type, one.dataset, one.settings)
    runs = [run for run in found if run.plots == one.plots]
    if runs:
        written = utils.conclude(runs, config.format, config.quiet)
        if config.tensorboard and written:
            tensorboard.add_figures(runs[0], written)
    if failure:
        raise failure
    return 0


if __name__ == "__main__":
    sys.exit(utils.exit_code(main, sys.argv[1:]))
