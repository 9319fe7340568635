"""The other ways in, thin, onto the same engine: Python functions for those who do not use main.py. Uses everything.

experiments.py has lth.run and ExperimentRunner, iterative_pruning.py takes the user's network (own_network.py), data
and rule; saved_ticket.py brings tickets back, export.py hands them on, audit_files.py checks saved ones.
"""
