"""What can be compared: the arms (what happens between rounds) and the pruning criteria (what scores a weight).

Both are tables. A new arm is one entry of ARMS, a new criterion one function in CRITERIA; flags, help texts,
checks and figures read the tables. This module imports nothing, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Arm:
    """One way of getting from a trained network to the next round's ticket.

    mask: "own" prunes this arm's own trained weights, "lt" takes the mask that `lt` found in the same round,
        "lt shuffled" the same with the survivors of each layer moved to random places.
    scores: "criterion" (--prune_method) or "random"; only for arms with a mask of their own.
    start: the values that survivors start from: "original" (the initial weights, or those of --rewind),
        "fresh" (new random ones every round) or "trained" (no reset).
    """

    help: str
    mask: str = "own"
    scores: str = "criterion"
    start: str = "original"

    @property
    def control(self) -> bool:
        """Whether this arm needs the tickets that `lt` found."""
        return self.mask != "own"


ARMS: dict[str, Arm] = {
    "lt": Arm("prune, reset the survivors to their original initial weights"),
    "reinit": Arm("prune, give the survivors fresh random weights", start="fresh"),
    "finetune": Arm("prune, go on from the trained weights", start="trained"),
    "random": Arm("prune at random, original initial weights", scores="random"),
    "random_reinit": Arm("prune at random, fresh random weights", scores="random", start="fresh"),
    "random_finetune": Arm("prune at random, go on from the trained weights", scores="random", start="trained"),
    "ticket_reinit": Arm("the masks that lt found, fresh random weights", mask="lt", start="fresh"),
    "ticket_shuffle": Arm("lt's counts a layer, places shuffled, original initial weights", mask="lt shuffled"),
}


# Criteria of Zhou et al. 2019 (arXiv:1905.01067, Figure 3): a score a weight from its initial and its trained
# value, the lowest scores are pruned. `magnitude` (their "large final") is that of Frankle & Carbin.
CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "magnitude": lambda initial, final: final.abs(),
    "magnitude_increase": lambda initial, final: final.abs() - initial.abs(),
    "movement": lambda initial, final: (final - initial).abs(),
    "large_init": lambda initial, final: initial.abs(),
    "large_init_large_final": lambda initial, final: initial.abs().minimum(final.abs()),
}
