"""One training: the model, the network that a step trains, the schedule, the loop. Uses settings, pruning and data.

models.py finds, builds and initialises models, fit.py refuses those that cannot be trained or that no seed decides,
identity.py gives their fingerprints, problem.py bundles one with its data;
scores.py scores weights before training; network.py holds one or several stacked ones and their optimiser; sparse.py
says which layers leave out what is pruned (sparse_linear.py), cost.py what a forward pass costs; schedule.py says how
long a round is; train.py has the loop with its evaluations and early stop; numerics.py, kernels.py, layout.py,
memory.py and capture.py say how PyTorch computes. Nothing here knows of files of results.
"""
