"""One command from its settings to its results. Uses everything but lth.plots and lth.api.

session.py checks, locks and starts; tasks.py is the graph of trainings, queue.py who gets which, jobs.py has them done,
by processes.py on this machine or by cluster.py on many; progress.py is the terminal; tensorboard.py the log.
"""
