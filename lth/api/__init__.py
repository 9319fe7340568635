"""The other ways in, thin, onto the same engine: Python functions for those who do not use main.py. Uses everything.

iterative_pruning.py takes the user's network, data and rule (own_network.py, own_rule.py); experiment_runner.py one
object; saved_ticket.py brings tickets back, export.py hands them on, audit.py checks those of other loops.
"""
