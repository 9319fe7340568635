"""The worked examples of docs/examples/, with tiny data, and docs/tutorial.ipynb from its first cell to its last."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from helpers import Patch
from PIL import Image

PROJECT = Path(__file__).parents[1]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", PROJECT / "docs" / "examples" / f"{name}.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_a_table_of_numbers() -> None:
    history = example("table").main(iterations=150, rounds=1, trials=2)
    assert [row["trial"] for row in history] == [0, 0, 1, 1] and history[0]["test"] > 80


@pytest.mark.parametrize("kind", ["bag", "transformer"])
def test_text(kind: str) -> None:
    history = example("text").main(kind, iterations=150, rounds=1, count=400)
    assert history[1]["remaining"] == pytest.approx(70, abs=0.1) and history[0]["test"] > 55


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "timm:resnet10t"])
def test_pictures_in_a_folder(tmp_path: Path, name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    for half in ("train", "test"):
        for number, kind in enumerate(("rose", "violet")):
            (tmp_path / half / kind).mkdir(parents=True)
            for i in range(40):
                Image.new("RGB", (40, 36), (200 * number, i, 100)).save(tmp_path / half / kind / f"{i}.png")
    history = example("pictures").main(tmp_path, name, 32, iterations=3, rounds=1)
    assert history[1]["remaining"] == pytest.approx(80, abs=0.1)


def stood_in(monkeypatch: Patch, logger: str, told: list[Any]) -> None:
    """A stand-in for a logger's package that is not installed: what the recipes call of it."""
    client = SimpleNamespace(
        create_run=lambda experiment, run_name: SimpleNamespace(info=SimpleNamespace(run_id=run_name)),
        log_metric=lambda run, name, value, step: told.append((run, name, value, step)),
    )
    kinds = {
        "mlflow": SimpleNamespace(set_tracking_uri=lambda uri: None, MlflowClient=lambda: client),
        "wandb": SimpleNamespace(init=lambda project, mode: SimpleNamespace(log=told.append)),
    }
    monkeypatch.setitem(sys.modules, logger, kinds[logger])  # type: ignore[arg-type]


def short(place: Path) -> dict[str, Any]:
    settings = {"arch_type": "mlp", "dataset": "tiny", "data": place / "data", "root": place, "jobs": 1, "gpu": "cpu"}
    return {**settings, "end_iter": "4it", "valid_size": 40, "batch_size": 10, "prune_iterations": 2, "quiet": True}


@pytest.mark.parametrize("logger", ["mlflow", "wandb"])
def test_loggers(place: Path, logger: str, monkeypatch: Patch) -> None:
    told: list[Any] = []
    stood_in(monkeypatch, logger, told)
    result = example("loggers").main(logger, **short(place))
    assert len(result.table) == 4
    if logger == "mlflow":
        tests = {(run, step): value for run, name, value, step in told if name == "test"}
        assert len(tests) == 4 and tests["reinit seed0", 1] == result.table["test"].iloc[-1]
    else:
        assert json.dumps(told) and any("lt/seed0/round/remaining" in one for one in told)


FAULTS = (  # what lth.audit says of them, in the order of the notebook
    ("the model was not reset, or to other values", "surviving weights of 1.weight differ"),
    ("% of the pruned weights came back", "are not 0 in the model: the masks were lost"),
    (
        "negative survivors of 1.weight did not move in training",
        "their gradients are frozen, by `weight < eps` perhaps",
    ),
    ("the control is not random", "nothing is wrong"),
)


@pytest.mark.slow
def test_the_tutorial_runs_and_names_each_fault(tmp_path: Path, monkeypatch: Patch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("LTH_SHORT", "1")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    notebook = nbformat.read(shutil.copy(PROJECT / "docs" / "tutorial.ipynb", tmp_path), 4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    told = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    begins = next(i for i, cell in enumerate(cells) if "def audited" in cell.source) + 1
    for said, sentences in zip(told[begins:], FAULTS, strict=False):
        assert all(sentence in said for sentence in sentences), said
    shown = next(output for cell in cells for output in cell.outputs if "text/html" in output.get("data", {}))
    assert "data:image/png;base64," in shown["data"]["text/html"]
    assert not (PROJECT / "tutorial").exists() and not any(
        cell.get("outputs") for cell in nbformat.read(PROJECT / "docs" / "tutorial.ipynb", 4).cells
    )
