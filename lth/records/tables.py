"""The numbers of runs: the CSV tables under dumps/, read and written only here, and finding runs by them.

A round counts as finished when rounds.csv, written last, has its line.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lth.records.files import Fence, RecordError, explained, read_json, write
from lth.settings import checks

if TYPE_CHECKING:
    from lth.pruning import Masks
    from lth.training.cost import Cost
    from lth.training.train import Trained

ROUNDS = ("round", "remaining", "ES", "val", "test", "val_loss", "train_loss", "weights", "supermask", "macs")
LATER = ("supermask", "macs", "kind", "dense_macs")  # columns that tables of older versions lack, or lines of theirs
THINNED = {"evals": ("test",)}  # columns that need not say something in every line
EVALS = ("round", "iteration", "train_loss", "val_loss", "val", "test")
LAYERS = ("round", "layer", "kind", "remaining", "weights", "total", "macs", "dense_macs")
TIMES = ("round", "seconds", "training", "evaluation")
WORDS = ("layer", "kind")  # the columns that hold no numbers
CONNECTIVITY = ("round", "remaining", "point", "train_error", "test_error")
TABLES = {"rounds": ROUNDS, "evals": EVALS, "layers": LAYERS, "times": TIMES, "connectivity": CONNECTIVITY}


@dataclass(frozen=True)
class Run:
    """One arm of one trial. Its results: <root>/<kind>/<arch_type>/<dataset>/<settings>/<arm>/seed<k>/.

    No part of what the run is: `fence`, the right to write it, where somebody holds it; `about`, what tells it from the
    runs of other settings that are named beside it.
    """

    root: Path
    arch_type: str
    dataset: str
    settings: str
    arm: str
    seed: int
    fence: Fence | None = field(default=None, compare=False, repr=False)
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
        return replace(self, arm=arm, fence=None)

    def __str__(self) -> str:
        return f"{self.about} {self.arm} seed{self.seed}".lstrip()


def find(
    root: Path,
    arch_type: str | None = None,
    dataset: str | None = None,
    name: str | None = None,
    spoiled: Callable[[RecordError], object] | None = None,
) -> list[Run]:
    """All runs under <root>/dumps with a finished round; those of one model, data set or settings if given.

    A run whose rounds.csv is spoiled raises RecordError, or is left out after `spoiled` was called with the error.
    """
    runs = []
    for file in sorted(Path(root).glob("dumps/*/*/*/*/seed*/rounds.csv")):
        found_arch, found_dataset, settings, arm, seed = file.parts[-6:-1]
        run_of_seed = re.fullmatch(r"seed(\d+)", seed)  # a run moved aside is called seed0.old-...
        wanted = all(
            want is None or want.lower() == have.lower()
            for want, have in ((arch_type, found_arch), (dataset, found_dataset), (name, settings))
        )
        if run_of_seed and wanted:
            run = Run(Path(root), found_arch, found_dataset, settings, arm, int(run_of_seed[1]))
            try:
                if len(table(run, "rounds")):
                    runs.append(run)
            except RecordError as error:
                if spoiled is None:
                    raise
                spoiled(error)
    return sorted(runs, key=lambda run: (run.arch_type, run.dataset, run.settings, run.arm, run.seed))


def table(run: Run, name: str) -> pd.DataFrame:
    """The table of that name in TABLES of a run; empty if there is none yet. RecordError if spoiled."""
    file = run.dumps / f"{name}.csv"
    try:
        found = pd.read_csv(file, dtype=dict.fromkeys(WORDS, str))
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
    """From how many rounds on, of the first ones, the table `connectivity` knows nothing."""
    known = set(table(run, "connectivity")["round"])
    return next(number for number in itertools.count() if number not in known)


def done_rounds(run: Run, connectivity: bool) -> int:
    """How many rounds of the run are complete with all that is asked of them."""
    finished = finished_rounds(run)
    return min(finished, connected_rounds(run)) if connectivity else finished


def write_round(run: Run, number: int, masks: Masks, trained: Trained, cost: Cost | None = None) -> dict[str, Any]:
    """Add a finished round to the tables, rounds.csv last; multiply-adds (macs) where the `cost` of a forward pass is
    known. Gives its line."""
    from lth import pruning  # with PyTorch, which reading need not wait for

    best, counts = trained.early_stop, pruning.survivors(masks)
    row = {
        **{"round": number, "remaining": round(pruning.remaining(masks), 4), "ES": best.iteration},
        **{"val": best.val, "test": best.test, "val_loss": best.val_loss, "train_loss": best.train_loss},
        **{"weights": sum(counts.values()), "supermask": trained.supermask},
        "macs": round(cost.total(counts)) if cost else None,
    }
    new = {
        "evals": [{"round": number, **asdict(evaluation)} for evaluation in trained.evals],
        "layers": [
            {
                "round": number,
                "layer": name,
                "kind": cost.kind(name) if cost else None,
                "remaining": round(100 * kept / total, 4),
                "weights": kept,
                "total": total,
                "macs": round(cost.of(name, kept)) if cost else None,
                "dense_macs": round(cost.of(name, total)) if cost else None,
            }
            for name, kept in counts.items()
            for total in [masks[name].numel()]
        ],
        "times": [
            {"round": number, "seconds": round(sum(trained.seconds.values()), 3)}
            | {part: round(seconds, 3) for part, seconds in trained.seconds.items()}
        ],
        "rounds": [row],
    }
    for name, rows in new.items():
        _write_table(run, name, [*_lines(run, name, before=number), *(_line(row, TABLES[name]) for row in rows)])
    return row


def write_connectivity(run: Run, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the points of a round's line (point, train_error, test_error) to the table `connectivity`."""
    remaining = table(run, "rounds")["remaining"][number]
    lines = [_line({"round": number, "remaining": float(remaining), **row}, CONNECTIVITY) for row in rows]
    _write_table(run, "connectivity", [*_lines(run, "connectivity", before=number), *lines])


def share_connectivity(run: Run, sibling: Run) -> bool:
    """Take over what another arm's table knows of the dense round, if both have the same one."""
    found = _lines(sibling, "connectivity", before=1)
    if not found or _lines(sibling, "rounds", before=1) != _lines(run, "rounds", before=1):
        return False
    _write_table(run, "connectivity", found)
    return True


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


def keep_rounds(run: Run, rounds: int) -> None:
    """Take everything of the rounds from number `rounds` on off the tables, rounds.csv first."""
    for name in TABLES:
        if (run.dumps / f"{name}.csv").exists():
            _write_table(run, name, _lines(run, name, before=rounds))


def copy_rounds(run: Run, source: Run, before: int) -> None:
    """Take over from another run what its tables say of rounds below `before`."""
    for name in ("evals", "layers", "times", "rounds"):
        _write_table(run, name, _lines(source, name, before))


def move_aside(run: Run, stamp: str) -> None:
    """Rename the folders of a run's old results, so that nothing finds them."""
    for folder in (run.dumps, run.saves):
        if folder.exists():
            with explained(folder):
                if run.fence is not None:
                    run.fence.check()
                folder.rename(folder.with_name(f"{folder.name}.old-{stamp}"))


def _lines(run: Run, name: str, before: int) -> list[str]:
    """The lines of a table for rounds below `before`, as they stand in the file."""
    try:
        lines = (run.dumps / f"{name}.csv").read_text(encoding="utf-8").splitlines()[1:]
    except FileNotFoundError:
        return []
    return [line for line in lines if int(line.split(",", 1)[0]) < before]


def _line(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    text = io.StringIO()
    values = [row[column] for column in columns]
    csv.writer(text, lineterminator="").writerow([_cell(x) for x in values])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return value


def _write_table(run: Run, name: str, lines: Sequence[str]) -> None:
    write(run.dumps / f"{name}.csv", "\n".join([",".join(TABLES[name]), *lines, ""]).encode(), run.fence)


def results(root: str | Path = ".") -> pd.DataFrame:
    """All rounds of all runs under `root`, tidy: a row a round; columns arch_type, dataset, settings, arm, seed, those
    of rounds.csv, one for every setting that differs between the runs, and `fingerprint` where runs of the same
    settings are of different models or data, which must not be averaged. TypeError or ValueError if `root` is no
    folder; RecordError if a table is spoiled."""
    folder = checks.path("root", root)
    if not folder.is_dir():
        raise ValueError(f"root must be the folder that has dumps/, but there is no folder {folder}")
    frames = []
    for run in find(folder):
        about = read_json(run.dumps / "config.json")
        settings, prints = about.get("deciding", {}), about.get("fingerprint")
        whose = {name: getattr(run, name) for name in ("arch_type", "dataset", "settings", "arm", "seed")}
        if isinstance(prints, dict):
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
