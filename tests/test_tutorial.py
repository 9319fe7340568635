"""docs/tutorial.ipynb runs from its first cell to its last, and says what is wrong with each planted fault."""

import shutil
from pathlib import Path

import pytest
from helpers import Patch

PROJECT = Path(__file__).parents[1]
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
