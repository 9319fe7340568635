"""Pictures as the arrays of a data set: those of folders, and of other map-style Datasets."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lth.settings import checks
from lth.settings.names import ARRAYS
from lth.settings.problems import ConfigError, Problem


def write(file: Path, arrays: Sequence[np.ndarray]) -> None:
    """Write the arrays of a data set, all or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as temporary:
        partial = Path(temporary) / file.name
        with partial.open("wb") as stream:
            held: dict[str, Any] = dict(zip(ARRAYS, arrays, strict=True))
            np.savez_compressed(stream, **held)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)


def of_folder(folder: Path, image_size: int | None) -> tuple[list[np.ndarray], int]:
    """The arrays of the pictures in `<folder>/train/<class>/` and `<folder>/test/<class>/` (or `val/`), in colour, as
    torchvision's ImageFolder reads them, and the number of classes. ConfigError if they are no data set."""
    from torchvision.datasets import ImageFolder

    arrays, classes = list[np.ndarray](), list[list[str]]()
    test = next((half for half in ("test", "val") if (folder / half).is_dir()), "test")
    try:
        for half in ("train", test):
            found = ImageFolder(str(folder / half))
            classes.append(found.classes)
            arrays += as_arrays(found, image_size)
    except (OSError, RuntimeError) as error:  # FileNotFoundError of ImageFolder, or a file that is no picture
        raise ConfigError(f"{folder} is no data set of pictures ({checks.first_line(error)})") from None
    if classes[0] != classes[1]:
        differ = ", ".join(sorted(set(classes[0]) ^ set(classes[1]))[:3])
        raise ConfigError(f"{folder}/train and {folder}/{test} must have folders of the same classes; {differ} differ")
    return arrays, len(classes[0])


def training_count(folder: Path) -> int:
    """How many pictures for training `of_folder` would find."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return sum(file.name.lower().endswith(IMG_EXTENSIONS) for file in (folder / "train").rglob("*"))


def as_arrays(half: Any, image_size: int | None) -> list[np.ndarray]:
    """The images, uint8 (N, H, W) or (N, H, W, C), and the labels of the pairs that a map-style Dataset holds."""
    pictures, labels = [], []
    for i in range(len(half)):
        picture, label = half[i]
        pictures.append(_uint8(picture, image_size))
        labels.append(int(label))
    if others := {picture.shape for picture in pictures} - {pictures[0].shape}:
        sizes = " and ".join("x".join(map(str, shape)) for shape in (pictures[0].shape, min(others)))
        raise ConfigError(Problem("image_size", f"must be given where pictures differ in size or in channels: {sizes}"))
    return [np.stack(pictures), np.array(labels)]


def _uint8(picture: Any, image_size: int | None) -> np.ndarray:
    """A picture (H, W) or (H, W, C) of uint8, scaled and cut to a square."""
    from PIL import Image
    from torchvision.transforms import functional

    if isinstance(picture, Tensor):
        picture = functional.to_pil_image(picture)
    elif isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("RGB" if picture.mode != "1" else "L")
    if image_size is not None:
        picture = functional.center_crop(functional.resize(picture, image_size), [image_size, image_size])
    return np.asarray(picture)
