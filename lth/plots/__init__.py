"""Pictures, drawn from the files of runs alone. Uses lth.records and lth.analysis.

draw.py draws all of a folder unless they are up to date; comparison.py accuracy and early stop against the weights
remaining, of one experiment or several, and curves; survivors.py what survives; pairs.py two trainings compared;
report.py one page of a folder, and one of all. style.py is their look, with their scales.
"""
