"""The tables of runs: what a round reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import do, settings

from lth.analysis import verdict
from lth.records import journal, tables
from lth.records.tables import Run
from lth.training.train import Evaluation, Trained

pytestmark = pytest.mark.versions

LOSSES = (0.5, 0.2, 0.3)
TESTS = (90.0, 95.0, 97.0)  # the best is not where the validation loss is lowest


def test_the_accuracies_reported_are_those_at_early_stop(tmp_path: Path) -> None:
    evals = [
        Evaluation(100 * (i + 1), train_loss=0.1 * i, val_loss=loss, val=test - 1, test=test)
        for i, (loss, test) in enumerate(zip(LOSSES, TESTS, strict=True))
    ]
    run = Run(tmp_path, "fc1", "mnist", "default", "lt", 0)
    trained = Trained(300, evals, final={}, best={}, seconds={"training": 1.0, "evaluation": 0.1})
    journal.write_round(run, 0, {"fc.weight": torch.ones(2, 3, dtype=torch.bool)}, trained)
    row = tables.table(run, "rounds").iloc[0]
    assert (row["ES"], row["test"], row["val"], row["val_loss"], row["train_loss"]) == (200, 95.0, 94.0, 0.2, 0.1)
    found = verdict.table([run]).iloc[0]
    assert (found["ES"], found["test"], found["ES_last"]) == (200, 95.0, 0)


def test_multiply_adds_are_those_of_the_surviving_weights(place: Path) -> None:
    (run,) = do(settings(place, arch_type="conv"))
    rounds, layers = tables.table(run, "rounds"), tables.table(run, "layers")
    assert (layers.groupby("round")["macs"].sum() == rounds["macs"]).all()  # this model multiplies by nothing else
    uses = layers["macs"] / layers["weights"]
    assert (layers["dense_macs"] == uses * layers["total"]).all() and set(layers["kind"]) == {"conv", "fc"}
    kinds = verdict.compression([run]).set_index(["round", "kind"])["macs"]
    assert (kinds.groupby("round").sum() == rounds["macs"]).all()
    assert uses.groupby(layers["layer"]).nunique().eq(1).all() and uses.max() > 1  # a filter is used at many places
    speedup = verdict.table([run])["speedup"].tolist()
    assert speedup == pytest.approx((rounds["macs"][0] / rounds["macs"]).tolist()) and speedup[2] > speedup[1] > 1
