#!/usr/bin/env python3
"""Find lottery tickets: train, prune, reset, train again, and compare the arms (Frankle & Carbin, ICLR 2019).

    python main.py --prune_type lt reinit --prune_percent 20 --prune_iterations 10 --end_iter 5

The command `lth run` in a clone. The flags are declared in lth/settings/config.py; the method is
lth/experiment/strategy.py.
"""

import sys

import utils
from lth.commands.command import main

if __name__ == "__main__":
    sys.exit(utils.exit_code(main, sys.argv[1:]))
