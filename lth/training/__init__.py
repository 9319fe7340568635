"""One training: the network that a step trains, the schedule, the loop. Uses settings, data, models and pruning.

problem.py bundles a model with its data, and refuses models that cannot be trained or that differ for the same seed;
network.py holds one model or several stacked ones; sparse.py has layers that leave out pruned weights; optimizers.py
has their steps; learned.py learns masks of fixed weights; schedule.py says how long a round is; train.py has the loop,
evaluations and early stop; updates.py changes masks during training; cuda_graph.py captures a step; hardware.py says
how PyTorch computes. Nothing here knows of results.
"""
