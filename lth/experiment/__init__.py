"""The rounds of an experiment. Uses settings, pruning, data, training and records.

strategy.py is Strategy 1 of the paper: train, record, prune, reset. trainer.py trains the ticket of a round,
next_ticket.py makes the next one, scores.py has the scores for pruning before training; start_tickets.py starts from a
saved ticket (--ticket), mode_connectivity.py measures the error between two trainings of a ticket (--connectivity).
"""

from lth.experiment.strategy import Experiment, TrialError

__all__ = ["Experiment", "TrialError"]
