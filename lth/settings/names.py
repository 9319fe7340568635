"""The names of models and data sets: which there are, and their one spelling, found without loading any of them.

Files under archs/ are read as text here, so that a mistyped name is answered before PyTorch is loaded.
"""

from __future__ import annotations

import ast
import contextlib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lth.settings.checks import Problem, did_you_mean
from lth.settings.config import PROJECT

# Of models: archs/ where the program was started, then the project's.
ARCHS = list(dict.fromkeys([Path("archs").resolve(), (PROJECT / "archs").resolve()]))


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set of torchvision: its class there, the number of labels, the images' shape, (C, H, W) or (C,) where
    --image_size decides the rest, the arguments for its training and its test half, and whether mirrored images keep
    their meaning."""

    class_name: str
    classes: int
    shape: tuple[int, ...]
    halves: tuple[dict[str, Any], dict[str, Any]] = field(default=({"train": True}, {"train": False}))
    mirrors: bool = False


def _split(train: str = "train", test: str = "test") -> tuple[dict[str, Any], dict[str, Any]]:
    return {"split": train}, {"split": test}


ARRAYS = ("x_train", "y_train", "x_test", "y_test")  # of a data set's .npz file, as Keras names them
GREY, COLOUR, ANY = (1, 28, 28), (3, 32, 32), (3,)
TORCHVISION = {
    "mnist": TorchvisionSet("MNIST", 10, GREY),
    "fashionmnist": TorchvisionSet("FashionMNIST", 10, GREY),
    "kmnist": TorchvisionSet("KMNIST", 10, GREY),
    "qmnist": TorchvisionSet("QMNIST", 10, GREY),
    "emnist": TorchvisionSet(
        "EMNIST", 47, GREY, ({"split": "balanced", "train": True}, {"split": "balanced", "train": False})
    ),
    "cifar10": TorchvisionSet("CIFAR10", 10, COLOUR, mirrors=True),
    "cifar100": TorchvisionSet("CIFAR100", 100, COLOUR, mirrors=True),
    "svhn": TorchvisionSet("SVHN", 10, COLOUR, _split()),
    "country211": TorchvisionSet("Country211", 211, ANY, _split(), True),
    "dtd": TorchvisionSet("DTD", 47, ANY, _split(), True),
    "fgvcaircraft": TorchvisionSet("FGVCAircraft", 100, ANY, _split("trainval"), True),
    "flowers102": TorchvisionSet("Flowers102", 102, ANY, _split(), True),
    "food101": TorchvisionSet("Food101", 101, ANY, _split(), True),
    "gtsrb": TorchvisionSet("GTSRB", 43, ANY, _split()),
    "imagenette": TorchvisionSet("Imagenette", 10, ANY, _split(test="val"), True),
    "oxfordiiitpet": TorchvisionSet("OxfordIIITPet", 37, ANY, _split("trainval"), True),
    "pcam": TorchvisionSet("PCAM", 2, ANY, _split(), True),
    "renderedsst2": TorchvisionSet("RenderedSST2", 2, ANY, _split()),
    "stanfordcars": TorchvisionSet("StanfordCars", 196, ANY, _split(), True),
    "stl10": TorchvisionSet("STL10", 10, ANY, _split(), True),
}
FALLBACKS = {1: "mnist", 3: "cifar10"}  # whose models also serve others of as many channels


def canonical_dataset(name: str) -> str:
    """The one spelling of a data set's name, which may be given in any case."""
    known = [*TORCHVISION, *_folders_in_archs()]
    return name if name in known else next((one for one in known if one.lower() == name.lower()), name)


def picture_folder(dataset: str, data: Path) -> Path | None:
    """The folder `<data>/<of>/` where it holds pictures in `train/<class>/` and no .npz file goes before it."""
    folder = Path(data) / dataset
    others = dataset in TORCHVISION or npz_file(Path(data), dataset).exists()
    return folder if (folder / "train").is_dir() and not others else None


def canonical_model(name: str, dataset: str, data: Path | None = None) -> str:
    """The one spelling of the name of a model for the data set `of`: that of its file, or else of its definition."""
    found = _find(name, dataset, data)
    return spelling(found, name) if found else name


def name_problems(arch_type: str, dataset: str, data: Path | None = None) -> list[str]:
    """What is wrong with the name of a model and that of a data set. `data` is the folder of the data sets."""
    if model_names(dataset, data):
        return [] if _find(arch_type, dataset, data) else [no_such_model(arch_type, dataset, data)]
    if data and (file := npz_file(Path(data), dataset)).is_file():
        if not (size := image_shape(dataset, data)):
            return [f"{file} must be an .npz file with the arrays {', '.join(ARRAYS)}"]
        must = f"must have models in archs/{dataset}/, or images of one or three channels"
        return [Problem("dataset", f"{must}: {file} has images of {_size(size)}")]
    choices = dict.fromkeys(name for name in (*TORCHVISION, *_folders_in_archs()) if model_names(name))
    must = (
        f"must be one of {', '.join(choices)}, or have models in archs/{dataset}/, or be the name of a file "
        f"<data>/{dataset}.npz or of a folder of pictures <data>/{dataset}/train/<class>/, not {dataset!r}"
    )
    return [Problem("dataset", must + did_you_mean(dataset, choices))]


def no_such_model(arch_type: str, dataset: str, data: Path | None = None) -> Problem:
    """That there is no such model for the data set `of`."""
    choices = model_names(dataset, data)
    where = f"a model of archs/{archs_folders(dataset, data)[0].name}/, one of {', '.join(choices)}"
    return Problem("arch_type", f"must be {where}, not {arch_type!r}{did_you_mean(arch_type, choices)}")


def model_names(dataset: str, data: Path | None = None) -> list[str]:
    """The names of the models for the data set `of`."""
    return sorted({file.stem for file in _files_for(dataset, data)}, key=str.lower)


def archs_folders(dataset: str, data: Path | None = None, image: tuple[int, ...] = ()) -> list[Path]:
    """The folders under archs/ that have models for the data set `of`: its own, then the one that serves images of as
    many channels. Where their shape `image` (C, H, W) is not given and the set not known by name, they are looked for
    in the folder `data`."""
    name = canonical_dataset(dataset)
    channels = (image or image_shape(name, data))[:1]
    places = dict.fromkeys([name, *(FALLBACKS.get(count) for count in channels)])
    return [archs / one for one in places if one for archs in ARCHS if (archs / one).is_dir()]


def fallback_note(arch_type: str, dataset: str, data: Path | None = None) -> str:
    """A sentence about whose model serves the data set `of`, where it is not its own; else nothing."""
    file = _find(arch_type, dataset, data)
    if file is None or file.parent.name == canonical_dataset(dataset):
        return ""
    return (
        f"{dataset} has images of {_size(image_shape(dataset, data))} and uses the model of archs/{file.parent.name}/"
    )


def image_shape(dataset: str, data: Path | None = None) -> tuple[int, ...]:
    """The shape (C, H, W) of the images of a data set known by name, or else of `<data>/<of>.npz`; (3,) of pictures, ()
    if it is not known."""
    dataset = canonical_dataset(dataset)
    if dataset in TORCHVISION or (data and picture_folder(dataset, data)):
        return TORCHVISION[dataset].shape if dataset in TORCHVISION else (3,)
    size = npz_shape(npz_file(Path(data), dataset)) if data else ()
    if len(size) == 4:
        return tuple(size[1:]) if channels_first(size) else (size[3], *size[1:3])
    return (1, *size[1:]) if len(size) == 3 else ()


def npz_shape(file: Path) -> tuple[int, ...]:
    """The shape of the training images in an .npz file, of which only the header is read; () if it cannot be read."""
    from numpy.lib import format

    try:
        with zipfile.ZipFile(file) as arrays, arrays.open("x_train.npy") as array:
            format.read_magic(array)
            return format.read_array_header_1_0(array)[0]
    except Exception:  # zipfile, zlib, tokenize and NumPy raise a dozen kinds of it on a spoiled file
        return ()


def _size(image: tuple[int, ...]) -> str:
    if len(image) == 1:
        return f"{image[0]} channels"
    return "x".join(map(str, (*image[1:], *image[:1])))  # as people say it: 28x28x1


def channels_first(size: tuple[int, ...]) -> bool:
    """Whether images N x ? x ? x ? are N x C x H x W: with 1 or 3 channels in second place, or else up to 4 there and
    more in the last, or else square only so."""
    _, second, third, last = size
    return last not in (1, 3) and (second in (1, 3) or second <= 4 < last or second != third == last)


def npz_file(folder: Path, dataset: str, image_size: int | None = None) -> Path:
    """`<folder>/<of>.npz`, or the file there whose name differs from it in case alone. With an --image_size,
    `<of>-<image_size>.npz`."""
    exact = folder / (f"{dataset}-{image_size}.npz" if image_size else f"{dataset}.npz")
    if exact.exists() or not folder.is_dir():
        return exact
    return next((other for other in sorted(folder.glob("*.npz")) if other.name.lower() == exact.name.lower()), exact)


def data_folder(name: str, folder: Path) -> Path:
    """`folder`, or the project's data folder where only that has the data set `name`."""
    kind = TORCHVISION[name].class_name if name in TORCHVISION else name  # the folder of torchvision's copy
    here = npz_file(folder, name).exists() or (folder / kind).is_dir()
    return PROJECT / "data" if npz_file(PROJECT / "data", name).exists() and not here else folder


def model_files(folder: Path) -> list[Path]:
    """The model files of a folder."""
    return sorted(file for file in folder.glob("*.py") if not file.stem.startswith("_") and file.is_file())


def _files_for(dataset: str, data: Path | None) -> list[Path]:
    return [file for folder in archs_folders(dataset, data) for file in model_files(folder)]


def _find(arch_type: str, dataset: str, data: Path | None) -> Path | None:
    """The file of a model for the data set `of`."""
    return next((file for file in _files_for(dataset, data) if spelling(file, arch_type)), None)


def spelling(file: Path, arch_type: str) -> str:
    """How a model file, or a function or class in it, spells its name, which is `arch_type` in any case; "" if none has
    that name. The file is not run."""
    names = list[str]()
    with contextlib.suppress(OSError, SyntaxError, ValueError):  # which is reported when it is loaded
        tree = ast.parse(file.read_bytes())
        names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    if len({name for name in names if name.lower() == arch_type.lower()}) > 1:  # their case alone tells them apart
        return arch_type
    return next((name for name in (file.stem, *names) if name.lower() == arch_type.lower()), "")


def _folders_in_archs() -> list[str]:
    inside = [folder for archs in ARCHS if archs.is_dir() for folder in archs.iterdir()]
    return [folder.name for folder in sorted(inside) if folder.is_dir() and not folder.name.startswith("_")]
