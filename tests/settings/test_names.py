"""Names of models and data sets: any case is understood, and there is one spelling of each on disk."""

from pathlib import Path

import numpy as np
import pytest
from helpers import Patch, assert_same, do, results, settings

from lth import data
from lth.records.tables import runs_of
from lth.settings import names


def test_names_ignore_case_and_have_the_spelling_of_their_folder_file_or_definition(place: Path) -> None:
    (place / "archs" / "Birds").mkdir()
    assert [names.canonical_dataset(given) for given in ("FashionMNIST", "birds")] == ["fashionmnist", "Birds"]
    (place / "archs" / "tiny" / "AlexNet.py").write_text("def alexnet(): ...")
    (place / "archs" / "tiny" / "other.py").write_text("class Inner: ...")
    for given, meant in (("MLP", "mlp"), ("alexnet", "AlexNet"), ("inner", "Inner"), ("none", "none")):
        assert names.canonical_model(given, "TINY") == meant
    (place / "archs" / "tiny" / "wide.py").write_text("class Wide: ...\ndef wide(): ...")  # case alone tells them apart
    assert [names.canonical_model(given, "tiny") for given in ("wide", "Wide")] == ["wide", "Wide"]


def test_one_model_in_two_spellings_is_one_run(place: Path) -> None:
    (run,) = do(settings(place, arch_type="MLP", dataset="Tiny", prune_iterations=2))
    assert run.dumps == place / "dumps" / "mlp" / "tiny" / run.settings / "lt" / "seed0"
    (again,) = do(settings(place, prune_iterations=3))
    assert again == run
    (whole,) = do(settings(place, root=place / "whole"))
    assert_same(results(place), results(place / "whole"))
    assert whole.arch_type == "mlp" and [folder.name for folder in (place / "dumps").iterdir()] == ["mlp"]


def test_a_file_in_another_case_is_the_data_set(place: Path) -> None:
    (place / "data" / "tiny.npz").rename(place / "data" / "Tiny.npz")
    assert len(data.load("TINY", place / "data").train) == 120
    assert runs_of(settings(place, dataset="TINY"))[0].dataset == "tiny"


@pytest.mark.parametrize("shape, uses", [((9, 28, 28), "mnist"), ((9, 64, 64, 3), "cifar10"), ((9, 2, 20, 20), "")])
def test_data_without_models_uses_those_for_its_image_size(tmp_path: Path, shape: tuple[int, ...], uses: str) -> None:
    np.savez(tmp_path / "mine.npz", x_train=np.zeros(shape, np.uint8))
    assert [folder.name for folder in names.archs_folders("mine", tmp_path)] == [uses] * bool(uses)
    must = "--dataset must have models in archs/mine/, or images of one or three channels"
    said = [] if uses else [f"{must}: {tmp_path}/mine.npz has images of 20x20x2"]
    assert names.name_problems("fc1", "mine", data=tmp_path) == said
    assert (f"archs/{uses}/" in names.fallback_note("fc1", "mine", tmp_path)) == bool(uses)
    assert names.name_problems("fc1", "mine", data=tmp_path / "elsewhere") and not names.fallback_note("fc1", "mnist")


def test_which_axis_holds_the_channels() -> None:
    assert all(names.channels_first((9, *size)) for size in ((3, 20, 20), (4, 8, 8), (6, 20, 20)))
    others = ((20, 20, 3), (20, 20, 1), (4, 8, 2), (8, 8, 8), (20, 20, 6))
    assert not any(names.channels_first((9, *size)) for size in others)


def test_a_file_that_is_no_data_set_has_no_size(tmp_path: Path) -> None:
    for content in (b"", b"PK", b"hello"):
        (tmp_path / "mine.npz").write_bytes(content)
        assert names.archs_folders("mine", tmp_path) == []
        (said,) = names.name_problems("fc1", "mine", data=tmp_path)
        assert said.startswith(f"{tmp_path}/mine.npz must be an .npz file with the arrays x_train, ")


def test_models_of_the_folder_that_one_works_in_come_before_the_projects(tmp_path: Path, monkeypatch: Patch) -> None:
    for archs, files in (("mine", ["fc1"]), ("project", ["fc1", "lenet5"])):
        (tmp_path / archs / "mnist").mkdir(parents=True)
        for file in files:
            (tmp_path / archs / "mnist" / f"{file}.py").write_text(f"def {file}(): ...\n", encoding="utf-8")
    monkeypatch.setattr(names, "ARCHS", [tmp_path / "mine", tmp_path / "project"])
    assert names.archs_folders("mnist") == [tmp_path / "mine" / "mnist", tmp_path / "project" / "mnist"]
    assert names.model_names("kmnist") == ["fc1", "lenet5"]
