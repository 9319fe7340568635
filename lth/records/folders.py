"""Which runs a folder holds, and where its dumps/ and saves/ are."""

from __future__ import annotations

from pathlib import Path

from lth.records import tables
from lth.records.tables import Run
from lth.settings.values import written

RUN_FOLDER = "a run's folder, <root>/dumps/<model>/<data>/<settings>/<arm>/seed<k>"


def run_of(name: str, folder: Path) -> Run:
    """The run whose folder this is, or the only one below it. ValueError, about the argument `name`, if there is none
    or more than one."""
    found = runs_in(name, folder)
    if len(found) > 1:
        runs = "\n".join(f"  {run.dumps}" for run in found)
        raise ValueError(f"{name} must be {RUN_FOLDER}, not {folder}, which has several:\n{runs}")
    return found[0]


def runs_in(name: str, folder: Path) -> list[Run]:
    """The run whose folder this is, or all those below it. ValueError, about the argument `name`, if there is none."""
    here = written(folder)
    kind, arch_type, dataset, settings, arm, seed = ("",) * 6 if len(here.parts) < 7 else here.parts[-6:]
    if kind in ("dumps", "saves") and seed.removeprefix("seed").isdigit():
        run = Run(here.parents[5], arch_type, dataset, settings, arm, int(seed.removeprefix("seed")))
        if run.saves.is_dir() or run.dumps.is_dir():
            return [run]
    if not here.is_dir():
        raise ValueError(f"{name} must be a folder of a run, but there is no folder {folder}")
    root = root_of(name, folder)
    below = tables.find(root, among=lambda run: here in (run.root, *run.dumps.parents, *run.saves.parents))
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
    for above in (here, *list(here.parents)[:5]):
        if above.name in ("dumps", "saves"):
            return above.parent
    return here
