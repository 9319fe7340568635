"""The time of a training step and of an evaluation: this program against the textbook loop.

For every model and device, the textbook loop (benchmarks/textbook.py) and this program's steps at each --precision are
timed in turns with as many threads, half of the weights pruned in both. The ratio says how many times more images a
second this program trains on, repeat by repeat, so its spread is that of the comparison.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from engine import Engine, Problem, add_problem_flags
from textbook import Textbook
from timing import (
    Spread,
    about,
    devices,
    elapsed,
    head,
    in_turns,
    parser,
    ratio,
    show,
    steps_for,
    synchronise,
    write_json,
)
from torch import Tensor, nn

from lth.training.hardware import numerics
from lth.training.optimizers import gradients

TEXTBOOK = "textbook"
STAGES = ("gather, normalise", "forward, loss", "backward", "optimiser, mask", "sum of losses")
PRODUCTS = "products alone"
QUICK = 5.0  # seconds: one evaluation by each loop that takes longer is not repeated


def compare(args: argparse.Namespace, problem: Problem, device: str) -> list[dict[str, Any]]:
    """Time all loops of one model on one device, print the table, and give the measurements."""
    loops: dict[str, Textbook | Engine] = {
        TEXTBOOK: Textbook(problem, args.batch_size, args.optimizer, device, args.threads)
    }
    for precision in args.precision:
        loops[precision] = Engine(problem, args.batch_size, args.optimizer, device, precision, args.threads, args.stack)
    images = {name: args.batch_size * (1 if name == TEXTBOOK else args.stack) for name in loops}
    count = {name: steps_for(args.seconds, loop.run) for name, loop in loops.items()}
    seconds = in_turns({name: partial(loop.run, count[name]) for name, loop in loops.items()}, args.repeats)
    evaluate = {name: loop.evaluate for name, loop in loops.items()}
    tests = in_turns(evaluate, 1)  # where these are quick they only prepare
    if sum(took[0] for took in tests.values()) < QUICK:
        tests = in_turns(evaluate, args.repeats)

    per_image = {name: [s / count[name] / images[name] for s in seconds[name]] for name in loops}
    per_test = {name: [s * args.batch_size / images[name] for s in tests[name]] for name in loops}
    steps = {name: Spread.of(seconds[name], 1e6 / count[name]) for name in loops}
    ratios = {name: ratio(per_image[TEXTBOOK], per_image[name]) for name in loops}
    test_ms = {name: Spread.of(tests[name], 1e3) for name in loops}
    test_ratios = {name: ratio(per_test[TEXTBOOK], per_test[name]) for name in loops}
    rows = [["", *(name if name == TEXTBOOK else f"--precision {name}" for name in loops)]]
    tests_of = f"{len(problem.images.test):,} test images, ms"
    for title, spreads, digits in (
        ("µs a step", steps, 0),
        ("times the textbook's speed", ratios, 2),
        (tests_of, test_ms, 0 if len(problem.images.test) > 1000 else 1),
        ("times the textbook's speed", test_ratios, 1),
    ):
        rows.append([title, *(spreads[name].cells(digits)[0] for name in loops)])
        rows.append(["  min-max", *(spreads[name].cells(digits)[1] for name in loops)])
    rows.insert(3, ["images/s", *(f"{1 / Spread.of(per_image[name]).median:,.0f}" for name in loops)])
    stacked = f", {args.stack} stacked trials" if args.stack > 1 else ""
    setting = f"batch {args.batch_size}, {args.optimizer}, {args.threads} thread(s)"
    show(f"{problem.name}, {device}, {setting}{stacked}{problem.remark}", rows)

    if args.parts:
        for name, loop in loops.items():
            if isinstance(loop, Engine):
                show_parts(f"where a step goes, {problem.name}, {device}, --precision {name}", args, loop)
    return [
        {
            **{"model": problem.name, "device": device, "loop": name, "synthetic": problem.synthetic},
            **{"batch_size": args.batch_size, "stack": images[name] // args.batch_size, "threads": args.threads},
            **{"steps": count[name], "seconds": seconds[name], "evaluation_seconds": tests[name]},
            **{"ratio": vars(ratios[name]), "evaluation_ratio": vars(test_ratios[name])},
        }
        for name in loops
    ]


def show_parts(title: str, args: argparse.Namespace, engine: Engine) -> None:
    """Print how long each stage of a step takes, and its matrix products and convolutions by themselves."""
    count = steps_for(args.seconds, engine.run)
    with numerics(engine.precision, args.threads):
        batch = engine.training.feed.epoch(engine.training.order_seeds, 0)[0]
        products = products_of(engine, batch)
        _repeat(products, 10, engine.device)
    whole, alone = [], []
    stages: dict[str, list[float]] = {name: [] for name in STAGES}
    for _ in range(args.repeats):
        whole.append(elapsed(partial(engine.run, count)))
        with numerics(engine.precision, args.threads):
            for name, total in stage_times(engine, count).items():
                stages[name].append(total)
            alone.append(elapsed(partial(_repeat, products, count, engine.device)))
    parts = {"whole step": whole, **stages, PRODUCTS: alone}
    dispatch = [f + b - p for f, b, p in zip(stages[STAGES[1]], stages[STAGES[2]], alone, strict=True)]
    parts["forward, backward beside them"] = dispatch
    middle = Spread.of(whole).median
    rows = [["", "µs", "min-max", "share"]]
    for name, seconds in parts.items():
        spread = Spread.of(seconds, 1e6 / count)
        rows.append([name, *spread.cells(), f"{100 * Spread.of(seconds).median / middle:.0f}%"])
    show(title + (" (stages without CUDA graph)" if engine.device.type == "cuda" else ""), rows)


def _repeat(calls: Sequence[Callable[[], object]], count: int, device: torch.device) -> None:
    for _ in range(count):
        for call in calls:
            call()
    synchronise(device)


def stage_times(engine: Engine, count: int) -> Mapping[str, float]:
    """Seconds of each stage of `count` steps: those of Training.step, with a look at the clock between them."""
    training, totals = engine.training, [0.0] * len(STAGES)
    network, device = training.network, engine.device
    network.model.train()
    batches = training.feed.epoch(training.order_seeds, 0)
    for i in range(count):
        times = [_now(device)]
        images, labels = training.feed.fetch(batches[i % len(batches)])
        times.append(_now(device))
        loss = network.losses(images, labels)
        times.append(_now(device))
        found = gradients(loss, network.leaves)
        times.append(_now(device))
        training.optimizer.step(found)
        times.append(_now(device))
        training.loss_sum.add_(loss.detach())
        times.append(_now(device))
        for stage in range(len(STAGES)):
            totals[stage] += times[stage + 1] - times[stage]
    return dict(zip(STAGES, totals, strict=True))


def _now(device: torch.device) -> float:
    synchronise(device)
    return time.perf_counter()


def products_of(engine: Engine, batch: Tensor) -> list[Callable[[], object]]:
    """The matrix products and convolutions of a step, forward and backward, each to be called by itself."""
    network, calls = engine.training.network, list[Callable[[], object]]()
    dtype = torch.bfloat16 if network.autocast else torch.float32

    def note(layer: nn.Linear | nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        needs_input = inputs[0].requires_grad  # the first layer's input has no gradient
        x, weight = inputs[0].detach().to(dtype), layer.weight.detach().to(dtype)
        gradient = torch.ones_like(output).to(dtype)
        if isinstance(layer, nn.Linear):
            calls.append(partial(torch.mm, x, weight.t()))
            calls.append(partial(torch.mm, gradient.t(), x))
            if needs_input:
                calls.append(partial(torch.mm, gradient, weight))
            return
        shape = (layer.stride, layer.padding, layer.dilation)
        calls.append(partial(nn.functional.conv2d, x, weight, None, *shape, layer.groups))
        both = (False, [0, 0], layer.groups, [needs_input, True, False])
        calls.append(partial(torch.ops.aten.convolution_backward, gradient, x, weight, None, *shape, *both))

    layers = [layer for layer in network.model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    network.losses(*engine.training.feed.fetch(batch))
    for hook in hooks:
        hook.remove()
    return calls


def main(argv: Sequence[str] | None = None) -> None:
    """Compare as the flags say."""
    made = parser(__doc__, seconds=0.6, repeats=7)
    add_problem_flags(made, ["fc1/mnist", "conv2/cifar10"])
    made.add_argument("--devices", nargs="+", default=devices(), help="default: all there are, %(default)s")
    made.add_argument("--precision", nargs="+", choices=("fast", "fp32", "bf16"), default=["fast", "fp32", "bf16"])
    made.add_argument("--stack", type=int, default=1, help="trials that this program trains as one network")
    made.add_argument("--parts", action="store_true", help="also say where the time of a step goes")
    args = made.parse_args(argv)
    if args.parts and args.stack > 1:
        made.error("--parts looks into a step of one trial: leave out --stack")
    torch.set_num_threads(args.threads)
    facts = about()
    head(facts)
    problems = [Problem.of(name, args.data) for name in args.models]
    results = [line for problem in problems for device in args.devices for line in compare(args, problem, device)]
    write_json(args.json, facts, results)


if __name__ == "__main__":
    main()
