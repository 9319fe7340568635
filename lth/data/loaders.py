"""Data of the user's own: kept in memory if they fit and stay the same from pass to pass, else streamed, batch by batch
as they come."""

import itertools
import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset, SubsetRandomSampler

from lth import rng
from lth.data.images import Feed, Images, fingerprint_arrays, fingerprint_texts
from lth.data.sets import Loaders, as_images, check_sizes
from lth.settings import checks
from lth.settings.config import VALID_SIZE, usual_valid_size
from lth.settings.values import LONGEST

Batch = tuple[Tensor, Tensor]
PARTS = ("train", "validation", "test")
LABELS = ("label", "labels", "target", "targets", "y")  # what dicts call them
DATA_KINDS = "the name of a data set, an .npz file, Images, or a tuple, dict or object of train, validation and test"
SAMPLES = 64  # examples of a part that are drawn twice to see whether they change, and kept of a stream


@dataclass(frozen=True)
class Stream:
    """Data that are read from the user's loaders batch by batch.

    `parts` has them by the names in PARTS. `steps` training batches of `batch_size` make an epoch; `examples` are some
    of their examples, at least two, and `classes` the number of labels seen so far.
    """

    parts: Mapping[str, Iterable[Any]]
    steps: int
    batch_size: int
    examples: Tensor
    classes: int
    name: str = "own"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an example."""
        return tuple(self.examples.shape[1:])

    def feed(
        self, seeds: Sequence[int], valid_size: int | None, batch_size: int, device: torch.device, augment: bool = False
    ) -> Feed:
        """What one trial trains and evaluates on."""
        return StreamFeed(self, device)


Source = Images | Stream  # what trials can be fed from


class StreamFeed(Feed):
    """Feeds one trial from loaders. A batch of draws is the number of a batch in the epoch that `epoch` began."""

    capturable = False

    def __init__(self, stream: Stream, device: torch.device) -> None:
        self.stream, self.device, self.batch_size = stream, device, stream.batch_size
        self.epoch_steps = stream.steps
        self._begun: object = None
        self._batches: Iterator[Batch] = iter(())
        self._next = 0

    def epoch(self, seeds: Sequence[Sequence[object]], epoch: int) -> Tensor:
        """The numbers of the batches of one epoch, (steps,). Its random draws are decided by seeds and `epoch`."""
        if self._begun != (seeds, epoch):
            self._begun, self._batches, self._next = (seeds, epoch), self._full(rng.derive_seed(*seeds[0], epoch)), 0
        return torch.arange(self.epoch_steps)

    def _full(self, seed: int) -> Iterator[Batch]:
        """The full batches of as many passes as are needed."""
        for pass_number in itertools.count():
            batches = odd_sizes = 0
            for batch in self._draw("train", rng.derive_seed(seed, pass_number)):
                if len(batch[1]) == self.batch_size:
                    batches += 1
                    yield batch
                else:
                    odd_sizes += 1
            if not batches:
                raise ValueError(f"data.train must give batches of {self.batch_size} in each pass, as in the first one")
            if odd_sizes > 1:  # one is the last of a pass
                others = f"{odd_sizes} that do not have the {self.batch_size} examples of the first"
                message = f"data.train gives batches of several sizes: {others} are left out of a pass"
                warnings.warn(message, stacklevel=2)

    def fetch(self, batch: Tensor) -> Batch:
        """The examples and labels of a batch; those before it are skipped."""
        skipped, self._next = int(batch) - self._next, int(batch) + 1
        return next(itertools.islice(self._batches, skipped, None))

    def example(self, count: int = 2) -> Tensor:
        """Up to `count` examples that were drawn before, so that no pass is begun for them."""
        return self.stream.examples[:count].to(self.device, copy=True)

    def validation(self) -> Iterator[Batch]:
        return self._draw("validation")

    def test(self) -> Iterator[Batch]:
        return self._draw("test")

    def _draw(self, part: str, seed: int = 0) -> Iterator[Batch]:
        return one_pass(self.stream.parts[part], f"data.{part}", seed, self.device)


@dataclass(frozen=True)
class PreparedData:
    """Data ready for training."""

    source: Source
    batch_size: int | None  # of the user's batches; None if the data are not in batches
    largest_batch: int  # training examples that a batch may have
    valid_size: int  # training examples held back for validation, where the data bring no others
    description: str  # the sizes in words
    sample: Batch  # two examples to try a network on
    fingerprint: str  # tells the data from others


def prepare_data(
    data: object,
    device: torch.device,
    in_memory: bool | None = None,
    valid_size: int | None = None,
    iterations: int = LONGEST,
    batch_size: int = 60,
) -> PreparedData:
    """The data that a user handed over: the name of a data set, `Images`, or training, validation and test batches.

    A batch is (examples (B, ...), labels (B,)) or a dict of these; a map-style Dataset gives batches of `batch_size`.
    Batches are read once and kept on `device` if each part has a length, drawing some of its examples twice gives the
    same and all fit in half of the free memory; otherwise they are streamed. `in_memory` decides it instead.
    `valid_size` training examples are held back for validation where the data bring no others. A round takes
    `iterations` batches.

    Raises TypeError and ValueError that say which part of `data` is wrong.
    """
    images = as_images(data)
    if valid_size is not None and (images is None or images.validation):
        raise ValueError("valid_size must be left out: data bring validation examples of their own")
    if images is not None and not (in_memory is False and isinstance(data, Loaders)):
        return _prepare_images(images, data.train.batch_size if isinstance(data, Loaders) else None, valid_size)
    parts = {name: _as_batches(part, name == "train", batch_size) for name, part in _named_parts(data).items()}
    for name, part in parts.items():
        if not isinstance(part, Iterable) or isinstance(part, (str, bytes, Tensor, Mapping, Iterator)):
            must = "must be a DataLoader or another re-iterable of batches, which gives them again in each pass"
            raise TypeError(f"data.{name} {must}, not {checks.short_repr(part)}")
    first = {name: next(one_pass(part, f"data.{name}")) for name, part in parts.items()}
    repeatable = {name: _repeatable_fingerprint(part, f"data.{name}") for name, part in parts.items()}
    sized = all(operator.length_hint(part, -1) >= 0 for part in parts.values())
    if in_memory or (in_memory is None and sized and all(repeatable.values())):
        limit = None if in_memory else _free_memory(device) // 2
        if (prepared := _read_into_memory(parts, repeatable, limit)) is not None:
            return prepared
    return _prepare_stream(parts, first, repeatable, iterations)


def test_batches(data: Any, device: torch.device) -> Iterator[Batch]:
    """The batches, on `device`, of a loader, or of the test part of data in three parts."""
    if isinstance(data, Mapping) or hasattr(data, "test") or (isinstance(data, tuple) and len(data) == 3):
        data = _named_parts(data)["test"]
    if not isinstance(data, Iterable) or isinstance(data, (bytes, Tensor)):
        raise TypeError(f"data must be a DataLoader or other batches, or {DATA_KINDS}, not {checks.short_repr(data)}")
    return one_pass(data, "data", device=device)


def _as_batches(part: Any, shuffle: bool, batch_size: int) -> Any:
    """A loader of a map-style Dataset, whose items are (example, label) or dicts of these; anything else as it is."""
    if isinstance(part, (DataLoader, Mapping, str)) or not all(hasattr(part, x) for x in ("__getitem__", "__len__")):
        return part
    try:
        item = part[0]
        _, label = _examples_and_labels(item, "data") if isinstance(item, Mapping) else item
        single = np.ndim(label) == 0
    except (TypeError, ValueError, LookupError):
        return part
    size = checks.integer("batch_size", batch_size, 1)
    return DataLoader(part, batch_size=min(size, len(part)), shuffle=shuffle) if single else part


def _named_parts(data: Any) -> dict[str, Any]:
    """The training, validation and test part of `data`, by name."""
    if isinstance(data, (tuple, list)) and len(data) == 3 and not hasattr(data, "train"):
        data = dict(zip(PARTS, data, strict=True))
    parts = data if isinstance(data, Mapping) else {name: getattr(data, name, None) for name in PARTS}
    if missing := [name for name in PARTS if parts.get(name) is None]:
        raise TypeError(f"data must be {DATA_KINDS}, not {checks.short_repr(data)}: its {missing[0]} is missing")
    return {name: parts[name] for name in PARTS}


def _prepare_images(
    images: Images, batch_size: int | None, valid_size: int | None = None, fingerprint: str = ""
) -> PreparedData:
    count = len(images.train_labels)
    valid_count = 0 if images.validation else usual_valid_size(count) if valid_size is None else valid_size
    if problems := check_sizes(images, valid_count, 1):
        raise checks.ConfigError(*problems).named({})
    split = f"{valid_count} held back" if not images.validation else f"{len(images.validation[1])} validation"
    return PreparedData(
        source=images,
        batch_size=batch_size,
        largest_batch=count - valid_count,
        valid_size=valid_count or VALID_SIZE,
        description=f"{count} training, {split}, {len(images.test_labels)} test examples of {images.shape}",
        sample=(images.examples[:2], images.train_labels[:2]),
        fingerprint=fingerprint or images.fingerprint,
    )


def _read_into_memory(
    parts: Mapping[str, Iterable[Any]], repeatable: Mapping[str, str], limit: int | None
) -> PreparedData | None:
    """Data of which all batches are read now; None if they take more than `limit` bytes. Of parts that change, the
    fingerprint knows the shape and the labels."""
    joined, fingerprints, size = dict[str, Batch](), list[str](), 0
    first: tuple[int, ...] = ()  # the shape of the first batch of training examples
    for name, part in parts.items():
        where, ordered, batches = f"data.{name}", _sequential_loader(part), list[Batch]()
        for x, y in one_pass(part if ordered is None else ordered, where, device=torch.device("cpu")):
            batches.append((x, y))
            first = first or tuple(x.shape)
            if x.shape[1:] != first[1:]:
                raise ValueError(f"{where} must give examples of one shape, {first[1:]}, not {tuple(x.shape[1:])}")
            size += x.nbytes + y.nbytes
            if limit is not None and 2 * size > limit:  # joining them needs as much again
                return None
        next(one_pass(part, where))  # there must be a second pass
        x, y = joined[name] = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
        fingerprints.append(
            fingerprint_arrays((x, y)) if repeatable[name] else f"{tuple(x.shape)} {y.bincount().tolist()}"
        )
    classes = int(max(y.max() for _, y in joined.values())) + 1
    images = Images("own", *joined["train"], *joined["test"], classes, joined["validation"], as_is=True)
    return _prepare_images(images, first[0], fingerprint=fingerprint_texts(fingerprints))


def _prepare_stream(
    parts: Mapping[str, Iterable[Any]], first: Mapping[str, Batch], repeatable: Mapping[str, str], iterations: int
) -> PreparedData:
    (x, y), train = first["train"], parts["train"]
    size = len(y)
    count = operator.length_hint(train.sampler) if isinstance(train, DataLoader) and train.batch_size else 0
    if not (steps := count // size or operator.length_hint(train)):  # of full batches, where that is known
        steps = sum(len(y) == size for _, y in itertools.islice(one_pass(train, "data.train"), iterations))
    description = f"{steps} training batches of {size} examples of {tuple(x.shape[1:])}, streamed"
    examples = x[:SAMPLES].cpu().clone() if len(x) > 1 else torch.cat([x, x])
    return PreparedData(
        source=Stream(parts, steps, size, examples, classes=int(max(labels.max() for _, labels in first.values())) + 1),
        batch_size=size,
        largest_batch=size,
        valid_size=VALID_SIZE,
        description=description,
        sample=(x[:2], y[:2]),
        fingerprint=fingerprint_texts([description, *(found or "at random" for found in repeatable.values())]),
    )


def _free_memory(device: torch.device) -> int:
    """Bytes of memory that are free, on the device and here (where everything passes through)."""
    here = int(psutil.virtual_memory().available)
    return min(here, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else here


def _sequential_loader(loader: Iterable[Any]) -> DataLoader[Any] | None:
    """A DataLoader of the same examples, each once and in a fixed order; None where they cannot be had so."""
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__ or not loader.batch_size:
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


def _repeatable_fingerprint(loader: Iterable[Any], where: str) -> str:
    """A fingerprint of the first batch or, of a DataLoader, of examples from all over its data set, since one class
    alone may be augmented; "" if they are others when they are drawn again."""
    ordered = _sequential_loader(loader)
    if ordered is not None:
        last = len(ordered.sampler) - 1  # type: ignore[arg-type]
        places = sorted({last * i // (SAMPLES - 1) for i in range(SAMPLES)})
        loader = DataLoader(Subset(ordered.dataset, places), batch_size=SAMPLES, collate_fn=ordered.collate_fn)
    first, second = (fingerprint_arrays(next(one_pass(loader, where, seed))) for seed in (0, 1))
    return first if first == second else ""


def one_pass(loader: Iterable[Any], where: str, seed: int = 0, device: torch.device | None = None) -> Iterator[Batch]:
    """The checked batches of one pass, at least one, on `device`. What the loader draws at random is decided by `seed`,
    and no draws elsewhere are disturbed."""
    random_state = nullcontext if type(loader) in (list, tuple) else rng.Generators(seed).active
    batches: Iterator[Any] | None = None
    for number in itertools.count():
        try:
            with random_state():
                batches = iter(loader) if batches is None else batches
                batch = next(batches)
        except StopIteration:
            if not number:
                raise ValueError(f"{where} must give its batches again in each pass, but gave none") from None
            return
        except Exception as error:
            raise RuntimeError(f"{where} failed with {checks.error_with_type(error)}") from error
        x, y = _check_batch(batch, where)
        yield x.to(device), y.to(device)


def _check_batch(batch: Any, where: str) -> Batch:
    """Examples (B, ...) and labels (B,) of a batch, which may be a dict of these."""
    if isinstance(batch, Mapping):
        batch = _examples_and_labels(batch, where)
    parts = batch if isinstance(batch, (tuple, list)) else ()
    tensors = [torch.as_tensor(part) for part in parts if isinstance(part, (Tensor, np.ndarray, list))]
    if not len(parts) == len(tensors) == 2:
        raise TypeError(f"{where} must give batches (examples, labels) of two tensors, not {checks.short_repr(batch)}")
    x, y = tensors
    if x.ndim < 1 or y.ndim != 1 or len(x) != len(y) or not len(y):
        shapes = f"{tuple(x.shape)} with {tuple(y.shape)}"
        raise ValueError(f"{where} must give examples (B, ...) with one label each (B,), not {shapes}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or int(y.min()) < 0:
        raise ValueError(f"{where} must give labels 0, 1, ... as whole numbers, not {y.dtype} from {y.min().item()}")
    return x.detach(), y.detach().long()


def _examples_and_labels(batch: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    """The examples and the labels in a dict with one entry for each, the labels under one of LABELS."""
    labels, others = [key for key in batch if key in LABELS], [key for key in batch if key not in LABELS]
    if len(labels) != 1 or len(others) != 1:
        must = f"dicts with the labels under one of {', '.join(LABELS)}, and the examples under another key"
        raise ValueError(f"{where} must give (examples, labels), or {must}, not {', '.join(map(str, batch))}")
    return batch[others[0]], batch[labels[0]]
