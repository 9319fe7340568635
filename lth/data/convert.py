"""Data sets of other libraries as files of this one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lth.data import pictures, sets
from lth.settings import checks


def to_npz(
    dataset: Any, path: str | Path, image_size: int | None = None, columns: tuple[str, str] = ("image", "label")
) -> Path:
    """Write a data set as the .npz file that `--dataset` and `--data` name, and return its path.

    Args:
        dataset: two map-style Datasets, as a pair (train, test) or a mapping with "train" and "test". Their items are
            (image, label) or dicts with `columns`. Images are PIL images, uint8 arrays (H, W) or (H, W, C), or tensors
            (C, H, W) of uint8 or of floats from 0 to 1. Labels are whole numbers from 0.
        path: ends in `.npz`. A file that is there is replaced.
        image_size: pixels. The shorter side of each image is scaled to this, and the middle square cut out; None
            requires that all images have one size.
        columns: the keys of the image and of the label where items are dicts.

    Raises TypeError and ValueError (ConfigError) that say what is wrong.
    """
    file = checks.path("path", path)
    if file.suffix != ".npz":
        raise ValueError(f"path must end in .npz, not {file.name!r}")
    if image_size is not None:
        checks.whole("image_size", image_size, 1)
    halves = [dataset.get(key) for key in ("train", "test")] if isinstance(dataset, Mapping) else dataset
    if not isinstance(halves, (tuple, list)) or len(halves) != 2 or not all(hasattr(x, "__getitem__") for x in halves):
        must = "a pair (train, test) of map-style Datasets (as random_split gives) or a mapping of these"
        raise TypeError(f"dataset must be {must}, not {checks.shown(dataset)}")
    arrays = []
    for half in halves:
        arrays += pictures.as_arrays([_pair(half[i], columns) for i in range(len(half))], image_size)
    sets.checked(file, arrays)
    pictures.write(file, arrays)
    return file


def _pair(item: Any, columns: tuple[str, str]) -> tuple[Any, Any]:
    """The image and the label of an item."""
    if not isinstance(item, Mapping):
        return item
    if missing := [key for key in columns if key not in item]:
        raise ValueError(f"columns must name the image and the label among {', '.join(item)}, not {missing[0]!r}")
    return item[columns[0]], item[columns[1]]
