"""One training: the network that a step trains, the schedule, the loop. Uses settings, data, models and pruning.

problem.py bundles a model with its data, and fit.py refuses models that cannot be trained or that no seed decides;
network.py holds one or several stacked models, optimizers.py steps them; learned.py is a network of fixed weights whose
masks are learned; sparse.py says which layers leave out what is pruned (sparse_linear.py); schedule.py says how long a
round is; train.py has the loop with its evaluations and early stop;
updates.py changes masks within it, beat.py says when it looks up; numerics.py, kernels.py, layout.py, memory.py and
cuda_graph.py say how PyTorch computes. Nothing here knows of results.
"""
