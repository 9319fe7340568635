"""Pictures, drawn from the files of runs alone. Uses lth.records.

style.py is their look; curves.py accuracy and early stop against the weights remaining; weights.py pictures of masks
and layers; grid.py several settings side by side.
"""
