"""The journal of a run: a line a finished round, with the round's lines of all tables and a checksum.

The tables beside it are for people and other programs. A flipped bit, a line gone, doubled or altered in one of them
shows beside the journal, and the table is written again from it. A round is finished once it is in the journal.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from lth.records.files import GONE, RecordError, Unreadable, problem, read, write

NAME = "journal.jsonl"  # as the run wrote its tables, a line of JSON a round
WRITTEN_AFTER = ("rounds", "connectivity")  # the journal; the other tables before it
COLUMNS = "columns"


@dataclass(frozen=True)
class Entry:
    """A finished round. tables: of each its lines, below the line with the names of the columns. saves: the weights
    that were kept of the round, as trained_07; None where an older version did not say."""

    round: int
    tables: Mapping[str, Sequence[str]]
    saves: Sequence[str] | None = None


def load(folder: Path) -> tuple[dict[int, Entry], str]:
    """The rounds in the journal of a run's folder dumps/..., and what is wrong with it, or nothing. FileNotFoundError
    if there is none, as in results of older versions; RecordError if it is Unreadable, which is no damage."""
    try:
        lines = read(folder / NAME).decode(errors="replace").splitlines()
    except Unreadable:
        raise
    except RecordError as error:
        return {}, str(error).removesuffix(": move it away")
    found = [_parsed(line) for line in lines]
    entries = {entry.round: entry for entry in found if entry is not None}
    sound = [entry.round for entry in found if entry is not None] == list(range(len(lines)))
    return entries, "" if sound else f"{folder / NAME} is damaged"


def save(folder: Path, entries: Sequence[Entry]) -> None:
    """Write the journal."""
    write(folder / NAME, "".join(f"{_line(entry)}\n" for entry in entries).encode())


def text(name: str, entries: Sequence[Entry]) -> str | None:
    """What the table of that name must say; None if nothing is known of it."""
    of_rounds = [entry.tables[name] for entry in entries if name in entry.tables]
    if not of_rounds:
        return None
    columns = of_rounds[-1][0]  # those of the program that wrote last: an older one may have had fewer
    return "\n".join([columns, *(line for lines in of_rounds for line in _under(columns, lines)), ""])


def _under(columns: str, lines: Sequence[str]) -> Sequence[str]:
    """The lines that stand below the first, which names their columns, as they are with those of `columns`. Columns at
    the end may be lacking."""
    if f"{columns},".startswith(f"{lines[0]},"):
        return lines[1:]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns.split(","), extrasaction="ignore", lineterminator="\n")
    writer.writerows(csv.DictReader(lines))
    return text.getvalue().splitlines()


def by_round(content: str) -> defaultdict[str, list[str]]:
    """The lines of a table's text by the round that begins them; those with the names of its columns at COLUMNS."""
    found = defaultdict[str, list[str]](list)
    for at, line in enumerate(content.splitlines()):
        found[line.split(",", 1)[0] if at else COLUMNS].append(line)
    return found


def rounds_in(file: Path) -> set[str]:
    """The rounds of which a table has lines, as they are written there; none if there is no such file."""
    return set() if problem(file) else {*by_round(read(file).decode(errors="replace"))} - {COLUMNS}


def differs(file: Path, expected: str, upto: int, missing: bool = False) -> str:
    """How a table is not as it must be in the rounds below `upto`, as `is gone`; nothing if it is. missing: whether it
    may be. What a process that was stopped had begun to say of later rounds does no harm. RecordError if it is
    Unreadable."""
    what = problem(file)
    if what:
        return "" if missing and what == GONE else what
    content = read(file).decode(errors="replace")
    if content == expected:
        return ""
    found, wanted = content.splitlines(), expected.splitlines()
    if found[:1] != wanted[:1]:
        return "has other columns"
    found, wanted = ([line for line in lines[1:] if _counts(line, upto)] for lines in (found, wanted))
    other = next((one or two for one, two in zip_longest(wanted, found, fillvalue="") if one != two), None)
    return "" if other is None else f"is not as its run wrote it (round {other.split(',', 1)[0]})"


def _counts(line: str, upto: int) -> bool:
    number = line.split(",", 1)[0]
    return not number.isdecimal() or len(number) > 9 or int(number) < upto


def _line(entry: Entry) -> str:
    content = {"round": entry.round, "tables": entry.tables, "saves": entry.saves}
    return json.dumps({**content, "checksum": _checksum(content)}, separators=(",", ":"))


def _parsed(line: str) -> Entry | None:
    """The round in a line; None if the line is damaged."""
    try:
        content = json.loads(line)
        checksum = content.pop("checksum")
        return Entry(**content) if checksum == _checksum(content) else None
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def _checksum(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
