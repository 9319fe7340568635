"""The names of models and data sets, in their canonical spelling, without loading any of them.

Files under archs/ are parsed, not run, so that a mistyped name is reported before PyTorch is imported.
"""

import ast
import contextlib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lth.settings.checks import Problem, did_you_mean
from lth.settings.config import PROJECT

# Where model files are: archs/ in the current folder, then the project's.
ARCHS = list(dict.fromkeys([Path("archs").resolve(), (PROJECT / "archs").resolve()]))


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set of torchvision: the name of its class, the number of labels, the shape of the images, (C, H, W) or
    (C,) if --image_size decides the rest, the arguments for the training and the test half, and whether mirrored images
    keep their meaning."""

    class_name: str
    classes: int
    shape: tuple[int, ...]
    halves: tuple[dict[str, Any], dict[str, Any]] = field(default=({"train": True}, {"train": False}))
    mirrors: bool = False


def _split(train: str = "train", test: str = "test") -> tuple[dict[str, Any], dict[str, Any]]:
    return {"split": train}, {"split": test}


ARRAYS = ("x_train", "y_train", "x_test", "y_test")  # in the .npz file of a data set, as in Keras
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
FALLBACKS = {1: "mnist", 3: "cifar10"}  # by number of channels: models for data sets without their own


def canonical_dataset(name: str) -> str:
    """The name of a data set in its canonical spelling; `name` itself if the set is not known."""
    known = [*TORCHVISION, *_folders_in_archs()]
    return name if name in known else next((other for other in known if other.lower() == name.lower()), name)


def picture_folder(dataset: str, data: Path) -> Path | None:
    """The folder `<data>/<dataset>/` if it has pictures in `train/<class>/` and there is no .npz file of that name."""
    folder = data / dataset
    others = dataset in TORCHVISION or npz_file(data, dataset).exists()
    return folder if (folder / "train").is_dir() and not others else None


def canonical_model(name: str, dataset: str, data: Path | None = None) -> str:
    """The name of a model in the spelling of its file or of its definition; `name` itself if there is no such model."""
    file = _find(name, dataset, data)
    return spelling(file, name) if file else name


def name_problems(arch_type: str, dataset: str, data: Path | None = None) -> list[str]:
    """Problems with the names of a model and of a data set. `data` is the folder of the data sets."""
    if model_names(dataset, data):
        return [] if _find(arch_type, dataset, data) else [no_such_model(arch_type, dataset, data)]
    if data and (file := npz_file(data, dataset)).is_file():
        if not (shape := image_shape(dataset, data)):
            return [f"{file} must be an .npz file with the arrays {', '.join(ARRAYS)}"]
        expected = f"must have models in archs/{dataset}/, or images of one or three channels"
        return [Problem("dataset", f"{expected}: {file} has images of {_shape_text(shape)}")]
    choices = dict.fromkeys(name for name in (*TORCHVISION, *_folders_in_archs()) if model_names(name))
    expected = (
        f"must be one of {', '.join(choices)}, or have models in archs/{dataset}/, or be the name of a file "
        f"<data>/{dataset}.npz or of a folder of pictures <data>/{dataset}/train/<class>/, not {dataset!r}"
    )
    return [Problem("dataset", expected + did_you_mean(dataset, choices))]


def no_such_model(arch_type: str, dataset: str, data: Path | None = None) -> Problem:
    """The problem that the data set has no model of this name."""
    choices = model_names(dataset, data)
    expected = f"must be a model of archs/{archs_folders(dataset, data)[0].name}/, one of {', '.join(choices)}"
    return Problem("arch_type", f"{expected}, not {arch_type!r}{did_you_mean(arch_type, choices)}")


def model_names(dataset: str, data: Path | None = None) -> list[str]:
    """The names of the models for a data set."""
    return sorted({file.stem for file in _files_for(dataset, data)}, key=str.lower)


def archs_folders(dataset: str, data: Path | None = None, image: tuple[int, ...] = ()) -> list[Path]:
    """The folders under archs/ with models for a data set: its own, then the fallback for its number of channels, which
    is read from the shape `image` (C, H, W) or, by default, found as in `image_shape`."""
    own = canonical_dataset(dataset)
    channels = (image or image_shape(own, data))[:1]
    names = dict.fromkeys([own, *(FALLBACKS[count] for count in channels if count in FALLBACKS)])
    return [archs / name for name in names for archs in ARCHS if (archs / name).is_dir()]


def fallback_note(arch_type: str, dataset: str, data: Path | None = None) -> str:
    """A sentence if the model was made for another data set; else ""."""
    file = _find(arch_type, dataset, data)
    if file is None or file.parent.name == canonical_dataset(dataset):
        return ""
    shape = _shape_text(image_shape(dataset, data))
    return f"{dataset} has images of {shape} and uses the model of archs/{file.parent.name}/"


def image_shape(dataset: str, data: Path | None = None) -> tuple[int, ...]:
    """The shape (C, H, W) of the images of a data set of torchvision or in `<data>/<dataset>.npz`; (3,) for a folder of
    pictures, () if it is not known."""
    dataset = canonical_dataset(dataset)
    if dataset in TORCHVISION:
        return TORCHVISION[dataset].shape
    if data and picture_folder(dataset, data):
        return (3,)
    shape = npz_shape(npz_file(data, dataset)) if data else ()
    if len(shape) == 4:
        return tuple(shape[1:]) if channels_first(shape) else (shape[3], *shape[1:3])
    return (1, *shape[1:]) if len(shape) == 3 else ()


def npz_shape(file: Path) -> tuple[int, ...]:
    """The shape of the training images in an .npz file, read from its header; () if it cannot be read."""
    from numpy.lib import format

    try:
        with zipfile.ZipFile(file) as arrays, arrays.open("x_train.npy") as array:
            format.read_magic(array)
            return format.read_array_header_1_0(array)[0]
    except Exception:  # zipfile, zlib, tokenize and NumPy raise a dozen types of error for a damaged file
        return ()


def _shape_text(shape: tuple[int, ...]) -> str:
    """`28x28x1` for (1, 28, 28), `3 channels` for (3,)."""
    return "x".join(map(str, (*shape[1:], shape[0]))) if len(shape) > 1 else f"{shape[0]} channels"


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether a shape is (N, C, H, W) and not (N, H, W, C): the second size is 1 or 3, or at most 4 and the last one
    larger, or else the images are square only in this order."""
    _, second, third, last = shape
    return last not in (1, 3) and (second in (1, 3) or second <= 4 < last or second != third == last)


def npz_file(folder: Path, dataset: str, image_size: int | None = None) -> Path:
    """The file `<folder>/<dataset>.npz` or, with an --image_size, `<folder>/<dataset>-<image_size>.npz`; a file whose
    name differs only in case is found too."""
    exact = folder / (f"{dataset}-{image_size}.npz" if image_size else f"{dataset}.npz")
    if exact.exists() or not folder.is_dir():
        return exact
    return next((other for other in sorted(folder.glob("*.npz")) if other.name.lower() == exact.name.lower()), exact)


def data_folder(name: str, folder: Path) -> Path:
    """`folder`, or the project's data folder if only that has the data set `name`."""
    copy = TORCHVISION[name].class_name if name in TORCHVISION else name  # the folder of torchvision's copy
    has_dataset = npz_file(folder, name).exists() or (folder / copy).is_dir()
    return PROJECT / "data" if npz_file(PROJECT / "data", name).exists() and not has_dataset else folder


def model_files(folder: Path) -> list[Path]:
    """The model files of a folder."""
    return sorted(file for file in folder.glob("*.py") if not file.stem.startswith("_") and file.is_file())


def _files_for(dataset: str, data: Path | None) -> list[Path]:
    return [file for folder in archs_folders(dataset, data) for file in model_files(folder)]


def _find(arch_type: str, dataset: str, data: Path | None) -> Path | None:
    """The file of a model for a data set."""
    return next((file for file in _files_for(dataset, data) if spelling(file, arch_type)), None)


def spelling(file: Path, arch_type: str) -> str:
    """The name of a model file, or of a function or class in it, that equals `arch_type` ignoring case; "" if there is
    none. The file is not run."""
    names = list[str]()
    with contextlib.suppress(OSError, SyntaxError, ValueError):  # reported when the file is loaded
        tree = ast.parse(file.read_bytes())
        names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    if len({name for name in names if name.lower() == arch_type.lower()}) > 1:  # they differ only in case
        return arch_type
    return next((name for name in (file.stem, *names) if name.lower() == arch_type.lower()), "")


def _folders_in_archs() -> list[str]:
    folders = [folder for archs in ARCHS if archs.is_dir() for folder in archs.iterdir()]
    return [folder.name for folder in sorted(folders) if folder.is_dir() and not folder.name.startswith("_")]
