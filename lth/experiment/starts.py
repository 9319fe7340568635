"""What survivors may start from beside original, fresh and trained weights: pure functions of the original weights.

A start function gets the original weights and buffers, the masks of the ticket, and a generator. A new start is one
function in STARTS.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lth.pruning import Masks
from lth.training.models import State


def signed_constants(original: State, masks: Masks, generator: torch.Generator) -> State:
    """Each prunable weight replaced by the standard deviation of its layer's original weights, with its own sign (Zhou
    et al. 2019, arXiv:1905.01067, Section 4)."""
    return original | {name: _constants(original[name], _signs(original[name])) for name in masks}


def shuffled_signs(original: State, masks: Masks, generator: torch.Generator) -> State:
    """The same with the signs of each layer's survivors in random order: as many of each as before."""
    start = dict(original)
    for name, mask in masks.items():
        signs = _signs(original[name])
        found = signs[mask]
        signs[mask] = found[torch.randperm(len(found), generator=generator)]
        start[name] = _constants(original[name], signs)
    return start


def _signs(weight: Tensor) -> Tensor:
    return torch.where(weight < 0, -1.0, 1.0).to(weight.dtype)


def _constants(weight: Tensor, signs: Tensor) -> Tensor:
    return signs * weight.std(correction=0)


STARTS: dict[str, Callable[[State, Masks, torch.Generator], State]] = {
    "sign": signed_constants,
    "shuffled_signs": shuffled_signs,
}
