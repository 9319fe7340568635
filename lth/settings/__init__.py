"""Every setting once: what can be asked for, how it is typed, and what is wrong with it. Uses nothing of `lth`.

config.py has all settings as fields; arms.py the tables of arms and criteria; flags.py the command line made from
the fields; checks.py the arguments of public functions. PyTorch is not imported here, so that `--help` is quick.
"""
