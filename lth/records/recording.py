"""Finished rounds as they are written: to the tables under dumps/, then to the journal, which makes them finished.

A run that is stopped between the two does not have the round, and trains it again. All but `damage` and `lost` is for
the holder of the run's lock.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lth import pruning
from lth.models.multiply_adds import Cost
from lth.pruning import Masks
from lth.records import files, journal, lock
from lth.records.files import RecordError
from lth.records.journal import TABLES, Entry
from lth.records.tables import Run, entries
from lth.training.train import Trained


def write_round(
    run: Run,
    number: int,
    masks: Masks,
    trained: Trained,
    cost: Cost | None = None,
    saves: Sequence[str] = (),
) -> dict[str, Any]:
    """Add a finished round to the journal and the tables; multiply-adds (macs) where the `cost` of a forward pass is
    known. `saves` are the names of the weights that are kept of it. Returns its line in rounds.csv."""
    best, counts = trained.early_stop, pruning.survivors(masks)
    row = {
        "round": number,
        "remaining": round(pruning.remaining(masks), 4),
        "ES": best.iteration,
        "val": best.val,
        "test": best.test,
        "val_loss": best.val_loss,
        "train_loss": best.train_loss,
        "weights": sum(counts.values()),
        "supermask": trained.supermask,
        "macs": round(cost.total(counts)) if cost else None,
    }
    new = {
        "evals": [{"round": number, **asdict(evaluation)} for evaluation in trained.evals],
        "layers": [
            {
                "round": number,
                "layer": name,
                "kind": cost.kind(name) if cost else None,
                "remaining": round(100 * kept / masks[name].numel(), 4),
                "weights": kept,
                "total": masks[name].numel(),
                "macs": round(cost.of(name, kept)) if cost else None,
                "dense_macs": round(cost.of(name, masks[name].numel())) if cost else None,
            }
            for name, kept in counts.items()
        ],
        "times": [
            {"round": number, "seconds": round(sum(trained.seconds.values()), 3)}
            | {part: round(seconds, 3) for part, seconds in trained.seconds.items()}
        ],
        "rounds": [row],
    }
    written = Entry(number, {name: _lines(name, rows) for name, rows in new.items()}, saves)
    _write(run, [*entries(run)[:number], written])
    return row


def forget(run: Run, weights: Collection[str]) -> None:
    """Take the names of weights that are about to be deleted out of the journal, so that nobody misses them."""
    known = entries(run)
    kept = [replace(entry, saves=[name for name in entry.saves if name not in weights]) for entry in known]
    if kept != known:
        _save(run, kept)


def write_connectivity(run: Run, number: int, points: Sequence[Mapping[str, Any]]) -> None:
    """Add the points of a round's line (point, train_error, test_error) to the table `connectivity`."""
    remaining = entries(run)[number].tables["rounds"][0].split(",")[journal.ROUNDS.index("remaining")]
    _connect(run, number, _lines("connectivity", [{"round": number, "remaining": remaining, **at} for at in points]))


def share_connectivity(run: Run, sibling: Run) -> bool:
    """Copy the line of the dense round from another arm, if that has measured it and both have the same round."""
    try:
        theirs, mine = entries(sibling), entries(run)
    except RecordError:  # the other one may be none of this command's
        return False
    known = theirs[0].tables if theirs and mine else {}
    if "connectivity" not in known or known["rounds"] != mine[0].tables["rounds"]:
        return False
    _connect(run, 0, known["connectivity"])
    return True


def copy_dense(run: Run, source: Run) -> None:
    """Copy what another run's journal has of the dense round, but for its line."""
    dense = entries(source)[0]
    known = {name: lines for name, lines in dense.tables.items() if name != "connectivity"}
    _write(run, [Entry(0, known, [name for name in dense.saves if _weights(run, name).exists()])])


def keep_rounds(run: Run, rounds: int) -> Path:
    """Keep the first `rounds` rounds alone. Returns the copy of the journal that still has the others."""
    file = run.dumps / journal.NAME
    copy = file.with_name(f"{file.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    files.share(file, copy)
    _write(run, journal.load(run.dumps)[0][:rounds])
    return copy


def damage(run: Run) -> str:
    """What of a run has to be written again, in a sentence: its journal, or the first table that differs from it;
    empty if nothing has. RecordError if that cannot be told."""
    known, damaged = journal.load(run.dumps)
    return damaged or next((f"{file} {how}" for file, how, _ in _different(run, known) if how), "")


def mend(run: Run, tell: Callable[[str], object]) -> None:
    """Write the tables again that differ from the journal, and cut a damaged journal before its first damaged line;
    `tell` gets a sentence for each. A new run gets an empty journal."""
    for folder in (run.dumps, run.saves):
        files.drop_partials(folder)
    known, damaged = journal.load(run.dumps)
    if damaged:
        copy = keep_rounds(run, len(known))
        tell(f"{damaged}: continuing from round {len(known)}; the old one is kept as {copy.name}")
    if not (run.dumps / journal.NAME).exists():
        _save(run, [])
    for file, how, content in _different(run, known):
        if how:
            kept = f"; the old one is kept as {files.set_aside(file).name}" if how != files.GONE else ""
            tell(f"{file} {how}: written again from {journal.NAME}{kept}")
        files.write(file, content)


def lost(run: Run) -> str:
    """Which of the weights that are kept of finished rounds are gone, in a sentence; empty if none is."""
    kept = [_weights(run, name) for entry in entries(run) for name in entry.saves]
    missing = [f"{file.name} {what}" for file in kept if (what := _gone(file))]
    return f"{run}: weights are lost in {run.saves}: {', '.join(missing)}" if missing else ""


def _gone(file: Path) -> str:
    """Why there is no such file; empty if there is one, even if it cannot be read now."""
    try:
        return files.problem(file)
    except files.Unreadable:
        return ""


def _weights(run: Run, name: str) -> Path:
    return run.saves / f"{name}.safetensors"


def _connect(run: Run, number: int, lines: Sequence[str]) -> None:
    known = entries(run)
    known[number] = replace(known[number], tables={**known[number].tables, "connectivity": lines})
    _write(run, known)


def _write(run: Run, known: Sequence[Entry]) -> None:
    """Write the tables, then the journal."""
    lock.check(run.dumps)
    for file, _, content in _different(run, known):
        files.write(file, content)
    _save(run, known)


def _save(run: Run, known: Sequence[Entry]) -> None:
    """Write the journal, if the run is still this process's (lth.records.lock)."""
    lock.check(run.dumps)
    journal.save(run.dumps, known)


def _different(run: Run, known: Sequence[Entry]) -> Iterator[tuple[Path, str, bytes]]:
    """The tables that are not as these rounds have them: file, how it differs, and what must be in it. Nothing is said
    of one that only goes on, as after a stop before the journal was written."""
    for name in TABLES:
        file, expected = run.dumps / f"{name}.csv", journal.text(name, known).encode()
        how = files.problem(file)
        if how == files.GONE and not any(name in entry.tables for entry in known):
            continue
        found = b"" if how else files.read(file)
        if found != expected:
            yield file, how or ("" if found.startswith(expected) else f"differs from {journal.NAME}"), expected


def _lines(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([_cell(row[column]) for column in TABLES[name]])
    return text.getvalue().splitlines()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return value
