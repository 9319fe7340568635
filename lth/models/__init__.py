"""Models. Uses settings, rng and data.

building.py finds model files, builds and initialises models; prunable.py says what counts as a weight to prune, of
which kind it is and how it is drawn; fingerprints.py tells models and rules apart; probe.py counts what a
forward pass costs.
"""
