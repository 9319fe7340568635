"""What a step and an evaluation cost at each sparsity: sparse products (--sparse auto) beside dense ones (off).

Both are this program, at the same masks, in turns, on one thread. `of dense` is the share of the dense products' time
that sparse ones take; `of unpruned` that of a step before any pruning. All is processor time, so that other work beside
it counts little. With --preset, the rounds of the preset lenet, and what its whole experiment takes by them. With
--layers, single Linear layers: the table that lth/training/sparse.py decides by.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from engine import LR, Engine, Problem, add_problem_flags
from timing import Spread, about, head, in_turns, parser, ratio, show, steps_for, write_json
from torch import nn

from lth import pruning
from lth.settings import flags
from lth.settings.config import Config
from lth.training import optimizers
from lth.training.hardware import numerics
from lth.training.sparse import become_sparse

SHARES = (100.0, 51.0, 33.0, 21.0, 13.5, 8.6, 3.6, 1.0)
LAYERS = ("784-300x60", "300-100x60", "100-10x60")
VALID, ROUNDS, LOWEST = 5000, 17, 50  # of the preset; LOWEST: lowest validation losses so far in a round, about
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
    runs = {key: partial(loop.run, count[key]) for key, loop in loops.items()}
    seconds = in_turns(runs, args.repeats, time.process_time)
    steps = {key: [s / count[key] for s in taken] for key, taken in seconds.items()}
    tests = in_turns({key: loop.evaluate for key, loop in loops.items()}, args.repeats, time.process_time)
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
            found = optimizers.gradients((model(x) * above).sum(), leaves)
            optimizers.adam_(weights, found[: len(weights)], moments, steps, lr, 0.0, False)

    return run


def layer_evaluation(size: tuple[int, int, int], keep: float | None) -> Callable[[int], None]:
    """A layer's forward passes of 1,000 examples, 200 at once where it is sparse, as lth.training.network has them."""
    inputs, outputs, _ = size
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, outputs))
    if keep is not None:
        become_sparse(model, {"0.weight": torch.rand(outputs, inputs) < keep})
    model.eval().requires_grad_(False)  # without torch.no_grad, under which sparse layers are dense beside AMX
    parts = torch.randn(1000, inputs).split(1000 if keep is None else 200)

    def run(count: int) -> None:
        for _ in range(count):
            torch.cat([model(part) for part in parts])

    return run


def compare_layers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time single layers at every share of survivors, print the table, and give the measurements."""
    rows, results = [["", *(f"{share:g}%" for share in args.keep)]], []
    for name, evaluates in itertools.product(args.layers, (False, True)):
        inputs, outputs, batch = (int(part) for part in name.replace("x", "-").split("-"))
        cells = [f"{name}, evaluation" if evaluates else name]
        for share in args.keep:
            size, first = (inputs, outputs, batch), inputs == 784
            if evaluates:
                loops = {SPARSE: layer_evaluation(size, share / 100), DENSE: layer_evaluation(size, None)}
            else:
                loops = {SPARSE: layer_step(size, share / 100, first), DENSE: layer_step(size, None, first)}
            with numerics(args.precision, args.threads):
                count = max(steps_for(args.seconds, loop) for loop in loops.values())
                runs = {way: partial(loop, count) for way, loop in loops.items()}
                taken = in_turns(runs, args.repeats, time.thread_time)
            found = ratio(taken[SPARSE], taken[DENSE])
            cells.append(found.cells(2)[0])
            results.append({"layer": name, "evaluation": evaluates, "left": share, "of_dense": vars(found)})
        rows.append(cells)
    show(f"layers (inputs-outputs x batch): sparse, of dense; --precision {args.precision}", rows)
    return results


def preset_rounds(config: Config, problem: Problem) -> list[dict[str, float]]:
    """What survives in each round of the preset, in percent of each layer."""
    names, rates = list(pruning.prunable(problem.make())), config.rates()
    percent = dict.fromkeys(names, rates["fc"]) | {names[-1]: rates["output"]}
    return [{name: 100 * (1 - percent[name] / 100) ** number for name in names} for number in range(ROUNDS)]


def compare_preset(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time a step and an evaluation in every round of the preset lenet, and print what a round and all take."""
    config, problem = flags.parse(["--preset", "lenet"]), Problem.of("fc1/mnist", args.data)
    steps, epoch = config.end_iter.amount, 1
    evaluations, regular = (steps // each.iterations(epoch, steps) for each in (config.valid_freq, config.test_freq))
    rows = [["round", "% left", "µs a step dense", "sparse", "ms test dense", "sparse", "round, of dense"]]
    results = []
    for number, keep in enumerate(preset_rounds(config, problem)):
        loops = {
            way: Engine(problem, config.batch_size, "adam", "cpu", args.precision, args.threads, 1, keep, setting)
            for way, setting in ((SPARSE, "auto"), (DENSE, "off"))
        }
        count = max(steps_for(args.seconds, loop.run) for loop in loops.values())
        runs = {way: partial(loop.run, count) for way, loop in loops.items()}
        step = in_turns(runs, args.repeats, time.process_time)
        test = in_turns({way: loop.evaluate for way, loop in loops.items()}, args.repeats, time.process_time)
        found: dict[str, Any] = {"round": number, "left": keep}
        for way in loops:
            a_step, a_test = statistics.median(step[way]) / count, statistics.median(test[way])
            passes = evaluations * VALID / len(problem.images.test)
            found[way] = {"step": a_step, "test": a_test, "training": steps * a_step}
            found[way] |= {"all tests": (passes + evaluations) * a_test, "tests": (passes + regular + LOWEST) * a_test}
        results.append(found)
        sparse, dense = found[SPARSE], found[DENSE]
        share = (sparse["training"] + sparse["tests"]) / (dense["training"] + dense["tests"])
        cells = (1e6 * dense["step"], 1e6 * sparse["step"], 1e3 * dense["test"], 1e3 * sparse["test"])
        first = next(iter(keep.values()))
        rows.append([str(number), f"{first:.1f}", *(f"{cell:,.0f}" for cell in cells), f"{share:.2f}"])
    show(f"the preset lenet, --precision {args.precision}, {args.threads} thread(s)", rows)
    rows = [["17 rounds, seconds", "training", "evaluation", "in all", "of --sparse off"]]
    for title, way, tests in (
        ("--sparse off, every evaluation with test images", DENSE, "all tests"),
        ("--sparse off", DENSE, "tests"),
        ("--sparse auto", SPARSE, "tests"),
    ):
        parts = [sum(found[way][part] for found in results) for part in ("training", tests)]
        usual = sum(found[DENSE][part] for found in results for part in ("training", "tests"))
        rows.append([title, *(f"{part:,.0f}" for part in [*parts, sum(parts)]), f"{sum(parts) / usual:.2f}"])
    show(f"in all, with {LOWEST} lowest validation losses a round beside the {regular} regular test passes", rows)
    once = sum(parts) + sum(found[SPARSE][part] for found in results[1:] for part in ("training", "tests"))
    print(f"\n--trials 5 --prune_type lt ticket_reinit on two cores, by that: {5 / 2 * once / 60:.0f} minutes")
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
    made.add_argument("--preset", action="store_true", help="the rounds of the preset lenet instead")
    args = made.parse_args(argv)
    facts = about()
    head(facts)
    if args.preset:
        write_json(args.json, facts, compare_preset(args))
        return
    if args.layers is not None:
        args.layers = args.layers or LAYERS
        write_json(args.json, facts, compare_layers(args))
        return
    results = [line for name in args.models for line in compare(args, Problem.of(name, args.data))]
    write_json(args.json, facts, results)


if __name__ == "__main__":
    main()
