"""All figures of a folder of settings, and whether they are up to date: drawing takes seconds, looking does not."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from lth.records import files, journal
from lth.records.tables import Run, config_of

RECORD = "figures.json"  # beside the figures: what they were drawn from, by file format
CODE = Path(__file__).resolve().parents[1]


def _warn(problem: str) -> None:
    warnings.warn(problem, stacklevel=3)


def draw_all(
    runs: Sequence[Run],
    folder: Path,
    format: str = "png",
    complain: Callable[[str], object] = _warn,
    x: str = "remaining",
    pages: Sequence[Path] = (),
) -> list[Path]:
    """Draw every figure there is of runs of one model, data set and settings, and delete those that there no longer
    are. One that cannot be drawn, because a file is damaged or gone, is reported to `complain`; Unwritable ends it. The
    comparison is drawn against `x` too. `pages` were written with these figures: all are up to date together."""
    from lth.plots import barriers, comparison, curves, layer_counts, mask_overlap, weights
    from lth.records.tickets import UNUSABLE

    source, whole, written = fingerprint(runs), True, list[Path]()
    drawings: dict[str, Callable[..., list[Path]]] = {
        draw.__name__: draw
        for draw in (
            *(comparison.comparison, comparison.supermask, curves.training, layer_counts.layers),
            *(weights.first_layer, weights.initial_weights, mask_overlap.masks, barriers.connectivity),
        )
    }
    for kind in other_axes(folder, x):
        drawings[f"comparison_{kind}"] = partial(comparison.comparison, x=kind)
    for name, draw in drawings.items():
        file = folder / f"{name}.{format}"
        try:
            found = draw(runs, folder, format=format)
        except files.Unwritable:
            raise
        except UNUSABLE as error:
            complain(f"no {file.name}: {error}" + ("; the one that is there is older" if file.exists() else ""))
            whole = False
            continue
        if not found:
            files.delete(file)  # of earlier settings or an earlier program
        written += found
    if whole and written:
        record(folder, format, source, written, pages)
    return written


def other_axes(folder: Path, x: str) -> list[str]:
    """What the comparison is drawn against beside the weights remaining: `x`, and what was asked for earlier."""
    there = {file.stem.removeprefix("comparison_") for file in folder.glob("comparison_*")}
    return sorted({*there, x} & {"flops", "compression"})


def fingerprint(runs: Iterable[Run]) -> str:
    """A hash of what the figures of runs depend on: the numbers but for times, the settings, which tickets there are,
    and the code that draws."""
    digest = hashlib.sha256()
    code = ("plots/*.py", "plots/*.html", "analysis/*.py", "records/*.py", "settings/arms.py")
    for file in sorted(file for pattern in code for file in CODE.glob(pattern)):
        digest.update(file.read_bytes())
    for run in runs:
        digest.update(str(run).encode())
        digest.update(json.dumps(config_of(run).get("deciding")).encode())
        for entry in journal.load(run.dumps)[0]:
            numbers = {name: list(lines) for name, lines in entry.items() if name != "times"}
            digest.update(json.dumps(numbers, sort_keys=True).encode())
        tickets = sorted(file.name for file in run.saves.glob("*.safetensors") if not file.name.startswith("check"))
        digest.update(" ".join(tickets).encode())
    return digest.hexdigest()


def up_to_date(runs: Sequence[Run], folder: Path, format: str) -> list[Path] | None:
    """The figures of these runs, if they were drawn from the current files, and they and the pages written with them
    are as they were; None if not."""
    known = files.read_json(folder / RECORD)
    drawn, pages = known.get(format), known.get("pages", {})
    if not isinstance(drawn, dict) or drawn.get("source") != fingerprint(runs):
        return None
    try:
        whole = all(_hash(folder / name) == kept for name, kept in {**drawn["figures"], **pages}.items())
    except (OSError, KeyError, TypeError):
        return None
    return [folder / name for name in drawn["figures"]] if whole else None


def record(folder: Path, format: str, source: str, figures: Sequence[Path], pages: Sequence[Path] = ()) -> None:
    """Record what these figures were drawn from, and hashes of them and of the pages written with them."""
    drawn = {"source": source, "figures": {file.name: _hash(file) for file in figures}}
    known = {**files.read_json(folder / RECORD), format: drawn, "pages": {file.name: _hash(file) for file in pages}}
    files.write_json(folder / RECORD, known)


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
