"""Pictures, drawn from the files of runs alone. Uses lth.records and lth.training.

draw.py draws all of a folder unless they are up to date; comparison.py accuracy and early stop against the weights
remaining; training.py the rounds as curves; layers.py and weights.py what survives; connectivity.py the error between
two trainings; grid.py several settings side by side; report.py all of it on one page. style.py is their look, axes.py
their scales.
"""
