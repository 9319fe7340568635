"""Published claims on the rivals of tickets: masks that change while training, and networks found instead of trained.

What an entry is: see published.py.
"""

from lth.claims.claim import PERCENT, Claim, Statement, accuracy, reached, towards

LENET_SGD = (
    "--arch_type fc1 --dataset mnist --optimizer sgd --lr 0.1 --momentum 0.9 --weight_decay 5e-4 --batch_size 100 "
    "--valid_size 6000 --end_iter 100 --lr_milestones 25000it 50000it --valid_freq 540it "
    "--prune_iterations 2 --trials 2"
)
WRN = (
    "--arch_type wrn22_2 --dataset cifar10 --augment --optimizer sgd --lr 0.1 --momentum 0.9 --weight_decay 5e-4 "
    "--batch_size 128 --end_iter 250 --lr_milestones 30000it 60000it 90000it --lr_gamma 0.2 --valid_freq 1 "
    "--prune_percent 80 --output_percent 80 --prune_iterations 2 --trials 3"
)

HALF = "--prune_percent 50 --output_percent 50 --prune_iterations 2 --trials 2"
TENTH = "--prune_percent 90 --output_percent 90 --prune_iterations 2 --trials 2"
COSINE = "--lr_schedule cosine --batch_size 128 --end_iter 100"
EDGE_POPUP = f"--prune_type edge_popup --optimizer sgd --lr 0.1 --momentum 0.9 --weight_decay 1e-4 {COSINE}"

RIVALS = (
    Claim(
        "dynamic",
        "masks that change during training (SET), and SNIP, compared with the dense 300-100 network on MNIST",
        paper="Dettmers & Zettlemoyer 2019; SNIP: Lee et al. 2019", source="arXiv:1907.04840; arXiv:1810.02340",
        where="results on MNIST, published with the first paper's program; SNIP: on MNIST",
        experiments={
            f"keep{100 - gone}": f"{LENET_SGD} --prune_type set snip --prune_percent {gone} --output_percent {gone}"
            for gone in (95, 98)
        },
        quick="--end_iter 3000it --lr_milestones 1400it 2800it --valid_freq 100it",
        statements=(
            Statement("SET at 5% is 0.55 points less accurate than the dense network",
                      accuracy("keep5/set"), at=5, published=-0.55, holds=towards(-0.55, none=0)),
            Statement("SET at 2% is 0.95 points less accurate than the dense network",
                      accuracy("keep2/set"), at=2, published=-0.95, holds=towards(-0.95, none=0)),
            Statement("SNIP at 5% has an error of 1.6%",
                      reached("keep5/snip"), at=5, published=98.4, holds=(98.1, 98.7), unit=PERCENT),
            Statement("SNIP at 2% has an error of 2.4%",
                      reached("keep2/snip"), at=2, published=97.6, holds=(97.3, 97.9), unit=PERCENT),
        ),
        note="Accuracies are taken at early stop, which is chosen on validation images, for SET after its last update. "
        "The paper on SNIP trains differently.",
    ),
    Claim(
        "dynamic_wrn",
        "masks that change during training: Wide ResNet-22-2 on CIFAR-10 at 20% of the weights",
        paper="Sundar & Dwaraknath 2021", source="arXiv:2103.15767", where="results on CIFAR-10",
        experiments={
            "uniform": f"{WRN} --prune_type random_init set rigl gmp",
            "erk": f"{WRN} --prune_type rigl --random_rates erk",
        },
        quick="--end_iter 100it --lr_milestones 50it --valid_freq 50it --trials 1",
        statements=(
            Statement("SET is 1.5 points more accurate than a fixed random mask",
                      accuracy("uniform/set", "uniform/random_init"),
                      at=20, published=1.5, holds=towards(1.5, none=0)),
            Statement("RigL is 1.4 points more accurate than a fixed random mask",
                      accuracy("uniform/rigl", "uniform/random_init"),
                      at=20, published=1.4, holds=towards(1.4, none=0)),
            Statement("Erdos-Renyi-Kernel rates make RigL 0.5 points more accurate",
                      accuracy("erk/rigl", "uniform/rigl"), at=20, published=0.5, holds=towards(0.5, none=0)),
            Statement("RigL with these rates is as accurate as gradual pruning",
                      accuracy("erk/rigl", "uniform/gmp"), at=20, published=-0.1, holds=(-0.3, 0.3)),
        ),
        note="Published are 91.2 (fixed), 92.7 (SET), 92.6 and 93.1 (RigL), 93.2 (gradual).",
        needs="a GPU",
    ),
    Claim(
        "strong",
        "networks that are found and not trained: masks over random signed constants, 300-100 on MNIST",
        paper="Zhou et al. 2019; edge-popup: Ramanujan et al. 2020", source="arXiv:1905.01067; arXiv:1911.13299",
        where="Section 5; edge-popup: Section 3",
        experiments={
            "edge_popup": f"--arch_type fc1 --dataset mnist {EDGE_POPUP} {HALF}",
            "supermask": f"--arch_type fc1 --dataset mnist --prune_type supermask --lr 0.05 {COSINE} {HALF}",
        },
        quick="--end_iter 2 --valid_freq 200it",
        statements=(
            Statement("a learned supermask reaches 98.0%",
                      reached("supermask/supermask"), at=50, published=98.0, holds=(97.0, 100.0), unit=PERCENT),
            Statement("edge-popup reaches the same accuracy (its paper has no MNIST)",
                      reached("edge_popup/edge_popup"), at=50, holds=(97.0, 100.0), unit=PERCENT),
        ),
        note="Within a point counts as true. The dense networks are trained with the masks' learning rates, so their "
        "own accuracies mean nothing. Zhou's supermasks choose their own density; here it is 50%.",
    ),
    Claim(
        "strong_conv2",
        "networks that are found and not trained: edge-popup in Conv-2 on CIFAR-10",
        paper="Ramanujan et al. 2020", source="arXiv:1911.13299", where="Figure 3, at 10%",
        experiments={"": f"--arch_type conv2 --dataset cifar10 {EDGE_POPUP} {TENTH}"},
        quick="--end_iter 100it --valid_freq 50it --lr 0.02 --trials 1",
        statements=(
            Statement("10% of a random Conv-2 classify 65% of the images",
                      reached("edge_popup"), at=10, published=65.0, holds=(62.0, 100.0), unit=PERCENT),
        ),
        needs="a GPU",
    ),
)  # fmt: skip
