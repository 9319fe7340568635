"""One command from its settings to its results. Uses everything but lth.plots and lth.api.

session.py checks, locks and starts; jobs.py has runs side by side; progress.py is the terminal; tensorboard.py the log.
"""
