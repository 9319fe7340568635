"""Where results are: those of settings, in one spelling on disk or an older one, and the runs that a folder holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lth.records import tables
from lth.records.tables import Run
from lth.settings.ticket import written

RUN_FOLDER = "a run's folder, <root>/dumps/<model>/<data>/<settings>/<arm>/seed<k>"


def spelled(root: Path, arch_type: str, dataset: str, settings: str) -> tuple[str, str, str]:
    """The folder names of a model, a data set and settings under <root>/dumps/: as given, or as older results of them
    are spelled: the first two in another case, long names of settings cut elsewhere before their hash."""
    for arch in _alike(root / "dumps", arch_type):
        for data in _alike(arch, dataset):
            for folder in _same_settings(data, settings):
                return arch.name, data.name, folder.name
    return arch_type, dataset, settings


def _alike(folder: Path, name: str) -> Iterator[Path]:
    """The folders in `folder` that are called so, ignoring case; the one that is called just so first."""
    found = [inner for inner in _folders(folder) if inner.name.lower() == name.lower()]
    yield from sorted(found, key=lambda inner: (inner.name != name, inner.name))


def _same_settings(folder: Path, name: str) -> Iterator[Path]:
    """The folder of these settings, or one that was shortened otherwise: with the same hash at its end."""
    mark = re.search(r"\.\.\.[0-9a-f]{8}$", name)
    found = [inner for inner in _folders(folder) if inner.name == name or (mark and inner.name.endswith(mark[0]))]
    yield from sorted(found, key=lambda inner: (inner.name != name, inner.name))


def _folders(folder: Path) -> list[Path]:
    return [inner for inner in folder.iterdir() if inner.is_dir()] if folder.is_dir() else []


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
