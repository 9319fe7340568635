#!/usr/bin/env python3
"""Draw the figures and give the verdict of every run under dumps/: the command `lth plot` in a clone.

python combine_plots.py
python combine_plots.py --arch_type fc1 --dataset mnist --format pdf
"""

import sys

import utils
from lth.commands.command import combine as main

if __name__ == "__main__":
    sys.exit(utils.exit_code(main, sys.argv[1:]))
