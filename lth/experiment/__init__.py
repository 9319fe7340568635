"""The rounds of an experiment. Uses settings, pruning, data, training and records.

strategy.py is Strategy 1 of the paper: train, record, prune, reset. borrowed.py and selection.py make the masks of a
round, starts.py what the survivors start from; start_tickets.py is the beginning from a saved ticket (--ticket),
mode_connectivity.py and line.py measure the error between two trainings of a ticket (--connectivity).
"""

from lth.experiment.strategy import Experiment, TrialError

__all__ = ["Experiment", "TrialError"]
