"""Images: splits, the order of batches, normalisation, augmentation; data sets from files, torchvision and pictures."""

import io
import itertools
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CLASSES, CPU, Malicious, Patch, arrays, make_images, settings
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets, transforms

import lth
from lth import data
from lth.commands import session
from lth.data.images import CROP, Feed, crop_and_flip, split
from lth.data.sets import _torchvision_arrays
from lth.settings.config import ConfigError
from lth.settings.names import TORCHVISION

pytestmark = pytest.mark.versions

SEEDS = (0, 1, 2)


def make_feed(**options: Any) -> Feed:
    usual = {"seeds": SEEDS, "valid_size": 40, "batch_size": 7, "device": CPU, "augment": False}
    shape = options.pop("shape", (8, 8))
    return Feed(make_images(shape=shape), **(usual | options))


def test_each_trial_has_its_own_split_and_never_trains_on_what_is_held_back() -> None:
    made, images = make_feed(), make_images()
    parts = [split(120, 40, seed) for seed in SEEDS]
    assert len({tuple(held.tolist()) for _, held in parts}) == len(SEEDS)
    for trial, (train, held) in enumerate(parts):
        assert len(held) == 40 and sorted([*train.tolist(), *held.tolist()]) == list(range(120))
        drawn = torch.cat([made.epoch([(s, "order", 0) for s in SEEDS], epoch)[:, trial].flatten() for epoch in (0, 1)])
        assert set(drawn.tolist()) <= set(train.tolist())
        x, y = (
            torch.cat([c.unflatten(0, (len(SEEDS), -1))[trial] for c in part])
            for part in zip(*made.validation(), strict=True)
        )
        assert x.equal(made.normalise(images.train[held])) and y.equal(images.train_labels[held])


def test_an_epoch_takes_each_image_at_most_once_and_epochs_and_seeds_differ() -> None:
    made = make_feed()
    assert made.epoch_steps == 80 // 7, "the last partial batch is dropped"
    orders = {}
    for epoch, number in itertools.product(range(3), range(2)):
        draws = made.epoch([(seed, "order", number) for seed in SEEDS], epoch)
        assert draws.shape == (11, len(SEEDS), 7)
        for trial in range(len(SEEDS)):
            order = draws[:, trial].flatten().tolist()
            assert len(set(order)) == 77
            orders[epoch, number, trial] = tuple(order)
    assert len(set(orders.values())) == len(orders)
    again = make_feed(seeds=(1,)).epoch([(1, "order", 1)], 2)
    assert tuple(again.flatten().tolist()) == orders[2, 1, 1], "a trial's order depends on other trials"
    alone = make_feed(seeds=(0,), batch_size=79)
    seen = {i for epoch in range(8) for i in alone.epoch([(0, "order", 0)], epoch).flatten().tolist()}
    assert len(seen) == 80, "images left out of one epoch come in another"


def test_a_channel_that_is_constant_in_training_is_0_and_what_differs_from_it_stays_small() -> None:
    level = 37
    images = make_images(shape=(8, 8, 2))
    images.train[:, 1], images.test[:, 1] = level, abs(level - 5)
    made = Feed(images, (0,), 40, 10, CPU, augment=True)
    assert not made.normalise(images.train)[:, 1].any()
    batches = [made.fetch(batch)[0] for batch in made.epoch([(0, "order", 0)], 0)] + [x for x, _ in made.test()]
    assert all(batch[:, 1].abs().max() <= 1 for batch in batches), "the black border, and another level in the test"
    assert all(x[:, 1].any() for x, _ in made.test())


@pytest.mark.parametrize("pixels", ["standard", "unit", "norm"])
def test_scalings_are_those_of_numpy_for_training_validation_and_test(pixels: str) -> None:
    images = replace(make_images(count=200, shape=(5, 9, 2)), pixels=pixels)
    images.train[3] = 0  # a black image has no norm
    made = Feed(images, (0,), 40, 10, CPU)

    def expected(x: torch.Tensor) -> np.ndarray:
        if pixels == "standard":
            every = images.train.numpy().astype(np.float64)
            return (x.numpy() - every.mean((0, 2, 3), keepdims=True)) / every.std((0, 2, 3), keepdims=True)
        flat = x.numpy().astype(np.float64).reshape(len(x), -1) / 255
        norms = np.linalg.norm(flat, axis=1, keepdims=True) if pixels == "norm" else np.ones((len(x), 1))
        return (flat / np.where(norms == 0, 1, norms)).reshape(x.shape)

    np.testing.assert_allclose(made.normalise(images.train), expected(images.train), atol=2e-6)
    np.testing.assert_allclose(next(made.test())[0], expected(images.test), atol=2e-6)
    held = split(200, 40, 0)[1]
    np.testing.assert_allclose(next(made.validation())[0], expected(images.train[held]), atol=2e-6)


@examples(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from([(1, 8, 8), (3, 6, 9)]))
def test_crops_and_flips_are_those_of_a_loop(seed: int, shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (12, *shape), generator=generator, dtype=torch.uint8)
    down, right = torch.randint(0, 2 * CROP + 1, (2, 12), generator=generator)
    flip = torch.randint(0, 2, (12,), generator=generator)
    found = crop_and_flip(images, down, right, flip)
    for i, image in enumerate(images.numpy()):
        padded = np.pad(image, ((0, 0), (CROP, CROP), (CROP, CROP)))
        cut = padded[:, down[i] : down[i] + shape[1], right[i] : right[i] + shape[2]]
        assert np.array_equal(found[i].numpy(), cut[:, :, ::-1] if flip[i] else cut)


def test_augmentation_draws_every_shift_and_mirrors_colour_images_alone() -> None:
    for shape, mirrored in (((8, 8), {0}), ((8, 8, 3), {0, 1})):
        made = make_feed(shape=shape, augment=True, seeds=(0,))
        draws = torch.cat([made.epoch([(0, "order", 0)], epoch).flatten(0, 2) for epoch in range(20)])
        assert set(draws[:, 1].tolist()) == set(draws[:, 2].tolist()) == set(range(2 * CROP + 1))
        assert set(draws[:, 3].tolist()) == mirrored
        batch = made.epoch([(0, "order", 0)], 0)[0]
        x, y = made.fetch(batch)
        index, *crop = batch.reshape(-1, 4).unbind(1)
        assert torch.equal(x, made.normalise(crop_and_flip(made.images[index], *crop)))
        assert torch.equal(y, made.labels[index])
    plain, augmented = make_feed(), make_feed(augment=True)
    for one, other in ((plain.validation(), augmented.validation()), (plain.test(), augmented.test())):
        assert all(torch.equal(x, z) for (x, _), (z, _) in zip(one, other, strict=True)), "evaluation is augmented"


@pytest.mark.parametrize(("shape", "kind"), [((8, 8), "uint8"), ((8, 8, 1), "int64"), ((6, 9, 3), "column")])
def test_files_in_the_convention_of_keras(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    made = arrays(shape=shape)
    for key in ("y_train", "y_test"):
        made[key] = made[key][:, None] if kind == "column" else made[key].astype(kind)
    np.savez_compressed(tmp_path / "tiny.npz", **made)
    images = data.load("tiny", tmp_path)
    assert images.shape == (shape[2] if len(shape) == 3 else 1, *shape[:2]) and images.classes == CLASSES
    assert images.train_labels.dtype == torch.int64 and images.train_labels.shape == (120,)
    assert np.array_equal(images.train[5, -1].numpy(), made["x_train"][5].reshape(*shape[:2], -1)[..., -1])


def saved(**changes: Any) -> bytes:
    """An .npz file in which some arrays are others, or gone (None)."""
    made = {key: value for key, value in {**arrays(), **changes}.items() if value is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **made)
    return buffer.getvalue()


def object_array(marker: Path) -> np.ndarray:
    array = np.empty(120, dtype=object)
    array[:] = [Malicious(marker)] * 120
    return array


LABELS = arrays()["y_train"]
UNREADABLE, HOLDS = "no readable .npz file", "must hold the arrays x_train, y_train, x_test, y_test, but holds"
BAD: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "truncated": (lambda marker: saved()[:4000], UNREADABLE),
    "pickled images": (lambda marker: saved(x_train=object_array(marker)), UNREADABLE),
    "other names": (lambda marker: saved(x_train=None, images=LABELS), f"{HOLDS} y_train, x_test, y_test, images$"),
    "float images": (lambda marker: saved(x_train=arrays()["x_train"] / 255), "x_train must be uint8 .* not float64"),
    "sizes differ": (lambda marker: saved(x_test=np.zeros((40, 9, 8), "u1")), r"differ in size: \(8, 8\) and \(9, 8\)"),
    "fewer labels": (lambda marker: saved(y_train=LABELS[:-1]), r"each of 120 images, not uint8 \(119,\)"),
    "unknown test labels": (lambda m: saved(y_test=LABELS[:40] + 1), "y_test .* 0 to 3, as in y_train, not 1 to 4"),
    "giant labels": (lambda marker: saved(y_train=LABELS.astype("u8") + 2**60), "y_train must be labels 0 to 119"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_one_clear_line_and_nothing_in_them_runs(place: Path, kind: str) -> None:
    content, expected = BAD[kind]
    marker, file = place / "executed", place / "data" / "tiny.npz"
    file.write_bytes(content(marker))
    with pytest.raises(ConfigError, match=expected) as caught:
        session.run(settings(place))
    assert not marker.exists() and len(caught.value.problems) == 1
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in place.iterdir()) == ["archs", "data"], "something was written"


def test_known_sets_have_known_classes(tmp_path: Path) -> None:
    labels = LABELS.copy()
    labels[0] = 10
    (tmp_path / "mnist.npz").write_bytes(saved())
    assert data.load("mnist", tmp_path).classes == 10
    (tmp_path / "mnist.npz").write_bytes(saved(y_train=labels))
    with pytest.raises(ConfigError, match="y_train must be labels 0 to 9, not 0 to 10"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("train", "test", "remark"),
    [
        (LABELS, LABELS[:40], ""),
        (LABELS + 1, LABELS[:40] + 1, "no training example has the label 0, of labels 0 to 4"),
        (np.where(LABELS == 2, 1, LABELS), LABELS[:40], "no training example has the label 2, of labels 0 to 3"),
        (0 * LABELS + 3, LABELS[:40], "all training examples have the label 3: there is nothing to tell apart"),
    ],
)
def test_what_is_odd_about_labels_is_reported(tmp_path: Path, train: Any, test: Any, remark: str) -> None:
    (tmp_path / "tiny.npz").write_bytes(saved(y_train=train, y_test=test))
    assert re.match(remark or "$", data.load("tiny", tmp_path).remark)


@pytest.fixture
def offline(monkeypatch: Patch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("the network is unreachable")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_a_missing_set_offline_names_the_file_to_put_there(tmp_path: Path, offline: None) -> None:
    with pytest.raises(ConfigError, match=rf"there is no {tmp_path}.*svhn\.npz .*put an \.npz file") as caught:
        data.load("svhn", tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir()), "a half-downloaded file or a folder was left"


def test_torchvisions_copy_is_taken_and_kept_as_one_file(tmp_path: Path, offline: None) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    made = arrays(count=50, tests=20, shape=(28, 28))
    for part, x, y in (("train", made["x_train"], made["y_train"]), ("t10k", made["x_test"], made["y_test"])):
        sizes = b"".join(n.to_bytes(4, "big") for n in x.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + x.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + sizes[:4] + y.tobytes())
    images = data.load("fashionmnist", tmp_path)
    assert np.array_equal(images.train[:, 0].numpy(), made["x_train"]) and images.classes == 10
    with np.load(tmp_path / "fashionmnist.npz") as kept:
        assert np.array_equal(kept["y_test"], made["y_test"])
    (tmp_path / "fashionmnist.npz").unlink()
    labels = raw / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0b")
    with pytest.raises(ConfigError, match=r"there is no .*y_test must be labels 0 to 9, as in y_train, not 0 to 11"):
        data.load("fashionmnist", tmp_path)
    assert not list(tmp_path.glob("*.npz")), "later commands would take it for the data set"


def test_sets_that_torchvision_holds_in_other_ways_come_the_right_way_round(monkeypatch: Patch) -> None:
    """EMNIST's files hold columns where MNIST's hold rows; SVHN has channels first, and labels under another name;
    QMNIST has more of an image than its label."""
    _, y = _torchvision_arrays(
        "qmnist", SimpleNamespace(data=np.zeros((2, 28, 28), np.uint8), targets=torch.arange(16).view(2, 8))
    )
    assert y.tolist() == [0, 8]
    upright = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    x, _ = _torchvision_arrays("emnist", SimpleNamespace(data=upright.transpose(0, 2, 1), targets=[1, 2]))
    assert np.array_equal(x, upright)
    colour = np.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    x, y = _torchvision_arrays("svhn", SimpleNamespace(data=colour, labels=np.array([3, 4])))
    assert x.shape == (2, 32, 32, 3) and np.array_equal(x[1, :, :, 2], colour[1, 2]) and y.tolist() == [3, 4]
    for known in TORCHVISION.values():  # that torchvision takes these arguments
        kind = getattr(datasets, known.class_name)
        for half in known.halves:
            with pytest.raises(RuntimeError):
                kind("nowhere", **half, download=False)


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
    with pytest.raises(ConfigError, match="holds results of different data"):
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


def test_sets_of_torchvision_with_pictures_are_kept_in_each_size(tmp_path: Path, monkeypatch: Patch) -> None:
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


def test_data_sets_of_other_libraries_become_files(tmp_path: Path) -> None:
    grey = np.arange(6 * 9, dtype=np.uint8).reshape(6, 3, 3)
    as_dicts = [{"img": Image.fromarray(x), "label": i % 3, "id": 7} for i, x in enumerate(grey)]
    as_pairs = [(transforms.functional.to_tensor(x), torch.tensor(i % 3)) for i, x in enumerate(grey)]
    for name, dataset in (("dicts", {"train": as_dicts, "test": as_dicts}), ("pairs", (as_pairs, as_pairs))):
        file = lth.data.to_npz(dataset, tmp_path / f"{name}.npz", columns=("img", "label"))
        images = lth.data.read(file)
        assert images.train.squeeze(1).equal(torch.from_numpy(grey)) and images.test_labels.tolist() == [0, 1, 2] * 2
    for bad, path, error in (
        (as_pairs, "x.npz", TypeError),  # one half alone
        ((as_pairs, as_dicts), "x.npz", ValueError),  # columns are not named
        ((as_pairs, as_pairs), "x.csv", ValueError),
        ((as_pairs, [(grey[0], 5)]), "x.npz", ConfigError),
    ):
        with pytest.raises(error, match=r"^(dataset|columns|path|.*y_test) must"):
            lth.data.to_npz(bad, tmp_path / path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dicts.npz", "pairs.npz"]


NETWORK = "x = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))"
LATE = """class Late(nn.Sequential):
        def forward(self, x):
            if not hasattr(self, 'fc'):
                self.fc = nn.Linear(64, 4)
            return self[1](x.flatten(1)) + self.fc(x.flatten(1))
    x = Late(nn.Flatten(), nn.Linear(64, 4))"""
MISFITS = {  # beside those of tests/api/test_bad_arguments.py
    "other classes": ("x = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))", r"logits of shape \(2, 4\) .* not \(2, 5\)"),
    "nothing to prune": (NETWORK.replace("Linear(64, 4)", "AdaptiveAvgPool1d(4)"), "must have .* require gradients"),
    "nothing to train": (f"{NETWORK}.requires_grad_(False)\n    x.w = nn.Parameter(torch.ones(1))", "must give logits"),
    "another shape in training": (
        f"{NETWORK}\n    x.register_forward_hook(lambda module, x, y: (y, y) if module.training else y)",
        r"for 2 images, in training, not tuple",
    ),
    "layers that come later": (LATE, r"must make all its parameters in its constructor, but fc\.weight comes with"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_models_that_do_not_fit_are_one_clear_line(place: Path, kind: str) -> None:
    code, expected = MISFITS[kind]
    text = "import torch\nfrom torch import nn\n\nNET = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n\n\n"
    text += f"def misfit():\n    {code}\n    return x\n"
    (place / "archs" / "tiny" / "misfit.py").write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        session.run(settings(place, arch_type="misfit"))
    assert "misfit" in str(caught.value) and "\n" not in str(caught.value) and not (place / "dumps").exists()


def test_a_model_that_cannot_train_on_one_image_at_a_time_is_said_before_anything_is_written(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--arch_type drop does not take .*, in training one at a time: "):
        session.run(settings(place, arch_type="drop", batch_size=1))
    assert not (place / "dumps").exists()
    session.run(settings(place, batch_size=1, prune_iterations=1))
