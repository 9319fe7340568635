"""What a ticket gains where it is used: fc1 with CSR weights (`ticket.sparse()`) against the dense network.

Both hold the same weights, each layer pruned at random to the same percentage, and answer the same batches in turns.
The ratio says how many times as quick the sparse network is, repeat by repeat.

    python benchmarks/inference.py
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from engine import Problem
from timing import about, head, in_turns, parser, ratio, show, steps_for, write_json
from torch import Tensor, nn

from lth import pruning
from lth.api import export
from lth.settings.config import PROJECT

PERCENTS = (20.0, 10.0, 5.0, 3.6, 1.0)  # of the weights
BATCHES = (1, 60, 1000)


def tickets(percent: float) -> tuple[nn.Module, nn.Module]:
    """fc1 with that percent of its weights, each layer the same: dense, with zeros, and sparse."""
    model = Problem.of("fc1/mnist", PROJECT / "data").make().eval()
    weights = pruning.prunable(model)
    masks = pruning.dense(weights)
    scores = pruning.random_scores(masks, torch.Generator().manual_seed(0))
    masks = pruning.keep_highest(scores, masks, pruning.quotas(masks, dict.fromkeys(masks, 100 - percent)))
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].mul_(mask)
    return model, export.sparse(model, masks)


def calls(model: nn.Module, images: Tensor, count: int) -> None:
    """Answers for a batch, `count` times."""
    for _ in range(count):
        model(images)


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Compare as the flags say."""
    args = parser(__doc__, seconds=0.2, repeats=7).parse_args(argv)
    torch.set_num_threads(args.threads)
    facts = about()
    head(facts)
    results, rows = [], [["weights", *(f"batch {batch}" for batch in BATCHES)]]
    for percent in PERCENTS:
        dense, sparse = tickets(percent)
        rows.append([f"{percent:g}%"])
        for batch in BATCHES:
            images = torch.rand(batch, 1, 28, 28)
            count = steps_for(args.seconds, partial(calls, dense, images))
            both = {"dense": partial(calls, dense, images, count), "sparse": partial(calls, sparse, images, count)}
            seconds = in_turns(both, args.repeats)
            results.append({"percent": percent, "batch": batch, "calls": count, "seconds": seconds})
            rows[-1].append(" (".join(ratio(seconds["dense"], seconds["sparse"]).cells(1)) + ")")
    show("times as quick as the dense network, median (lowest-highest)", rows)
    write_json(args.json, facts, results)


if __name__ == "__main__":
    main()
