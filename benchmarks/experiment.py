"""Where the time of a whole experiment goes: main.py from the command to its end, in a folder of its own.

Every process, the main one and its workers, charges each moment to one part: imports, reading data, setting up a
round, training, evaluation, pruning, files (reading and writing), drawing. Other flags are handed to main.py, as in
`python benchmarks/experiment.py --jobs 1 --arch_type lenet5`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
FOLDER, LAUNCHED = "LTH_BENCHMARK_FOLDER", "LTH_BENCHMARK_LAUNCHED"  # environment of the processes that are measured
MAIN_JOB = ("--prune_type", "lt", "reinit", "--prune_percent", "20")
SHORT = (*MAIN_JOB, "--prune_iterations", "4", "--end_iter", "2")
FULL = (
    *(*MAIN_JOB, "--prune_iterations", "10", "--end_iter", "5", "--valid_freq", "300it"),
    *("--pixels", "unit", "--trials", "2"),
)
IMPORTS, DATA, SETUP, TRAINING, EVALUATION = "imports", "data, checks", "setting up rounds", "training", "evaluation"
PRUNING, FILES, DRAWING, WAITING, OTHER = "pruning", "files", "drawing, verdict", "waiting", "everything else"
PARTS = (IMPORTS, DATA, SETUP, TRAINING, EVALUATION, PRUNING, FILES, DRAWING, OTHER, WAITING)


class Clock:
    """The seconds of this process, each charged to one part: the innermost that is under way."""

    def __init__(self, part: str, began: float) -> None:
        self.part, self.since = part, began
        self.seconds: dict[str, float] = defaultdict(float)
        self.first_step: float | None = None

    def switch(self, part: str) -> str:
        """Charge what follows to `part`; gives the part until now."""
        now, before = time.time(), self.part
        self.seconds[before] += now - self.since
        self.part, self.since = part, now
        if part == TRAINING and self.first_step is None:
            self.first_step = now
        return before

    @contextmanager
    def charge(self, part: str) -> Iterator[None]:
        """Within it, `part` is charged."""
        before = self.switch(part)
        try:
            yield
        finally:
            self.switch(before)

    def wrap(self, owner: Any, name: str, part: str, then: Callable[[], None] = lambda: None) -> None:
        """Charge the calls of `owner.name` to `part`, and do `then` after each."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.charge(part):
                result = inner(*args, **kwargs)
            then()
            return result

        setattr(owner, name, timed)

    def save(self) -> None:
        """Write what this process has spent so far, for the measuring process to read."""
        self.switch(self.part)
        found = {"seconds": self.seconds, "first_step": self.first_step, "worker": __name__ != "__main__"}
        Path(os.environ[FOLDER], f"{os.getpid()}.json").write_text(json.dumps(found), encoding="utf-8")


def instrument(clock: Clock) -> None:
    """Have the clock charge what the functions of lth do."""
    from lth.commands import command, loop, prepare
    from lth.experiment import Experiment
    from lth.experiment.trainer import Trainer
    from lth.records import files, journal, tables
    from lth.records.store import Store
    from lth.training.train import Training

    clock.wrap(prepare, "prepare", DATA)
    clock.wrap(loop, "work_in_processes", WAITING)  # where rounds are not in this process
    clock.wrap(Experiment, "run", OTHER, then=clock.save)
    clock.wrap(Trainer, "train", SETUP)
    clock.wrap(Experiment, "prune", PRUNING)
    clock.wrap(Training, "run", TRAINING)
    clock.wrap(Training, "_evaluate", EVALUATION)
    for name in ("write_weights", "weights", "write_ticket", "ticket", "masks", "write_checkpoint", "checkpoint"):
        clock.wrap(Store, name, FILES)
    for owner, name in (
        *((Store, name) for name in ("copy_dense_round", "keep_sound_rounds")),
        *((journal, "write_round"), (tables, "finished_rounds")),
        (files, "write_json"),
    ):
        clock.wrap(owner, name, FILES)
    clock.wrap(command, "conclude", DRAWING)


def inside(argv: Sequence[str]) -> int:
    """Be main.py, with a clock."""
    clock = Clock(IMPORTS, float(os.environ[LAUNCHED]))
    instrument(clock)
    clock.switch(OTHER)

    import experiment  # this file, by a name that workers can import

    import main as program
    import utils
    from lth.commands import loop

    loop._loop = experiment.worker

    code = utils.exit_code(program.main, argv)
    clock.save()
    return code


def worker(*args: Any) -> None:
    """Be a worker process, with a clock from when it has loaded the program."""
    clock = Clock(IMPORTS, time.time())
    instrument(clock)
    clock.switch(WAITING)
    from lth.commands import loop

    loop._loop(*args)


def measured(argv: Sequence[str], folder: Path) -> tuple[float, float, list[dict[str, Any]]]:
    """When main.py was launched, when it had ended, and what its processes spent, the main one first."""
    launched = time.time()
    environment = {**os.environ, FOLDER: str(folder), LAUNCHED: str(launched)}
    command = [sys.executable, str(Path(__file__).resolve()), *argv, "--root", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    ended = time.time()
    if done.returncode:
        sys.exit(f"main.py failed:\n{done.stdout}\n{done.stderr}")
    found = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    return launched, ended, sorted(found, key=lambda process: process["worker"])


def recorded(root: Path) -> float:
    """Seconds of training and evaluation that the times.csv files say; a dense round that arms share counts once."""
    from lth.records import tables

    total, shared = 0.0, set[int]()
    for run in tables.find(root):
        times = tables.table(run, "times")
        if run.seed in shared:
            times = times[times["round"] > 0]
        shared.add(run.seed)
        total += float(times["training"].sum() + times["evaluation"].sum())
    return total


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, print where its time went."""
    from timing import about, head, json_flag, show, write_json

    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--full", action="store_true", help=f"main.py {' '.join(FULL)}; else {' '.join(SHORT)}")
    json_flag(made)
    args, others = made.parse_known_args(argv)
    facts, flags = about(), [*(FULL if args.full else SHORT), *others]
    head(facts)
    with tempfile.TemporaryDirectory() as temporary:
        launched, ended, processes = measured(flags, Path(temporary))
        in_files = recorded(Path(temporary))

    names = ["main process", *(f"worker {number}" for number in range(1, len(processes)))]
    rows = [["seconds", *names]]
    for part in PARTS:
        cells = [process["seconds"].get(part, 0.0) for process in processes]
        rows.append([part, *(f"{seconds:.2f}" for seconds in cells)])
    show(f"main.py {' '.join(flags)}", rows)

    start_up = min(process["first_step"] for process in processes if process["first_step"]) - launched
    rest = ended - launched - start_up
    work = [process["seconds"].get(TRAINING, 0.0) + process["seconds"].get(EVALUATION, 0.0) for process in processes]
    training = sum(1 for seconds in work if seconds)
    facts |= {"flags": flags, "seconds": ended - launched, "start_up": start_up, "share": max(work) / rest}
    facts |= {"recorded": in_files, "use_of_all": sum(work) / (training * rest)}
    rows = [
        ["from the command to its end", f"{ended - launched:.1f} s"],
        ["start-up, until the first step", f"{start_up:.1f} s"],
        ["after it", f"{rest:.1f} s"],
        ["training and evaluation in the process with most of it", f"{max(work):.1f} s"],
        ["  share of the time after start-up", f"{100 * max(work) / rest:.1f}%"],
        [f"training and evaluation in all {training} processes", f"{sum(work):.1f} s"],
        [f"  share of {training} times the time after start-up", f"{100 * sum(work) / (training * rest):.1f}%"],
        ["the same by the times.csv files", f"{in_files:.1f} s"],
    ]
    show("in all", rows)
    write_json(args.json, facts, [{"process": name, **process} for name, process in zip(names, processes, strict=True)])


if __name__ == "__main__":
    if FOLDER in os.environ:
        sys.exit(inside(sys.argv[1:]))
    main()
