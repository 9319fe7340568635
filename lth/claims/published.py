"""The published claims that reproduce.py knows. A new one is one entry of CLAIMS: nothing else has to be touched.

Say in `experiments` the flags of main.py that repeat the paper's experiment, and in each `Statement` a sentence of the
paper, the sparsity that it is about, a function of the records that measures it (`early_stop` and `accuracy` of
lth/claims/claim.py, or one of your own: it gets `Records` and gives a value a trial), the paper's figure, and the
values for which the sentence is true. Figures that are read off a plot are no figures: leave `published` out.
"""

from __future__ import annotations

import math

from lth.claims.claim import TIMES, Claim, Statement, accuracy, early_stop, towards

LTH = {"paper": "Frankle & Carbin 2019", "source": "arXiv:1803.03635"}
ZHOU = {"paper": "Zhou et al. 2019", "source": "arXiv:1905.01067"}
BELOW, ABOVE = (-math.inf, 0.0), (0.0, math.inf)
SAME = (-0.15, 0.15)  # points of accuracy: half of the gain that the paper reports for winning tickets
LENET_QUICK = "--end_iter 3000it --prune_percent 56.7 --output_percent 34 --prune_iterations 5 --trials 2"

_WINNING = (
    Statement(
        "winning tickets stop early 38% earlier than the dense network",
        early_stop("lt"), at=21.1, published=0.62, holds=towards(0.62, none=1), unit=TIMES,
    ),
    Statement(
        "their test accuracy is more than 0.3 points higher",
        accuracy("lt"), at=13.5, published=0.3, holds=towards(0.3, none=0),
    ),
    Statement(
        "at 3.6% they are back at the dense network's accuracy",
        accuracy("lt"), at=3.6, published=0.0, holds=SAME,
    ),
    Statement(
        "and back at its early stop",
        early_stop("lt"), at=3.6, published=1.0, holds=(0.81, 1 / 0.81), unit=TIMES,
    ),
)  # fmt: skip
_REINITIALISED = (
    Statement(
        "reinitialised, they stop early 2.51 times as late as winning tickets",
        early_stop("ticket_reinit", "lt"), at=21.1, published=2.51, holds=towards(2.51, none=1), unit=TIMES,
    ),
    Statement(
        "and are half a point less accurate than winning tickets",
        accuracy("ticket_reinit", "lt"), at=21.1, published=-0.5, holds=towards(-0.5, none=0),
    ),
    Statement(
        "they fall below the dense accuracy from about 21% on: at 13.5%",
        accuracy("ticket_reinit"), at=13.5, holds=BELOW,
    ),
    Statement("and at 3.6%", accuracy("ticket_reinit"), at=3.6, holds=BELOW),
)  # fmt: skip

_ALL = (
    Claim(
        name="lenet",
        about="winning tickets of a 300-100 network on MNIST, and the same reinitialised",
        **LTH,
        where="Section 2, Figures 3 and 4",
        experiments={
            "": "--preset lenet --prune_type lt ticket_reinit --prune_iterations 17 --trials 5"
        },
        quick=LENET_QUICK,
        statements=(*_WINNING, *_REINITIALISED),
        note="The paper has five trials too.",
    ),
    Claim(
        name="lenet_fashion",
        about="the same on Fashion-MNIST: does the effect hold on other images?",
        **LTH,
        where="Section 2, Figures 3 and 4",
        experiments={
            "": "--preset lenet --dataset fashionmnist --prune_type lt ticket_reinit --prune_iterations 17 --trials 3"
        },
        quick=LENET_QUICK,
        statements=(
            Statement("winning tickets stop early earlier", early_stop("lt"), at=21.1, holds=(0, 1), unit=TIMES),
            Statement("and are more accurate", accuracy("lt"), at=13.5, holds=ABOVE),
            Statement(
                "reinitialised, they stop early later than winning tickets",
                early_stop("ticket_reinit", "lt"), at=21.1, holds=(1, math.inf), unit=TIMES,
            ),
            Statement(
                "and are less accurate than winning tickets", accuracy("ticket_reinit", "lt"), at=13.5, holds=BELOW
            ),
        ),
        note="The paper has no Fashion-MNIST: its statements on MNIST without their figures are asked here.",
    ),
    Claim(
        name="lenet_shuffled",
        about="sparse networks of the same shape at random places, on MNIST",
        **LTH,
        where="Section 1, Figure 1",
        experiments={
            "": "--preset lenet --prune_type lt ticket_shuffle --prune_iterations 17 --trials 5"
        },
        quick=LENET_QUICK,
        statements=(
            Statement(
                "they stop early later than winning tickets",
                early_stop("ticket_shuffle", "lt"), at=21.1, holds=(1, math.inf), unit=TIMES,
            ),
            Statement("the sparser, the less accurate: at 13.5%", accuracy("ticket_shuffle"), at=13.5, holds=BELOW),
            Statement("and at 3.6%", accuracy("ticket_shuffle"), at=3.6, holds=BELOW),
            Statement(
                "where winning tickets are more accurate", accuracy("ticket_shuffle", "lt"), at=3.6, holds=BELOW
            ),
        ),
        note="The paper samples random networks; these have as many weights a layer as the winning tickets.",
    ),
    Claim(
        name="one_shot",
        about="tickets of a network pruned at once beside those pruned round by round, on MNIST",
        **LTH,
        where="Section 2, Figure 4c",
        experiments={"": "--preset lenet --prune_type lt one_shot --prune_iterations 17 --trials 3"},
        quick=LENET_QUICK,
        statements=(
            Statement(
                "down to about 18% one-shot tickets stop early earlier than the dense network",
                early_stop("one_shot"), at=16.9, holds=(0, 1), unit=TIMES,
            ),
            Statement("down to about 5% they are more accurate", accuracy("one_shot"), at=5.6, holds=ABOVE),
            Statement(
                "iterative pruning finds smaller ones: at 3.6% its tickets are more accurate than one-shot's",
                accuracy("lt", "one_shot"), at=3.6, holds=ABOVE,
            ),
            Statement(
                "and stop early earlier", early_stop("lt", "one_shot"), at=3.6, holds=(0, 1), unit=TIMES
            ),
        ),
        note="The paper has five trials and its own list of sparsities; here they are those of the rounds.",
    ),
    Claim(
        name="conv2",
        about="winning tickets of a small convolutional network on CIFAR-10, and the same reinitialised",
        **LTH,
        where="Section 3, Figure 5",
        experiments={"": "--preset conv2 --prune_type lt ticket_reinit --prune_iterations 17 --trials 5"},
        quick="--end_iter 300it --valid_freq 100it --prune_percent 70 --conv_percent 70 --output_percent 70 "
        "--prune_iterations 3 --trials 1",
        statements=(
            Statement(
                "winning tickets stop early up to 3.5 times earlier, at 8.8%",
                early_stop("lt"), at=8.8, published=1 / 3.5, holds=towards(1 / 3.5, none=1), unit=TIMES,
            ),
            Statement(
                "and are up to 3.4 points more accurate, at 4.6%",
                accuracy("lt"), at=4.6, published=3.4, holds=towards(3.4, none=0),
            ),
            Statement(
                "they stay above the dense accuracy while more than 2% of the weights remain",
                accuracy("lt"), at=2.9, holds=ABOVE,
            ),
            Statement(
                "reinitialised, they stop early later than winning tickets",
                early_stop("ticket_reinit", "lt"), at=8.8, holds=(1, math.inf), unit=TIMES,
            ),
            Statement("and are less accurate", accuracy("ticket_reinit", "lt"), at=4.6, holds=BELOW),
        ),
    ),
    Claim(
        name="criteria",
        about="which scores of the weights find tickets that keep the accuracy, on MNIST",
        **ZHOU,
        where="Section 2, Figure 3",
        experiments={
            criterion: "--preset lenet --prune_type lt --prune_iterations 17 --trials 3 "
            f"--prune_method {criterion}"
            for criterion in ("magnitude", "magnitude_increase", "large_init")
        },
        quick=f"{LENET_QUICK} --prune_iterations 3",
        statements=(
            Statement(
                "magnitude (large final) keeps the dense accuracy", accuracy("magnitude/lt"), at=13.5,
                holds=(-0.15, math.inf),
            ),
            Statement(
                "magnitude increase is as good as magnitude",
                accuracy("magnitude_increase/lt", "magnitude/lt"), at=13.5, holds=SAME,
            ),
            Statement(
                "large initial weights are no criterion: less accurate than magnitude",
                accuracy("large_init/lt", "magnitude/lt"), at=13.5, holds=BELOW,
            ),
            Statement("the more so at 3.6%", accuracy("large_init/lt", "magnitude/lt"), at=3.6, holds=BELOW),
        ),
        note="The settings are those of the preset lenet. The paper shows curves and gives no figures.",
    ),
)  # fmt: skip
CLAIMS = {claim.name: claim for claim in _ALL}
