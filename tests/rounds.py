"""Tables of trials and rounds as the verdict reads them."""

from __future__ import annotations

import numpy as np
import pandas as pd


def rounds_of(test: np.ndarray, ES: np.ndarray | None = None, arm: str = "lt", last: float = 9e9) -> pd.DataFrame:
    """What verdict.paired gives for test accuracies (trials, rounds), round 0 first."""
    trials, count = test.shape
    stops = np.full(test.shape, 1000.0) if ES is None else np.asarray(ES, float)
    columns = {
        "round": np.tile(np.arange(count), trials),
        "remaining": np.tile(100 * 0.8 ** np.arange(count), trials),
        "seed": np.repeat(np.arange(trials), count),
        "test": test.ravel(),
        "difference": (test - test[:, :1]).round(9).ravel(),
        "ES": stops.ravel(),
        "ES_ratio": (stops / stops[:, :1]).ravel(),
        "ES_dense": np.repeat(stops[:, 0], count),
    }
    uncounted = dict.fromkeys(("macs", "dense_macs", "supermask"), np.nan)
    return pd.DataFrame(columns).assign(arm=arm, last=last, **uncounted)
