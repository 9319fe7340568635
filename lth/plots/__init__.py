"""Pictures, drawn from the files of runs alone. Uses lth.records and lth.analysis.

draw.py draws all of a folder unless they are up to date; comparison.py accuracy and early stop against the weights
remaining, and the rounds as curves; layer_counts.py and weights.py what survives; barriers.py the error between two
trainings; mask_overlap.py masks beside each other; grid.py several settings side by side; report.py all of it on one
page, gallery.py all experiments. style.py is their look, with their scales.
"""
