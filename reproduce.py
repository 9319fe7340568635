#!/usr/bin/env python3
"""Reproduce published claims: the command `lth reproduce` in a clone.

python reproduce.py --list
python reproduce.py lenet --quick
"""

import sys

import utils
from lth.claims.reproduce import main

if __name__ == "__main__":
    sys.exit(utils.exit_code(main, sys.argv[1:]))
