"""What a loader of the user's own gives from pass to pass: in which order, and whether the same again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from lth import rng
from lth.data import prints
from lth.data.images import Loader
from lth.data.stream import Batch, checked, draw

SAMPLES = 16  # examples that are drawn twice to see whether they are random (augmented)
MAKING = ("__iter__", "_get_iterator", "_index_sampler")  # methods of DataLoader that make its batches


def first(loader: Iterable[Any], where: str, seed: int = 0) -> Batch:
    """The first batch of a pass whose random draws `seed` decides. ValueError if there is none."""
    for batch in draw(loader, where, seed):
        return batch
    raise ValueError(f"{where} must give at least one batch, but it is empty")


def in_order(loader: Iterable[Any]) -> DataLoader[Any] | None:
    """A DataLoader of the same examples, each once and in a fixed order; None where there is no knowing them, as with
    samplers of other classes, or with a class of loaders that makes its batches itself."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        return None
    if any(getattr(type(loader), name, None) is not getattr(DataLoader, name, None) for name in MAKING):
        return None
    sampler, dataset = loader.sampler, loader.dataset
    if type(sampler) is SubsetRandomSampler:
        dataset = Subset(dataset, sorted(int(i) for i in sampler.indices))
    elif type(sampler) is RandomSampler:
        if sampler.replacement or not sampler.num_samples == _length(sampler.data_source) == _length(dataset):
            return None
    elif type(sampler) is not SequentialSampler or (
        sampler.data_source is not dataset and _length(sampler.data_source) != _length(dataset)
    ):
        return None
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        drop_last=loader.drop_last and isinstance(sampler, SequentialSampler),
    )


def _length(things: Any) -> int:
    """How many there are: PyTorch does not declare that data sets and samplers can say it."""
    return len(things)


def is_ordered(loader: Iterable[Any]) -> bool:
    """Whether its examples can be had in a fixed order: a DataLoader's as above, a list's, or those of
    `lth.data`."""
    return in_order(loader) is not None or isinstance(loader, (list, tuple, Loader))


def changes(loader: Iterable[Any], where: str) -> bool:
    """Whether the data set of a DataLoader gives other examples or labels a second time, as random augmentation does;
    asked of some that are spread over it, since a class alone may be augmented."""
    ordered = in_order(loader)
    if ordered is None:
        return False
    last = _length(ordered.dataset) - 1
    places = sorted({last * i // (SAMPLES - 1) for i in range(SAMPLES)})
    try:
        return not equal(*_drawn_twice(ordered, places, where))
    except Exception:  # what is wrong with them is said when all are read
        return False


def twice(loader: Iterable[Any], where: str) -> tuple[Batch, Batch]:
    """Some examples, drawn twice: the first ones, or those of the first batch."""
    ordered = in_order(loader)
    if ordered is None:
        return first(loader, where, 0), first(loader, where, 1)
    return _drawn_twice(ordered, range(min(SAMPLES, _length(ordered.dataset))), where)


def _drawn_twice(ordered: DataLoader[Any], places: Iterable[int], where: str) -> tuple[Batch, Batch]:
    with rng.Generators(0).active():
        one, other = (checked(ordered.collate_fn([ordered.dataset[i] for i in places]), where) for _ in range(2))
    return one, other


def equal(one: Batch, other: Batch) -> bool:
    """Whether two batches have the same examples and labels."""
    return all(
        x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=0, equal_nan=x.is_floating_point() or x.is_complex())
        for x, y in zip(one, other, strict=True)
    )


def fingerprint(loader: Iterable[Any], where: str, examples: Batch, steady: bool | None) -> str:
    """What tells the examples of a part that was read into memory from others; only their labels do where they are
    drawn at random, and not their order where that is."""
    ordered = is_ordered(loader)
    if steady is None:
        steady = not changes(loader, where) and (ordered or same_again(loader, where, examples))
    if not steady:
        return f"{tuple(examples[0].shape)} {examples[1].bincount().tolist()}"
    return prints.of_arrays(examples) if ordered else prints.of_examples(*examples)


def same_again(loader: Iterable[Any], where: str, examples: Batch) -> bool:
    """Whether a second pass gives the examples of the first with their labels, in any order: compared by sums."""

    def sums(x: Tensor, y: Tensor) -> Tensor:
        weights = torch.linspace(1, 2, x[0].numel(), dtype=torch.float64)
        of_examples = x.cpu().flatten(1).double() @ weights if x.ndim > 1 else x.cpu().double()
        return of_examples + 2**0.5 * y.cpu()

    again = torch.cat([sums(x, y) for x, y in draw(loader, where, seed=1)]).sort().values
    before = torch.cat([sums(x, y) for x, y in zip(*(part.split(1000) for part in examples), strict=True)])
    before = before.sort().values
    return before.shape == again.shape and torch.allclose(before, again, rtol=1e-9, equal_nan=True)
