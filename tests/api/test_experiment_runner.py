"""The runner: one object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from own import runner

import lth
from lth.records import tables
from lth.records.tables import runs_of
from lth.settings.values import Duration


def test_every_combination_of_the_runner_runs_and_differs(place: Path) -> None:
    lasts = {}
    for kind in ("magnitude", "random"):
        for method in ("rewind", "random", "none"):
            made = runner(place, pruning_type=kind, reinit_method=method)
            assert made.run().shape == (3, 5)
            ticket = lth.load_ticket(made.folder, 2)
            lasts[kind, method] = ticket.start["layers.1.weight"][:, :5].sum().item()
            dense, first = lth.load_ticket(made.folder, 0), lth.load_ticket(made.folder, 1)
            kept = first.masks["layers.1.weight"]
            same = (first.start["layers.1.weight"] == dense.start["layers.1.weight"])[kept]
            assert bool(same.all()) == (method == "rewind") and bool(same.any()) == (method == "rewind")
    assert len(set(lasts.values())) == 6


def test_the_runner_saves_its_table(place: Path, tmp_path: Path) -> None:
    made = runner(place)
    with pytest.raises(RuntimeError, match="call run"):
        made.save_results("early.csv")
    file = made.run().save_results("name.csv")
    assert file == place / "results" / "here" / "name.csv"
    table = pd.read_csv(file)
    assert list(table) == ["round", "remaining", "ES", "val", "test"] and len(table) == 3
    assert table.equals(tables.table(runs_of(made.config)[0], "rounds")[list(table)])
    assert runner(place, num_rounds=2).run().equals(made.results.head(2))
    assert len(runner(place, num_rounds=4).run()) == 4
    for name, kind in ((3, TypeError), ("../x.csv", ValueError), ("x.txt", ValueError), ("a/b.csv", ValueError)):
        with pytest.raises(kind, match="name must be the name of a"):
            made.save_results(name)  # type: ignore[arg-type]


def test_what_run_gives_prints_and_behaves_as_its_table(place: Path) -> None:
    made = runner(place)
    assert "not run yet" in repr(made) and "mlp on tiny, lt, 3 rounds" in repr(made)
    results = made.run()
    assert isinstance(results, pd.DataFrame) and repr(results) == repr(pd.DataFrame(results)) and len(results) == 3
    assert str(results).split()[:5] == ["round", "remaining", "ES", "val", "test"] and "100.0" in str(results)
    assert results["test"].max() == results.iloc[results["test"].idxmax()]["test"] <= 100
    assert results.query("round > 0").mean()["remaining"] < 100 and results._repr_html_().count("<tr") == 4
    assert results.runner is made and results.equals(made.results) and str(made.folder) in repr(made)
    assert pd.concat([results, results]).shape == (6, 5)
    assert type(results.head(1)) is pd.DataFrame, "a part is not the run's table, and would save it all"


def test_the_runner_knows_the_other_names() -> None:
    made = lth.ExperimentRunner(
        dataset="mnist", model_name="lenet_conv", pruning_type="magnitude", pruning_scope="layerwise",
        reinit_method="rewind", pruning_rate=0.3, num_rounds=16, iterations=40000, learning_rate=0.0012,
        batch_size=60, device="cuda:1", results_dir="results/mnist_conv",
    ).config  # fmt: skip
    assert (made.arch_type, made.dataset, made.prune_type) == ("lenet5", "mnist", ("lt",))
    assert (made.prune_percent, made.prune_iterations, made.end_iter) == (30, 16, Duration(40000, "it"))
    assert (made.gpu, made.root, made.lr, made.batch_size) == ("1", Path("results/mnist_conv"), 0.0012, 60)
    made = lth.ExperimentRunner("fashion", "LENET_FC", pruning_scope="global").config
    assert (made.dataset, made.prune_scope) == ("fashionmnist", "global")
    for given, meant in ((None, None), ("cpu", "cpu"), (torch.device("cuda"), "0"), (torch.device("cpu"), "cpu")):
        assert lth.ExperimentRunner(device=given).config.gpu == meant


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"dataset": "tinny"}, ValueError, "dataset must be one of tiny, .*not 'tinny': did you mean tiny?"),
        ({"dataset": 3}, TypeError, "dataset must be a name, not 3"),
        (
            {"model_name": "mpl"},
            ValueError,
            "model_name must be a model of archs/tiny/.*mlp.*not 'mpl': did you mean mlp?",
        ),
        ({"pruning_type": "magnitud"}, ValueError, "pruning_type must be one of .*did you mean magnitude?"),
        ({"pruning_scope": "layer"}, ValueError, "pruning_scope must be one of layerwise, global, not 'layer'"),
        ({"reinit_method": None}, TypeError, "reinit_method must be one of rewind, random, none, not None"),
        ({"pruning_rate": 30}, ValueError, "pruning_rate must be a fraction .*not 30: 30 percent is 0.3"),
        ({"iterations": 10**19}, ValueError, "iterations must be a whole number of at least 1 and at most 1000000000"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be a number above 0, not 0"),
        ({"results_dir": None}, TypeError, "results_dir must be a path"),
        ({"bath_size": 3}, TypeError, "ExperimentRunner has no argument 'bath_size'"),
        ({"momentum": 0.9}, ValueError, "^momentum belongs to the optimizer sgd"),
    ],
)
def test_the_runner_names_bad_arguments(
    place: Path, changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        runner(place, **changes)
