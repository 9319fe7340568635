"""All figures of a folder, and whether they are up to date: drawing takes seconds, checking does not."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from lth.records import files, journal
from lth.records.files import UNUSABLE
from lth.records.tables import Run, read_config

RECORD = "figures.json"  # beside the figures: what they were drawn from
CODE = Path(__file__).resolve().parents[1]


def draw_all(
    runs: Sequence[Run],
    folder: Path,
    format: str = "png",
    complain: Callable[[str], object] = warnings.warn,
    x: str = "remaining",
) -> list[Path]:
    """Draw all figures of runs of one model, data set and settings, and delete obsolete ones. A figure that cannot be
    drawn, because a file is damaged or gone, is reported to `complain`; Unwritable is raised. The comparison is drawn
    against `x` too."""
    from lth.plots.comparison import comparison, supermask, training
    from lth.plots.pairs import connectivity, masks
    from lth.plots.survivors import first_layer, initial_weights, layers

    figures = (comparison, supermask, training, layers, first_layer, initial_weights, masks, connectivity)
    drawings: dict[str, Callable[..., object]] = {figure.__name__: figure for figure in figures}
    for kind in ("compression", "flops"):
        if kind == x or any(folder.glob(f"comparison_{kind}.*")):  # asked for earlier
            drawings[f"comparison_{kind}"] = partial(comparison, x=kind)
    written = list[Path]()
    for name, draw in drawings.items():
        file = folder / f"{name}.{format}"
        try:
            if draw(runs, file):
                written.append(file)
                continue
            for old in {file, file.with_suffix(".png")}:  # of earlier settings or an earlier program
                files.delete(old)
        except files.Unwritable:
            raise
        except UNUSABLE as error:
            complain(f"no {file.name}: {error}" + ("; the one that is there is older" if file.exists() else ""))
    return written


def fingerprint(runs: Iterable[Run]) -> str:
    """A hash of what the figures of runs depend on: their journals, the settings, which tickets there are, and the code
    that draws."""
    digest = hashlib.sha256()
    code = ("plots/*.py", "plots/*.html", "analysis/*.py", "records/*.py", "settings/arms.py")
    for file in sorted(file for pattern in code for file in CODE.glob(pattern)):
        digest.update(file.read_bytes())
    for run in runs:
        digest.update(str(run).encode() + json.dumps(read_config(run).get("deciding")).encode())
        if (file := run.dumps / journal.NAME).exists():
            digest.update(files.read(file))
        tickets = sorted(file.name for file in run.saves.glob("*.safetensors") if not file.name.startswith("check"))
        digest.update(" ".join(tickets).encode())
    return digest.hexdigest()


def up_to_date(runs: Sequence[Run], folder: Path, format: str) -> list[Path] | None:
    """The figures and pages of these runs, if they were last drawn from the current files in that format and have not
    changed since; None otherwise."""
    saved = files.read_json(folder / RECORD)
    if saved.get("format") != format or saved.get("source") != fingerprint(runs):
        return None
    try:
        unchanged = all(_hash(folder / name) == digest for name, digest in saved["files"].items())
    except (OSError, KeyError, AttributeError):
        return None
    return [folder / name for name in saved["files"]] if unchanged else None


def record(folder: Path, format: str, source: str, written: Sequence[Path]) -> None:
    """Record what these figures and pages were drawn from, and hashes of them."""
    hashes = {file.name: _hash(file) for file in written}
    files.write_json(folder / RECORD, {"format": format, "source": source, "files": hashes})


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
