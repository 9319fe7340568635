"""Tables of the arms (how a round's ticket is made) and of the pruning criteria (how weights are scored).

A new arm is one entry of ARMS, a new criterion one function listed in CRITERIA; flags, help, checks and figures read
these tables. PyTorch is imported only where it computes, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Arm:
    """How a round's ticket is made: which weights survive, their values at the start, their learning rates.

    masks: the function in lth/experiment/next_ticket.py that makes the masks of a round.
    scores: the scores of the weights, of which the lowest are pruned: "criterion" (--prune_method), "random", a name in
        CRITERIA, or a function in lth/experiment/scores.py, called in each of so many `steps`.
    compared: which weights compete: "scope" (see --prune_scope), "all" (those of all pruned layers) or "layer", where
        --random_rates decides how many each layer keeps.
    mask_of: the arm whose masks are used, where `masks` is "of_arm".
    shuffled: whether the survivors of these masks are moved to random places of their layer.
    start: the function in lth/experiment/next_ticket.py that makes the weights at the start of a round.
    learn: how masks over constant weights are learned (lth/training/learned.py); "" if weights are trained.
    schedule: the learning rates of a round: "rewound" (the schedule from the point of --rewind), "whole", or "final"
        (its last rate throughout; of a cosine, the rate at the start of the last epoch).
    update: the function in lth/training/updates.py that changes masks during the rounds after the first; "" for none.
    """

    help: str
    masks: str = "iterative"
    scores: str = "criterion"
    steps: int = 1
    compared: str = "scope"
    mask_of: str = ""
    shuffled: bool = False
    start: str = "original"
    learn: str = ""
    schedule: str = "rewound"
    update: str = ""

    @property
    def changes_masks(self) -> bool:
        """Whether masks change during a round after the first."""
        return bool(self.update or self.learn)

    @property
    def family(self) -> str:
        """The heading that --help lists the arm under."""
        if self.changes_masks:
            return "networks that are found, not trained" if self.learn else "masks that change during the training"
        return {"before_training": "masks before training", "of_ticket": "tickets of another run"}.get(
            self.masks, "masks from training"
        )


class Arms(dict[str, Arm]):
    """Arms by name. Every arm that finds masks also has its controls, such as `random_shuffle`; those of lt are called
    ticket_reinit and so on."""

    def __missing__(self, name: str) -> Arm:
        for control in CONTROLS:
            base = name.removesuffix(f"_{control}")
            if base not in (name, "lt") and dict.__contains__(self, base) and not self[base].mask_of:
                return _control(control, base)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        try:
            return bool(self[str(name)])
        except KeyError:
            return False


def _control(name: str, arm: str) -> Arm:
    control = CONTROLS[name]
    return replace(control, masks="of_arm", mask_of=arm, help=control.help.replace("the same", f"{arm}'s", 1))


# Sanity checks: Frankle & Carbin (Section 2, Appendix E); for any mask, Frankle et al. 2021 (arXiv:2009.08576).
CONTROLS: dict[str, Arm] = {
    "reinit": Arm("the same masks, fresh random weights", start="fresh", schedule="whole"),
    "shuffle": Arm("the same counts per layer at random places, original initial weights", shuffled=True),
    "sign": Arm("the same masks, starts as in sign", start="sign"),
    "shuffled_signs": Arm("the same masks, starts as in shuffled_signs", start="shuffled_signs"),
}
_FRESH: dict[str, Any] = {"start": "fresh", "schedule": "whole"}
_FINAL: dict[str, Any] = {"start": "trained", "schedule": "final"}
_EARLY: dict[str, Any] = {"masks": "before_training", "compared": "all"}
_UNSCORED: dict[str, Any] = {"masks": "before_training", "compared": "layer", "scores": "random"}
_STRONG: dict[str, Any] = {**_UNSCORED, "schedule": "whole"}

ARMS = Arms(
    lt=Arm("prune, reset the survivors to their original initial weights"),
    reinit=Arm("prune, give the survivors fresh random weights", **_FRESH),
    lr_rewind=Arm("prune, continue from the trained weights at the rates of lt", start="trained"),
    finetune=Arm("prune, continue from the trained weights at the final rate", **_FINAL),
    one_shot=Arm("prune the trained dense network at once, original initial weights", masks="one_shot"),
    sign=Arm("prune, start from a constant per layer with the original signs", start="sign"),
    shuffled_signs=Arm("the same, with the signs of each layer's survivors shuffled", start="shuffled_signs"),
    random=Arm("prune at random, original initial weights", scores="random"),
    random_reinit=Arm("prune at random, fresh random weights", scores="random", **_FRESH),
    random_finetune=Arm("prune at random, continue as in finetune", scores="random", **_FINAL),
    magnitude_init=Arm("prune the smallest initial weights before training", **_EARLY, scores="magnitude"),
    random_init=Arm("prune at random before training", **_UNSCORED),
    snip=Arm("prune before training by SNIP", **_EARLY, scores="snip"),
    grasp=Arm("prune before training by GraSP", **_EARLY, scores="grasp"),
    synflow=Arm("prune before training by SynFlow", **_EARLY, scores="synflow", steps=100),
    set=Arm("random_init, replacing small weights at random", **_UNSCORED, update="set"),
    rigl=Arm("random_init, replacing small weights where gradients are large", **_UNSCORED, update="rigl"),
    gmp=Arm("prune gradually during each training, from dense", masks="unpruned", scores="magnitude", update="gmp"),
    edge_popup=Arm(
        "learn which signed constants to keep, by score", **_STRONG, start="kaiming_signs", learn="edge_popup"
    ),
    supermask=Arm("the same, by probability", **_STRONG, start="kaiming_signs", learn="supermask"),
    transfer=Arm(
        "the tickets of --ticket's run, round by round", masks="of_ticket", start="of_ticket", schedule="whole"
    ),
    **{f"ticket_{name}": _control(name, "lt") for name in CONTROLS},
)


def ticket_arms(arms: Iterable[str]) -> list[str]:
    """The arms among these whose tickets come from the run that --ticket names."""
    return [arm for arm in arms if arm in ARMS and ARMS[ARMS[arm].mask_of or arm].masks == "of_ticket"]


def unused_settings(name: str) -> set[str]:
    """The settings that the arm of this name does not use, among those that decide a folder's name."""
    arm = ARMS[name]
    finder = ARMS[arm.mask_of or name]  # the arm that finds its masks
    used = {
        "random_rates": finder.compared == "layer",
        "score_batches": finder.scores in ("snip", "grasp"),
        "prune_method": finder.scores == "criterion" and finder.masks != "of_ticket",
        "draw_at": finder.scores == "criterion" and finder.masks in ("iterative", "one_shot"),
        "rewind": "rewound" in (arm.schedule, finder.schedule),
        "update_freq": bool(finder.update),
        "update_end": bool(finder.update),
        "update_fraction": finder.update in ("set", "rigl"),
    }
    return {setting for setting, uses in used.items() if not uses}


# Criteria of Zhou et al. 2019 (arXiv:1905.01067, Figure 3): a score per weight from its initial and its trained value;
# the lowest scores are pruned. The initial weights are those at the start of round 0, also under --rewind and where
# survivors continue from trained weights; in arms that draw fresh weights every round, the weights drawn for the round.
# The docstring of each is its line in --help.


def magnitude(initial: Tensor, final: Tensor) -> Tensor:
    """|trained|: the criterion of Frankle & Carbin ("large final")"""
    return final.abs()


def magnitude_increase(initial: Tensor, final: Tensor) -> Tensor:
    """|trained| - |initial|"""
    return final.abs() - initial.abs()


def movement(initial: Tensor, final: Tensor) -> Tensor:
    """|trained - initial|"""
    return (final - initial).abs()


def large_init(initial: Tensor, final: Tensor) -> Tensor:
    """|initial|"""
    return initial.abs()


def large_init_large_final(initial: Tensor, final: Tensor) -> Tensor:
    """the lower percentile of |trained| and |initial| in the layer"""
    import torch  # the paper has min(a |trained|, |initial|), with `a` such that the percentiles of both are aligned

    def percentile(size: Tensor) -> Tensor:
        survivors = size[final != 0].sort().values
        return torch.searchsorted(survivors, size) / max(len(survivors), 1)

    return percentile(initial.abs()).minimum(percentile(final.abs()))


def large_final_same_sign(initial: Tensor, final: Tensor) -> Tensor:
    """|trained|, with weights whose sign has changed pruned first"""  # to the paper, these are all 0
    return final * initial.sign()


def lamp(initial: Tensor, final: Tensor) -> Tensor:
    """trained² / sum of the trained² as large or larger in the layer (Lee et al. 2021)"""
    import torch

    squares = final.double().square().flatten()
    ascending = squares.sort().values
    at_least = ascending.flip(0).cumsum(0).flip(0)
    first = torch.searchsorted(ascending, squares)  # the first of equal weights
    return (squares / at_least[first].clamp_min(torch.finfo(torch.double).tiny)).view_as(final)


_CRITERIA = (magnitude, magnitude_increase, movement, large_init, large_init_large_final, large_final_same_sign, lamp)
CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {score.__name__: score for score in _CRITERIA}
