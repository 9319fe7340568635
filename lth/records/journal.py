"""The journal of a run: one line of JSON per finished round, with the round's lines of all tables and a checksum.

The journal is the truth: a round is finished once it is there. The CSV tables beside it are made of it, for people and
other programs. They are written first: a run that is stopped before its journal is written trains the round again. Only
the holder of the run's lock writes either.
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
from lth.settings.arms import ARMS

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

Entry = Mapping[str, Sequence[str]]  # a finished round: its lines of each table


def load(folder: Path) -> tuple[list[Entry], str]:
    """The rounds in the journal of a run's folder dumps/..., up to the first damaged line, and a sentence about the
    damage (empty if there is none). RecordError if the journal is of another run, cannot be read, or is gone although
    the tables are there."""
    file, found = folder / NAME, list[Entry]()
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
            return found, f"{file} is damaged in line {number + 1}"
        if content["run"] != run_name(folder):
            raise RecordError(
                f"{file} is the journal of another run ({content['run']}): put back that of {run_name(folder)}, or use "
                "--overwrite to start again"
            )
        found.append(entry)
    return found, ""


def entries(run: Run) -> list[Entry]:
    """The finished rounds of a run. RecordError if its journal is damaged."""
    found, damage = load(run.dumps)
    if damage:
        raise RecordError(f"{damage}: the command that made it continues from the rounds before, or use --overwrite")
    return found


def sound_entries(run: Run) -> list[Entry]:
    """The finished rounds of a run that may belong to another command; none if its journal is damaged."""
    try:
        return entries(run)
    except RecordError:
        return []


def stamp(run: Run) -> tuple[int, ...] | None:
    """What tells whether the journal of a run has changed; None if there is none."""
    try:
        info = (run.dumps / NAME).stat()
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size, info.st_ino


def save(folder: Path, known: Sequence[Entry]) -> None:
    """Write the journal."""
    lines = []
    for number, entry in enumerate(known):
        content = {"run": run_name(folder), "round": number, "tables": entry}
        lines.append(_compact({**content, "checksum": _checksum(content)}) + "\n")
    files.write(folder / NAME, "".join(lines).encode())


def text(name: str, known: Sequence[Entry]) -> str:
    """The table of that name, as CSV."""
    lines = (line for entry in known for line in entry.get(name, ()))
    return "\n".join([",".join(TABLES[name]), *lines, ""])


def run_name(folder: Path) -> str:
    """What a run's files say about whose they are: its arm and seed, the last two parts of its folders, as lt/seed0."""
    return "/".join(folder.parts[-2:])


def write_round(run: Run, number: int, masks: Masks, trained: Trained, cost: Cost | None = None) -> dict[str, Any]:
    """Add a finished round, with multiply-adds (macs) where the `cost` of a forward pass is known. Returns its line in
    rounds.csv."""
    best, counts = trained.early_stop, {name: int(mask.sum()) for name, mask in masks.items()}
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
            "remaining": round(100 * kept / totals[name], 4),
            "weights": kept,
            "total": totals[name],
            "macs": round(cost.of(name, kept)) if cost else None,
            "dense_macs": round(cost.of(name, totals[name])) if cost else None,
        }
        for name, kept in counts.items()
    ]
    seconds = {"seconds": sum(trained.seconds.values()), **trained.seconds}
    tables = {
        "evals": [{"round": number, **asdict(evaluation)} for evaluation in trained.evals],
        "layers": layers,
        "times": [{"round": number, **{part: round(value, 3) for part, value in seconds.items()}}],
        "rounds": [row],
    }
    _write(run, [*entries(run)[:number], {name: _lines(name, rows) for name, rows in tables.items()}])
    return row


def write_connectivity(run: Run, number: int, points: Sequence[Mapping[str, Any]]) -> None:
    """Add the points of a round's lines (point, train_error, test_error; line, by default ORDERS; average) to the table
    `connectivity`."""
    known = entries(run)
    remaining = known[number]["rounds"][0].split(",")[ROUNDS.index("remaining")]
    rows = [{"round": number, "remaining": remaining, "line": ORDERS, **point} for point in points]
    _write(
        run, [*known[:number], {**known[number], "connectivity": _lines("connectivity", rows)}, *known[number + 1 :]]
    )


def share_connectivity(run: Run) -> bool:
    """Copy the line of the dense round from another arm that has measured it, if the round is the same in both. Returns
    whether there is one."""
    first, *later = entries(run)
    for theirs in (sound_entries(run.of_arm(arm))[:1] for arm in ARMS if arm != run.arm):
        if theirs and "connectivity" in theirs[0] and theirs[0]["rounds"] == first["rounds"]:
            _write(run, [{**first, "connectivity": theirs[0]["connectivity"]}, *later])
            return True
    return False


def copy_dense(run: Run, source: Run) -> None:
    """Copy what another run's journal has of the dense round, but for its line."""
    _write(run, [{name: lines for name, lines in entries(source)[0].items() if name != "connectivity"}])


def keep_rounds(run: Run, rounds: int) -> Path:
    """Keep the first `rounds` rounds alone. Returns the copy of the journal that still has the others."""
    file = run.dumps / NAME
    copy = file.with_name(f"{file.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    files.write(copy, files.read(file))
    _write(run, load(run.dumps)[0][:rounds])
    return copy


def damage(run: Run) -> bool:
    """Whether the journal of a run, or a table that differs from it, has to be written again."""
    known, damaged = load(run.dumps)
    return bool(damaged) or any(how for _, how, _ in _different(run, known))


def mend(run: Run, tell: Callable[[str], object]) -> None:
    """Write the tables again that differ from the journal, and cut a damaged journal before its first damaged line;
    `tell` gets a sentence for each. A new run gets an empty journal."""
    for folder in (run.dumps, run.saves):
        files.drop_partials(folder)
    known, damaged = load(run.dumps)
    if damaged:
        copy = keep_rounds(run, len(known))
        tell(f"{damaged}: continuing from round {len(known)}; the old one is kept as {copy.name}")
    elif not (run.dumps / NAME).exists():
        _write(run, [])
    for file, how, content in _different(run, known):
        if how:
            kept = f"; the old one is kept as {files.set_aside(file).name}" if how != "is gone" else ""
            tell(f"{file} {how}: written again from {NAME}{kept}")
        files.write(file, content)


def _write(run: Run, known: Sequence[Entry]) -> None:
    """Write the tables, then the journal, if the run still belongs to this process (lth.records.lock)."""
    lock.check(run.dumps)
    for file, _, content in _different(run, known):
        files.write(file, content)
    lock.check(run.dumps)
    save(run.dumps, known)


def _different(run: Run, known: Sequence[Entry]) -> Iterator[tuple[Path, str, bytes]]:
    """The tables that are not as these rounds have them: file, how it differs, and what must be in it. Nothing is said
    of one that only goes on, as after a stop before the journal was written."""
    for name in TABLES:
        file, expected = run.dumps / f"{name}.csv", text(name, known).encode()
        try:
            found = files.read(file)
        except FileNotFoundError:
            if any(name in entry for entry in known):
                yield file, "is gone", expected
            continue
        if found != expected:
            yield file, "" if found.startswith(expected) else f"differs from {NAME}", expected


def _lines(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    table = pd.DataFrame(rows, columns=list(TABLES[name]))
    return table.to_csv(index=False, header=False, float_format="%.10g", lineterminator="\n").splitlines()


def _compact(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_compact(content).encode()).hexdigest()[:16]
