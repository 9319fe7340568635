"""Finished rounds as they are written, to the tables under dumps/ and the journal beside them, and mended from it.

Stopped between any two files, a run is found with the round or without it: it is finished once it is in the journal.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lth import pruning
from lth.pruning import Masks
from lth.records import files, journal, lock, tables
from lth.records.files import RecordError
from lth.records.journal import Entry
from lth.records.tables import TABLES, Run
from lth.training.cost import Cost
from lth.training.train import Trained


def entries(run: Run) -> list[Entry]:
    """The finished rounds of a run, as its journal says; of a run that an older version wrote, as its tables say.
    RecordError if the journal is damaged."""
    try:
        found, wrong = journal.load(run.dumps)
    except FileNotFoundError:
        return [_of_tables(run, number) for number in range(tables.finished_rounds(run))]
    if wrong:
        raise RecordError(f"{wrong}: the command that made it goes on from what is sound")
    return list(found.values())


def write_round(
    run: Run,
    number: int,
    masks: Masks,
    trained: Trained,
    cost: Cost | None = None,
    saves: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Add a finished round to the tables and the journal; multiply-adds (macs) where the `cost` of a forward pass is
    known. `saves` are the weights that are kept of it, by name. Gives its line in rounds.csv."""
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
    """Say in the journal that these weights, by name, are not kept any longer. They are deleted after it, so that who
    is stopped in between misses none."""
    known = entries(run)
    kept = [
        replace(entry, saves=[name for name in entry.saves if name not in weights]) if entry.saves else entry
        for entry in known
    ]
    if kept != known:
        _save(run, kept)


def write_connectivity(run: Run, number: int, points: Sequence[Mapping[str, Any]]) -> None:
    """Add the points of a round's line (point, train_error, test_error) to the table `connectivity`."""
    remaining = float(tables.table(run, "rounds")["remaining"][number])
    lines = _lines("connectivity", [{"round": number, "remaining": remaining, **point} for point in points])
    _connect(run, number, lines)


def share_connectivity(run: Run, sibling: Run) -> bool:
    """Take over what another arm's table knows of the dense round, if both have the same one."""
    try:
        theirs, mine = entries(sibling), entries(run)
    except (RecordError, UnicodeDecodeError):  # the other one may be none of this command's
        return False
    known = theirs[0].tables if theirs and mine else {}
    if "connectivity" not in known or known["rounds"][1:] != mine[0].tables["rounds"][1:]:
        return False
    _connect(run, 0, known["connectivity"])
    return True


def keep_rounds(run: Run, rounds: int) -> Path:
    """Take everything of the rounds from number `rounds` on off the tables, rounds.csv first. Gives the copy of the
    journal that still has them."""
    kept, copy = entries(run)[:rounds], run.dumps / f"{journal.NAME}.before-{time.strftime('%Y%m%d-%H%M%S')}"
    files.share(run.dumps / journal.NAME, copy)
    for name in TABLES:
        if (run.dumps / f"{name}.csv").exists():
            _write_table(run, name, kept)
    _save(run, kept)  # last: who is stopped before finds all rounds again, and takes them back
    return copy


def copy_dense(run: Run, source: Run) -> None:
    """Take over what another run says of the dense round."""
    dense = entries(source)[0]
    known = {name: lines for name, lines in dense.tables.items() if name != "connectivity"}
    saves = None if dense.saves is None else [name for name in dense.saves if _weights(run, name).exists()]
    _write(run, [Entry(0, known, saves)])


def mend(run: Run, tell: Callable[[str], object]) -> None:
    """Make the tables say what the journal says, and of rounds that are damaged in the journal the journal what the
    tables say; `tell` gets a sentence for each file that was not so. A run that has no journal, because an older
    version wrote it, gets one."""
    for folder in (run.dumps, run.saves):
        files.drop_partials(folder)
    try:
        found, wrong = journal.load(run.dumps)
    except FileNotFoundError:
        for name in TABLES:
            tables.table(run, name)  # a spoiled one is better said now than after hours of training
        if known := entries(run):
            _save(run, known)
        return
    known = []
    while entry := found.get(len(known)) or _unknown(run, len(known)):
        known.append(entry)
    added = [f"{entry.round}" for entry in known if entry.round not in found]
    if wrong or added:
        of_tables = f", round {', '.join(added)} as the tables have it" if added else ""
        lost = f"; going on from round {len(known)}" if len(known) < len(found) + len(added) else ""
        said = wrong or f"{run.dumps / journal.NAME} has lost a line"
        tell(f"{said}: written again{of_tables}{lost}{_aside(run, journal.NAME)}")
        _save(run, known)
    for name in TABLES:
        file, expected = run.dumps / f"{name}.csv", journal.text(name, known) or f"{','.join(TABLES[name])}\n"
        of_this = any(name in entry.tables for entry in known)
        if of_this or file.exists():
            how = journal.differs(file, expected, len(known))
            if how:
                tell(f"{file} {how}: written again from {journal.NAME}{_aside(run, file.name)}")
            if how or file.read_bytes() != expected.encode():
                _write_table(run, name, known)


def lost(run: Run) -> str:
    """Which of the weights that are kept of finished rounds are not there any more, in a sentence; nothing if all
    are."""
    kept = [_weights(run, name) for entry in entries(run) for name in entry.saves or ()]
    missing = [f"{file.name} {what}" for file in kept if (what := _gone(file))]
    return f"{run}: weights are lost in {run.saves}: {', '.join(missing)}" if missing else ""


def _gone(file: Path) -> str:
    """Why there is no such file; nothing if there is, even one that cannot be read now."""
    try:
        return files.problem(file)
    except files.Unreadable:
        return ""


def _unknown(run: Run, number: int) -> Entry | None:
    """A round that the journal does not know any more, as the tables have it; None if one of them has not."""
    try:
        entry = _of_tables(run, number)
        for name in entry.tables:
            tables.table(run, name)
    except (RecordError, UnicodeDecodeError):
        return None
    whole = {"evals", "layers", "times", "rounds"} <= entry.tables.keys() and len(entry.tables["rounds"]) == 2
    return entry if whole else None


def _of_tables(run: Run, number: int) -> Entry:
    """A round as the tables say it."""
    found: dict[str, list[str]] = {}
    for name in TABLES:
        try:
            lines = journal.by_round(files.read(run.dumps / f"{name}.csv").decode())
        except FileNotFoundError:
            continue
        if str(number) in lines:
            found[name] = [*lines[journal.COLUMNS], *lines[str(number)]]
    return Entry(number, found)


def _weights(run: Run, name: str) -> Path:
    return run.saves / f"{name}.safetensors"


def _aside(run: Run, name: str) -> str:
    """Set a damaged file aside; gives the words for it."""
    file = run.dumps / name
    if not file.exists() and not file.is_symlink():
        return ""
    return f", the old one kept as {files.set_aside(file).name}"


def _save(run: Run, known: Sequence[Entry]) -> None:
    """Write the journal, if the run is still this process's (lth.records.lock)."""
    lock.check(run.dumps)
    journal.save(run.dumps, known)


def _write(run: Run, known: Sequence[Entry]) -> None:
    for name in ("evals", "layers", "times"):
        _write_table(run, name, known)
    _save(run, known)
    _write_table(run, "rounds", known)


def _connect(run: Run, number: int, lines: Sequence[str]) -> None:
    known = entries(run)
    known[number] = replace(known[number], tables={**known[number].tables, "connectivity": lines})
    _save(run, known)
    _write_table(run, "connectivity", known)


def _write_table(run: Run, name: str, known: Sequence[Entry]) -> None:
    content = journal.text(name, known) or f"{','.join(TABLES[name])}\n"
    files.write(run.dumps / f"{name}.csv", content.encode())


def _lines(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a table, the names of its columns first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(TABLES[name])
    for row in rows:
        writer.writerow([_cell(row[column]) for column in TABLES[name]])
    return text.getvalue().splitlines()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return value
