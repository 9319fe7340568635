"""What runs leave on disk, and what it says. Uses settings, pruning and training.

files.py writes so that a crash loses nothing; lock.py keeps a run to one process; tables.py has the numbers under
dumps/, tickets.py the weights under saves/; labels.py words for people; verdict.py the statistics.
"""

from lth.records.tables import Run, find, finished_rounds, results, table

__all__ = ["Run", "find", "finished_rounds", "results", "table"]
