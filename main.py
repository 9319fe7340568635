#!/usr/bin/env python3
"""Find lottery tickets: train, prune, reset, train again, and compare the arms (Frankle & Carbin, ICLR 2019).

    python main.py --prune_type lt reinit --prune_percent 20 --prune_iterations 10 --end_iter 5

The flags are declared in lth/settings/config.py; the method is lth/experiment/strategy.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import utils
from lth.settings import sweep


def main(argv: Sequence[str]) -> int:
    """Run the experiment that the flags ask for, or continue it, and show its results."""
    return utils.perform(sweep.parse(argv), argv)


if __name__ == "__main__":
    sys.exit(utils.exit_code(main, sys.argv[1:]))
