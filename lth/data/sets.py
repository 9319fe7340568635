"""Data sets by name, file or folder of pictures: reading, checking and writing them, and MNIST as loaders."""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lth.data.images import Images, normalisation, split
from lth.settings import checks, names
from lth.settings.checks import ConfigError, Problem
from lth.settings.config import PROJECT, VALID_SIZE
from lth.settings.names import ARRAYS, TORCHVISION


def load(name: str, folder: Path, pixels: str = "standard", image_size: int | None = None) -> Images:
    """The data set `<folder>/<name>.npz` (Keras's convention: x_train, y_train, x_test, y_test), or the pictures in
    `<folder>/<name>/`, or else the one that torchvision has in `folder` or downloads, which is then kept as such a
    file. Models see it as `pixels` says (--pixels), pictures as squares of `image_size` pixels (--image_size).
    ConfigError if there is none."""
    name = names.canonical_dataset(name)
    if pictures := names.picture_folder(name, folder):
        return replace(_read_pictures(pictures, image_size), pixels=pixels)
    if image_size and (name not in TORCHVISION or len(TORCHVISION[name].shape) == 3):
        raise ConfigError(Problem("image_size", f"is for pictures of several sizes, and {name} has images of one size"))
    file = names.npz_file(Path(folder), name, image_size)
    if not file.exists():
        if name not in TORCHVISION:
            must = f"must be one of {', '.join(TORCHVISION)} or have a file {file} with the arrays {', '.join(ARRAYS)}"
            raise ConfigError(Problem("dataset", f"{must}, not {name!r}"))
        _download(name, file, image_size)
    images = read(file, TORCHVISION[name].classes if name in TORCHVISION else None)
    return replace(images, name=name if name in TORCHVISION else images.name, pixels=pixels)


def training_count(name: str, folder: Path, image_size: int | None = None) -> int:
    """How many training images the data set has that `load` gives for `name`, `folder` and `image_size`, found without
    reading them. One that cannot be read, of which `load` says so, counts as a large one."""
    name = names.canonical_dataset(name)
    if pictures := names.picture_folder(name, folder):
        from torchvision.datasets.folder import IMG_EXTENSIONS

        return sum(file.name.lower().endswith(IMG_EXTENSIONS) for file in (pictures / "train").rglob("*"))
    size = names.npz_shape(names.npz_file(Path(folder), name, image_size))
    return size[0] if size else 10 * VALID_SIZE


def read(file: Path, classes: int | None = None) -> Images:
    """The data set in an .npz file, checked. `classes`: how many labels there must be at most."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            keys = list(arrays)
            values = [np.asarray(arrays[key]) for key in ARRAYS if key in keys]
    except Exception as error:  # zipfile, zlib, tokenize and NumPy raise a dozen kinds of it on a spoiled file
        reason = checks.error_message(error)
        raise ConfigError(f"{file} is no readable .npz file ({reason}); put a complete one in its place") from None
    if len(values) < len(ARRAYS):
        held = ", ".join(keys[:8]) or "none"
        raise ConfigError(f"{file} must hold the arrays {', '.join(ARRAYS)}, but holds {held}")
    return images_from_arrays(file, values, classes)


def images_from_arrays(file: Path, arrays: Sequence[np.ndarray], classes: int | None = None) -> Images:
    """The data set of these ARRAYS, which `file` holds or is to hold."""
    x_train, y_train, x_test, y_test = arrays
    for key, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or not x.size:
            must = "must be uint8 of N x H x W, N x H x W x C or N x C x H x W"
            raise ConfigError(f"{file}: x_{key} {must}, not {x.dtype} {x.shape}")
        if y.dtype.kind not in "iu" or y.reshape(-1).shape != (len(x),):
            must = f"must hold one integer label for each of {len(x)} images"
            raise ConfigError(f"{file}: y_{key} {must}, not {y.dtype} {y.shape}")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ConfigError(f"{file}: x_train and x_test differ in size: {x_train.shape[1:]} and {x_test.shape[1:]}")
    classes = classes or min(int(y_train.max()) + 1, len(y_train))  # labels that skip most numbers are no labels
    for key, y in (("train", y_train), ("test", y_test)):
        if y.min() < 0 or y.max() >= classes:
            among = f"0 to {classes - 1}{', as in y_train' if key == 'test' else ''}"
            raise ConfigError(f"{file}: y_{key} must be labels {among}, not {y.min()} to {y.max()}")
    train, test = (_channels_first(x_train), _labels(y_train)), (_channels_first(x_test), _labels(y_test))
    return Images(Path(file).stem, *train, *test, classes)


def _channels_first(x: np.ndarray) -> Tensor:
    channels = x[:, None] if x.ndim == 3 else x if names.channels_first(x.shape) else x.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(channels))


def _labels(y: np.ndarray) -> Tensor:
    return torch.from_numpy(y.reshape(-1).astype(np.int64))


def _read_pictures(folder: Path, image_size: int | None) -> Images:
    """The pictures in `<folder>/train/<class>/` and `<folder>/test/<class>/` (or `val/`), in colour, as torchvision's
    ImageFolder reads them. ConfigError if they are no data set."""
    from torchvision.datasets import ImageFolder

    test = next((half for half in ("test", "val") if (folder / half).is_dir()), "test")
    try:
        halves = [ImageFolder(str(folder / half)) for half in ("train", test)]
        arrays = [array for half in halves for array in _arrays(half, image_size)]
    except (OSError, RuntimeError) as error:  # FileNotFoundError of ImageFolder, or a file that is no picture
        raise ConfigError(f"{folder} is no data set of pictures ({checks.error_message(error)})") from None
    if differ := set(halves[0].classes) ^ set(halves[1].classes):
        classes = ", ".join(sorted(differ)[:3])
        raise ConfigError(f"{folder}/train and {folder}/{test} must have folders of the same classes; {classes} differ")
    return images_from_arrays(folder, arrays, len(halves[0].classes))


def _arrays(half: Any, image_size: int | None) -> list[np.ndarray]:
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


def _download(name: str, file: Path, image_size: int | None) -> None:
    """Write `file` from torchvision's copy of the data set, downloading it if there is none. All or nothing."""
    from torchvision import datasets

    known = TORCHVISION[name]
    kind, of_pictures = getattr(datasets, known.class_name), len(known.shape) == 1
    try:
        existing = next(folder for folder in file.resolve().parents if folder.exists())
        with (
            tempfile.TemporaryDirectory(dir=existing, prefix=".download-") as temporary,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            try:
                halves = [kind(str(file.parent), **half, download=False) for half in known.halves]
            except RuntimeError:
                halves = [kind(temporary, **half, download=True) for half in known.halves]
            parts = [_arrays(half, image_size) if of_pictures else _torchvision_arrays(name, half) for half in halves]
            _write(file, [array for part in parts for array in part], known.classes)
    except Exception as error:  # of the network, of the disk, or of what a spoiled copy makes torchvision stumble on
        if isinstance(error, ConfigError) and of_pictures:  # of --image_size
            raise
        reason = checks.error_message(error)
        raise ConfigError(
            f"there is no {file} and {name} could not be downloaded ({reason}): "
            f"put an .npz file with the arrays {', '.join(ARRAYS)} there, or name its folder with --data"
        ) from None


def _torchvision_arrays(name: str, half: Any) -> tuple[np.ndarray, np.ndarray]:
    """The images, N x H x W or N x H x W x C, and the labels of a half of a set that torchvision has in memory."""
    x, y = np.asarray(half.data), np.asarray(half.labels if name == "svhn" else half.targets)
    if name == "emnist":
        return x.transpose(0, 2, 1), y  # its files hold columns where the others hold rows
    if name == "qmnist":
        return x, y[:, 0]  # beside the label: the writer, the place in NIST's files, ...
    return (x.transpose(0, 2, 3, 1), y) if name == "svhn" else (x, y)


def _write(file: Path, arrays: Sequence[np.ndarray], classes: int | None = None) -> None:
    """Check the arrays of a data set and write them, all or nothing."""
    images_from_arrays(file, arrays, classes)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as temporary:
        temporary_file, named = Path(temporary) / file.name, dict[str, Any](zip(ARRAYS, arrays, strict=True))
        np.savez_compressed(temporary_file, **named)
        temporary_file.replace(file)


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
        checks.integer("image_size", image_size, 1)
    halves = [dataset.get(key) for key in ("train", "test")] if isinstance(dataset, Mapping) else dataset
    if not isinstance(halves, (tuple, list)) or len(halves) != 2 or not all(hasattr(x, "__getitem__") for x in halves):
        must = "a pair (train, test) of map-style Datasets (as random_split gives) or a mapping of these"
        raise TypeError(f"dataset must be {must}, not {checks.short_repr(dataset)}")
    arrays = []
    for half in halves:
        arrays += _arrays([_pair(half[i], columns) for i in range(len(half))], image_size)
    _write(file, arrays)
    return file


def _pair(item: Any, columns: tuple[str, str]) -> tuple[Any, Any]:
    """The image and the label of an item."""
    if not isinstance(item, Mapping):
        return item
    if missing := [key for key in columns if key not in item]:
        raise ValueError(f"columns must name the image and the label among {', '.join(item)}, not {missing[0]!r}")
    return item[columns[0]], item[columns[1]]


def as_images(data: object) -> Images | None:
    """The data set that a name, a file, `Images` or Loaders stand for; None if it is something else."""
    if isinstance(data, (str, Path)):
        file = Path(data)
        try:
            return read(file) if file.suffix == ".npz" else load(str(data), PROJECT / "data")
        except ConfigError as error:
            raise error.named({"dataset": "data"}) from error.__cause__
    if isinstance(data, Loaders) and all(isinstance(part, Loader) for part in data):
        train, validation, test = ((part.images, part.labels) for part in data)
        classes = int(max(part.labels.max() for part in data)) + 1
        return Images(data.train.name, *train, *test, classes, validation)
    return data if isinstance(data, Images) else None


class Loader:
    """Re-iterable batches of normalised images (B, C, H, W) and labels (B,); in a new order each pass if `shuffle`.

    The data set is called `name`, a batch has `batch_size` of its `images`, the last one of a pass perhaps fewer.
    """

    def __init__(self, name: str, images: Tensor, labels: Tensor, batch_size: int, shuffle: bool) -> None:
        self.name, self.images, self.labels, self.batch_size, self.shuffle = name, images, labels, batch_size, shuffle

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels)) if self.shuffle else torch.arange(len(self.labels))
        for batch in order.split(self.batch_size):
            yield self.images[batch], self.labels[batch]


class Loaders(NamedTuple):
    """A data set as three loaders: `train`, in another order each pass, `validation` and `test`."""

    train: Loader
    validation: Loader
    test: Loader


def load_MNIST(folder: str | Path, batch_size: int = 60, valid_size: int = 5000, seed: int = 0) -> Loaders:
    """MNIST as loaders of training, validation and test batches.

    Args:
        folder: has `mnist.npz` or torchvision's copy of the set; where it has neither, the project's own file serves.
        batch_size: images per batch.
        valid_size: training images kept for validation, at most half of the 60000; which ones, `seed` decides.

    Raises TypeError and ValueError that name the argument (ConfigError, a ValueError, if the data cannot be read).
    """
    mnist = load("mnist", names.data_folder("mnist", checks.path("folder", folder)))
    valid_size = checks.integer("valid_size", valid_size, 1, len(mnist.train) // 2)
    batch_size = checks.integer("batch_size", batch_size, 1, len(mnist.train) - valid_size)
    train_indices, valid_indices = split(len(mnist.train), valid_size, checks.integer("seed", seed, 0))
    shift, scale = normalisation(mnist.train)
    images, test = (x.float().mul_(scale).add_(shift) for x in (mnist.train, mnist.test))
    return Loaders(
        Loader("mnist", images[train_indices], mnist.train_labels[train_indices], batch_size, shuffle=True),
        Loader("mnist", images[valid_indices], mnist.train_labels[valid_indices], batch_size, shuffle=False),
        Loader("mnist", test, mnist.test_labels, batch_size, shuffle=False),
    )


def check_sizes(images: Images, valid_size: int, batch_size: int) -> list[str]:
    """What is wrong with a validation split of `valid_size` and batches of `batch_size` for these `images`."""
    count, problems = len(images.train), list[str]()
    if images.validation is None and valid_size > count // 2:
        limit = f"at most {count // 2}, not {valid_size}"
        problems.append(Problem("valid_size", f"must leave at least half of the {count} training images: {limit}"))
    elif batch_size > count - valid_size:
        must = f"must be at most {count - valid_size}, the number of training images, not {batch_size}"
        problems.append(Problem("batch_size", must))
    return problems
