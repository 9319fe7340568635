"""main.py's experiments from Python: lth.run and lth.plot with table, verdict and figure; ExperimentRunner."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import assert_same, results, settings
from matplotlib.figure import Figure
from own import find, runner, seeded, tiny

import lth
from lth.commands import session
from lth.records import tables
from lth.records.tables import runs_of
from lth.settings.config import PROJECT
from lth.settings.values import Duration

TINY: dict[str, Any] = {
    **{"arch_type": "mlp", "dataset": "tiny", "prune_iterations": 3, "prune_percent": 30, "end_iter": "8it"},
    **{"lr": 0.01, "valid_freq": "4it", "valid_size": 40, "batch_size": 10, "gpu": "cpu", "jobs": 1, "quiet": True},
}


def test_an_experiment_gives_its_table_verdict_and_figure_and_the_files_of_main(place: Path) -> None:
    told: list[dict[str, Any]] = []
    asked = TINY | {"data": place / "data", "root": place / "here"}
    made = lth.run(told.append, prune_type=["lt", "reinit"], trials=2, **asked)
    session.run(settings(place, prune_type=["lt", "reinit"], trials=2, root=place / "there"))
    assert_same(results(place / "here"), results(place / "there"))
    rounds = [one for one in told if one["event"] == "round"]
    assert len(made.table) == len(rounds) == 12 and len(told) - 12 == 10 * 2, "the dense rounds of reinit are lt's"
    for one in rounds:
        row = made.table.query("arm == @one['arm'] and seed == @one['seed'] and round == @one['round']").iloc[0]
        assert (row["test"], row["ES"]) == (one["test"], one["ES"])
    assert "Means of 2 trials" in made.verdict and isinstance(made.plot(), Figure)
    page = made._repr_html_()
    assert "<p>Means of 2 trials; ±:" in page and "data:image/png;base64," in page
    lth.run(**asked | {"prune_iterations": 2, "name": "short"})
    both = lth.plot(place / "here")
    assert [len(one.table) for one in both] == [12, 2] and len(both.plot().axes) == 4
    short = lth.plot(place / "here", name="short").verdict.splitlines()
    assert all(f"(short): {sentence}" in both.verdict for sentence in short)


def test_mistakes_name_the_setting_as_it_was_given(place: Path) -> None:
    asked = TINY | {"data": place / "data", "root": place}
    with pytest.raises(ValueError, match=r"^prune_percent must be a number .*\nlr must be a number above 0"):
        lth.run(**asked | {"prune_percent": 100, "lr": 0})
    with pytest.raises(TypeError, match=r"^lth\.run has no argument 'prune_rate': did you mean prune_percent\?"):
        lth.run(prune_rate=0.2)
    with pytest.raises(TypeError, match=r"^callback must be a function of a dict, not 3"):
        lth.run(3, **asked)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^root must be a folder with finished rounds"):
        lth.plot(place)


def test_iterative_pruning_tells_its_callback_the_history(place: Path) -> None:
    told: list[dict[str, Any]] = []
    history = find(seeded(), tiny(), callback=told.append)
    rounds = [one for one in told if one["event"] == "round"]
    assert [one["test"] for one in rounds] == pytest.approx([row["test"] for row in history])
    assert {one["round"] for one in told if one["event"] == "evaluation"} == {one["round"] for one in rounds}


@pytest.mark.slow
def test_a_script_without_a_guard_trains_in_processes(place: Path) -> None:
    flags = TINY | {"data": str(place / "data"), "root": str(place), "trials": 2, "jobs": 2}
    (place / "script.py").write_text(f"import lth\n\nprint(len(lth.run(**{flags!r}).table))\n")
    environment = {"PYTHONPATH": str(PROJECT), "PATH": "", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "script.py"], cwd=place, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (ended.stdout.strip(), ended.returncode) == ("6", 0), ended.stderr


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


def test_what_run_gives_behaves_as_its_table(place: Path) -> None:
    made = runner(place)
    assert "not run yet" in repr(made) and "mlp on tiny, lt, 3 rounds" in repr(made)
    results = made.run()
    assert isinstance(results, pd.DataFrame) and repr(results) == repr(pd.DataFrame(results))
    assert results.runner is made and results.equals(made.results) and str(made.folder) in repr(made)
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
        ({"model_name": "mpl"}, ValueError, "model_name must be a model of archs/tiny/.*not 'mpl': did you mean mlp?"),
        ({"pruning_type": "magnitud"}, ValueError, "pruning_type must be one of .*did you mean magnitude?"),
        ({"reinit_method": None}, TypeError, "reinit_method must be one of rewind, random, none, not None"),
        ({"pruning_rate": 30}, ValueError, "pruning_rate must be a fraction .*not 30: 30 percent is 0.3"),
        ({"num_rounds": 0}, ValueError, "num_rounds must be a whole number at least 1"),
        ({"iterations": 10**19}, ValueError, "iterations must be a whole number of at least 1 and at most 1000000000"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be a number above 0, not 0"),
        ({"bath_size": 3}, TypeError, "ExperimentRunner has no argument 'bath_size'"),
        ({"momentum": 0.9}, ValueError, "^momentum belongs to the optimizer sgd"),
    ],
)
def test_bad_runner_arguments(place: Path, changes: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        runner(place, **changes)
