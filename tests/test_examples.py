"""The worked examples of docs/examples/, with tiny data."""

import importlib.util
import json
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
