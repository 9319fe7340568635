"""Every setting once: what can be asked for, how it is typed, and what is wrong with it. Uses nothing of `lth`.

config.py has all settings as fields; values.py and names.py read what is typed for them, ticket.py that of --ticket;
arms.py has the tables of arms and criteria; flags.py the command line made from the fields, sweep.py the several of
--sweep; combinations.py says what cannot stand together, checks.py looks at the arguments of public functions. PyTorch
is not imported here, so that `--help` is quick.
"""
