"""The benchmarks run in a tiny setting and print what they promise.

What they measure is asserted nowhere: a busy machine must not fail a test.
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers import Capture, Patch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TINY = ["--repeats", "2", "--seconds", "0.01"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a small data set of MNIST's shape."""
    rng = np.random.default_rng(0)
    arrays = {
        f"{kind}_{part}": rng.integers(0, high, (count, *shape), dtype=np.uint8)
        for part, count in (("train", 400), ("test", 200))
        for kind, high, shape in (("x", 256, (28, 28)), ("y", 10, ()))
    }
    np.savez(tmp_path / "mnist.npz", **arrays)
    return tmp_path


@pytest.fixture
def script(monkeypatch: Patch):
    """A function that imports a benchmark script. Their module names are taken back afterwards."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before, threads = set(sys.modules), torch.get_num_threads()

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def test_both_loops_train_the_same_network(script, data: Path) -> None:
    """Same initial weights, same masks, as many test images: what is compared is the loop alone."""
    engine, textbook = script("engine"), script("textbook")
    problem = engine.Problem.of("fc1/mnist", data)
    ours, theirs = engine.Engine(problem), textbook.Textbook(problem)
    start = ours.training.network.state(0)
    assert all(torch.equal(start[name], p.detach()) for name, p in theirs.model.named_parameters())
    assert ours.evaluate() == pytest.approx([theirs.evaluate()], abs=5)  # normalised a little differently
    assert theirs.run(1) > theirs.run(60), "it learns"
    ours.run(60)
    assert ours.training.iteration == 60
    end = ours.training.network.state(0)
    assert all(not end[name].numpy()[~mask].any() for name, mask in theirs.mask.items())


def test_step_time_prints_ratios_and_parts(script, data: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "step.json"
    flags = ["--models", "fc1/mnist", "--devices", "cpu", "--parts", "--json", str(file)]
    script("step_time").main([*TINY, *flags, "--data", str(data)])
    out = capsys.readouterr().out
    assert out.count("times the textbook's speed") == 2 and "min-max" in out
    assert out.count("where a step goes") == 3 and "products alone" in out
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert [line["loop"] for line in results] == ["textbook", "fast", "fp32", "bf16"]
    assert all(line["ratio"]["low"] <= line["ratio"]["median"] <= line["ratio"]["high"] for line in results)


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("textbook", [], ["µs a step"]),
        ("trials", ["--parts", "stacked", "--stacks", "1", "2", "--devices", "cpu"], ["cost, of 1", "trial steps/s"]),
        ("sparsity", ["--keep", "100"], ["of unpruned"]),
        ("sparsity", ["--layers", "20-10x6", "--keep", "10"], ["20-10x6"]),
    ],
)
def test_other_benchmarks(
    script, monkeypatch: Patch, data: Path, capsys: Capture, name: str, flags: list[str], says: list[str]
) -> None:
    benchmark = script(name)
    monkeypatch.setattr(benchmark, "ROUNDS", 2, raising=False)
    benchmark.main([*TINY, *flags, "--data", str(data)])
    out = capsys.readouterr().out
    assert [words for words in says if words not in out] == []


def test_inference_compares_the_sparse_network_with_the_dense_one(script, monkeypatch: Patch, capsys: Capture) -> None:
    inference = script("inference")
    monkeypatch.setattr(inference, "BATCHES", (3,))
    dense, sparse = inference.tickets(5.0)
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(sparse(images), dense(images))
    inference.main(["--repeats", "1", "--seconds", "0.001"])
    assert "times as quick as the dense network" in capsys.readouterr().out


@pytest.mark.slow
def test_experiment_splits_the_wall_time(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "experiment.json"
    flags = ["--prune_iterations", "2", "--end_iter", "9it", "--valid_freq", "3it", "--valid_size", "50"]
    flags += ["--jobs", "2", "--gpu", "cpu", "--data", str(data), "--json", str(file)]
    command = [sys.executable, str(BENCHMARKS / "experiment.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "share of the time after start-up" in done.stdout, done.stderr
    found = json.loads(file.read_text(encoding="utf-8"))
    assert 0 < found["share"] < 1 and found["start_up"] < found["seconds"]
    of_parts = [process["seconds"] for process in found["results"]]
    assert of_parts[0]["drawing, verdict"] > 0  # in the main process
    workers = of_parts[1:]
    for part in ("training", "evaluation", "pruning", "files"):
        assert sum(worker.get(part, 0) for worker in workers) > 0
    stamped = sum(worker.get("training", 0) + worker.get("evaluation", 0) for worker in workers)
    assert stamped >= found["recorded"] - 0.02 > 0
