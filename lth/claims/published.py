"""The published claims that reproduce.py knows, except for the rivals of tickets (rivals.py). A new claim is one entry
of _ALL; nothing else has to change.

`experiments` holds the flags of main.py that repeat the paper's experiment. Each `Statement` has a sentence of the
paper, the sparsity that it is about, a function that measures it (`early_stop` and `accuracy` of lth/claims/claim.py,
or your own: it gets `Records` and returns one value per trial), the paper's figure, and the values for which the
sentence is true. Leave `published` out if the figure would have to be read off a plot.
"""

import math
from typing import Any

from lth.claims.claim import (
    PERCENT,
    TIMES,
    Claim,
    Statement,
    accuracy,
    barrier,
    early_stop,
    overlap,
    towards,
    untrained,
)
from lth.claims.rivals import RIVALS

LTH: dict[str, Any] = {"paper": "Frankle & Carbin 2019", "source": "arXiv:1803.03635"}
ZHOU: dict[str, Any] = {"paper": "Zhou et al. 2019", "source": "arXiv:1905.01067"}
FRANKLE: dict[str, Any] = {"paper": "Frankle et al. 2020", "source": "arXiv:1912.05671"}
RENDA: dict[str, Any] = {"paper": "Renda et al. 2020", "source": "arXiv:2003.02389"}
BELOW, ABOVE = (-math.inf, 0.0), (0.0, math.inf)
NO_WORSE = (-0.15, math.inf)  # points: half of the gain that the paper reports for winning tickets
WELL_BELOW = (-math.inf, -0.5)
NOT_MUCH_MORE = (0.0, 1.5)  # times chance
STABLE = (-math.inf, 2.0)  # points of error that the barrier stays below (arXiv:1912.05671, Section 3)
LENET = "--preset lenet --prune_iterations 17 --trials 3"
LENET_SHORT = "--preset lenet --end_iter 24000it --prune_iterations 16 --trials 3"
RESNET20 = (
    "--arch_type resnet20 --dataset cifar10 --augment --optimizer sgd --lr 0.1 --momentum 0.9 --weight_decay 1e-4 "
    "--batch_size 128 --end_iter 63000it --lr_milestones 51% 76% --valid_freq 500it "
    "--prune_scope global --prune_percent 20 --prune_iterations 9 --trials 3"
)  # the later --rewind 3.2% is iteration 2,016
RESNET20_QUICK = "--end_iter 60it --valid_freq 60it --prune_percent 79 --prune_iterations 2 --trials 1"
TWO_ROUNDS = "--prune_percent 81 --output_percent 57 --prune_iterations 3 --trials 2"  # down to 3.6%
LENET_QUICK = "--end_iter 3000it --prune_percent 56.7 --output_percent 34 --prune_iterations 5 --trials 2"

_ALL = (
    Claim(
        "lenet", "winning tickets of a 300-100 network on MNIST, and the same reinitialised",
        **LTH, where="Section 2, Figures 3 and 4",
        experiments={"": f"{LENET} --prune_type lt ticket_reinit --trials 5"},
        quick=LENET_QUICK,
        statements=(
            Statement("winning tickets reach early stop 38% sooner than the dense network",
                      early_stop("lt"), at=21.1, published=0.62, holds=towards(0.62, none=1), unit=TIMES),
            Statement("winning tickets are over 0.3 points more accurate than the dense network",
                      accuracy("lt"), at=13.5, published=0.3, holds=towards(0.3, none=0)),
            Statement("at 3.6% winning tickets are only as accurate as the dense network",
                      accuracy("lt"), at=3.6, published=0.0, holds=(-0.15, 0.15)),
            Statement("at 3.6% they reach early stop only as soon as the dense network",
                      early_stop("lt"), at=3.6, published=1.0, holds=(0.81, 1 / 0.81), unit=TIMES),
            Statement("reinitialised tickets reach early stop 2.51 times as late as winning tickets",
                      early_stop("ticket_reinit", "lt"), at=21.1, published=2.51,
                      holds=towards(2.51, none=1), unit=TIMES),
            Statement("reinitialised tickets are half a point less accurate than winning tickets",
                      accuracy("ticket_reinit", "lt"), at=21.1, published=-0.5, holds=towards(-0.5, none=0)),
            Statement("at 13.5% reinitialised tickets are less accurate than the dense network",
                      accuracy("ticket_reinit"), at=13.5, holds=BELOW),
            Statement("at 3.6% reinitialised tickets are less accurate than the dense network",
                      accuracy("ticket_reinit"), at=3.6, holds=BELOW),
        ),
        note="The paper has five trials too.",
    ),
    Claim(
        "lenet_fashion", "winning tickets on Fashion-MNIST: does the effect hold on other images?",
        **LTH, where="Section 2, Figures 3 and 4",
        experiments={"": f"{LENET} --dataset fashionmnist --prune_type lt ticket_reinit"},
        quick=LENET_QUICK,
        statements=(
            Statement("winning tickets reach early stop sooner than the dense network",
                      early_stop("lt"), at=21.1, holds=(0, 1), unit=TIMES),
            Statement("winning tickets are more accurate than the dense network", accuracy("lt"), at=13.5, holds=ABOVE),
            Statement("reinitialised tickets reach early stop later than winning tickets",
                      early_stop("ticket_reinit", "lt"), at=21.1, holds=(1, math.inf), unit=TIMES),
            Statement("reinitialised tickets are less accurate than winning tickets",
                      accuracy("ticket_reinit", "lt"), at=13.5, holds=BELOW),
        ),
        note="The paper has no Fashion-MNIST: these are its statements on MNIST, without their figures.",
    ),
    Claim(
        "lenet_shuffled", "winning tickets with shuffled masks, on MNIST",
        **LTH, where="Section 1, Figure 1",
        experiments={"": f"{LENET} --prune_type lt ticket_shuffle --trials 5"},
        quick=LENET_QUICK,
        statements=(
            Statement("shuffled tickets reach early stop later than winning tickets",
                      early_stop("ticket_shuffle", "lt"), at=21.1, holds=(1, math.inf), unit=TIMES),
            Statement("at 13.5% shuffled tickets are less accurate than the dense network",
                      accuracy("ticket_shuffle"), at=13.5, holds=BELOW),
            Statement("at 3.6% shuffled tickets are less accurate than the dense network",
                      accuracy("ticket_shuffle"), at=3.6, holds=BELOW),
            Statement("at 3.6% shuffled tickets are less accurate than winning tickets",
                      accuracy("ticket_shuffle", "lt"), at=3.6, holds=BELOW),
        ),
        note="The paper samples random networks; these have as many weights per layer as the winning tickets.",
    ),
    Claim(
        "one_shot", "tickets pruned in one step compared with tickets pruned round by round, on MNIST",
        **LTH, where="Section 2, Figure 4c",
        experiments={"": f"{LENET} --prune_type lt one_shot"},
        quick=LENET_QUICK,
        statements=(
            Statement("one-shot tickets reach early stop sooner than the dense network, down to about 18%",
                      early_stop("one_shot"), at=21.1, holds=(0, 1), unit=TIMES),
            Statement("one-shot tickets are more accurate than the dense network, down to about 5%",
                      accuracy("one_shot"), at=5.6, holds=ABOVE),
            Statement("at 3.6% iterative tickets are more accurate than one-shot tickets",
                      accuracy("lt", "one_shot"), at=3.6, holds=ABOVE),
            Statement("at 3.6% iterative tickets reach early stop sooner than one-shot tickets",
                      early_stop("lt", "one_shot"), at=3.6, holds=(0, 1), unit=TIMES),
        ),
        note="The paper has five trials and prunes to its own list of sparsities; here they are the rounds'.",
    ),
    Claim(
        "conv2", "winning tickets of a small convolutional network on CIFAR-10, and the same reinitialised",
        **LTH, where="Section 3, Figure 5",
        experiments={"": "--preset conv2 --prune_type lt ticket_reinit --prune_iterations 17 --trials 5"},
        quick="--end_iter 300it --valid_freq 100it --prune_percent 70 --conv_percent 70 --output_percent 70 "
        "--prune_iterations 3 --trials 1",
        statements=(
            Statement("winning tickets reach early stop up to 3.5 times sooner, at 8.8%",
                      early_stop("lt"), at=8.8, published=1 / 3.5, holds=towards(1 / 3.5, none=1), unit=TIMES),
            Statement("winning tickets are up to 3.4 points more accurate, at 4.6%",
                      accuracy("lt"), at=4.6, published=3.4, holds=towards(3.4, none=0)),
            Statement("winning tickets are more accurate than the dense network down to 2%",
                      accuracy("lt"), at=2.9, holds=ABOVE),
            Statement("reinitialised tickets reach early stop later than winning tickets",
                      early_stop("ticket_reinit", "lt"), at=8.8, holds=(1, math.inf), unit=TIMES),
            Statement("reinitialised tickets are less accurate than winning tickets",
                      accuracy("ticket_reinit", "lt"), at=4.6, holds=BELOW),
        ),
    ),
    Claim(
        "criteria", "which scores of the weights find tickets that keep the accuracy, on MNIST",
        **ZHOU, where="Section 2, Figure 3",
        experiments={
            criterion: f"{LENET} --prune_method {criterion}"
            for criterion in ("magnitude", "magnitude_increase", "large_init")
        },
        quick=f"{LENET_QUICK} --prune_iterations 3",
        statements=(
            Statement("magnitude (large final) keeps the dense accuracy",
                      accuracy("magnitude/lt"), at=13.5, holds=NO_WORSE),
            Statement("magnitude increase is at least as good as magnitude",
                      accuracy("magnitude_increase/lt", "magnitude/lt"), at=13.5, holds=NO_WORSE),
            Statement("keeping large initial weights is less accurate than magnitude",
                      accuracy("large_init/lt", "magnitude/lt"), at=13.5, holds=BELOW),
            Statement("at 3.6% keeping large initial weights is less accurate than magnitude",
                      accuracy("large_init/lt", "magnitude/lt"), at=3.6, holds=BELOW),
        ),
        note="The settings are the preset lenet. The paper shows curves and gives no figures.",
    ),
    Claim(
        "supermask", "how accurate a masked network with signed constants for weights is before any training, on MNIST",
        **ZHOU, where="Section 5, Table 1",
        experiments={
            "": f"{LENET} --prune_method large_final_same_sign --prune_type lt ticket_sign ticket_shuffle"
        },
        quick=f"{LENET_QUICK} --end_iter 2000it",
        statements=(
            Statement("signed constants, masked by large final weights of the same sign, reach 86%",
                      untrained("ticket_sign"), at=None, published=86.0, holds=towards(86.0, none=10.0), unit=PERCENT),
            Statement("the initial weights with these masks are far above chance",
                      untrained("lt"), at=None, holds=(20, math.inf), unit=PERCENT),
            Statement("the initial weights with shuffled masks are not far above chance",
                      untrained("ticket_shuffle"), at=None, holds=(-math.inf, 20), unit=PERCENT),
        ),
        note="Accuracies in percent; chance is 10. The paper has the same network but prunes it differently.",
    ),
    Claim(
        "random_tickets", "tickets with 3.5% of the weights compared with random pruning and fresh weights, on MNIST",
        **FRANKLE, where="Section 4",
        experiments={"": f"{LENET_SHORT} --prune_type lt random ticket_reinit"},
        quick=f"{LENET_QUICK} --end_iter 2000it",
        statements=(
            Statement("at 3.5% winning tickets are about as accurate as the dense network",
                      accuracy("lt"), at=3.5, holds=(-0.5, math.inf)),
            Statement("randomly pruned networks are well below winning tickets",
                      accuracy("random", "lt"), at=3.5, holds=WELL_BELOW),
            Statement("reinitialised tickets are well below winning tickets",
                      accuracy("ticket_reinit", "lt"), at=3.5, holds=WELL_BELOW),
        ),
        note="Here, well below means by more than half a point.",
    ),
    Claim(
        "stable_lenet",
        "are a 300-100 network on MNIST and its tickets stable to the order of the data from the start?",
        **FRANKLE, where="Sections 3 and 4",
        experiments={"": f"{LENET_SHORT} --connectivity"},
        quick=f"{TWO_ROUNDS} --end_iter 3000it",
        statements=(
            Statement("the dense network is stable at initialisation: the error barrier is below 2 points",
                      barrier("lt"), at=100, holds=STABLE),
            Statement("at 21.1% the tickets are stable at initialisation", barrier("lt"), at=21.1, holds=STABLE),
            Statement("at 3.5% the tickets are stable at initialisation", barrier("lt"), at=3.5, holds=STABLE),
        ),
        note="The barrier is the higher of the training and test error barriers, on a line of 30 points.",
    ),
    Claim(
        "stable_resnet20", "when does ResNet-20 on CIFAR-10 become stable to the order of the data?",
        **FRANKLE, where="Sections 3 and 4",
        experiments={
            "": f"{RESNET20} --prune_type lt --connectivity",
            "rewound": f"{RESNET20} --prune_type lt --connectivity --rewind 3.2%",
        },
        quick=RESNET20_QUICK,
        statements=(
            Statement("the dense network is not stable at initialisation",
                      barrier("lt"), at=100, holds=(2.0, math.inf)),
            Statement("the dense network is stable from about iteration 2,000 on",
                      barrier("rewound/lt"), at=100, holds=STABLE),
            Statement("tickets rewound to initialisation are not stable",
                      barrier("lt"), at=16.8, holds=(2.0, math.inf)),
            Statement("tickets rewound to about iteration 2,000 are stable",
                      barrier("rewound/lt"), at=16.8, holds=STABLE),
        ),
        needs="a GPU",
    ),
    Claim(
        "rewinding", "what tickets of ResNet-20 on CIFAR-10 should start from",
        **RENDA, where="Section 4; rewinding to 0: arXiv:1912.05671, Section 4",
        experiments={
            "": f"{RESNET20} --prune_type lr_rewind finetune lt",
            "rewound": f"{RESNET20} --prune_type lt --rewind 3.2%",
        },
        quick=RESNET20_QUICK,
        statements=(
            Statement("at 26.2% learning-rate rewinding has 92.1% test accuracy, the dense network 91.7%",
                      accuracy("lr_rewind"), at=26.2, published=0.4, holds=towards(0.4, none=0)),
            Statement("weight rewinding has 91.6%",
                accuracy("rewound/lt"), at=26.2, published=-0.1, holds=(-0.6, math.inf),  # 0.1 is no effect
            ),
            Statement("fine-tuning at the final learning rate has 90.6%",
                      accuracy("finetune"), at=26.2, published=-1.1, holds=towards(-1.1, none=0)),
            Statement("rewinding to initialisation has 88.5% at 16.8%",
                      accuracy("lt"), at=16.8, published=-3.2, holds=towards(-3.2, none=0)),
        ),
        note="Trained for 63,000 iterations as in arXiv:1912.05671; this paper trains for 182 epochs. Weights are "
        "rewound to iteration 2,016.",
        needs="a GPU",
    ),
    Claim(
        "rewinding_lenet", "what tickets of a 300-100 network on MNIST should start from",
        **RENDA, where="Section 4",
        experiments={
            "": f"{LENET} --optimizer sgd --lr 0.1 --end_iter 24000it --lr_milestones 51% 76% "
            "--prune_type lr_rewind finetune lt"
        },
        quick=f"{LENET_QUICK} --end_iter 2000it",
        statements=(
            Statement("learning-rate rewinding is more accurate than fine-tuning",
                      accuracy("lr_rewind", "finetune"), at=3.6, holds=ABOVE),
            Statement("rewinding the weights, here to initialisation, is more accurate than fine-tuning",
                      accuracy("lt", "finetune"), at=3.6, holds=ABOVE),
            Statement("learning-rate rewinding is no worse than rewinding the weights",
                      accuracy("lr_rewind", "lt"), at=3.6, holds=NO_WORSE),
        ),
        note="The paper has no MNIST: statements on larger networks are tested on a small one, with SGD and two drops.",
    ),
    Claim(
        "before_training",
        "does pruning before training find more than the number of weights per layer? A 300-100 network on MNIST",
        paper="Frankle et al. 2021", source="arXiv:2009.08576", where="Section 5",
        experiments={
            "": f"{LENET} --prune_type lt snip snip_shuffle snip_reinit synflow synflow_shuffle synflow_reinit"
        },
        quick=f"{TWO_ROUNDS} --end_iter 1500it",
        statements=tuple(
            Statement(f"{method} with its survivors {how} is no worse",
                      accuracy(f"{method}_{control}", method), at=3.6, holds=NO_WORSE)
            for method in ("snip", "synflow")
            for control, how in (("shuffle", "shuffled within each layer"), ("reinit", "reinitialised"))
        )
        + tuple(
            Statement(f"{method} is less accurate than pruning after training",
                      accuracy(method, "lt"), at=3.6, holds=BELOW)
            for method in ("snip", "synflow")
        ),
        note="The paper's networks are larger, on CIFAR-10 and Tiny ImageNet.",
    ),
    Claim(
        "lamp", "how many weights each layer should keep: LAMP, global magnitude or Erdos-Renyi-Kernel, on MNIST",
        paper="Lee et al. 2021", source="arXiv:2010.07611", where="Abstract, with weight rewinding",
        experiments={
            name: f"--preset lenet --output_percent 20 --prune_type lt --prune_iterations 15 --trials 3 {rates}"
            for name, rates in (
                ("lamp", "--prune_method lamp --prune_scope global"),
                ("global", "--prune_scope global"),
                ("erk", "--prune_scope erk"),
            )
        },
        quick="--end_iter 2000it --prune_percent 53 --output_percent 53 --prune_iterations 5 --trials 2",
        statements=(
            Statement("LAMP is more accurate than magnitude over all layers",
                      accuracy("lamp/lt", "global/lt"), at=5, holds=ABOVE),
            Statement("LAMP is more accurate than Erdos-Renyi-Kernel",
                      accuracy("lamp/lt", "erk/lt"), at=5, holds=ABOVE),
            Statement("Erdos-Renyi-Kernel is less accurate than magnitude over all layers",
                      accuracy("erk/lt", "global/lt"), at=5, holds=BELOW),
        ),
        note="The paper has larger networks, on CIFAR-10 and other images, and shows curves.",
    ),
    Claim(
        "masks", "do trainings of one 300-100 network on MNIST with different data orders find the same ticket?",
        paper="Movva et al. 2021", source="arXiv:2104.14753", where="Abstract",
        experiments=dict.fromkeys(("other_weights", "siblings"),
                                  "--preset lenet --prune_type lt --prune_iterations 17 --trials 6"),
        start_of={"siblings": "other_weights"},
        quick="--end_iter 2000it --prune_percent 81 --output_percent 57 --prune_iterations 3 --trials 4",
        statements=(
            Statement("at 21.1% masks from one initialisation overlap not much more than chance",
                      overlap("siblings/lt"), at=21.1, holds=NOT_MUCH_MORE, unit=TIMES),
            Statement("at 3.6% masks from one initialisation overlap not much more than chance",
                      overlap("siblings/lt"), at=3.6, holds=NOT_MUCH_MORE, unit=TIMES),
            Statement("at 3.6% masks from different initial weights overlap not much more than chance",
                      overlap("other_weights/lt"), at=3.6, holds=NOT_MUCH_MORE, unit=TIMES),
        ),
        note="The Jaccard index of two masks relative to random masks, each trial in one pair; not much more means "
        "at most 1.5 times. The paper has ResNet-20 on CIFAR-10, and nothing on other initial weights.",
    ),
)  # fmt: skip
CLAIMS = {claim.name: claim for claim in (*_ALL, *RIVALS)}
