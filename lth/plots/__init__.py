"""Pictures, drawn from the files of runs alone. Uses lth.records.

draw.py draws all of a folder unless they are up to date; comparison.py accuracy and early stop against the weights
remaining; training.py the rounds as curves; layers.py and weights.py what survives; grid.py several settings side by
side. style.py is their look, axes.py their scales.
"""
