"""The journal of a run: one line of JSON per finished round, with the round's lines of all tables and a checksum.

The journal is the truth: a round is finished once it is there. The CSV tables beside it are made of it, for people and
other programs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lth.records.files import RecordError, read, write

NAME = "journal.jsonl"
ROUNDS = ("round", "remaining", "ES", "val", "test", "val_loss", "train_loss", "weights", "supermask", "macs")
EVALS = ("round", "iteration", "train_loss", "val_loss", "val", "test")
LAYERS = ("round", "layer", "kind", "remaining", "weights", "total", "macs", "dense_macs")
TIMES = ("round", "seconds", "training", "evaluation")
CONNECTIVITY = ("round", "remaining", "point", "train_error", "test_error", "line", "average")
TABLES = {"evals": EVALS, "layers": LAYERS, "times": TIMES, "rounds": ROUNDS, "connectivity": CONNECTIVITY}

Entry = Mapping[str, Sequence[str]]  # a finished round: its lines of each table


def load(folder: Path) -> tuple[list[Entry], str]:
    """The rounds in the journal of a run's folder dumps/..., up to the first damaged line, and a sentence about the
    damage (empty if there is none). RecordError if the journal is of another run, cannot be read, or is gone although
    the tables are there."""
    file, entries = folder / NAME, list[Entry]()
    try:
        lines = read(file).splitlines()
    except FileNotFoundError:
        if (folder / "rounds.csv").exists():
            raise RecordError(f"{file} is gone: put it back, or use --overwrite to start again") from None
        return [], ""
    for number, line in enumerate(lines):
        try:
            content = json.loads(line)
            checksum, entry = content.pop("checksum"), content["tables"]
            sound = (
                checksum == _checksum(content)
                and content["round"] == number
                and entry.keys() >= TABLES.keys() - {"connectivity"}
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            sound = False
        if not sound:
            return entries, f"{file} is damaged in line {number + 1}"
        if content["run"] != run_name(folder):
            raise RecordError(
                f"{file} is the journal of another run ({content['run']}): put back that of {run_name(folder)}, or use "
                "--overwrite to start again"
            )
        entries.append(entry)
    return entries, ""


def save(folder: Path, entries: Sequence[Entry]) -> None:
    """Write the journal."""
    lines = []
    for number, entry in enumerate(entries):
        content = {"run": run_name(folder), "round": number, "tables": entry}
        lines.append(_compact({**content, "checksum": _checksum(content)}) + "\n")
    write(folder / NAME, "".join(lines).encode())


def text(name: str, entries: Sequence[Entry]) -> str:
    """The table of that name, as CSV."""
    lines = (line for entry in entries for line in entry.get(name, ()))
    return "\n".join([",".join(TABLES[name]), *lines, ""])


def run_name(folder: Path) -> str:
    """What a run's files say about whose they are: the arm and the seed, which are the end of its folders' names, as
    lt/seed0."""
    return "/".join(folder.parts[-2:])


def _compact(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_compact(content).encode()).hexdigest()[:16]
