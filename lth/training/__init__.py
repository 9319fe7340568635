"""One training: the network that a step trains, the schedule, the loop. Uses settings, data, models and pruning.

problem.py bundles a model with its data, and refuses models that cannot be trained or that no seed decides;
network.py holds one or several stacked models, sparse.py has layers that leave out what is pruned, optimizers.py steps
them; learned.py is a network of fixed weights whose masks are learned; schedule.py says how long a round is; train.py
has the loop with its evaluations and early stop; updates.py changes masks within it; cuda_graph.py captures a step, and
hardware.py says how PyTorch computes. Nothing here knows of results.
"""
