"""Data of the user's own, in memory and streamed; MNIST as loaders."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from helpers import make_images
from own import (
    EXAMPLES,
    REST,
    batches,
    examples,
    find,
    loader,
    seeded,
    tiny,
)
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import lth
from lth import data, rng
from lth.data import loaders, stream
from lth.records import tables
from lth.records.files import read_json


def test_a_file_with_any_name_is_a_data_set(place: Path) -> None:
    file = (place / "data" / "tiny.npz").rename(place / "data" / "my set: 2.npz")
    find(seeded(), file, save=place / "own", rounds=1)
    (run,) = tables.find(place / "own")
    assert run.dataset == "my_set__2" and len(tables.table(run, "rounds")) == 2
    assert read_json(run.dumps / "config.json")["image_shape"] == [1, 8, 8]
    find(seeded(), file, recover=place / "own", rounds=2)
    assert len(tables.table(run, "rounds")) == 3


class Augmented(Dataset[Any]):
    """Examples with other noise each time."""

    def __len__(self) -> int:
        return 120

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = EXAMPLES
        return x[index] + 0.1 * torch.randn(1, 8, 8), int(y[index])


class Jittered(Augmented):
    """Examples with noise of NumPy's and Python's, an odd number of normal draws each."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = EXAMPLES
        return x[index] + float(np.random.randn()) + random.gauss(0, 0.1), int(y[index])


class Rows(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        x, y = EXAMPLES
        return iter([(a, int(b)) for a, b in zip(x, y, strict=True)])


class Repeats:
    """A re-iterable without a length, in another order each time."""

    def __iter__(self) -> Iterator[Any]:
        return iter(DataLoader(TensorDataset(*EXAMPLES), batch_size=10, shuffle=True))


class Noisy(Repeats):
    def __init__(self, noise: Augmented | None = None) -> None:
        self.noise = noise or Augmented()

    def __iter__(self) -> Iterator[Any]:
        return iter(DataLoader(self.noise, batch_size=10))


class Scaled(DataLoader[Any]):
    """Makes its batches itself."""

    def __iter__(self) -> Any:
        return ((2 * x, y) for x, y in super().__iter__())


class Renamed(DataLoader[Any]):
    """Differs in its constructor alone."""

    def __init__(self, data: Any) -> None:
        super().__init__(data, batch_size=10, shuffle=True)


class Even(RandomSampler):
    def __iter__(self) -> Iterator[int]:
        return (i for i in super().__iter__() if i % 2 == 0)

    def __len__(self) -> int:
        return len(self.data_source) // 2


class LastClass(Dataset[Any]):
    """Examples in the order of their classes, of which the last one alone, or its labels, are drawn anew."""

    def __init__(self, labels: bool = False) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return 120

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, label = EXAMPLES[0][index], index // 30
        if label == 3 and self.labels:
            return x, int(torch.randint(4, ()))
        return (x + torch.randn(1, 8, 8) if label == 3 else x), label


class Mislabelled(Repeats):
    """Labels that are drawn anew in each pass."""

    def __iter__(self) -> Iterator[Any]:
        return ((x, torch.randint(4, y.shape)) for x, y in batches())


@pytest.mark.parametrize(
    "given",
    [
        {"train": loader(shuffle=True), **REST},
        {"train": loader(shuffle=True, drop_last=True), **REST},
        {"train": loader(sampler=SubsetRandomSampler(range(120))), **REST},
        {"train": DataLoader(Subset(TensorDataset(*EXAMPLES), range(120)), batch_size=10, shuffle=True), **REST},
        {"train": DataLoader(Rows(), batch_size=10), **REST},
        (batches(), REST["validation"], REST["test"]),
        SimpleNamespace(**tiny()),
        {**tiny(), "train": [(x.numpy(), y.numpy()) for x, y in batches()]},
    ],
    ids=["loader", "drop_last", "subset_sampler", "subset", "iterable", "tuple", "object", "numpy"],
)
def test_the_same_examples_give_the_same_numbers_whatever_they_come_in(given: Any) -> None:
    assert find(seeded(), given) == find(seeded())


@pytest.mark.parametrize(
    ("train", "kept"),
    [
        (loader(125), range(125)),
        (loader(125, drop_last=True), range(120)),  # the last five never come
        (loader(125, shuffle=True), range(125)),
        (loader(125, shuffle=True, drop_last=True), range(125)),  # each comes in one pass or another
        (loader(125, sampler=SubsetRandomSampler([*range(0, 60, 2)])), range(0, 60, 2)),
        (loader(125, sampler=SubsetRandomSampler([*range(20, 7, -1)]), drop_last=True), range(8, 21)),
        (Renamed(TensorDataset(*examples(125))), range(125)),
        (loader(125, sampler=SequentialSampler(range(60))), range(60)),
    ],
)
def test_in_memory_are_the_examples_that_the_loader_can_give_each_once(train: Any, kept: Any) -> None:
    source = loaders.take({"train": train, **REST}, torch.device("cpu")).source
    x, y = examples(125)
    assert isinstance(source, data.Images)
    assert source.train.equal(x[[*kept]]) and source.train_labels.equal(y[[*kept]])


def test_a_loader_or_a_sampler_of_another_class_is_asked_itself() -> None:
    x, y = EXAMPLES
    for in_memory in (None, True, False):
        scaled = loaders.take({"train": Scaled(TensorDataset(x, y), 10), **REST}, torch.device("cpu"), in_memory).source
        first = scaled.train[:10] if isinstance(scaled, data.Images) else None
        if first is None:
            feed = scaled.feed([0], 1, 10, torch.device("cpu"))
            first = feed.fetch(feed.epoch([(0, "order")], 0)[0])[0]
        assert first.equal(2 * x[:10]), in_memory
    even = loaders.take({"train": loader(sampler=Even(range(120))), **REST}, torch.device("cpu")).source
    assert isinstance(even, data.Images)
    assert even.train_labels.bincount().tolist() == y[::2].bincount().tolist()


def test_streamed_batches_are_of_the_commonest_size_and_others_are_said() -> None:
    x, y = examples(125)
    train = [(x[:5], y[:5]), *zip(x[5:].split(20), y[5:].split(20), strict=True)]
    with pytest.warns(UserWarning, match="of 5 for one: streamed, only those of 20 .* leaves out 1 of the first 7"):
        taken = loaders.take({"train": train, **REST}, torch.device("cpu"), False)
    assert taken.batch_size == 20 and taken.source.feed([0], 1, 20, torch.device("cpu")).epoch_steps == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the last of a pass is left out as usual
        assert loaders.take({"train": train[:0:-1] + train[:1], **REST}, torch.device("cpu"), False).batch_size == 20


@pytest.mark.parametrize("in_memory", [None, True, False])
def test_the_commonest_size_of_batches_is_the_batch_size_in_memory_and_streamed(in_memory: bool | None) -> None:
    train = [(x[:size], y[:size]) for (x, y), size in zip(batches(60), (3, 10, 10, 9, 10, 1), strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert loaders.take({"train": train, **REST}, torch.device("cpu"), in_memory).batch_size == 10


def test_batches_that_are_not_full_are_never_trained_on_wherever_they_come() -> None:
    train = [(x[:size], y[:size]) for (x, y), size in zip(batches(60), (10, 3, 10, 9, 10, 1), strict=True)]
    source = loaders.take({"train": train, **REST}, torch.device("cpu"), False).source
    feed = source.feed([0], 1, 10, torch.device("cpu"))
    assert feed.epoch_steps == 3
    for epoch in (0, 1):
        found = [feed.fetch(batch) for batch in feed.epoch([(0, "order")], epoch)]
        assert all(x.equal(train[2 * i][0]) and y.equal(train[2 * i][1]) for i, (x, y) in enumerate(found))


@pytest.mark.parametrize(
    ("train", "streamed"),
    [
        (batches(), False),
        (loader(shuffle=True), False),
        (Repeats(), False),
        (Noisy(), True),
        (DataLoader(Augmented(), batch_size=10), True),
        (DataLoader(LastClass(), batch_size=10, shuffle=True), True),
        (DataLoader(LastClass(labels=True), batch_size=10, shuffle=True), True),
        (Mislabelled(), True),
    ],
    ids=["list", "loader", "repeats", "noisy", "augmented", "last_class", "its_labels", "mislabelled"],
)
def test_data_that_change_are_streamed(train: Any, streamed: bool) -> None:
    taken = loaders.take({"train": train, **REST}, torch.device("cpu"))
    assert isinstance(taken.source, stream.Stream) == streamed
    assert not isinstance(loaders.take({"train": train, **REST}, torch.device("cpu"), True).source, stream.Stream)
    assert isinstance(loaders.take({"train": train, **REST}, torch.device("cpu"), False).source, stream.Stream)


def test_what_does_not_fit_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_free", lambda device: 100_000)
    taken = loaders.take(tiny(), torch.device("cpu"))
    assert isinstance(taken.source, stream.Stream) and "streamed" in taken.about


def test_a_stream_gives_full_batches_epoch_after_epoch_and_goes_on_anywhere() -> None:
    source = loaders.take({"train": loader(125, shuffle=True), **REST}, torch.device("cpu"), False).source
    feed = source.feed([0], 1, 10, torch.device("cpu"))
    assert feed.epoch_steps == 12

    def labels(epoch: int, start: int = 0) -> list[list[int]]:
        feed.epoch([(0, "again")], 99)  # so that the pass begins anew
        return [feed.fetch(batch)[1].tolist() for batch in feed.epoch([(0, "order")], epoch)[start:]]

    assert len(labels(0)) == 12 and {len(batch) for batch in labels(0)} == {10}
    assert labels(0) == labels(0) != labels(1)
    assert labels(1, 7) == labels(1)[7:]


def test_a_network_may_change_its_input_in_place() -> None:
    class Shifts(helpers.Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(0.3))

    class Shifted(helpers.Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - 0.3)

    assert find(seeded(Shifts)) == find(seeded(Shifted))


@pytest.mark.parametrize("train", [loader(shuffle=True), DataLoader(Augmented(), batch_size=10, shuffle=True), Noisy()])
def test_streams_train_and_go_on_by_whole_rounds(train: Any, tmp_path: Path) -> None:
    given = {"train": train, **REST}
    whole = find(seeded(), given, in_memory=False, iterations=30, rewind=5)
    assert whole[0]["test"] > 60
    find(seeded(), given, in_memory=False, iterations=30, rewind=5, rounds=1, save=tmp_path)
    assert find(seeded(), given, in_memory=False, iterations=30, rewind=5, recover=tmp_path) == whole


@pytest.mark.parametrize("in_memory", [None, True])
@pytest.mark.parametrize("train", [DataLoader(Jittered(), batch_size=10, shuffle=True), Noisy(Jittered())])
def test_the_seed_decides_what_loaders_draw_wherever_they_draw_it(train: Any, in_memory: bool | None) -> None:
    def drawn() -> list[float]:
        return [torch.rand(()).item(), float(np.random.randn()), random.gauss(0, 1)]

    histories = []
    for number in (3, 4):
        rng.seed(number)
        expected = [drawn() for _ in range(3)]
        rng.seed(number)
        assert drawn() == expected[0]  # a second normal number waits
        histories.append(find(seeded(), {"train": train, **REST}, in_memory=in_memory))
        assert [drawn(), drawn()] == expected[1:]
    assert histories[0] == histories[1]


def test_examples_of_any_type_reach_the_net_as_they_are() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc = nn.Embedding(50, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.int64
            return self.fc(self.embed(x).mean(1))

    generator = torch.Generator().manual_seed(0)
    words = [
        (torch.randint(0, 50, (10, 6), generator=generator), torch.randint(0, 3, (10,), generator=generator))
        for _ in range(6)
    ]
    assert len(find(seeded(Words), (words, words, words))) == 3
    assert len(find(seeded(Words), (words, words, words), in_memory=False)) == 3


def test_load_MNIST_serves_the_projects_file_where_the_folder_has_none(tmp_path: Path) -> None:
    folder = tmp_path / "datasets"
    folder.mkdir()
    (folder / "mnist1d.npz").touch()  # another data set, whose name only begins so
    parts = lth.data.load_MNIST(folder, batch_size=100)
    assert [len(part) for part in parts] == [550, 50, 100]
    x, y = next(iter(parts.train))
    assert x.shape == (100, 1, 28, 28) and x.dtype == torch.float32 and y.dtype == torch.int64
    everything = torch.cat([x for x, _ in parts.train])
    assert abs(float(everything.mean())) < 0.01 and abs(float(everything.std()) - 1) < 0.01
    assert not torch.equal(next(iter(parts.train))[1], y), "a new order each pass"
    assert parts.train is parts[0] and parts._fields == ("train", "validation", "test")


def test_loaders_of_the_library_train_as_their_batches_do() -> None:
    images = make_images()
    scaling = data.normalisation(images.train)
    parts = [
        data.Loader("tiny", x, y, 10, False, *scaling)
        for x, y in ((images.train, images.train_labels), (images.test, images.test_labels))
    ]
    given = data.Loaders(parts[0], parts[1], parts[1])
    assert find(seeded(), given, precision="fp32") == find(seeded(), tuple(map(list, given)), precision="fp32")
    assert len(find(seeded(), given, in_memory=False)) == 3


def test_load_MNIST_names_bad_arguments() -> None:
    for arguments, kind, words in (
        ({"folder": 3}, TypeError, "folder must be a path, not 3"),
        ({"folder": "x", "valid_size": 50000}, ValueError, "valid_size must be .*at most 30000, not 50000"),
        ({"folder": "x", "batch_size": 0}, ValueError, "batch_size must be"),
        ({"folder": "x", "seed": None}, TypeError, "seed must be"),
    ):
        with pytest.raises(kind, match=words):
            lth.data.load_MNIST(**arguments)


def test_a_file_holds_back_as_many_images_as_is_asked_for(place: Path) -> None:
    file = place / "data" / "tiny.npz"
    cpu = torch.device("cpu")
    for given in (file, str(file), make_images()):
        assert loaders.take(given, cpu).about.startswith("120 training, 12 held back"), "a tenth"
        taken = loaders.take(given, cpu, None, 30)
        assert taken.about.startswith("120 training, 30 held back") and taken.largest_batch == 90
    histories = [find(seeded(), file, iterations=24, **options) for options in ({}, {"valid_size": 30})]
    assert histories[0] != histories[1]
    own = "valid_size must be left out: data bring validation examples of their own"
    for given, value, words in (
        (file, 61, "valid_size must leave at least half of the 120 training images for training: at most 60, not 61"),
        (file, 0, "valid_size must be a whole number of at least 1, not 0"),
        (tiny(), 10, own),
        (lth.data.load_MNIST("nowhere"), 10, own),
    ):
        with pytest.raises(ValueError, match=f"^{words}$"):
            find(seeded(), given, valid_size=value)
