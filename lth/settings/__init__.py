"""Every setting once: what can be asked for, how it is typed, and what is wrong with it. Uses nothing of `lth`.

config.py has all settings as fields and says which exclude each other; values.py and names.py read what is typed for
them; arms.py has the tables of arms and criteria; flags.py is the command line made from the fields; checks.py says
what is wrong with settings and with arguments of public functions. Without PyTorch, so that `--help` is quick.
"""

VERSION = "2.0.0"
