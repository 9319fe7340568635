"""Where the results of settings are: one spelling on disk, and older spellings of the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path


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
