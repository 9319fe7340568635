"""What it costs to share a command through the folder: processes with --join, and tasks of Ray, against the pool.

The same command by main.py in one process with a pool of N, in N processes with --join and one job each, started
together, and with --ray local where that is asked for: in turns, each into a fresh folder, from the first start to the
last end. The processor time of all processes together says more than the wall time where other work runs beside them;
Ray's own processes are not in it.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from timing import Spread, about, elapsed, head, json_flag, ratio, show, write_json

PROJECT = Path(__file__).resolve().parent.parent
FLAGS = [
    *("--prune_type", "lt", "reinit", "--trials", "4", "--prune_percent", "20", "--prune_iterations", "8"),
    *("--end_iter", "1", "--gpu", "cpu", "--quiet"),
]
KINDS = ("pool", "join", "ray")


def commands(kind: str, processes: int) -> list[list[str]]:
    """What each of the processes gets beside the flags that all have."""
    if kind == "join":
        return [["--join", "--jobs", "1"]] * processes
    return [["--ray", "local"] if kind == "ray" else ["--jobs", str(processes)]]


def run(kind: str, processes: int, flags: Sequence[str], root: Path) -> None:
    """The whole command, in its processes, to the end of the last of them."""
    script = [sys.executable, str(PROJECT / "main.py"), *flags, "--root", str(root)]
    started = [
        subprocess.Popen([*script, *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for more in commands(kind, processes)
    ]
    for process in started:
        _, said = process.communicate()
        if process.returncode:
            sys.exit(f"main.py {kind} ended with {process.returncode}: {said.decode()}")


def processor_time() -> float:
    """Seconds that ended children, and theirs, have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print the table; flags that are not this script's go to main.py."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kinds", nargs="+", choices=KINDS, default=["pool", "join"], help="default: pool join")
    made.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one a core")
    made.add_argument("--repeats", type=int, default=3, help="measurements of each (default: %(default)s)")
    json_flag(made)
    args, others = made.parse_known_args(argv)
    facts, flags = about(), [*FLAGS, *others]
    head(facts)
    wall: dict[str, list[float]] = {kind: [] for kind in args.kinds}
    used: dict[str, list[float]] = {kind: [] for kind in args.kinds}
    with tempfile.TemporaryDirectory() as temporary:
        folders = (Path(temporary) / str(number) for number in count())
        for _ in range(args.repeats):
            for kind in args.kinds:
                before = processor_time()
                wall[kind].append(elapsed(partial(run, kind, args.processes, flags, next(folders))))
                used[kind].append(processor_time() - before)

    first = args.kinds[0]
    rows = [["", "wall time, s", "min-max", f"of {first}", "min-max", "processor time, s", f"of {first}", "min-max"]]
    results: list[dict[str, Any]] = []
    for kind in args.kinds:
        walls, useds = ratio(wall[kind], wall[first]), ratio(used[kind], used[first])
        own = [*Spread.of(wall[kind]).cells(1), *walls.cells(3)]
        rows.append([kind, *own, Spread.of(used[kind]).cells(1)[0], *useds.cells(3)])
        results.append({"kind": kind, "seconds": wall[kind], "processor": used[kind], "ratio": vars(walls)})
    show(f"main.py {' '.join(flags)}, by {args.processes} processes", rows)
    write_json(args.json, {**facts, "flags": flags, "processes": args.processes}, results)


if __name__ == "__main__":
    main()
