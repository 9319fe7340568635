"""Batches of the user's own: what they must be, and training on them as they come, without keeping them in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lth import rng
from lth.data.images import Feed, Images
from lth.rng import derive_seed
from lth.settings.checks import said, shown

Batch = tuple[Tensor, Tensor]
LABELS = ("label", "labels", "target", "targets", "y")  # what dicts call them
ENDLESS = 2_000_000  # examples after which a pass over data without a length is taken to be endless


def checked(batch: Any, where: str) -> Batch:
    """Examples (B, ...) and labels (B,) of a batch, which may be a dict of these."""
    if isinstance(batch, Mapping):
        batch = pair_of(batch, where)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(f"{where} must give batches (examples, labels), not {shown(batch)}")
    x, y = (torch.as_tensor(part) if isinstance(part, (Tensor, np.ndarray, list)) else part for part in batch)
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise TypeError(f"{where} must give batches of tensors, not {type(x).__name__} and {type(y).__name__}")
    if x.ndim < 1 or y.ndim != 1 or len(x) != len(y) or not len(y):
        raise ValueError(
            f"{where} must give examples (B, ...) with one label each (B,), not {tuple(x.shape)} with {tuple(y.shape)}"
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or int(y.min()) < 0:
        raise ValueError(f"{where} must give labels 0, 1, ... as whole numbers, not {y.dtype} from {y.min().item()}")
    return x.detach(), y.detach().long()


def pair_of(found: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    """The examples and the labels in a dict with one entry for each, the labels under one of LABELS."""
    labels, others = [key for key in found if key in LABELS], [key for key in found if key not in LABELS]
    if len(labels) != 1 or len(others) != 1:
        must = f"dicts with the labels under one of {', '.join(LABELS)}, and the examples under another key"
        raise ValueError(f"{where} must give (examples, labels), or {must}, not {', '.join(map(str, found))}")
    return found[others[0]], found[labels[0]]


def draw(loader: Iterable[Any], where: str, seed: int = 0, endless: bool = True) -> Iterator[Batch]:
    """The checked batches of one pass, at least one. What the loader draws at random is decided by `seed`, and no draws
    elsewhere are disturbed. Unless it may be `endless`, a pass without a known length must end."""
    drawn = nullcontext if type(loader) in (list, tuple) else rng.Generators(seed).active
    batches: Iterator[Any] | None = None
    seen = 0
    while True:
        try:
            with drawn():
                batches = iter(loader) if batches is None else batches
                batch = next(batches)
        except StopIteration:
            if not seen:
                raise ValueError(f"{where} must give its batches again in each pass, but gave none") from None
            return
        except Exception as error:
            raise RuntimeError(f"{where} failed with {said(error)}") from error
        x, y = checked(batch, where)
        seen += len(y)
        if seen > ENDLESS and not endless and not has_length(loader):
            raise ValueError(f"{where} must end or have a __len__, but a pass has given {seen} examples without an end")
        yield x, y


def has_length(loader: Iterable[Any]) -> bool:
    """Whether the number of batches per pass is known."""
    try:
        return len(loader) >= 0  # type: ignore[arg-type]
    except TypeError:
        return False


@dataclass(frozen=True)
class Stream:
    """Data that are read from the user's loaders batch by batch.

    `steps` training batches of `batch_size` make a pass; `examples` are some of them, at least two.
    """

    train: Iterable[Any]
    validation: Iterable[Any]
    test: Iterable[Any]
    steps: int
    batch_size: int
    examples: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an example."""
        return tuple(self.examples.shape[1:])

    @property
    def example(self) -> Tensor:
        """An example (1, ...)."""
        return self.examples[:1].cpu().clone()

    def feed(
        self, seeds: Sequence[int], valid_size: int | None, batch_size: int, device: torch.device, augment: bool = False
    ) -> Feed:
        """What one trial trains and evaluates on."""
        return StreamFeed(self, device)


Source = Images | Stream  # what trials can be fed from


class StreamFeed(Feed):
    """Feeds one trial from loaders. A batch of draws is the number of a batch in the pass that `epoch` began."""

    capturable = False

    def __init__(self, stream: Stream, device: torch.device) -> None:
        self.stream, self.device, self.batch_size = stream, device, stream.batch_size
        self.epoch_steps = stream.steps
        self._pass: tuple[object, Iterator[Batch]] = (None, iter(()))
        self._next = 0

    def epoch(self, seeds: Sequence[Sequence[object]], epoch: int) -> Tensor:
        """The numbers of the batches of one pass, (steps,). Its random draws are decided by seeds and `epoch`."""
        if self._pass[0] != (seeds, epoch):
            self._pass = ((seeds, epoch), self._full(derive_seed(*seeds[0], epoch)))
            self._next = 0
        return torch.arange(self.epoch_steps)

    def _full(self, seed: int) -> Iterator[Batch]:
        """The full batches of as many passes as are needed."""
        for number in itertools.count():
            found = False
            for batch in draw(self.stream.train, "data.train", derive_seed(seed, number)):
                if len(batch[1]) == self.batch_size:
                    found = True
                    yield batch
            if not found:
                raise ValueError(
                    f"data.train must give its batches again in each pass, but gave none of {self.batch_size} examples"
                )

    def fetch(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The examples and labels of a batch; those before it are skipped."""
        x, y = next(itertools.islice(self._pass[1], int(batch) - self._next, None))
        self._next = int(batch) + 1
        return x.to(self.device), y.to(self.device)

    def example(self, count: int = 2) -> Tensor:
        """Up to `count` examples that were drawn before, so that no pass is begun for them."""
        return self.stream.examples[:count].to(self.device, copy=True)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation batches."""
        batches = draw(self.stream.validation, "data.validation", endless=False)
        return ((x.to(self.device), y.to(self.device)) for x, y in batches)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test batches."""
        batches = draw(self.stream.test, "data.test", endless=False)
        return ((x.to(self.device), y.to(self.device)) for x, y in batches)
