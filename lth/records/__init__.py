"""The files of runs. Uses settings, models, pruning, data and training.

files.py writes files that survive a crash; lock.py lets one process at a time train a run; journal.py writes the
numbers of rounds under dumps/, tables.py finds runs and reads their numbers; store.py has the tickets, weights and
checkpoints of a run under saves/; identity.py tells experiments apart.
"""

from lth.records.tables import Run, find, finished_rounds, results, table

__all__ = ["Run", "find", "finished_rounds", "results", "table"]
