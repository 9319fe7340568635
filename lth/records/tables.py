"""The runs under a folder, and their tables as pandas has them, made of their journals."""

from __future__ import annotations

import glob
import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from lth.records import journal
from lth.records.files import RecordError, explained, read_json
from lth.records.journal import ORDERS, Entry, entries
from lth.settings import checks, names
from lth.settings.arms import ARMS
from lth.settings.config import Config
from lth.settings.values import written

WORDS = ("layer", "kind", "line")  # the columns that hold no numbers
STABLE = 2.0  # points of error that the barrier of a stable network stays below
ROUNDS = "rounds"  # the line from the end of the round before, in the table `connectivity`
SEED = re.compile(r"seed(0|[1-9]\d*)")  # a run's folder; one that was moved aside is called seed0.old-...
RUN_FOLDER = "a run's folder, <root>/dumps/<model>/<data>/<settings>/<arm>/seed<k>"


@dataclass(frozen=True)
class Run:
    """One arm of one trial. Its results: <root>/<kind>/<arch_type>/<dataset>/<settings>/<arm>/seed<k>/.

    `about`, what tells it from the runs of other settings that are named beside it, is no part of what the run is.
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
        return self.root.joinpath(kind, self.arch_type, self.dataset, self.settings, self.arm, f"seed{self.seed}")

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


def runs_at(root: Path, pattern: str) -> list[Run]:
    """The runs whose folders, <root>/<pattern> with wildcards, are there."""
    runs = [run for folder in Path(root).glob(pattern) if (run := _run_at(folder))]
    return sorted(runs, key=lambda run: (run.arch_type, run.dataset, run.settings, run.arm, run.seed))


def _run_at(folder: Path) -> Run | None:
    """The run whose folder this is, by its name."""
    number, place = SEED.fullmatch(folder.name), folder.parts[-6:-1]
    if number is None or len(folder.parents) < 6 or place[0] not in ("dumps", "saves"):
        return None
    _, arch_type, dataset, settings, arm = place
    return Run(folder.parents[5], arch_type, dataset, settings, arm, int(number[1]))


def runs_of(config: Config, about: str = "") -> list[Run]:
    """The runs that the settings ask for, a trial's arms one after another; first those whose masks others need.
    `about` tells them from runs of other settings where several are named."""
    needed = [ARMS[arm].mask_of for arm in config.prune_type if ARMS[arm].mask_of]
    dataset = names.dataset(config.dataset)
    place = (config.root, names.model(config.arch_type, dataset, config.data), dataset, config.folder())
    arms = dict.fromkeys([*needed, *config.prune_type])
    return [Run(*place, arm, seed, about=about) for seed in config.seeds for arm in arms]


def find(
    root: Path,
    arch_type: str | None = None,
    dataset: str | None = None,
    name: str | None = None,
    spoiled: Callable[[RecordError], object] | None = None,
) -> list[Run]:
    """All runs under <root>/dumps with a finished round, of one model, data set or settings if given. A damaged
    journal raises RecordError, or its run is left out after `spoiled` was called with the error."""
    found = []
    for run in runs_at(root, "dumps/*/*/*/*/seed*"):
        pairs = ((arch_type, run.arch_type), (dataset, run.dataset), (name, run.settings))
        if not all(want is None or want.lower() == have.lower() for want, have in pairs):
            continue
        try:
            config_of(run)  # which may be spoiled too
            found += [run] if entries(run) else []
        except RecordError as error:
            if spoiled is None:
                raise
            spoiled(error)
    return found


def config_of(run: Run) -> dict[str, Any]:
    """What the run's config.json says (lth.commands.queue writes it); empty if there is none or it is spoiled.
    RecordError if it cannot be read."""
    return read_json(run.dumps / "config.json")


def table(run: Run, name: str) -> pd.DataFrame:
    """The table of that name in TABLES of a run; empty if there is none yet. RecordError if the journal is damaged."""
    return frame(name, entries(run))


def frame(name: str, known: Sequence[Entry]) -> pd.DataFrame:
    """The table of that name of these rounds."""
    return pd.read_csv(io.StringIO(journal.text(name, known)), dtype=dict.fromkeys(WORDS, str))


def lines(runs: Sequence[Run], name: str) -> pd.DataFrame:
    """The table of that name of all these runs together, with their `arm` and `seed`; not to be changed in place.
    RecordError if a journal is damaged."""
    return _lines(tuple(runs), tuple(map(journal.stamp, runs)))[name]


@lru_cache(maxsize=8)
def _lines(runs: tuple[Run, ...], stamps: tuple[object, ...]) -> dict[str, pd.DataFrame]:
    """Every table of these runs, as long as their journals have these stamps: each is read and parsed once."""
    known = [(run, entry) for run in runs for entry in entries(run)]
    found = {}
    for name in journal.TABLES:
        whose = [run for run, entry in known for _ in entry.get(name, ())]
        columns = {"arm": [run.arm for run in whose], "seed": [run.seed for run in whose]}
        found[name] = frame(name, [entry for _, entry in known]).assign(**columns)
    return found


def finished_rounds(run: Run) -> int:
    """How many rounds of the run are complete."""
    return len(entries(run))


def done_rounds(run: Run, connectivity: bool) -> int:
    """How many rounds of the run are complete; with `connectivity`, how many of the first ones have their line too."""
    known = entries(run)
    return len(list(itertools.takewhile(lambda entry: "connectivity" in entry, known))) if connectivity else len(known)


def image_shape(run: Run) -> tuple[int, ...]:
    """The shape (C, H, W) of the images that the run was trained on; () where its config.json does not say it."""
    found = config_of(run).get("image_shape", ())
    return tuple(found) if len(found) == 3 else ()


def barrier(errors: Sequence[float]) -> float:
    """The highest error on a line minus the mean of those at its ends (Frankle et al. 2020, arXiv:1912.05671, Section
    2)."""
    return max(errors) - (errors[0] + errors[-1]) / 2


def barriers(runs: Sequence[Run], line: str = ORDERS) -> pd.DataFrame:
    """One row per run and round whose `line` was measured: arm, seed, round, remaining, and the error barriers `train`
    and `test` in points."""
    points = lines(runs, "connectivity").rename(columns=lambda name: name.removesuffix("_error"))
    by_round = points[points["line"] == line].groupby(["arm", "seed", "round", "remaining"], sort=False)
    return by_round[["train", "test"]].agg(lambda errors: barrier(errors.tolist())).reset_index()


def move_aside(run: Run, stamp: str) -> None:
    """Rename the folders of a run's old results, so that nothing finds them. The weights first: without its tables a
    run would begin anew among them, without its weights it says that they are gone."""
    for folder in (run.saves, run.dumps):
        if folder.exists():
            with explained(folder):
                folder.rename(folder.with_name(f"{folder.name}.old-{stamp}"))


def run_of(name: str, folder: Path) -> Run:
    """The run whose folder this is, or the only one below it. ValueError, about the argument `name`, if there is none
    or more than one."""
    first, *more = runs_in(name, folder)
    if more:
        runs = "\n".join(f"  {run.dumps}" for run in (first, *more))
        raise ValueError(f"{name} must be {RUN_FOLDER}, not {folder}, which has several:\n{runs}")
    return first


def runs_in(name: str, folder: Path) -> list[Run]:
    """The run whose folder this is, or all those below it. ValueError, about the argument `name`, if there is none."""
    here = written(folder)
    if (run := _run_at(here)) and (run.saves.is_dir() or run.dumps.is_dir()):
        return [run]
    if not here.is_dir():
        raise ValueError(f"{name} must be a folder of a run, but there is no folder {folder}")
    root = root_of(name, folder)
    inside = [glob.escape(part) for part in here.relative_to(root).parts[1:]]
    below = [run for run in runs_at(root, "/".join(["dumps", *inside, *"*****"[len(inside) :]])) if entries(run)]
    if not below:
        raise ValueError(f"{name} must be {RUN_FOLDER}, not {folder}, in which there is none")
    return below


def root_of(name: str, folder: Path) -> Path:
    """The folder that has the dumps/ and saves/ which `folder` lies in; `folder` itself if it lies in neither."""
    if not folder.is_dir():
        raise ValueError(f"{name} must be a folder with results, but there is no folder {folder}")
    here = written(folder)
    if (here / "dumps").is_dir():
        return here
    kinds = (path for path in (here, *here.parents[:5]) if path.name in ("dumps", "saves"))
    return next((kind.parent for kind in kinds), here)


def results(root: str | Path = ".") -> pd.DataFrame:
    """All rounds of all runs under `root`, tidy: one row per round; columns arch_type, dataset, settings, arm, seed,
    those of rounds.csv, one for every setting that differs between the runs, and `fingerprint` where runs of the same
    settings are of different models or data, which must not be averaged. TypeError or ValueError if `root` is no
    folder; RecordError if a journal is damaged."""
    folder = checks.path("root", root)
    if not folder.is_dir():
        raise ValueError(f"root must be the folder that has dumps/, but there is no folder {folder}")
    whose = ["arch_type", "dataset", "settings", "arm", "seed"]
    abouts, rounds = list[dict[str, Any]](), list[Entry]()
    for run in find(folder):
        known, config = entries(run), config_of(run)
        about = {f"setting/{key}": value for key, value in config.get("deciding", {}).items()}
        prints = " ".join(f"{name}={value}" for name, value in config.get("fingerprint", {}).items())
        abouts += [{**{name: getattr(run, name) for name in whose}, **about, "fingerprint": prints or None}] * len(
            known
        )
        rounds += known
    found = frame("rounds", rounds)
    if not rounds:
        return found.reindex(columns=[*whose, *found])
    everything = pd.concat([found, pd.DataFrame(abouts)], axis="columns")
    varying = [name for name in everything if "setting/" in name and everything[name].nunique(dropna=False) > 1]
    if everything.groupby(whose[:3])["fingerprint"].nunique().max() > 1:
        varying.append("fingerprint")
    return everything[[*whose, *found, *varying]].rename(columns=lambda name: name.removeprefix("setting/"))
