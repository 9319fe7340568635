"""The numbers of runs: the CSV tables under dumps/, read here and written in recording.py, and finding runs by them.

A round is finished once the journal has it; rounds.csv is written last, or from the journal after a stop before that.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from lth.records import journal
from lth.records.files import RecordError, explained, read, read_json
from lth.records.lock import is_held
from lth.settings import checks

ROUNDS = ("round", "remaining", "ES", "val", "test", "val_loss", "train_loss", "weights", "supermask", "macs")
LATER = ("supermask", "macs", "kind", "dense_macs")  # columns that tables of older versions lack, or lines of theirs
THINNED = {"evals": ("test",)}  # columns that need not say something in every line
EVALS = ("round", "iteration", "train_loss", "val_loss", "val", "test")
LAYERS = ("round", "layer", "kind", "remaining", "weights", "total", "macs", "dense_macs")
TIMES = ("round", "seconds", "training", "evaluation")
WORDS = ("layer", "kind")  # the columns that hold no numbers
CONNECTIVITY = ("round", "remaining", "point", "train_error", "test_error")
FOLDERS = "dumps/*/*/*/*/seed*"  # of runs
SEED = re.compile(r"seed(0|[1-9]\d*)")  # the last of them; a run moved aside is called seed0.old-...
OBJECTS = ("settings", "deciding", "own", "fingerprint", "versions", "sparse_up_to")  # in a config.json
LISTS = ("command", "program", "image_shape")
TABLES = {"rounds": ROUNDS, "evals": EVALS, "layers": LAYERS, "times": TIMES, "connectivity": CONNECTIVITY}


@dataclass(frozen=True)
class Run:
    """One arm of one trial. Its results: <root>/<kind>/<arch_type>/<dataset>/<settings>/<arm>/seed<k>/.

    `about` is no part of what the run is: it tells it from the runs of other settings that are named beside it.
    """

    root: Path
    arch_type: str
    dataset: str
    settings: str
    arm: str
    seed: int
    about: str = field(default="", compare=False, repr=False)

    def folder(self, kind: str) -> Path:
        """The run's folder of that kind: `dumps` or `saves`."""
        return self.root / kind / self.arch_type / self.dataset / self.settings / self.arm / f"seed{self.seed}"

    @property
    def dumps(self) -> Path:
        """Where the numbers are."""
        return self.folder("dumps")

    @property
    def saves(self) -> Path:
        """Where the weights are."""
        return self.folder("saves")

    @property
    def plots(self) -> Path:
        """Where the pictures of all arms and trials of these settings are."""
        return self.root / "plots" / self.arch_type / self.dataset / self.settings

    def of_arm(self, arm: str) -> Run:
        """The same trial's run of another arm."""
        return replace(self, arm=arm)

    def __str__(self) -> str:
        return f"{self.about} {self.arm} seed{self.seed}".lstrip()


def find(
    root: Path,
    arch_type: str | None = None,
    dataset: str | None = None,
    name: str | None = None,
    spoiled: Callable[[RecordError], object] | None = None,
    among: Callable[[Run], bool] = lambda run: True,
) -> list[Run]:
    """All runs under <root>/dumps with a finished round; those of one model, data set or settings if given, and of
    which `among` is true.

    A run with a spoiled table, or with a file that cannot be read, or that is a copy of another one, raises
    RecordError, or is left out after `spoiled` was called with the error.
    """
    runs = []
    folders = {file.parent for name in ("rounds.csv", journal.NAME) for file in Path(root).glob(f"{FOLDERS}/{name}")}
    for folder in sorted(folders):
        found_arch, found_dataset, settings, arm, seed = folder.parts[-5:]
        run_of_seed = SEED.fullmatch(seed)
        wanted = all(
            want is None or want.lower() == have.lower()
            for want, have in ((arch_type, found_arch), (dataset, found_dataset), (name, settings))
        )
        run = Run(Path(root), found_arch, found_dataset, settings, arm, int(run_of_seed[1])) if run_of_seed else None
        if run and wanted and among(run):
            try:
                check(run)
                if other := copied(run):
                    raise RecordError(f"{other}: move it away")
                if len(table(run, "rounds")):
                    runs.append(run)
            except RecordError as error:
                if spoiled is None:
                    raise
                spoiled(error)
    return sorted(runs, key=lambda run: (run.arch_type, run.dataset, run.settings, run.arm, run.seed))


def config_of(run: Run) -> dict[str, Any]:
    """What the run's config.json says (lth.run.about writes it), but for objects and lists in whose place somebody has
    put something else; empty if there is none or it is spoiled. RecordError if it cannot be read."""
    kinds = {**dict.fromkeys(OBJECTS, dict), **dict.fromkeys(LISTS, list)}
    found = read_json(run.dumps / "config.json")
    return {name: value for name, value in found.items() if isinstance(value, kinds.get(name, object))}


def check(run: Run) -> None:
    """RecordError, saying which and what to do, if a table of the run is not as the run wrote it, or its journal is
    damaged, or one of them cannot be read. Nothing is known of tables that an older version wrote."""
    if wrong := damage(run):
        raise RecordError(f"{wrong}: the command that made it writes it again; or use --overwrite")


def copied(run: Run) -> str:
    """A sentence if the run's config.json is of another arm or seed than its folder: such a copy is no further trial.
    RecordError if it cannot be read."""
    about, named = config_of(run), {"arm": run.arm, "seed": run.seed}
    other = [f"{name} {about[name]}" for name, value in named.items() if str(about.get(name, value)) != str(value)]
    if not other:
        return ""
    return f"{run.dumps} is a copy of another run, as its config.json says ({', '.join(other)})"


def damage(run: Run) -> str:
    """Which of a run's tables is not as the run wrote it, and how; nothing if all are. RecordError if one cannot be
    read, which is no damage."""
    working = is_held(run.dumps)  # before anything is read: a process may be between two files
    try:
        found, wrong = journal.load(run.dumps)
    except FileNotFoundError:
        return ""
    entries = list(found.values())
    for name in TABLES if not wrong else ():
        file, known = run.dumps / f"{name}.csv", [entry.round for entry in entries if name in entry.tables]
        expected = journal.text(name, entries) or ",".join(TABLES[name])
        how = journal.differs(file, expected, len(entries)) if known or file.exists() else ""
        if how and working and known and name in journal.WRITTEN_AFTER:
            how = journal.differs(file, expected, known[-1], missing=known[1:] == [])
        if how:
            return f"{file} {how}"
    if not wrong and not working and len(journal.rounds_in(run.dumps / "rounds.csv")) > len(entries):
        return f"{run.dumps / journal.NAME} has lost a line"
    return wrong


def table(run: Run, name: str) -> pd.DataFrame:
    """The table of that name in TABLES of a run; empty if there is none yet. RecordError if spoiled."""
    file = run.dumps / f"{name}.csv"
    try:
        found = pd.read_csv(io.BytesIO(read(file)), dtype=dict.fromkeys(WORDS, str))
        found = found.assign(**{column: math.nan for column in LATER if column in TABLES[name] and column not in found})
        problem = _problem(found, name)
    except (FileNotFoundError, NotADirectoryError):
        return pd.DataFrame(columns=list(TABLES[name]))
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())
    if problem:
        raise RecordError(f"{file} cannot be read as a table ({problem}): move it away, or use --overwrite")
    return found


def _problem(found: pd.DataFrame, name: str) -> str:
    """What is wrong with a table, or nothing."""
    for column in TABLES[name]:
        if column not in found:
            return f"it has no column {column}"
        missing = column not in (*LATER, *THINNED.get(name, ())) and found[column].isna().any()
        if len(found) and (missing or (column not in WORDS and found[column].dtype.kind not in "if")):
            return f"something in column {column} is missing or no number"
    if name == "rounds" and found["round"].tolist() != list(range(len(found))):
        return "its rounds are not 0, 1, 2, ..."
    return ""


def finished_rounds(run: Run) -> int:
    """How many rounds of the run are complete."""
    return len(table(run, "rounds"))


def connected_rounds(run: Run) -> int:
    """How many of the first rounds, without a gap, have their line measured."""
    known = set(table(run, "connectivity")["round"])
    return next(number for number in itertools.count() if number not in known)


def image_shape(run: Run) -> tuple[int, ...]:
    """The shape (C, H, W) of the images that the run was trained on; () where its config.json does not say it."""
    found = config_of(run).get("image_shape", [])
    if len(found) != 3 or not all(isinstance(size, int) and size > 0 for size in found):
        return ()
    return tuple(found)


def done_rounds(run: Run, connectivity: bool) -> int:
    """How many rounds of the run are complete with all that is asked of them."""
    finished = finished_rounds(run)
    return min(finished, connected_rounds(run)) if connectivity else finished


def barrier(errors: Sequence[float]) -> float:
    """The highest error on a line less the mean of those at its ends (Frankle et al. 2020, arXiv:1912.05671, Section
    2)."""
    return max(errors) - (errors[0] + errors[-1]) / 2


def barriers(run: Run) -> pd.DataFrame:
    """A row a round whose line was measured: round, remaining, and the error barriers `train` and `test` in points."""
    rows = []
    for number, line in table(run, "connectivity").groupby("round"):
        line = line.sort_values("point")
        errors = {half: line[f"{half}_error"] for half in ("train", "test")}
        heights = {half: barrier(list(found)) for half, found in errors.items()}
        rows.append({"round": number, "remaining": line["remaining"].iloc[0], **heights})
    return pd.DataFrame(rows, columns=["round", "remaining", "train", "test"])


def move_aside(run: Run, stamp: str) -> None:
    """Rename the folders of a run's old results, so that nothing finds them. The weights first: without its tables a
    run would begin anew among them, without its weights it says that they are gone."""
    for folder in (run.saves, run.dumps):
        if folder.exists():
            with explained(folder):
                folder.rename(folder.with_name(f"{folder.name}.old-{stamp}"))


def results(root: str | Path = ".") -> pd.DataFrame:
    """All rounds of all runs under `root`, tidy: a row a round; columns arch_type, dataset, settings, arm, seed, those
    of rounds.csv, one for every setting that differs between the runs, and `fingerprint` where runs of the same
    settings are of different models or data, which must not be averaged. TypeError or ValueError if `root` is no
    folder; RecordError if a table is spoiled, or a run is a copy of another one."""
    folder = checks.path("root", root)
    if not folder.is_dir():
        raise ValueError(f"root must be the folder that has dumps/, but there is no folder {folder}")
    frames = []
    for run in find(folder):
        about = config_of(run)
        settings = about.get("deciding", {})
        whose = {name: getattr(run, name) for name in ("arch_type", "dataset", "settings", "arm", "seed")}
        if prints := about.get("fingerprint"):
            whose["fingerprint"] = " ".join(f"{name}={value}" for name, value in prints.items())
        frames.append(
            table(run, "rounds").assign(**{f"setting/{key}": value for key, value in settings.items()}, **whose)
        )
    if not frames:
        return pd.DataFrame(columns=["arch_type", "dataset", "settings", "arm", "seed", *ROUNDS])
    everything = pd.concat(frames, ignore_index=True)
    chosen = [name for name in everything if name.startswith("setting/")]
    varying = [name for name in chosen if everything[name].nunique(dropna=False) > 1]
    first = ["arch_type", "dataset", "settings", "arm", "seed"]
    several = "fingerprint" in everything and everything.groupby(first[:3])["fingerprint"].nunique().max() > 1
    tidy = everything[[*first, *ROUNDS, *varying, *(["fingerprint"] if several else [])]]
    return tidy.rename(columns={name: name.removeprefix("setting/") for name in varying})
