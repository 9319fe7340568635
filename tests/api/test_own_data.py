"""Data of the user's own, in memory and streamed; MNIST as loaders; several trials."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import CPU, Patch, make_images
from own import EXAMPLES, REST, batches, examples, find, loader, seeded, tiny
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import lth
from lth import data, rng
from lth.data import loaders
from lth.models.building import state_of
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
    """Examples of which those of the class `label` (or all) have other noise each time."""

    def __init__(self, label: int | None = None) -> None:
        self.label = label

    def __len__(self) -> int:
        return 120

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = EXAMPLES[0][index], int(EXAMPLES[1][index])
        return (x + 0.1 * torch.randn(1, 8, 8) if self.label in (None, y) else x), y


class Jittered(Augmented):
    """Noise of NumPy's and Python's, an odd number of normal draws each."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return EXAMPLES[0][index] + float(np.random.randn()) + random.gauss(0, 0.1), int(EXAMPLES[1][index])


class Rows(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(a, int(b)) for a, b in zip(*EXAMPLES, strict=True)])


class Passes:
    """A re-iterable without a length: the batches of a new DataLoader in each pass."""

    def __init__(self, dataset: Dataset[Any], **options: Any) -> None:
        self.dataset, self.options = dataset, options

    def __iter__(self) -> Iterator[Any]:
        return iter(DataLoader(self.dataset, batch_size=10, **self.options))


class Mislabelled:
    """Labels that are drawn anew in each pass."""

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Iterator[Any]:
        return ((x, torch.randint(4, y.shape)) for x, y in batches())


@pytest.mark.parametrize(
    "given",
    [
        {"train": loader(shuffle=True, drop_last=True), **REST},
        {"train": DataLoader(Subset(TensorDataset(*EXAMPLES), range(120)), batch_size=10, shuffle=True), **REST},
        SimpleNamespace(**tiny()),
        {**tiny(), "train": [(x.numpy(), y.numpy()) for x, y in batches()]},
    ],
    ids=["drop_last", "subset", "object", "numpy"],
)
def test_the_same_examples_give_the_same_numbers_whatever_they_come_in(given: Any) -> None:
    assert find(seeded(), given) == find(seeded())


@pytest.mark.parametrize(
    ("train", "kept"),
    [
        (loader(125, drop_last=True), range(120)),  # the last five never come
        (loader(125, shuffle=True, drop_last=True), range(125)),  # each comes in one pass or another
        (loader(125, sampler=SubsetRandomSampler([*range(20, 7, -1)]), drop_last=True), range(8, 21)),
    ],
)
def test_in_memory_are_the_examples_that_the_loader_can_give_each_once(train: Any, kept: Any) -> None:
    source = loaders.prepare_data({"train": train, **REST}, CPU).source
    x, y = examples(125)
    assert isinstance(source, data.Images)
    assert source.train.equal(x[[*kept]]) and source.train_labels.equal(y[[*kept]])


@pytest.mark.parametrize(
    ("train", "streamed"),
    [
        (batches(), False),
        (DataLoader(Augmented(), batch_size=10), True),
        (DataLoader(Augmented(label=3), batch_size=10, shuffle=True), True),
        (Mislabelled(), True),
        (DataLoader(Rows(), batch_size=10), True),
        (loader(sampler=RandomSampler(range(120), replacement=True)), True),
    ],
    ids=["list", "augmented", "one_class", "mislabelled", "no_length", "replacement"],
)
def test_data_that_change_or_have_no_length_are_streamed_unless_asked(train: Any, streamed: bool) -> None:
    for in_memory, expected in ((None, streamed), (True, False), (False, True)):
        taken = loaders.prepare_data({"train": train, **REST}, CPU, in_memory)
        assert isinstance(taken.source, loaders.Stream) == expected, in_memory


def test_what_does_not_fit_is_streamed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(loaders, "_free_memory", lambda device: 100_000)
    taken = loaders.prepare_data(tiny(), CPU)
    assert isinstance(taken.source, loaders.Stream) and "streamed" in taken.description


class FewRows(Rows):
    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(super().__iter__(), 105)


@pytest.mark.parametrize(
    "train", [DataLoader(FewRows(), batch_size=10), loader(105, sampler=RandomSampler(range(105), replacement=True))]
)
def test_an_epoch_of_a_stream_has_the_full_batches_of_one_pass(train: Any) -> None:
    source = loaders.prepare_data({"train": train, **REST}, CPU).source
    assert isinstance(source, loaders.Stream) and source.steps == 10


def test_a_stream_gives_full_batches_epoch_after_epoch_and_goes_on_anywhere() -> None:
    source = loaders.prepare_data({"train": loader(125, shuffle=True), **REST}, CPU, False).source
    feed = source.feed([0], 1, 10, CPU)
    assert feed.epoch_steps == 12

    def labels(epoch: int, start: int = 0) -> list[list[int]]:
        feed.epoch([(0, "again")], 99)  # so that the pass begins anew
        return [feed.fetch(batch)[1].tolist() for batch in feed.epoch([(0, "order")], epoch)[start:]]

    assert len(labels(0)) == 12 and {len(batch) for batch in labels(0)} == {10}
    assert labels(0) == labels(0) != labels(1)
    assert labels(1, 7) == labels(1)[7:]


@pytest.mark.parametrize("train", [DataLoader(Augmented(), batch_size=10, shuffle=True), Passes(Augmented())])
def test_streams_train_and_continue_by_whole_rounds(train: Any, tmp_path: Path) -> None:
    given, options = {"train": train, **REST}, {"in_memory": False, "iterations": 30, "rewind": 5}
    whole = find(seeded(), given, **options)
    assert whole[0]["test"] > 60
    find(seeded(), given, rounds=1, save=tmp_path, **options)
    assert find(seeded(), given, recover=tmp_path, **options) == whole


@pytest.mark.parametrize("in_memory", [None, True])
@pytest.mark.parametrize("train", [DataLoader(Jittered(), batch_size=10, shuffle=True), Passes(Jittered())])
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


@pytest.mark.parametrize("in_memory", [None, False])
def test_examples_of_any_type_reach_the_net_as_they_are(in_memory: bool | None) -> None:
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
    assert len(find(seeded(Words), (words, words, words), in_memory=in_memory)) == 3


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


def test_a_file_holds_back_as_many_images_as_is_asked_for(place: Path) -> None:
    file = place / "data" / "tiny.npz"
    for given in (file, str(file), make_images()):
        assert loaders.prepare_data(given, CPU).description.startswith("120 training, 12 held back"), "a tenth"
        taken = loaders.prepare_data(given, CPU, None, 30)
        assert taken.description.startswith("120 training, 30 held back") and taken.largest_batch == 90
    histories = [find(seeded(), file, iterations=24, **options) for options in ({}, {"valid_size": 30})]
    assert histories[0] != histories[1]
    own = "valid_size must be left out: data bring validation examples of their own"
    for given, value, words in (
        (file, 61, "valid_size must leave at least half of the 120 training images: at most 60, not 61"),
        (file, 0, "valid_size must be a whole number of at least 1, not 0"),
        (tiny(), 10, own),
        (lth.data.load_MNIST("nowhere"), 10, own),
    ):
        with pytest.raises(ValueError, match=f"^{words}$"):
            find(seeded(), given, valid_size=value)


def test_streamed_batches_of_other_sizes_than_the_first_are_left_out_with_a_warning() -> None:
    x, y = examples(120)
    sizes = [20, 10, 20, 30, 20, 20]
    train = list(zip(x.split(sizes), y.split(sizes), strict=True))
    with pytest.warns(UserWarning, match="2 that do not have the 20 examples of the first are left out"):
        find(seeded(), {"train": train, **REST}, in_memory=False)


DICTS = [{"pixels": x, "label": y} for x, y in zip(*EXAMPLES, strict=True)]


def test_datasets_and_dicts_give_the_numbers_of_their_batches() -> None:
    expected = find(seeded(), {"train": batches(), **REST}, batch_size=10, rounds=1)
    in_dicts = [{"pixels": x, "labels": y} for x, y in batches()]
    for train in (TensorDataset(*EXAMPLES), DICTS, in_dicts):
        assert find(seeded(), {"train": train, **REST}, batch_size=10, rounds=1) == expected
    streamed = find(seeded(), {"train": DICTS, **REST}, in_memory=False, batch_size=20, rounds=1)
    assert len(streamed) == len(expected) and streamed != expected
    for in_memory in (True, False):  # where nothing says otherwise, 60
        given, usual = {"train": DICTS, **REST}, find(seeded(), {"train": DICTS, **REST}, in_memory=in_memory, rounds=1)
        assert usual == find(seeded(), given, in_memory=in_memory, batch_size=60, rounds=1)


@pytest.mark.parametrize("batch", [{"ids": 0, "mask": 0, "labels": 0}, {"ids": 0, "mask": 0}, {"labels": 0}])
def test_dicts_of_more_than_examples_and_labels_are_refused(batch: dict[str, int]) -> None:
    held = {name: EXAMPLES[name == "labels"][:10] for name in batch}
    with pytest.raises(
        ValueError, match=r"^data\.train must give \(examples, labels\), or dicts with the labels under"
    ):
        find(seeded(), {"train": [held], **REST})


def test_several_trials_have_their_own_weights_and_orders_and_continue(tmp_path: Path) -> None:
    net, alone = seeded(), seeded()
    one = find(alone, tiny())
    history = pd.DataFrame(find(net, tiny(), trials=3, save=tmp_path))
    first = history[history["trial"] == 0].drop(columns="trial").to_dict("records")
    assert first == one and list(history["trial"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(x.equal(state_of(alone)[name]) for name, x in state_of(net).items()), "the first trial's network"
    folders = [next(tmp_path.glob(f"dumps/*/*/*/*/seed{seed}")) for seed in range(3)]
    starts = [lth.load_ticket(folder, round=0).start for folder in folders]
    weights = torch.stack([next(iter(start.values())) for start in starts])
    assert len(weights.unique(dim=0)) == 3 and history.groupby("trial")["val_loss"].first().nunique() == 3
    more = find(seeded(), tiny(), trials=4, recover=tmp_path)
    assert more[:9] == history.to_dict("records") and [row["trial"] for row in more[9:]] == [3, 3, 3]
