"""Data of the user's own, as anything that gives batches: taken into memory once where it fits, streamed where not."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from lth.data import passes, prints
from lth.data.images import Images, Loader, Loaders, Source, check_sizes, load, read
from lth.data.stream import Batch, Stream, draw, ended, has_length
from lth.settings import checks
from lth.settings.checks import shown
from lth.settings.config import PROJECT, VALID_SIZE, ConfigError, usual_valid_size
from lth.settings.values import LONGEST

PARTS = ("train", "validation", "test")
EXPECTED = (
    "the name of a data set, an .npz file, lth.data.Images, or train, validation and test (a named tuple, a tuple of "
    "three, a dict or an object with these attributes) of re-iterable batches"
)
FEW = 64  # examples that are kept of a stream, to try a network on
MANY_PASSES = 10  # rounds of training data that are read before they are streamed instead


@dataclass(frozen=True)
class Taken:
    """Data ready for training: where trials are fed from, the size of its batches (None if it is in none), how many
    training examples a batch may have, how many are held back for validation where there are no others, the sizes in
    words, two examples to try a network on, the number of classes (of those seen so far, if it is streamed), and what
    tells the data from others."""

    source: Source
    name: str
    batch_size: int | None
    largest_batch: int
    valid_size: int
    about: str
    sample: Batch
    classes: int
    fingerprint: str


def take(
    given: object,
    device: torch.device,
    in_memory: bool | None = None,
    valid_size: int | None = None,
    iterations: int = LONGEST,
) -> Taken:
    """The data that a user handed over: the name of a data set, `Images`, or training, validation and test batches.

    A batch is (examples (B, ...), labels (B,)). What fits in half of the free memory is read once, put on `device`
    and shuffled there; what does not, or whose examples change from pass to pass (random augmentation), is streamed.
    `in_memory` decides that instead: True reads each example once, False streams. `valid_size` is how many training
    examples are held back for validation where data bring no others, as a data set by name or file does not. A round
    takes `iterations` batches: training data without a length that are much longer, perhaps endless, are streamed.

    Raises TypeError and ValueError that say which part of `data` is wrong.
    """
    images = as_images(given)
    if images is not None and not (in_memory is False and isinstance(given, Loaders)):
        return _of_images(images, given.train.batch_size if isinstance(given, Loaders) else None, valid_size)
    if valid_size is not None:
        raise ValueError("valid_size must be left out: data bring validation examples of their own")
    parts = dict(zip(PARTS, _three(given), strict=True))
    for name, part in parts.items():
        if not isinstance(part, Iterable) or isinstance(part, (str, bytes, Tensor, Mapping)):
            raise TypeError(f"data.{name} must be a DataLoader or another re-iterable of batches, not {shown(part)}")
        if isinstance(part, Iterator):
            raise TypeError(f"data.{name} must give its batches again and again, as a DataLoader or a list does, "
                            f"not once as {shown(part)}")  # fmt: skip
    for name, part in parts.items():
        passes.first(part, f"data.{name}")  # what is wrong with it is said before all is read
    if in_memory is not False:
        limit = None if in_memory else _free(device) // 2
        collected = _all_collected(parts, limit, None if in_memory else MANY_PASSES * iterations)
        if collected is not None:
            steady = None if in_memory else True  # it has been looked at already
            wholes = {name: found.examples for name, found in collected.items()}
            told = [passes.fingerprint(part, f"data.{name}", wholes[name], steady) for name, part in parts.items()]
            return _of_tensors(wholes, collected["train"].batch_size, prints.of_texts(told))
    return _streamed(parts, iterations)


def as_images(given: object) -> Images | None:
    """The data set that a name, a file, `Images` or loaders of `lth.data` stand for; None if it is something else."""
    if isinstance(given, Images):
        return given
    if isinstance(given, (str, Path)):
        file = Path(given)
        try:
            return read(file) if file.suffix == ".npz" else load(str(given), PROJECT / "data")
        except ConfigError as error:
            raise checks.renamed(error, {"dataset": "data"}) from error.__cause__
    if isinstance(given, Loaders) and all(isinstance(part, Loader) for part in given):
        (train, y), (test, z), held = *((part.images, part.labels) for part in (given[0], given[2])), given[1]
        classes = int(max(part.labels.max() for part in given)) + 1
        scaling = (given.train.shift, given.train.scale)
        return Images(given.train.name, train, y, test, z, classes, (held.images, held.labels), scaling=scaling)
    return None


def test_batches(given: Any, device: torch.device) -> Iterator[Batch]:
    """The batches, on `device`, of a loader, or of the test part of data in three parts."""
    pair = isinstance(given, (tuple, list)) and given and isinstance(given[0], (tuple, list)) and len(given[0]) == 2
    in_batches = pair and isinstance(given[0][0], (Tensor, np.ndarray))
    if isinstance(given, Mapping) or hasattr(given, "test") or (isinstance(given, (tuple, list)) and not in_batches):
        given = _three(given)[2]
    if not isinstance(given, Iterable) or isinstance(given, (bytes, Tensor)):
        raise TypeError(f"data must be a DataLoader or other batches, or {EXPECTED}, not {shown(given)}")
    return ((x.to(device), y.to(device)) for x, y in draw(given, "data"))


def _of_images(
    images: Images, batch_size: int | None = None, valid_size: int | None = None, fingerprint: str = ""
) -> Taken:
    count = len(images.train_labels)
    if images.validation and valid_size is not None:
        raise ValueError("valid_size must be left out: data bring validation examples of their own")
    held = 0 if images.validation else usual_valid_size(count) if valid_size is None else valid_size
    if problems := check_sizes(images, held, 1):
        raise checks.renamed(ConfigError(*problems), {"valid_size": "valid_size"})
    split = f"{held} held back" if not images.validation else f"{len(images.validation[1])} validation"
    about = f"{count} training, {split}, {len(images.test_labels)} test examples of {tuple(images.train.shape[1:])}"
    x = images.train[:2] if images.as_is else images.train[:2].float()
    sample = (x, images.train_labels[:2])
    return Taken(
        source=images,
        name=images.name,
        batch_size=batch_size,
        largest_batch=count - held,
        valid_size=held or VALID_SIZE,
        about=about,
        sample=sample,
        classes=images.classes,
        fingerprint=fingerprint or images.fingerprint,
    )


def _of_tensors(parts: Mapping[str, Batch], batch_size: int, fingerprint: str) -> Taken:
    (x, y), validation, (test, z) = (parts[name] for name in PARTS)
    classes = int(max(labels.max() for _, labels in parts.values())) + 1
    for name, (examples, _) in parts.items():
        if examples.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"data.{name} must give examples of the shape {tuple(x.shape[1:])} that those of data.train have, "
                f"not {tuple(examples.shape[1:])}"
            )
    return _of_images(
        Images("own", x, y, test, z, classes, validation, as_is=True), batch_size, fingerprint=fingerprint
    )


def _three(given: Any) -> tuple[Any, Any, Any]:
    """The training, validation and test part of `given`."""
    if isinstance(given, Mapping):
        found = tuple(given.get(name) for name in PARTS)
    elif all(hasattr(given, name) for name in PARTS):
        found = tuple(getattr(given, name) for name in PARTS)
    elif isinstance(given, (tuple, list)) and len(given) == 3:
        found = tuple(given)
    else:
        raise TypeError(f"data must be {EXPECTED}, not {shown(given)}")
    for name, part in zip(PARTS, found, strict=True):
        if part is None:
            raise TypeError(f"data must be {EXPECTED}; its {name} is missing")
    return found  # type: ignore[return-value]


def _free(device: torch.device) -> int:
    """Bytes of memory that are free, on the device and here (where everything passes through)."""
    here = int(psutil.virtual_memory().available)
    return min(here, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else here


class Collected(NamedTuple):
    """All examples of a part, with their labels, and the commonest size of its batches."""

    examples: Batch
    batch_size: int


def _all_collected(
    parts: Mapping[str, Iterable[Any]], limit: int | None, most: int | None
) -> dict[str, Collected] | None:
    """All examples of each part; None if they change from pass to pass, take more than `limit` bytes, or if training
    data of unknown length have more than `most` batches."""
    collected: dict[str, Collected] = {}
    for name, part in parts.items():
        if limit is not None and passes.changes(part, f"data.{name}"):
            return None
        found = _collected(part, f"data.{name}", limit, most if name == "train" and not has_length(part) else None)
        if found is None:
            return None
        if limit is not None:
            limit -= _bytes(found.examples)
        collected[name] = found
    return collected


def _collected(loader: Iterable[Any], where: str, limit: int | None, most: int | None = None) -> Collected | None:
    ordered = passes.in_order(loader)
    batches: list[Batch] = []
    size = 0
    drawn = draw(loader if ordered is None else ordered, where)
    for batch in drawn if most is not None else ended(drawn, loader, where):  # `most` may be of data without an end
        if most is not None and len(batches) == most:
            return None
        if batches and batch[0].shape[1:] != batches[0][0].shape[1:]:
            raise ValueError(
                f"{where} must give examples of one shape, not {tuple(batches[0][0].shape[1:])} and then "
                f"{tuple(batch[0].shape[1:])}"
            )
        batches.append(batch)
        size += _bytes(batch)
        if limit is not None and 2 * size > limit:  # joining them needs as much again
            return None
    if not batches or next(draw(loader, where), None) is None:
        raise TypeError(f"{where} must give its batches again and again, as a DataLoader or a list does, not once")
    x, y = torch.cat([x.cpu() for x, _ in batches]), torch.cat([y.cpu() for _, y in batches])
    if limit is not None and not passes.is_ordered(loader) and not passes.same_again(loader, where, (x, y)):
        return None
    return Collected((x, y), _commonest(Counter(len(y) for _, y in batches)))


def _commonest(sizes: Counter[int]) -> int:
    """The commonest of some batches' sizes; the larger one of equals."""
    return max(sizes, key=lambda size: (sizes[size], size))


def _bytes(batch: Batch) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in batch)


def _usual_size(train: Iterable[Any], iterations: int) -> tuple[int, int]:
    """The commonest size of the training batches, and how many of them a pass has: up to `iterations`, since more than
    a round takes need not be known, nor that the pass ends. Warned of are others than the last of the pass, which are
    left out as that one is: every step must take as many examples."""
    sizes: list[int] = []
    found: Counter[int] = Counter()
    for _, y in draw(train, "data.train"):
        sizes.append(len(y))
        found[len(y)] += 1
        if found[len(y)] == iterations:
            break
    usual = _commonest(found)
    if left_out := [size for size in sizes[:-1] if size != usual]:
        warnings.warn(
            f"data.train gives batches of {usual} examples and others, of {left_out[0]} for one: streamed, only those "
            f"of {usual} are trained on, which leaves out {len(left_out)} of the first {len(sizes)} batches",
            stacklevel=2,
        )
    return usual, found[usual]


def _streamed(parts: Mapping[str, Iterable[Any]], iterations: int) -> Taken:
    first = {name: passes.first(part, f"data.{name}") for name, part in parts.items()}
    train = parts["train"]
    ordered = passes.in_order(train)
    if ordered is not None:
        total, size = len(ordered.dataset), len(first["train"][1])  # type: ignore[arg-type]
        steps, counted = total // size, f"{total} training examples"
    else:
        size, steps = _usual_size(train, iterations)
        counted = f"{steps} training batches of {size}"
    classes = int(max(y.max() for _, y in first.values())) + 1  # of what was seen
    x, y = first["train"]
    about = f"{counted} of {tuple(x.shape[1:])}, streamed"
    some = x[:FEW].clone() if len(x) > 1 else torch.cat([x, x])
    stream = Stream(parts["train"], parts["validation"], parts["test"], steps, size, some)
    drawn = [passes.twice(part, f"data.{name}") for name, part in parts.items()]
    told = [prints.of_arrays(one) if passes.equal(one, other) else "at random" for one, other in drawn]
    return Taken(
        source=stream,
        name="own",
        batch_size=size,
        largest_batch=size,
        valid_size=VALID_SIZE,
        about=about,
        sample=(x[:2], y[:2]),
        classes=classes,
        fingerprint=prints.of_texts([about, *told]),
    )
