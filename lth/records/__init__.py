"""What runs leave on disk, and what it says. Uses settings, layers, pruning, data and training.

files.py writes so that a crash loses nothing; folders.py says where they lie; lock.py keeps a run to one process;
tables.py reads the numbers under dumps/, recording.py writes them and journal.py checks them; tickets.py has the
weights under saves/; resume.py goes on from both; same.py tells experiments apart; events.py is what is told meanwhile;
verdict.py has the statistics, sentences.py and printed.py say them; labels.py has words for settings; sweep.py the
table of many experiments.
"""

from lth.records.tables import Run, find, finished_rounds, results, table

__all__ = ["Run", "find", "finished_rounds", "results", "table"]
