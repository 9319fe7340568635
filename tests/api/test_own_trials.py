"""iterative_pruning of map-style Datasets, of batches that are dicts, and of several trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from own import EXAMPLES, REST, batches, find, seeded, tiny
from torch.utils.data import TensorDataset

import lth
from lth.models.building import state_of

DICTS = [{"pixels": x, "label": y} for x, y in zip(*EXAMPLES, strict=True)]


def test_datasets_and_dicts_give_the_numbers_of_their_batches() -> None:
    expected = find(seeded(), {"train": batches(), **REST}, batch_size=10)
    in_dicts = [{"pixels": x, "labels": y} for x, y in batches()]
    for train in (TensorDataset(*EXAMPLES), DICTS, in_dicts):
        assert find(seeded(), {"train": train, **REST}, batch_size=10) == expected
    streamed = find(seeded(), {"train": DICTS, **REST}, in_memory=False, batch_size=20)
    assert len(streamed) == len(expected) and streamed != expected


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
    with pytest.raises(ValueError, match=r"^trials must be a whole number of at least 1"):
        find(seeded(), tiny(), trials=0)


def test_trials_need_weights_that_can_be_drawn() -> None:
    class Drawn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(64, 4))

        def forward(self, x: Any) -> Any:
            return x.flatten(1) @ self.weight

    with pytest.raises(ValueError, match=r"^random=True and trials above 1 need new random weights, but nothing draws"):
        find(seeded(Drawn), tiny(), trials=2)
