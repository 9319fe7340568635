"""The names of models and data sets: which there are, and their one spelling, found without loading any of them.

Files under archs/ are read as text here, so that a mistyped name is answered before PyTorch is loaded.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from lth.settings.config import PROJECT, nearest

ARCHS = PROJECT / "archs"
FALLBACK = {"fashionmnist": "mnist", "cifar100": "cifar10"}  # whose models serve a data set without its own
CLASSES = {"mnist": 10, "fashionmnist": 10, "cifar10": 10, "cifar100": 100}  # of the data sets known by name


def dataset(name: str) -> str:
    """The one spelling of a data set's name, which may be given in any case."""
    known = [*CLASSES, *(folder.name for folder in _all_folders())]
    return next((one for one in known if one.lower() == name.lower()), name) if name not in known else name


def model(name: str, of: str) -> str:
    """The one spelling of the name of a model for the data set `of`: that of its file, or else of its definition."""
    for folder in folders(of):
        for file in files(folder):
            defined = {one for one in definitions(file) if one.lower() == name.lower()}
            if len(defined) > 1:  # their case alone tells them apart
                return name
            if file.stem.lower() == name.lower():
                return file.stem
            if defined:
                return defined.pop()
    return name


def problems(
    arch_type: str,
    of: str,
    arguments: tuple[str, str] = ("--arch_type", "--dataset"),
    aliases: tuple[Iterable[str], Iterable[str]] = ((), ()),
) -> list[str]:
    """What is wrong with the name of a model and that of a data set, in the words of a front door: what it calls these
    two, and the other names of models and of data sets that it knows."""
    if not available(of):
        have = (name for name in (*CLASSES, *(folder.name for folder in _all_folders())) if available(name))
        choices = list(dict.fromkeys((*have, *aliases[1])))
        return [
            f"{arguments[1]} must be one of {', '.join(choices)}, or have models in archs/{of}/, "
            f"not {of!r}{nearest(of, choices)}"
        ]
    if any(mentions(file, arch_type) for folder in folders(of) for file in files(folder)):
        return []
    return [no_model(arch_type, of, arguments[0], aliases[0])]


def no_model(arch_type: str, of: str, argument: str = "--arch_type", aliases: Iterable[str] = ()) -> str:
    """The sentence that there is no such model for the data set `of`."""
    choices = [*available(of), *aliases]
    return (
        f"{argument} must be a model of archs/{folders(of)[0].name}/, one of {', '.join(choices)}, "
        f"not {arch_type!r}{nearest(arch_type, choices)}"
    )


def available(of: str) -> list[str]:
    """The names of the models for the data set `of`: the files of its folder and of its fallback."""
    return sorted({file.stem for folder in folders(of) for file in files(folder)}, key=str.lower)


def folders(of: str) -> list[Path]:
    """The folders under archs/ that have models for the data set `of`: its own, then its fallback."""
    name = dataset(of)
    return [ARCHS / one for one in (name, FALLBACK.get(name)) if one and (ARCHS / one).is_dir()]


def files(folder: Path) -> list[Path]:
    """The model files of a folder."""
    return sorted(file for file in folder.glob("*.py") if not file.stem.startswith("_"))


def mentions(file: Path, arch_type: str) -> bool:
    """Whether the file's name or a definition in it matches, ignoring case."""
    return any(name.lower() == arch_type.lower() for name in (file.stem, *definitions(file)))


def definitions(file: Path) -> list[str]:
    """The functions and classes that a file defines, found without running it; none if it cannot be read."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    return [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def _all_folders() -> list[Path]:
    inside = ARCHS.iterdir() if ARCHS.is_dir() else ()
    return sorted(folder for folder in inside if folder.is_dir() and not folder.name.startswith("_"))
