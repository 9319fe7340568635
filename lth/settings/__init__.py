"""Every setting once: what can be asked for, how it is typed, and what is wrong with it. Uses nothing of `lth`.

config.py has all settings as fields and says which exclude each other; values.py and names.py read what is typed for
them; arms.py has the tables of arms and criteria; flags.py is the command line made from the fields, sweep.py several
of them for --sweep; problems.py is how a mistake is reported; checks.py checks the arguments of public functions.
PyTorch is not imported here, so that `--help` is quick.
"""

VERSION = "2.0.0"
