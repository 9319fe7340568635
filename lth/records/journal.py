"""The journal of a run: one line of JSON per finished round, with a checksum and the round's rows of all tables.

A round is finished once it is in the journal. The CSV tables beside the journal have the same content, for people and
other programs; they are written first, so a run that is stopped in between trains the round again. Only the holder of
the run's lock writes any of these files.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lth.records import files, lock
from lth.records.files import RecordError

if TYPE_CHECKING:
    from lth.models.probe import Cost
    from lth.pruning import Masks
    from lth.records.tables import Run
    from lth.training.train import Trained

NAME = "journal.jsonl"
ROUNDS = ("round", "remaining", "ES", "val", "test", "val_loss", "train_loss", "weights", "supermask", "macs")
EVALS = ("round", "iteration", "train_loss", "val_loss", "val", "test")
LAYERS = ("round", "layer", "kind", "remaining", "weights", "total", "macs", "dense_macs")
TIMES = ("round", "seconds", "training", "evaluation")
CONNECTIVITY = ("round", "remaining", "point", "train_error", "test_error", "line", "average")
ORDERS = "orders"  # the line between two trainings of a ticket, in the table `connectivity`
TABLES = {"evals": EVALS, "layers": LAYERS, "times": TIMES, "rounds": ROUNDS, "connectivity": CONNECTIVITY}

Entry = Mapping[str, Sequence[str]]  # a finished round: its rows in each table, as lines of CSV


def load(folder: Path) -> tuple[list[Entry], str]:
    """The finished rounds in the journal of a run's folder dumps/..., up to the first damaged line, and a sentence
    about the damage (empty if there is none). RecordError if the journal belongs to another run, cannot be read, or is
    missing although there are tables."""
    file, rounds = folder / NAME, list[Entry]()
    try:
        lines = files.read(file).splitlines()
    except FileNotFoundError:
        if (folder / "rounds.csv").exists():
            raise RecordError(f"{file} is gone: put it back, or use --overwrite to start again") from None
        return [], ""
    for number, line in enumerate(lines):
        try:
            content = json.loads(line)
            checksum, entry = content.pop("checksum"), content["tables"]
            complete = entry.keys() >= TABLES.keys() - {"connectivity"}
            sound = checksum == _checksum(content) and content["round"] == number and complete
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            sound = False
        if not sound:
            return rounds, f"{file} is damaged in line {number + 1}"
        if content["run"] != run_name(folder):
            raise RecordError(
                f"{file} is the journal of another run ({content['run']}): put back that of {run_name(folder)}, or use "
                "--overwrite to start again"
            )
        rounds.append(entry)
    return rounds, ""


def entries(run: Run) -> list[Entry]:
    """The finished rounds of a run. RecordError if its journal is damaged."""
    rounds, problem = load(run.dumps)
    if problem:
        raise RecordError(f"{problem}: the command that made it continues from the rounds before, or use --overwrite")
    return rounds


def sound_entries(run: Run) -> list[Entry]:
    """The finished rounds of a run that another command may be training; none if its journal is damaged."""
    try:
        return entries(run)
    except RecordError:
        return []


def stamp(run: Run) -> tuple[int, ...] | None:
    """A value that changes whenever the journal of a run does; None if there is none."""
    try:
        info = (run.dumps / NAME).stat()
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size, info.st_ino


def save(folder: Path, rounds: Sequence[Entry]) -> None:
    """Write the journal."""
    lines = []
    for number, entry in enumerate(rounds):
        content = {"run": run_name(folder), "round": number, "tables": entry}
        lines.append(_compact({**content, "checksum": _checksum(content)}) + "\n")
    files.write(folder / NAME, "".join(lines).encode())


def csv_text(name: str, rounds: Sequence[Entry]) -> str:
    """One of the TABLES, with its header, as CSV."""
    lines = (line for entry in rounds for line in entry.get(name, ()))
    return "\n".join([",".join(TABLES[name]), *lines, ""])


def run_name(folder: Path) -> str:
    """The name of a run in its own files: its arm and seed, the last two parts of its folder, as lt/seed0."""
    return "/".join(folder.parts[-2:])


def write_round(run: Run, number: int, masks: Masks, trained: Trained, cost: Cost | None = None) -> dict[str, Any]:
    """Add a finished round, with multiply-adds (macs) if the `cost` of a forward pass is known. Returns its row of
    rounds.csv."""
    best = trained.early_stop
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    totals = {name: mask.numel() for name, mask in masks.items()}
    row = {
        "round": number,
        "remaining": round(100 * sum(counts.values()) / max(sum(totals.values()), 1), 4),
        "ES": best.iteration,
        "val": best.val,
        "test": best.test,
        "val_loss": best.val_loss,
        "train_loss": best.train_loss,
        "weights": sum(counts.values()),
        "supermask": trained.supermask,
        "macs": round(cost.total(counts)) if cost else None,
    }
    layers = [
        {
            "round": number,
            "layer": name,
            "kind": cost.kind(name) if cost else None,
            "remaining": round(100 * count / totals[name], 4),
            "weights": count,
            "total": totals[name],
            "macs": round(cost.multiply_adds(name, count)) if cost else None,
            "dense_macs": round(cost.multiply_adds(name, totals[name])) if cost else None,
        }
        for name, count in counts.items()
    ]
    seconds = {"seconds": sum(trained.seconds.values()), **trained.seconds}
    tables = {
        "evals": [{"round": number, **asdict(evaluation)} for evaluation in trained.evals],
        "layers": layers,
        "times": [{"round": number, **{part: round(value, 3) for part, value in seconds.items()}}],
        "rounds": [row],
    }
    entry = {name: _csv_lines(name, rows) for name, rows in tables.items()}
    _write(run, [*entries(run)[:number], entry])
    return row


def write_connectivity(run: Run, number: int, points: Sequence[Mapping[str, Any]]) -> None:
    """Add the points of a round's lines (point, train_error, test_error; line, by default ORDERS; average) to the table
    `connectivity`."""
    rounds = entries(run)
    remaining = rounds[number]["rounds"][0].split(",")[ROUNDS.index("remaining")]
    rows = [{"round": number, "remaining": remaining, "line": ORDERS, **point} for point in points]
    rounds[number] = {**rounds[number], "connectivity": _csv_lines("connectivity", rows)}
    _write(run, rounds)


def share_connectivity(run: Run) -> bool:
    """Copy the line of the dense round from another arm that has measured it, if the round is the same in both. Returns
    whether there is one."""
    dense, *later = entries(run)
    for other in run.other_arms():
        for entry in sound_entries(other)[:1]:
            if "connectivity" in entry and entry["rounds"] == dense["rounds"]:
                _write(run, [{**dense, "connectivity": entry["connectivity"]}, *later])
                return True
    return False


def copy_dense_round(run: Run, source: Run) -> None:
    """Copy the dense round, without its line, from the journal of another run."""
    _write(run, [{name: lines for name, lines in entries(source)[0].items() if name != "connectivity"}])


def keep_rounds(run: Run, rounds: int) -> Path:
    """Keep only the first `rounds` rounds. Returns a copy of the journal that still has the others."""
    file = run.dumps / NAME
    copy = file.with_name(f"{file.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    files.write(copy, files.read(file))
    _write(run, load(run.dumps)[0][:rounds])
    return copy


def is_damaged(run: Run) -> bool:
    """Whether the journal of a run, or a table that differs from it, has to be written again."""
    rounds, problem = load(run.dumps)
    return bool(problem) or any(reason for _, reason, _ in _outdated(run, rounds))


def repair(run: Run, tell: Callable[[str], object]) -> None:
    """Write the tables again that differ from the journal, and cut a damaged journal before its first damaged line;
    `tell` gets a sentence for each. A new run gets an empty journal."""
    for folder in (run.dumps, run.saves):
        files.drop_partials(folder)
    rounds, problem = load(run.dumps)
    if problem:
        copy = keep_rounds(run, len(rounds))
        tell(f"{problem}: continuing from round {len(rounds)}; the old one is kept as {copy.name}")
    elif not (run.dumps / NAME).exists():
        _write(run, [])
    for file, reason, content in _outdated(run, rounds):
        if reason:
            old = "" if reason == "is gone" else f"; the old one is kept as {files.set_aside(file).name}"
            tell(f"{file} {reason}: written again from {NAME}{old}")
        files.write(file, content)


def _write(run: Run, rounds: Sequence[Entry]) -> None:
    """Write the tables, then the journal, if the run still belongs to this process (lth.records.lock)."""
    lock.check_owner(run.dumps)
    for file, _, content in _outdated(run, rounds):
        files.write(file, content)
    lock.check_owner(run.dumps)
    save(run.dumps, rounds)


def _outdated(run: Run, rounds: Sequence[Entry]) -> Iterator[tuple[Path, str, bytes]]:
    """The tables that do not have exactly these rounds: the file, its problem and the right content. The problem is
    empty if the file only has additional rows, as after a stop before the journal was written."""
    for name in TABLES:
        file, expected = run.dumps / f"{name}.csv", csv_text(name, rounds).encode()
        try:
            content = files.read(file)
        except FileNotFoundError:
            if any(name in entry for entry in rounds):
                yield file, "is gone", expected
            continue
        if content != expected:
            yield file, "" if content.startswith(expected) else f"differs from {NAME}", expected


def _csv_lines(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    table = pd.DataFrame(rows, columns=list(TABLES[name]))
    return table.to_csv(index=False, header=False, float_format="%.10g", lineterminator="\n").splitlines()


def _compact(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_compact(content).encode()).hexdigest()[:16]
