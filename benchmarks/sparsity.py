"""What a step and an evaluation cost at each sparsity: sparse products (--sparse auto) beside dense ones (off).

Both are this program, at the same masks, in turns, on one thread. `of dense` is the share of the dense products' time
that sparse ones take; `of unpruned` that of a step before any pruning. With --layers, single Linear layers: the table
that lth/training/sparse.py decides by.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from engine import LR, Engine, Problem, add_problem_flags
from timing import Spread, about, head, in_turns, parser, ratio, show, steps_for, write_json
from torch import nn

from lth.training import kernels
from lth.training.numerics import numerics
from lth.training.sparse_linear import become_sparse

SHARES = (100.0, 51.0, 33.0, 21.0, 13.5, 8.6, 3.6, 1.0)
LAYERS = ("784-300x60", "300-100x60", "100-10x60")
SPARSE, DENSE = "sparse", "dense"


def compare(args: argparse.Namespace, problem: Problem) -> list[dict[str, Any]]:
    """Time a model at every share of survivors, print the table, and give the measurements."""
    options = (problem, args.batch_size, args.optimizer, "cpu", args.precision, args.threads)
    loops = {
        (share, way): Engine(*options, keep=share, sparse=setting)
        for share in args.keep
        for way, setting in ((SPARSE, "auto"), (DENSE, "off"))
    }
    count = {key: steps_for(args.seconds, loop.run) for key, loop in loops.items()}
    seconds = in_turns({key: partial(loop.run, count[key]) for key, loop in loops.items()}, args.repeats)
    steps = {key: [s / count[key] for s in taken] for key, taken in seconds.items()}
    tests = in_turns({key: loop.evaluate for key, loop in loops.items()}, args.repeats)
    first = steps[args.keep[0], DENSE]
    rows = [["% left", "layers", "µs dense", "sparse", "of dense", "min-max", "of unpruned", "ms test", "of dense"]]
    results = []
    for share in args.keep:
        one, other, test = steps[share, SPARSE], steps[share, DENSE], tests[share, SPARSE]
        of_dense, of_first, of_test = ratio(one, other), ratio(one, first), ratio(test, tests[share, DENSE])
        layers = len(loops[share, SPARSE].training.network.places)
        rows.append(
            [
                *(f"{share:g}", str(layers), Spread.of(other, 1e6).cells()[0], Spread.of(one, 1e6).cells()[0]),
                *(*of_dense.cells(2), of_first.cells(2)[0], Spread.of(test, 1e3).cells(1)[0], of_test.cells(2)[0]),
            ]
        )
        found = {"of_dense": vars(of_dense), "of_unpruned": vars(of_first), "evaluation_of_dense": vars(of_test)}
        results.append({"model": problem.name, "left": share, "sparse": one, "dense": other, "layers": layers, **found})
    setting = f"batch {args.batch_size}, {args.optimizer}, --precision {args.precision}, {args.threads} thread(s)"
    show(f"{problem.name}, {setting}{problem.remark}", rows)
    return results


def layer_step(size: tuple[int, int, int], keep: float | None, first: bool) -> Callable[[int], None]:
    """A layer's steps: forward, backward and Adam. `size` is (inputs, outputs, batch), `keep` the share of survivors
    (None: dense), `first` whether nobody wants the gradient of its input."""
    inputs, outputs, batch = size
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, outputs))
    if keep is not None:
        become_sparse(model, {"0.weight": torch.rand(outputs, inputs) < keep})
    weights = [parameter.detach() for parameter in model.parameters()]
    moments = [[torch.zeros_like(weight) for weight in weights] for _ in range(2)]
    x = torch.randn(batch, inputs) if first else torch.randn(inputs, batch).t()  # a hidden layer's comes so
    above, steps, lr = torch.randn(batch, outputs), torch.ones(()), torch.tensor(LR)
    leaves = [*model.parameters(), *([] if first else [x.requires_grad_()])]

    def run(count: int) -> None:
        for _ in range(count):
            found = kernels.gradients((model(x) * above).sum(), leaves)
            kernels.adam_(weights, found[: len(weights)], moments, steps, lr, 0.0, False)

    return run


def compare_layers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time single layers at every share of survivors, print the table, and give the measurements."""
    rows, results = [["", *(f"{share:g}%" for share in args.keep)]], []
    for name in args.layers:
        inputs, outputs, batch = (int(part) for part in name.replace("x", "-").split("-"))
        cells = [name]
        for share in args.keep:
            size, first = (inputs, outputs, batch), inputs == 784
            loops = {SPARSE: layer_step(size, share / 100, first), DENSE: layer_step(size, None, first)}
            with numerics(args.precision, args.threads):
                count = max(steps_for(args.seconds, loop) for loop in loops.values())
                taken = in_turns({way: partial(loop, count) for way, loop in loops.items()}, args.repeats)
            found = ratio(taken[SPARSE], taken[DENSE])
            cells.append(found.cells(2)[0])
            results.append({"layer": name, "left": share, "of_dense": vars(found)})
        rows.append(cells)
    show(f"layers (inputs-outputs x batch): sparse, of dense; --precision {args.precision}", rows)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Compare as the flags say."""
    made = parser(__doc__, seconds=0.15, repeats=11)
    add_problem_flags(made, ["fc1/mnist"])
    made.add_argument("--precision", choices=("fast", "fp32"), default="fast", help="default: %(default)s")
    made.add_argument(
        "--keep",
        type=float,
        nargs="+",
        default=SHARES,
        metavar="PERCENT",
        help="shares that survive; default: %(default)s",
    )
    made.add_argument(
        "--layers", nargs="*", metavar="IN-OUTxBATCH", help=f"single layers instead; default: {' '.join(LAYERS)}"
    )
    args = made.parse_args(argv)
    facts = about()
    head(facts)
    if args.layers is not None:
        args.layers = args.layers or LAYERS
        write_json(args.json, facts, compare_layers(args))
        return
    results = [line for name in args.models for line in compare(args, Problem.of(name, args.data))]
    write_json(args.json, facts, results)


if __name__ == "__main__":
    main()
