"""All figures of a folder: which are written, that nothing else changes, and when they are up to date."""

import struct
from pathlib import Path

import pytest
from conftest import MakeRuns
from helpers import results

from lth.plots import draw, style
from lth.plots.comparison import comparison
from lth.records import files
from lth.records.tables import Run

pytestmark = pytest.mark.versions


@pytest.mark.parametrize("format", ["png", "pdf"])
def test_all_figures_are_written(tmp_path: Path, make_runs: MakeRuns, format: str) -> None:
    runs = make_runs(rounds=3, seeds=(0, 1), scope="global")
    files.write(tmp_path / "plots" / f"comparison_compression.{format}", b"of fewer rounds")
    complaints: list[str] = []
    before = results(tmp_path)
    written = draw.draw_all(runs, tmp_path / "plots", format, complaints.append)
    assert results(tmp_path) == before
    names = ["comparison", "supermask", "training", "layers", "first_layer", "initial_weights"]
    names.append("comparison_compression")  # which somebody has asked for
    assert written == [tmp_path / "plots" / f"{name}.{format}" for name in names]
    assert complaints == []
    starts = {"png": b"\x89PNG", "pdf": b"%PDF"}
    assert all(file.read_bytes().startswith(starts[format]) for file in written)
    if format == "png":
        assert struct.unpack(">I", written[0].read_bytes()[16:20]) == (style.WIDTH * style.DPI,)
    comparison(runs, again := tmp_path / f"again.{format}")
    assert again.read_bytes() == written[0].read_bytes(), "the same numbers give the same file"


def test_svg_files_are_the_same_for_the_same_numbers(tmp_path: Path, make_runs: MakeRuns) -> None:
    files = [tmp_path / f"{number}.svg" for number in range(2)]
    for file in files:
        comparison(make_runs(rounds=2, saves=False), file)
    assert files[0].read_bytes() == files[1].read_bytes() and files[0].read_bytes().startswith(b"<?xml")


def test_nothing_to_show_is_left_out_and_old_figures_of_it_go(tmp_path: Path, make_runs: MakeRuns) -> None:
    plots, begun = tmp_path / "plots", Run(tmp_path, "fc1", "mnist", "default", "lt", 0)
    begun.dumps.mkdir(parents=True)
    assert draw.draw_all([begun], plots) == [] and not plots.exists()
    dense = make_runs(arms=["lt"], seeds=[5], rounds=1)
    always = ["comparison", "supermask", "training"]
    assert [file.stem for file in draw.draw_all(dense, plots)] == [*always, "first_layer"]
    files.write(plots / "layers.png", b"by an earlier version, which drew them though all rates are equal")
    files.write(plots / "mine.png", b"someone else's")
    assert [file.stem for file in draw.draw_all(make_runs(rounds=2, saves=False), plots)] == always
    assert sorted(file.stem for file in plots.glob("*.png")) == sorted([*always, "mine"])


def test_a_damaged_file_costs_one_figure_and_is_reported(tmp_path: Path, make_runs: MakeRuns) -> None:
    runs = make_runs(arms=["lt"], seeds=[0], rounds=2)
    file = runs[0].saves / "ticket_01.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    complaints: list[str] = []
    names = [written.stem for written in draw.draw_all(runs, tmp_path / "plots", complain=complaints.append)]
    assert names == ["comparison", "supermask", "training"]
    assert len(complaints) == 2 and not any("older" in complaint for complaint in complaints)
    assert all("ticket_01" in complaint for complaint in complaints)


def test_a_figure_that_cannot_be_written_ends_the_drawing(tmp_path: Path, make_runs: MakeRuns) -> None:
    (tmp_path / "plots" / "comparison.png").mkdir(parents=True)
    complaints: list[str] = []
    with pytest.raises(files.Unwritable, match=r"cannot write .*comparison\.png: "):
        draw.draw_all(make_runs(rounds=2, saves=False), tmp_path / "plots", complain=complaints.append)
    assert complaints == [] and not list(tmp_path.rglob("*.partial"))


def test_figures_are_up_to_date_until_what_they_show_changes(tmp_path: Path, make_runs: MakeRuns) -> None:
    runs = make_runs(rounds=2, seeds=(0, 1), saves=False)
    figure = tmp_path / "plots" / "comparison.png"
    files.write(figure, b"a picture")
    draw.record(figure.parent, "png", draw.fingerprint(runs), [figure])

    def current(runs: list[Run] = runs, format: str = "png") -> bool:
        return draw.up_to_date(runs, figure.parent, format) == [figure]

    assert current() and not current(format="svg") and not current(runs[:-1]), "a run is gone"
    for file, changed in (
        (figure, lambda content: content[:-1]),
        (runs[0].dumps / "journal.jsonl", lambda content: content.splitlines(True)[0]),
        (runs[0].dumps / "config.json", lambda content: content.replace(b"20", b"21", 1)),
    ):
        before = file.read_bytes()
        file.write_bytes(changed(before))
        assert not current(), file.name
        file.write_bytes(before)
    assert current()
    files.write(runs[0].saves / "ticket_00.safetensors", b"")
    assert not current()
