"""Finished rounds as they are written: to the tables under dumps/, then to the journal, which makes them finished.

A run that is stopped between the two does not have the round, and trains it again. All but `damage` is for the holder
of the run's lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lth import pruning
from lth.pruning import Masks
from lth.records import files, journal, lock
from lth.records.journal import TABLES, Entry
from lth.records.tables import ORDERS, Run, entries, sound_entries
from lth.settings.arms import ARMS
from lth.training.train import Trained

if TYPE_CHECKING:
    from lth.models.probe import Cost


def write_round(run: Run, number: int, masks: Masks, trained: Trained, cost: Cost | None = None) -> dict[str, Any]:
    """Add a finished round to the tables and the journal; multiply-adds (macs) where the `cost` of a forward pass is
    known. Returns its line in rounds.csv."""
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
    layers = [
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
    ]
    seconds = {"seconds": sum(trained.seconds.values()), **trained.seconds}
    new = {
        "evals": [{"round": number, **asdict(evaluation)} for evaluation in trained.evals],
        "layers": layers,
        "times": [{"round": number, **{part: round(value, 3) for part, value in seconds.items()}}],
        "rounds": [row],
    }
    _write(run, [*entries(run)[:number], {name: _lines(name, rows) for name, rows in new.items()}])
    return row


def write_connectivity(run: Run, number: int, points: Sequence[Mapping[str, Any]]) -> None:
    """Add the points of a round's lines (point, train_error, test_error; line, of the two trainings unless it says
    otherwise; average) to the table `connectivity`."""
    remaining = entries(run)[number]["rounds"][0].split(",")[journal.ROUNDS.index("remaining")]
    rows = [{"round": number, "remaining": remaining, "line": ORDERS, **point} for point in points]
    _connect(run, number, _lines("connectivity", rows))


def share_connectivity(run: Run) -> bool:
    """Copy the line of the dense round from another arm that has measured it, if the round is the same in both."""
    mine = entries(run)[:1]
    for theirs in (sound_entries(run.of_arm(arm))[:1] for arm in ARMS if arm != run.arm):
        if mine and theirs and "connectivity" in theirs[0] and theirs[0]["rounds"] == mine[0]["rounds"]:
            _connect(run, 0, theirs[0]["connectivity"])
            return True
    return False


def copy_dense(run: Run, source: Run) -> None:
    """Copy what another run's journal has of the dense round, but for its line."""
    _write(run, [{name: lines for name, lines in entries(source)[0].items() if name != "connectivity"}])


def keep_rounds(run: Run, rounds: int) -> Path:
    """Keep the first `rounds` rounds alone. Returns the copy of the journal that still has the others."""
    file = run.dumps / journal.NAME
    copy = file.with_name(f"{file.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    files.write(copy, files.read(file))
    _write(run, journal.load(run.dumps)[0][:rounds])
    return copy


def damage(run: Run) -> bool:
    """Whether the journal of a run, or a table that differs from it, has to be written again."""
    known, damaged = journal.load(run.dumps)
    return bool(damaged) or any(how for _, how, _ in _different(run, known))


def mend(run: Run, tell: Callable[[str], object]) -> None:
    """Write the tables again that differ from the journal, and cut a damaged journal before its first damaged line;
    `tell` gets a sentence for each. A new run gets an empty journal."""
    for folder in (run.dumps, run.saves):
        files.drop_partials(folder)
    known, damaged = journal.load(run.dumps)
    if damaged:
        copy = keep_rounds(run, len(known))
        tell(f"{damaged}: continuing from round {len(known)}; the old one is kept as {copy.name}")
    elif not (run.dumps / journal.NAME).exists():
        _write(run, [])
    for file, how, content in _different(run, known):
        if how:
            kept = f"; the old one is kept as {files.set_aside(file).name}" if how != "is gone" else ""
            tell(f"{file} {how}: written again from {journal.NAME}{kept}")
        files.write(file, content)


def _connect(run: Run, number: int, lines: Sequence[str]) -> None:
    known = entries(run)
    known[number] = {**known[number], "connectivity": lines}
    _write(run, known)


def _write(run: Run, known: Sequence[Entry]) -> None:
    """Write the tables, then the journal, if the run is still this process's (lth.records.lock)."""
    lock.check(run.dumps)
    for file, _, content in _different(run, known):
        files.write(file, content)
    lock.check(run.dumps)
    journal.save(run.dumps, known)


def _different(run: Run, known: Sequence[Entry]) -> Iterator[tuple[Path, str, bytes]]:
    """The tables that are not as these rounds have them: file, how it differs, and what must be in it. Nothing is said
    of one that only goes on, as after a stop before the journal was written."""
    for name in TABLES:
        file, expected = run.dumps / f"{name}.csv", journal.text(name, known).encode()
        try:
            found = files.read(file)
        except FileNotFoundError:
            if any(name in entry for entry in known):
                yield file, "is gone", expected
            continue
        if found != expected:
            yield file, "" if found.startswith(expected) else f"differs from {journal.NAME}", expected


def _lines(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a table."""
    table = pd.DataFrame(rows, columns=list(TABLES[name]))
    return table.to_csv(index=False, header=False, float_format="%.10g", lineterminator="\n").splitlines()
