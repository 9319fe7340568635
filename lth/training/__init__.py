"""One training: the model, the network that a step trains, the schedule, the loop. Uses settings, pruning and data.

models.py finds, builds and initialises models, fit.py and drawn.py refuse those that cannot be trained, or whose draws
no seed decides, problem.py bundles one with its data, fingerprint.py (source.py reads the code) tells it from others;
scores.py scores weights before training; network.py holds one or several stacked ones and their optimiser; sparse.py
says which layers leave out what is pruned (sparse_linear.py), cost.py what a forward pass costs; schedule.py says how
long a round is; train.py has the loop with its evaluations and early stop; numerics.py, kernels.py, layout.py,
memory.py and capture.py say how PyTorch computes. Nothing here knows of files of results.
"""
