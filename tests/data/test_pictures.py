"""Pictures: in folders, torchvision's sets of several sizes, and other libraries' data sets as .npz files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import settings
from PIL import Image
from torchvision import datasets, transforms

import lth
from lth import data
from lth.commands import session
from lth.settings.config import ConfigError

RED, BLUE = (250, 0, 0), (0, 0, 250)


def flowers(folder: Path, test: str = "test", size: tuple[int, int] = (20, 12)) -> Path:
    """Pictures in classes that their colour tells, some higher, some wider."""
    for half, count in (("train", 30), (test, 6)):
        for kind, colour in (("rose", RED), ("violet", BLUE)):
            (folder / half / kind).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", size if i % 2 else size[::-1], colour).save(folder / half / kind / f"{i}.png")
    return folder


def test_a_folder_of_pictures_is_a_data_set(place: Path) -> None:
    flowers(place / "data" / "flowers", "val")
    images = data.load("flowers", place / "data", image_size=8)
    assert images.train.shape == (60, 3, 8, 8) and images.test.shape == (12, 3, 8, 8) and images.classes == 2
    assert {tuple(x[:, 4, 4].tolist()) for x in images.train[images.train_labels == 1]} == {BLUE}
    assert data.training_count("flowers", place / "data") == 60


def test_a_run_learns_from_pictures_and_continues_only_with_the_same_ones(place: Path) -> None:
    folder = flowers(place / "data" / "flowers")
    shutil.copytree(place / "archs" / "tiny", place / "archs" / "cifar10")  # where models for three channels are
    colours = "from torch import nn\n\n\ndef colours():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))\n"
    (place / "archs" / "cifar10" / "colours.py").write_text(colours)
    asked = {"dataset": "flowers", "arch_type": "colours", "image_size": 8, "valid_size": None, "lr": 0.01}
    (run,) = session.run(settings(place, **asked, prune_iterations=1, end_iter="12it"))
    assert "image_size=8" in run.settings and lth.results(place)["test"].iloc[0] == 100
    session.run(settings(place, **asked, prune_iterations=1, end_iter="12it"))
    Image.new("RGB", (12, 12), RED).save(folder / "train" / "violet" / "0.png")
    with pytest.raises(ConfigError, match="the data have changed since"):
        session.run(settings(place, **asked, prune_iterations=1, end_iter="12it"))


def test_folders_that_are_no_data_set_are_refused_in_a_sentence(place: Path) -> None:
    folder = flowers(place / "data" / "flowers")
    with pytest.raises(ConfigError, match=r"^--image_size must be given where pictures differ in size .*: \d+x\d+x3"):
        data.load("flowers", place / "data")
    with pytest.raises(ConfigError, match=r"^--image_size is for pictures of several sizes, and tiny has images"):
        data.load("tiny", place / "data", image_size=8)
    (folder / "test" / "rose").rename(folder / "test" / "tulip")
    with pytest.raises(ConfigError, match="must have folders of the same classes; rose, tulip differ"):
        data.load("flowers", place / "data", image_size=8)
    (folder / "train" / "rose" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"is no data set of pictures \(cannot identify image file"):
        data.load("flowers", place / "data", image_size=8)


def test_sets_of_torchvision_with_pictures_are_kept_in_each_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flowers:
        def __init__(self, root: str, split: str, download: bool) -> None:
            self.count = {"train": 110, "test": 5}[split]
            if not download:
                raise RuntimeError("not found")

        def __len__(self) -> int:
            return self.count

        def __getitem__(self, i: int) -> tuple[Any, int]:
            return Image.new("RGB", (20 + i % 3, 30), (i, 0, 0)), i % 102

    monkeypatch.setattr(datasets, "Flowers102", Flowers)
    images = data.load("Flowers102", tmp_path, image_size=8)
    assert images.train.shape == (110, 3, 8, 8) and images.classes == 102 and images.train[7, 0, 0, 0] == 7
    assert [file.name for file in tmp_path.iterdir()] == ["flowers102-8.npz"]
    assert data.training_count("flowers102", tmp_path, 8) == 110
    with pytest.raises(ConfigError, match="--image_size must be given"):
        data.load("Flowers102", tmp_path)


class Listed:
    """A map-style Dataset of these items."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def test_data_sets_of_other_libraries_become_files(tmp_path: Path) -> None:
    grey = np.arange(6 * 9, dtype=np.uint8).reshape(6, 3, 3)
    as_dicts = Listed([{"img": Image.fromarray(x), "label": i % 3, "id": 7} for i, x in enumerate(grey)])
    as_pairs = Listed([(transforms.functional.to_tensor(x), torch.tensor(i % 3)) for i, x in enumerate(grey)])
    for name, dataset in (("dicts", {"train": as_dicts, "test": as_dicts}), ("pairs", (as_pairs, as_pairs))):
        file = lth.data.to_npz(dataset, tmp_path / f"{name}.npz", columns=("img", "label"))
        images = lth.data.read(file)
        assert images.train.squeeze(1).equal(torch.from_numpy(grey)) and images.test_labels.tolist() == [0, 1, 2] * 2
    for bad, path, error in (
        (as_pairs, "x.npz", TypeError),
        ((as_pairs, as_dicts), "x.npz", ValueError),  # columns are not named
        ((as_pairs, as_pairs), "x.csv", ValueError),
        ((as_pairs, Listed([(grey[0], 5)])), "x.npz", ConfigError),
    ):
        with pytest.raises(error, match=r"^(dataset|columns|path|.*y_test) must"):
            lth.data.to_npz(bad, tmp_path / path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dicts.npz", "pairs.npz"]
