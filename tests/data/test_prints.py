"""Fingerprints of data: equal for equal arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers import make_images

from lth.data import prints


def test_images_differ_by_their_arrays() -> None:
    images = make_images()
    assert images.fingerprint == make_images().fingerprint
    for name in ("train", "train_labels", "test", "test_labels"):
        other = make_images()
        getattr(other, name).view(-1)[5] += 1
        assert other.fingerprint != images.fingerprint


def test_the_check_sums_of_a_file_tell_its_content(tmp_path: Path) -> None:
    for number, content in enumerate(([1, 2], [1, 2], [1, 3])):
        np.savez_compressed(tmp_path / f"{number}.npz", x_train=np.array(content))
    same, again, other = (prints.of_file(tmp_path / f"{number}.npz") for number in range(3))
    assert same == again != other and prints.of_file(tmp_path / "none.npz") is None
