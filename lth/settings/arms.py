"""What can be compared: the arms (how a round's ticket is made) and the pruning criteria (what scores a weight).

Both are tables. A new arm is one entry of ARMS, a new criterion one function in CRITERIA; flags, help texts,
checks and figures read the tables. This module imports nothing that takes long, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Arm:
    """How a round's ticket is made: which weights survive, what they start from, at which rates they learn.

    masks: the function in lth/experiment/masks.py that makes the masks of a round.
    scores: what it scores weights by, the lowest are pruned: "criterion" (--prune_method), "random", a name in
        CRITERIA, or a function of lth/experiment/scores.py, in so many `steps`.
    compared: which weights compete: "scope" (as --prune_scope says), "all" (of all layers that are pruned) or "layer",
        where --random_rates says how many each layer keeps.
    mask_of: the arm whose masks are taken over ("of_arm").
    shuffled: whether their survivors are moved to random places of their layer.
    start: the function in lth/experiment/starts.py that makes the weights that survivors start from.
    schedule: the learning rates of a round: "rewound" (the schedule from the point that --rewind says), "whole", or
        "final" (its last rate throughout).
    """

    help: str
    masks: str = "iterative"
    scores: str = "criterion"
    steps: int = 1
    compared: str = "scope"
    mask_of: str = ""
    shuffled: bool = False
    start: str = "original"
    schedule: str = "rewound"


class Arms(dict[str, Arm]):
    """Arms by name. Beside those listed, every arm that finds a mask has its controls, such as `random_shuffle`; those
    of lt are called ticket_reinit and so on."""

    def __missing__(self, name: str) -> Arm:
        for control in CONTROLS:
            of = name.removesuffix(f"_{control}")
            if of not in (name, "lt") and dict.__contains__(self, of) and not self[of].mask_of:
                return _control(control, of)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        try:
            return bool(self[str(name)])
        except KeyError:
            return False


def _control(name: str, of: str) -> Arm:
    return replace(CONTROLS[name], masks="of_arm", mask_of=of, help=CONTROLS[name].help.replace("ARM", of))


# Sanity checks: Frankle & Carbin (Section 2, Appendix E); for any mask, Frankle et al. 2021 (arXiv:2009.08576).
CONTROLS: dict[str, Arm] = {
    "reinit": Arm("the masks that ARM found, fresh random weights", start="fresh", schedule="whole"),
    "shuffle": Arm("ARM's counts per layer, places shuffled, original initial weights", shuffled=True),
    "sign": Arm("the masks that ARM found, starts of sign", start="sign"),
    "shuffled_signs": Arm("the masks that ARM found, starts of shuffled_signs", start="shuffled_signs"),
}
_SCORED = Arm("prune before training", masks="before_training", compared="all")
_RANDOM = Arm("prune at random, original initial weights", scores="random")

ARMS = Arms(
    lt=Arm("prune, reset the survivors to their original initial weights"),
    reinit=Arm("prune, give the survivors fresh random weights", start="fresh", schedule="whole"),
    lr_rewind=Arm("prune, continue from the trained weights at the rates of lt", start="trained"),
    finetune=Arm("prune, continue from the trained weights at the final rate", start="trained", schedule="final"),
    one_shot=Arm("prune the trained dense network at once, original initial weights", masks="one_shot"),
    sign=Arm("prune, a constant per layer with the signs of the original weights", start="sign"),
    shuffled_signs=Arm("the same, the signs of each layer's survivors shuffled", start="shuffled_signs"),
    random=_RANDOM,
    random_reinit=replace(_RANDOM, help="prune at random, fresh random weights", start="fresh", schedule="whole"),
    random_finetune=replace(
        _RANDOM, help="prune at random, continue as finetune does", start="trained", schedule="final"
    ),
    magnitude_init=replace(_SCORED, help="prune the smallest initial weights", scores="magnitude"),
    random_init=replace(
        _SCORED, help="prune at random before training, by --random_rates", scores="random", compared="layer"
    ),
    snip=replace(_SCORED, help="prune before training by SNIP", scores="snip"),
    grasp=replace(_SCORED, help="prune before training by GraSP", scores="grasp"),
    synflow=replace(_SCORED, help="prune before training by SynFlow", scores="synflow", steps=100),
    transfer=Arm(
        "the tickets of --ticket's run, round by round", masks="of_ticket", start="of_ticket", schedule="whole"
    ),
    **{f"ticket_{name}": _control(name, "lt") for name in CONTROLS},
)


def of_ticket(arms: Iterable[str]) -> list[str]:
    """Those of these arms that take all tickets from the run that --ticket names."""
    return [arm for arm in arms if arm in ARMS and ARMS[ARMS[arm].mask_of or arm].masks == "of_ticket"]


def _lower_percentile(initial: Tensor, final: Tensor) -> Tensor:
    """The lower of the percentiles that both magnitudes have among the survivors of their layer, which are not 0 in
    `final`: the paper has min(a |final|, |initial|) with `a` such that the percentiles of both are aligned."""
    import torch

    kept = final != 0

    def percentile(size: Tensor) -> Tensor:
        survivors = size[kept].sort().values
        return torch.searchsorted(survivors, size) / max(len(survivors), 1)

    return percentile(initial.abs()).minimum(percentile(final.abs()))


# Criteria of Zhou et al. 2019 (arXiv:1905.01067, Figure 3): a score a weight from its initial and its trained
# value, the lowest scores are pruned. `magnitude` (their "large final") is that of Frankle & Carbin.
# Initial are the weights that round 0 began with, also under --rewind and where survivors go on trained; in arms that
# draw fresh weights every round, those drawn for the round.
CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "magnitude": lambda initial, final: final.abs(),
    "magnitude_increase": lambda initial, final: final.abs() - initial.abs(),
    "movement": lambda initial, final: (final - initial).abs(),
    "large_init": lambda initial, final: initial.abs(),
    "large_init_large_final": _lower_percentile,
    # The paper has max(0, .) of this, which leaves the order of weights with a new sign to chance; here those go first.
    "large_final_same_sign": lambda initial, final: final * initial.sign(),
}
