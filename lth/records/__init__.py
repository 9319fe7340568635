"""What runs leave on disk. Uses settings, models, pruning, data and training.

files.py writes so that a crash loses nothing; lock.py keeps a run to one process; journal.py writes the numbers of the
rounds under dumps/, tables.py finds runs and reads them; store.py has the tickets, weights and checkpoints of a run
under saves/; identity.py tells experiments apart.
"""

from lth.records.tables import Run, find, finished_rounds, results, table

__all__ = ["Run", "find", "finished_rounds", "results", "table"]
