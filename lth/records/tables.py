"""The runs under a folder, and their tables as DataFrames, made from their journals."""

from __future__ import annotations

import glob
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from lth.records import journal
from lth.records.files import RecordError, raise_unwritable, read_json
from lth.records.journal import ORDERS, Entry, entries
from lth.settings import checks, names
from lth.settings.arms import ARMS
from lth.settings.config import Config, ConfigError
from lth.settings.values import absolute_folder

TEXT_COLUMNS = ("layer", "kind", "line")
STABLE = 2.0  # a network is stable where its error barrier is below this many points
ROUNDS = "rounds"  # in the table `connectivity`: the line from the end of the previous round
SEED = re.compile(r"seed(0|[1-9]\d*)")  # the name of a run's folder; one that was moved aside is called seed0.old-...
RUN_FOLDER = "a run's folder, <root>/dumps/<model>/<data>/<settings>/<arm>/seed<k>"


@dataclass(frozen=True)
class Run:
    """One arm of one trial, with results in <root>/<kind>/<arch_type>/<dataset>/<settings>/<arm>/seed<k>/.

    `label` names its settings in messages where a command trains several; runs that differ in it alone are equal.
    """

    root: Path
    arch_type: str
    dataset: str
    settings: str
    arm: str
    seed: int
    label: str = field(default="", compare=False, repr=False)

    def folder(self, kind: str) -> Path:
        """The run's folder under `dumps`, `saves` or `runs`."""
        return self.root.joinpath(kind, self.arch_type, self.dataset, self.settings, self.arm, f"seed{self.seed}")

    @property
    def dumps(self) -> Path:
        """The folder with its numbers."""
        return self.folder("dumps")

    @property
    def saves(self) -> Path:
        """The folder with its weights."""
        return self.folder("saves")

    @property
    def plots(self) -> Path:
        """The folder with the figures of all arms and trials of these settings."""
        return self.root / "plots" / self.arch_type / self.dataset / self.settings

    @property
    def columns(self) -> dict[str, Any]:
        """What identifies the run in tables and events: arch_type, dataset, settings, arm and seed."""
        return {name: getattr(self, name) for name in ("arch_type", "dataset", "settings", "arm", "seed")}

    def of_arm(self, arm: str) -> Run:
        """The run of another arm in the same trial."""
        return replace(self, arm=arm)

    def other_arms(self) -> Iterator[Run]:
        """The runs of all other arms in the same trial, whether they exist or not."""
        return (self.of_arm(arm) for arm in ARMS if arm != self.arm)

    def __str__(self) -> str:
        return f"{self.label} {self.arm} seed{self.seed}".lstrip()


def runs_at(folder: Path, pattern: str) -> list[Run]:
    """The runs whose folders match <folder>/<pattern>."""
    runs = [run for path in Path(folder).glob(pattern) if (run := _run_at(path))]
    return sorted(runs, key=lambda run: (run.arch_type, run.dataset, run.settings, run.arm, run.seed))


def _run_at(folder: Path) -> Run | None:
    """The run whose folder this is, judged by its path."""
    seed, parents = SEED.fullmatch(folder.name), folder.parts[-6:-1]
    if seed is None or len(folder.parents) < 6 or parents[0] not in ("dumps", "saves"):
        return None
    _, arch_type, dataset, settings, arm = parents
    return Run(folder.parents[5], arch_type, dataset, settings, arm, int(seed[1]))


def runs_of(config: Config, label: str = "") -> list[Run]:
    """The runs that the settings ask for, all arms of a trial one after another; first those whose masks others need.
    `label` names the settings in messages."""
    needed = [ARMS[arm].mask_of for arm in config.prune_type if ARMS[arm].mask_of]
    dataset = names.canonical_dataset(config.dataset)
    folders = (config.root, names.canonical_model(config.arch_type, dataset, config.data), dataset, config.folder())
    arms = dict.fromkeys([*needed, *config.prune_type])
    return [Run(*folders, arm, seed, label) for seed in config.seeds for arm in arms]


def find(
    root: Path,
    arch_type: str | None = None,
    dataset: str | None = None,
    name: str | None = None,
    on_error: Callable[[RecordError], object] | None = None,
) -> list[Run]:
    """All runs under <root>/dumps with a finished round, optionally of one model, data set or folder of settings only.
    RecordError if a file of a run cannot be used; with `on_error`, that gets the error and the run is left out."""
    runs = []
    for run in runs_at(root, "dumps/*/*/*/*/seed*"):
        pairs = ((arch_type, run.arch_type), (dataset, run.dataset), (name, run.settings))
        if not all(wanted is None or wanted.lower() == actual.lower() for wanted, actual in pairs):
            continue
        try:
            read_config(run)  # which may be unreadable, too
            if entries(run):
                runs.append(run)
        except RecordError as error:
            if on_error is None:
                raise
            on_error(error)
    return runs


def read_config(run: Run) -> dict[str, Any]:
    """The content of the run's config.json, which lth.commands.queue writes; empty if it is missing or damaged.
    RecordError if it cannot be read."""
    return read_json(run.dumps / "config.json")


def table(run: Run, name: str) -> pd.DataFrame:
    """One of the TABLES of a run; empty if it has no rows yet. RecordError if the journal is damaged."""
    return _parse(name, entries(run))


def combined(runs: Sequence[Run], name: str) -> pd.DataFrame:
    """One of the TABLES for several runs, with the columns `arm` and `seed`; not to be changed in place. RecordError if
    a journal is damaged."""
    return _combined(tuple(runs), tuple(map(journal.stamp, runs)))[name]


@lru_cache(maxsize=8)
def _combined(runs: tuple[Run, ...], stamps: tuple[object, ...]) -> dict[str, pd.DataFrame]:
    """All tables of these runs; cached, so that a journal is parsed again only when its stamp has changed."""
    rounds = [(run, entry) for run in runs for entry in entries(run)]
    tables = {}
    for name in journal.TABLES:
        run_of_row = [run for run, entry in rounds for _ in entry.get(name, ())]
        columns = {"arm": [run.arm for run in run_of_row], "seed": [run.seed for run in run_of_row]}
        tables[name] = _parse(name, [entry for _, entry in rounds]).assign(**columns)
    return tables


def _parse(name: str, rounds: Sequence[Entry]) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(journal.csv_text(name, rounds)), dtype=dict.fromkeys(TEXT_COLUMNS, str))


def finished_rounds(run: Run) -> int:
    """The number of finished rounds of a run."""
    return len(entries(run))


def done_rounds(run: Run, connectivity: bool) -> int:
    """The number of finished rounds of a run; with `connectivity`, only up to the first whose line is not measured."""
    rounds = entries(run)
    if connectivity:
        rounds = list(itertools.takewhile(lambda entry: "connectivity" in entry, rounds))
    return len(rounds)


def image_shape(run: Run) -> tuple[int, ...]:
    """The shape (C, H, W) of the images that the run was trained on; () if its config.json does not have it."""
    shape = read_config(run).get("image_shape", ())
    return tuple(shape) if len(shape) == 3 else ()


def barrier(errors: Sequence[float]) -> float:
    """The highest error on a line minus the mean error of its two ends (Frankle et al. 2020, arXiv:1912.05671,
    Section 2)."""
    return max(errors) - (errors[0] + errors[-1]) / 2


def barriers(runs: Sequence[Run], line: str = ORDERS) -> pd.DataFrame:
    """One row per run and round whose `line` was measured: arm, seed, round, remaining, and the error barriers `train`
    and `test` in points."""
    points = combined(runs, "connectivity").rename(columns=lambda name: name.removesuffix("_error"))
    by_round = points[points["line"] == line].groupby(["arm", "seed", "round", "remaining"], sort=False)
    return by_round[["train", "test"]].agg(lambda errors: barrier(errors.tolist())).reset_index()


def move_aside(run: Run, stamp: str) -> None:
    """Rename the folders of a run's old results, so that nothing finds them. The weights first: tables without weights
    are reported as such, but weights without tables would be taken for those of a new run."""
    for folder in (run.saves, run.dumps):
        if folder.exists():
            with raise_unwritable(folder):
                folder.rename(folder.with_name(f"{folder.name}.old-{stamp}"))


def run_of(name: str, folder: Path) -> Run:
    """The run whose folder this is, or the only one below it. ConfigError, which names the argument `name`, if there is
    none or more than one."""
    first, *more = runs_in(name, folder)
    if more:
        runs = "\n".join(f"  {run.dumps}" for run in (first, *more))
        raise ConfigError(f"{name} must be {RUN_FOLDER}, not {folder}, which has several:\n{runs}")
    return first


def runs_in(name: str, folder: Path) -> list[Run]:
    """The run whose folder this is, or all runs below it. ConfigError, which names the argument `name`, if there is
    none."""
    path = absolute_folder(folder)
    if (run := _run_at(path)) and (run.saves.is_dir() or run.dumps.is_dir()):
        return [run]
    root = root_of(name, folder)
    parts = [glob.escape(part) for part in path.relative_to(root).parts[1:]]
    wildcards = ["*"] * (5 - len(parts))
    runs = [run for run in runs_at(root, "/".join(["dumps", *parts, *wildcards])) if entries(run)]
    if not runs:
        raise ConfigError(f"{name} must be {RUN_FOLDER}, not {folder}, in which there is none")
    return runs


def root_of(name: str, folder: Path) -> Path:
    """The parent of the dumps/ or saves/ that `folder` is in; `folder` itself if it is in neither. ConfigError, which
    names the argument `name`, if it is no folder."""
    if not folder.is_dir():
        raise ConfigError(f"{name} must be a folder with results, but there is no folder {folder}")
    path = absolute_folder(folder)
    if (path / "dumps").is_dir():
        return path
    return next((parent.parent for parent in (path, *path.parents[:5]) if parent.name in ("dumps", "saves")), path)


def results(root: str | Path = ".") -> pd.DataFrame:
    """All rounds of all runs under `root` in one tidy table: one row per round, with the columns arch_type, dataset,
    settings, arm and seed, the columns of rounds.csv, one for every setting that differs between the runs, and
    `fingerprint` where runs of the same settings have different models or data and must not be averaged. TypeError or
    ValueError if `root` is no folder; RecordError if a journal is damaged."""
    folder = checks.path("root", root)
    if not folder.is_dir():
        raise ValueError(f"root must be the folder that has dumps/, but there is no folder {folder}")
    runs, rounds = list[dict[str, Any]](), list[Entry]()
    for run in find(folder):
        finished, config = entries(run), read_config(run)
        settings = {f"setting/{name}": value for name, value in config.get("deciding", {}).items()}
        fingerprint = " ".join(f"{part}={value}" for part, value in config.get("fingerprint", {}).items())
        runs += [{**run.columns, **settings, "fingerprint": fingerprint or None}] * len(finished)
        rounds += finished
    table, keys = _parse("rounds", rounds), ["arch_type", "dataset", "settings", "arm", "seed"]
    if not rounds:
        return table.reindex(columns=[*keys, *table])
    everything = pd.concat([table, pd.DataFrame(runs)], axis="columns")
    varying = [name for name in everything if "setting/" in name and everything[name].nunique(dropna=False) > 1]
    if everything.groupby(keys[:3])["fingerprint"].nunique().max() > 1:
        varying.append("fingerprint")
    return everything[[*keys, *table, *varying]].rename(columns=lambda name: name.removeprefix("setting/"))
