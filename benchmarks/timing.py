"""What the benchmarks share: timing in turns, medians with their spread, plain tables, JSON, the machine in words."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

LIBRARIES = ("torch", "torchvision", "numpy", "pillow")
Rows = Sequence[Sequence[str]]
Key = TypeVar("Key")  # the name of a contender, in whatever form


@dataclass(frozen=True)
class Spread:
    """The median of some repeats, the lowest and the highest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], scale: float = 1.0) -> Spread:
        """Of `values`, each times `scale`."""
        scaled = [value * scale for value in values]
        return cls(statistics.median(scaled), min(scaled), max(scaled))

    def cells(self, digits: int = 0) -> tuple[str, str]:
        """The median, and `lowest-highest`, as text."""
        return f"{self.median:,.{digits}f}", f"{self.low:,.{digits}f}-{self.high:,.{digits}f}"


def ratio(slower: Sequence[float], faster: Sequence[float]) -> Spread:
    """How many times quicker `faster` is than `slower`, repeat by repeat: both were measured in turns, so that what
    slowed the machine down for a while slowed both."""
    return Spread.of([a / b for a, b in zip(slower, faster, strict=True)])


def in_turns(
    contenders: Mapping[Key, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Key, list[float]]:
    """Seconds of each call of each contender by the clock, called A B C A B C ... `repeats` times."""
    seconds: dict[Key, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            seconds[name].append(elapsed(call, clock))
    return seconds


def elapsed(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that a call takes."""
    began = clock()
    call()
    return clock() - began


def steps_for(seconds: float, run: Callable[[int], object]) -> int:
    """How many steps `run` does in about `seconds`; also warms it up."""
    steps = 5
    run(steps)
    while (took := elapsed(partial(run, steps))) < seconds / 20:
        steps *= 4
    return max(2, round(seconds / took * steps))


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def devices() -> list[str]:
    """The devices there are, by name."""
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def parser(doc: str | None, seconds: float, repeats: int) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=repeats, help="measurements of each (default: %(default)s)")
    made.add_argument(
        "--seconds", type=float, default=seconds, help="that one measurement lasts, about (default: %(default)s)"
    )
    made.add_argument("--threads", type=int, default=1, help="of PyTorch, for every loop (default: %(default)s)")
    json_flag(made)
    return made


def json_flag(made: argparse.ArgumentParser) -> None:
    """The flag that asks for JSON."""
    made.add_argument("--json", type=Path, metavar="FILE", help="also write all measurements there")


def about() -> dict[str, Any]:
    """Date, machine in words and versions, for the head of the output."""
    cpu = f"{os.cpu_count()} cores of {processor()}"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    libraries = {name: version(name) for name in LIBRARIES}
    return {
        "date": date.today().isoformat(),
        "machine": f"{cpu}, {gpu}",
        "versions": {"python": platform.python_version(), **libraries},
    }


def processor() -> str:
    """The processor in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} {'with' if torch.cpu._is_amx_tile_supported() else 'without'} AMX"


def head(facts: Mapping[str, Any]) -> None:
    """Print what `about` gives."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    print(f"{facts['date']}; {facts['machine']}\n{versions}", flush=True)


def show(title: str, rows: Rows) -> None:
    """Print a plain table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{title}")
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))]
        print("  " + "  ".join(cells).rstrip(), flush=True)


def write_json(file: Path | None, facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    """Write the facts and all measurements to `file`, if there is one."""
    if file is not None:
        file.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n", encoding="utf-8")
