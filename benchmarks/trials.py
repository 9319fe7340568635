"""The cost of more than one trial: in processes side by side on a CPU, and stacked into one network.

Jobs: 1 and 2 processes (and the textbook loop likewise) do as many steps each, from one start to the last one's end.
Stacked: T trials trained as one network; the cost is that of a step of all of them, compared to a step of one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing  # teaches pickle to share tensors between processes
from engine import Engine, Problem, add_problem_flags
from textbook import Textbook
from timing import Spread, about, devices, head, in_turns, parser, ratio, show, steps_for, write_json

LOOPS = ("this program", "textbook")


def serve(pipe: Connection, loop: str, name: str, args: argparse.Namespace) -> None:
    """A process with one loop: trains for as many steps as it is asked, until it is asked for none."""
    problem = Problem.of(name, args.data)
    trained: Engine | Textbook = (
        Textbook(problem, args.batch_size, args.optimizer, threads=args.threads)
        if loop == "textbook"
        else Engine(problem, args.batch_size, args.optimizer, precision=args.precision, threads=args.threads)
    )
    trained.run(5)
    pipe.send("ready")
    while steps := pipe.recv():
        trained.run(steps)
        pipe.send("done")


def together(pipes: Sequence[Connection], steps: int) -> None:
    """Have all processes train for `steps` steps, and wait for the last of them."""
    for pipe in pipes:
        pipe.send(steps)
    for pipe in pipes:
        pipe.recv()


def jobs(args: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Time 1 to --jobs processes of both loops, print the table, and give the measurements."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # as lth.jobs does, before a child loads torch
        os.environ[variable] = str(args.threads)
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, list[Connection]] = {loop: [] for loop in LOOPS}
    processes = []
    for loop in LOOPS:
        for _ in range(max(args.jobs)):
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=serve, args=(theirs, loop, name, args), daemon=True))
            processes[-1].start()
            pipes[loop].append(ours)
    for pipe in [pipe for loop in LOOPS for pipe in pipes[loop]]:
        pipe.recv()
    steps = {loop: steps_for(args.seconds, partial(together, pipes[loop][:1])) for loop in LOOPS}
    cases = [(loop, count) for loop in LOOPS for count in args.jobs]
    seconds = in_turns(
        {case: partial(together, pipes[case[0]][: case[1]], steps[case[0]]) for case in cases}, args.repeats
    )
    for pipe in [pipe for loop in LOOPS for pipe in pipes[loop]]:
        pipe.send(0)
    for process in processes:
        process.join()

    # seconds for a step of any trial: the inverse of the throughput of all processes
    rate = {case: [s / steps[case[0]] / case[1] for s in seconds[case]] for case in cases}
    baseline, results = rate["textbook", args.jobs[0]], []
    rows = [["", "processes", "steps/s in all", "wall time, of one", "min-max", "times 1 textbook", "min-max"]]
    for case in cases:
        loop, count = case
        wall, speed = ratio(seconds[case], seconds[loop, args.jobs[0]]), ratio(baseline, rate[case])
        in_all = f"{1 / Spread.of(rate[case]).median:,.0f}"
        rows.append([loop, str(count), in_all, *wall.cells(2), *speed.cells(2)])
        results.append(
            {"part": "jobs", "model": name, "loop": loop, "processes": count, "steps": steps[loop]}
            | {"seconds": seconds[case], "wall_ratio": vars(wall), "ratio": vars(speed)}
        )
    show(
        f"jobs: {name}, cpu, batch {args.batch_size}, --precision {args.precision}, {args.threads} thread(s) each", rows
    )
    return results


def stacked(args: argparse.Namespace, problem: Problem, device: str) -> list[dict[str, Any]]:
    """Time stacks of trials on one device, print the table, and give the measurements."""
    sizes = args.stacks or ([1, 2, 5, 10] if device == "cuda" else [1, 2, 4])
    engines = {
        size: Engine(problem, args.batch_size, args.optimizer, device, args.precision, args.threads, size)
        for size in sizes
    }
    steps = {size: steps_for(args.seconds / 4, engine.run) for size, engine in engines.items()}
    seconds = in_turns({size: partial(engines[size].run, steps[size]) for size in sizes}, args.repeats)
    a_step = {size: [s / steps[size] for s in seconds[size]] for size in sizes}
    rows = [["stacked trials", "µs a step of all", "min-max", f"cost, of {sizes[0]}", "min-max", "trial steps/s"]]
    results = []
    for size in sizes:
        cost = ratio(a_step[size], a_step[sizes[0]])
        spread = Spread.of(a_step[size], 1e6)
        rows.append([str(size), *spread.cells(), *cost.cells(2), f"{size * 1e6 / spread.median:,.0f}"])
        results.append(
            {"part": "stacked", "model": problem.name, "device": device, "stack": size, "steps": steps[size]}
            | {"seconds": seconds[size], "cost_ratio": vars(cost)}
        )
    graph = ", captured as a CUDA graph" if device == "cuda" else ""
    show(f"stacked: {problem.name}, {device}, batch {args.batch_size}, --precision {args.precision}{graph}", rows)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the parts that the flags say."""
    made = parser(__doc__, seconds=2.0, repeats=5)
    add_problem_flags(made, ["fc1/mnist"])
    made.add_argument("--devices", nargs="+", default=devices(), help="for stacks (default: %(default)s)")
    made.add_argument("--precision", choices=("fast", "fp32", "bf16"), default="fast", help="default: %(default)s")
    made.add_argument("--parts", nargs="+", choices=("jobs", "stacked"), default=["jobs", "stacked"])
    made.add_argument("--jobs", nargs="+", type=int, default=[1, 2], help="processes (default: %(default)s)")
    made.add_argument("--stacks", nargs="+", type=int, help="trials (default: 1 2 4 on a CPU, 1 2 5 10 on a GPU)")
    args = made.parse_args(argv)
    torch.set_num_threads(args.threads)
    facts = about()
    head(facts)
    results: list[dict[str, Any]] = []
    for name in args.models:
        if "jobs" in args.parts:
            results += jobs(args, name)
        if "stacked" in args.parts:
            problem = Problem.of(name, args.data)
            results += [line for device in args.devices for line in stacked(args, problem, device)]
    write_json(args.json, facts, results)


if __name__ == "__main__":
    main()
