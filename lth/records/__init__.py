"""What runs leave on disk. Uses settings, models, pruning, data and training.

files.py writes so that a crash loses nothing; lock.py keeps a run to one process; journal.py has the numbers of the
rounds, recording.py writes it and the tables under dumps/, tables.py reads it; tickets.py is the format of the files
under saves/, store.py the tickets, weights and checkpoints of one run there; identity.py tells experiments apart;
events.py is what is reported meanwhile.
"""

from lth.records.tables import Run, find, finished_rounds, results, table

__all__ = ["Run", "find", "finished_rounds", "results", "table"]
