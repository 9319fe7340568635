"""Data of the user's own: kept in memory if they fit and stay the same from pass to pass, streamed otherwise."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset, SubsetRandomSampler

from lth.data.images import Images, of_arrays, of_texts
from lth.data.sets import Loaders, as_images, check_sizes
from lth.data.stream import Batch, Source, Stream, draw, has_length, pair_of
from lth.settings.checks import shown
from lth.settings.config import VALID_SIZE, ConfigError, usual_valid_size
from lth.settings.values import LONGEST

PARTS = ("train", "validation", "test")
EXPECTED = (
    "the name of a data set, an .npz file, lth.data.Images, or train, validation and test (a named tuple, a tuple of "
    "three, a dict or an object with these attributes) of re-iterable batches"
)
SAMPLES = 64  # examples of a part that are drawn twice to see whether they change, and kept of a stream


@dataclass(frozen=True)
class Taken:
    """Data ready for training."""

    source: Source  # of what trials train on
    name: str
    batch_size: int | None  # that of the data, if they are in batches
    largest_batch: int  # training examples that a batch may have
    valid_size: int  # training examples held back for validation, where the data bring no others
    about: str  # the sizes in words
    sample: Batch  # two examples to try a network on
    classes: int  # among the examples seen so far, if they are streamed
    fingerprint: str  # tells the data from others


def take(
    given: object,
    device: torch.device,
    in_memory: bool | None = None,
    valid_size: int | None = None,
    iterations: int = LONGEST,
    batch_size: int = 60,
) -> Taken:
    """The data that a user handed over: the name of a data set, `Images`, or training, validation and test batches.

    A batch is (examples (B, ...), labels (B,)) or a dict of these; a map-style Dataset gives batches of `batch_size`.
    Batches are read once and kept on `device` if each part has a length, drawing some of its examples twice gives the
    same and all fit in half of the free memory; otherwise they are streamed. `in_memory` decides it instead.
    `valid_size` training examples are held back for validation where the data bring no others. A round takes
    `iterations` batches.

    Raises TypeError and ValueError that say which part of `data` is wrong.
    """
    images = as_images(given)
    if valid_size is not None and (images is None or images.validation):
        raise ValueError("valid_size must be left out: data bring validation examples of their own")
    if images is not None and not (in_memory is False and isinstance(given, Loaders)):
        return _of_images(images, given.train.batch_size if isinstance(given, Loaders) else None, valid_size)
    parts = {name: _in_batches(part, name == "train", batch_size) for name, part in _three(given).items()}
    for name, part in parts.items():
        if not isinstance(part, Iterable) or isinstance(part, (str, bytes, Tensor, Mapping)):
            raise TypeError(f"data.{name} must be a DataLoader or another re-iterable of batches, not {shown(part)}")
        if isinstance(part, Iterator):
            raise TypeError(f"data.{name} must give its batches again in each pass, as a list does, not {shown(part)}")
    first = {name: _first(part, f"data.{name}") for name, part in parts.items()}
    steady = {name: _drawn_twice(part, f"data.{name}") for name, part in parts.items()}
    if in_memory or (in_memory is None and all(steady.values()) and all(map(has_length, parts.values()))):
        kept = _read_all(parts, None if in_memory else _free(device) // 2)
        if kept is not None:
            return _of_batches(kept, steady)
    return _streamed(parts, first, steady, iterations)


def test_batches(given: Any, device: torch.device) -> Iterator[Batch]:
    """The batches, on `device`, of a loader, or of the test part of data in three parts."""
    pair = isinstance(given, (tuple, list)) and given and isinstance(given[0], (tuple, list)) and len(given[0]) == 2
    in_batches = pair and isinstance(given[0][0], (Tensor, np.ndarray))
    if isinstance(given, Mapping) or hasattr(given, "test") or (isinstance(given, (tuple, list)) and not in_batches):
        given = _three(given)["test"]
    if not isinstance(given, Iterable) or isinstance(given, (bytes, Tensor)):
        raise TypeError(f"data must be a DataLoader or other batches, or {EXPECTED}, not {shown(given)}")
    return ((x.to(device), y.to(device)) for x, y in draw(given, "data"))


def _in_batches(part: Any, shuffle: bool, batch_size: int) -> Any:
    """A loader of a map-style Dataset, whose items are (example, label) or dicts of these; anything else as it is."""
    if isinstance(part, (DataLoader, Mapping, str)) or not all(hasattr(part, x) for x in ("__getitem__", "__len__")):
        return part
    try:
        item = part[0]
        _, label = pair_of(item, "data") if isinstance(item, Mapping) else item
        single = np.ndim(label) == 0
    except (TypeError, ValueError, LookupError):
        return part
    size = batch_size if isinstance(batch_size, int) and batch_size > 0 else 60  # else the settings are refused later
    return DataLoader(part, batch_size=min(size, len(part)), shuffle=shuffle) if single else part


def _three(given: Any) -> dict[str, Any]:
    """The training, validation and test part of `given`."""
    if isinstance(given, Mapping):
        found = {name: given.get(name) for name in PARTS}
    elif all(hasattr(given, name) for name in PARTS):
        found = {name: getattr(given, name) for name in PARTS}
    elif isinstance(given, (tuple, list)) and len(given) == 3:
        found = dict(zip(PARTS, given, strict=True))
    else:
        raise TypeError(f"data must be {EXPECTED}, not {shown(given)}")
    if missing := next((name for name, part in found.items() if part is None), None):
        raise TypeError(f"data must be {EXPECTED}; its {missing} is missing")
    return found


def _of_images(images: Images, batch_size: int | None, valid_size: int | None = None, fingerprint: str = "") -> Taken:
    count = len(images.train_labels)
    held = 0 if images.validation else usual_valid_size(count) if valid_size is None else valid_size
    if problems := check_sizes(images, held, 1):
        raise ConfigError(*problems).named({})
    split = f"{held} held back" if not images.validation else f"{len(images.validation[1])} validation"
    x = images.train[:2] if images.as_is else images.train[:2].float()
    return Taken(
        source=images,
        name=images.name,
        batch_size=batch_size,
        largest_batch=count - held,
        valid_size=held or VALID_SIZE,
        about=f"{count} training, {split}, {len(images.test_labels)} test examples of {images.shape}",
        sample=(x, images.train_labels[:2]),
        classes=images.classes,
        fingerprint=fingerprint or images.fingerprint,
    )


def _of_batches(kept: Mapping[str, list[Batch]], steady: Mapping[str, str]) -> Taken:
    """Data of which all batches were read; of parts that change, the fingerprint knows the shape and the labels."""
    wholes = {name: (torch.cat([x for x, _ in part]), torch.cat([y for _, y in part])) for name, part in kept.items()}
    prints = [
        of_arrays((x, y)) if steady[name] else f"{tuple(x.shape)} {y.bincount().tolist()}"
        for name, (x, y) in wholes.items()
    ]
    classes = int(max(y.max() for _, y in wholes.values())) + 1
    usual = Counter(len(y) for _, y in kept["train"]).most_common(1)[0][0]
    images = Images("own", *wholes["train"], *wholes["test"], classes, wholes["validation"], as_is=True)
    return _of_images(images, usual, fingerprint=of_texts(prints))


def _streamed(
    parts: Mapping[str, Iterable[Any]], first: Mapping[str, Batch], steady: Mapping[str, str], iterations: int
) -> Taken:
    x, y = first["train"]
    ordered = _in_order(parts["train"])
    if ordered is not None:
        size, total = len(y), len(ordered.dataset)  # type: ignore[arg-type]
        steps, counted = total // size, f"{total} training examples"
    else:
        size, steps = _usual_batches(parts["train"], iterations)
        counted = f"{steps} training batches of {size}"
    about = f"{counted} of {tuple(x.shape[1:])}, streamed"
    some = x[:SAMPLES].clone() if len(x) > 1 else torch.cat([x, x])
    return Taken(
        source=Stream(parts["train"], parts["validation"], parts["test"], steps, size, some),
        name="own",
        batch_size=size,
        largest_batch=size,
        valid_size=VALID_SIZE,
        about=about,
        sample=(x[:2], y[:2]),
        classes=int(max(labels.max() for _, labels in first.values())) + 1,
        fingerprint=of_texts([about, *(found or "at random" for found in steady.values())]),
    )


def _free(device: torch.device) -> int:
    """Bytes of memory that are free, on the device and here (where everything passes through)."""
    here = int(psutil.virtual_memory().available)
    return min(here, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else here


def _first(loader: Iterable[Any], where: str, seed: int = 0) -> Batch:
    return next(draw(loader, where, seed))


def _in_order(loader: Iterable[Any]) -> DataLoader[Any] | None:
    """A DataLoader of the same examples, each once and in a fixed order; None where they cannot be had so."""
    if (
        not isinstance(loader, DataLoader)
        or type(loader).__iter__ is not DataLoader.__iter__
        or isinstance(loader.dataset, IterableDataset)
        or loader.batch_size is None
    ):
        return None
    sampler, dataset = loader.sampler, loader.dataset
    if type(sampler) is SequentialSampler:
        return loader
    if type(sampler) is SubsetRandomSampler:
        dataset = Subset(dataset, sorted(int(i) for i in sampler.indices))
    elif type(sampler) is not RandomSampler or sampler.replacement or len(sampler) != len(dataset):  # type: ignore[arg-type]
        return None
    options = {name: getattr(loader, name) for name in ("batch_size", "num_workers", "collate_fn", "worker_init_fn")}
    return DataLoader(dataset, **options)


def _drawn_twice(loader: Iterable[Any], where: str) -> str:
    """A fingerprint of some examples; "" if they are others when they are drawn again, as with random augmentation.

    They are spread over the data set of a DataLoader, since one class alone may be augmented; of anything else, they
    are the first batch.
    """
    ordered = _in_order(loader)
    if ordered is not None:
        last = len(ordered.sampler) - 1  # type: ignore[arg-type]
        places = sorted({last * i // (SAMPLES - 1) for i in range(SAMPLES)})
        loader = DataLoader(Subset(ordered.dataset, places), batch_size=SAMPLES, collate_fn=ordered.collate_fn)
    one, again = (of_arrays(_first(loader, where, seed)) for seed in (0, 1))
    return one if one == again else ""


def _read_all(parts: Mapping[str, Iterable[Any]], limit: int | None) -> dict[str, list[Batch]] | None:
    """All batches of each part; None if they take more than `limit` bytes."""
    kept: dict[str, list[Batch]] = {name: [] for name in parts}
    size = 0
    for name, part in parts.items():
        where, ordered, batches = f"data.{name}", _in_order(part), kept[name]
        for x, y in draw(part if ordered is None else ordered, where, endless=False):
            batches.append((x.cpu(), y.cpu()))
            if x.shape[1:] != (shape := kept["train"][0][0].shape[1:]):
                raise ValueError(f"{where} must give examples of one shape, {tuple(shape)}, not {tuple(x.shape[1:])}")
            size += x.nbytes + y.nbytes
            if limit is not None and 2 * size > limit:  # joining them needs as much again
                return None
        _first(part, where)  # there must be a second pass
    return kept


def _usual_batches(train: Iterable[Any], iterations: int) -> tuple[int, int]:
    """The commonest size of the training batches, and how many of them a pass has: up to `iterations`, since a round
    takes no more. Warns if others are left out, but for one of a pass, which usually is its last: every step must take
    as many examples."""
    sizes: Counter[int] = Counter()
    for _, y in draw(train, "data.train"):
        sizes[len(y)] += 1
        if sizes[len(y)] == iterations:
            break
    usual = sizes.most_common(1)[0][0]
    if (others := sizes.total() - sizes[usual]) > 1:
        warnings.warn(
            f"data.train gives batches of several sizes, and only those of {usual} examples are used when streamed: "
            f"{others} of the first {sizes.total()} are left out",
            stacklevel=2,
        )
    return usual, sizes[usual]
