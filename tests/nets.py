"""Small networks and masks that the tests share."""

from __future__ import annotations

from collections.abc import Mapping

from lth.pruning import Masks, Weights, keep_highest, quotas


def prune_lowest(scores: Weights, masks: Masks, percents: Mapping[str, float], scope: str = "layer") -> Masks:
    """The masks after one round that prunes `percents` percent of the survivors of each layer, lowest scores first."""
    return keep_highest(scores, masks, quotas(masks, percents, scope))
