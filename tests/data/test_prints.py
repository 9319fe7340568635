"""Fingerprints of data: equal for equal arrays."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import make_images
from torch import Tensor

from lth.data import prints
from lth.data.loaders import take


class Randomly:
    """Batches of the same examples in another order every time, or of others."""

    def __init__(self, x: Tensor, y: Tensor, noise: float = 0.0) -> None:
        self.x, self.y, self.noise = x, y, noise

    def __iter__(self) -> Any:
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(time.monotonic_ns() % 2**40))
        for part in order.split(10):
            yield self.x[part] + self.noise * torch.rand(1), self.y[part]


def test_data_are_told_apart_by_their_arrays() -> None:
    images = make_images()
    same = make_images()
    assert images.fingerprint == same.fingerprint
    for name in ("train", "train_labels", "test", "test_labels"):
        other = make_images()
        getattr(other, name).view(-1)[5] += 1
        assert other.fingerprint != images.fingerprint
    x, y = images.train.float(), images.train_labels
    rest = {"validation": [(x[:10], y[:10])], "test": [(x[:10], y[:10])]}

    def of(train: Any, **options: Any) -> str:
        return take({"train": train, **rest}, torch.device("cpu"), **options).fingerprint

    changed = x.clone()
    changed[7] = 0
    assert of(Randomly(x, y)) == of(Randomly(x, y)) != of(Randomly(changed, y)), "the order of reading counts"
    assert of(Randomly(x, y, 1.0), in_memory=True) == of(Randomly(x, y, 1.0), in_memory=True)
    assert of([(x, y)]) == of([(x, y)]) != of([(x.flip(0), y.flip(0))]), "in a list the order is the data's"
    assert of([(x, y)], in_memory=False) == of([(x, y)], in_memory=False) != of([(changed, y)], in_memory=False)
    assert of(Randomly(x, y, 1.0), in_memory=False) == of(Randomly(x, y, 1.0), in_memory=False)


def test_the_check_sums_of_a_file_tell_its_content(tmp_path: Path) -> None:
    for number, content in enumerate(([1, 2], [1, 2], [1, 3])):
        np.savez_compressed(tmp_path / f"{number}.npz", x_train=np.array(content))
    same, again, other = (prints.of_file(tmp_path / f"{number}.npz") for number in range(3))
    assert same == again != other and prints.of_file(tmp_path / "none.npz") is None
