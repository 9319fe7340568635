"""The figures: what they show, what they leave out, and that they are written."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeRuns
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lth.plots import curves, style, weights
from lth.plots.grid import grid
from lth.records import labels, tables, verdict
from lth.records.tables import Run
from lth.settings.arms import ARMS

CONV = {"conv.weight": (6, 3, 3, 3), "fc.weight": (10, 24)}
DEEP = {f"block{i}.conv.weight": (4, 2, 3, 3) for i in range(19)} | {"fc.weight": (10, 8)}


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that are drawn, by the name of their file; they are not rendered."""
    kept: dict[str, Figure] = {}
    monkeypatch.setattr(style, "save", lambda figure, file: kept.update({file.stem: figure}))
    return kept


@contextmanager
def no_change(*folders: Path) -> Iterator[None]:
    """Within it, nothing in these folders changes."""

    def content() -> dict[Path, bytes]:
        return {file: file.read_bytes() for folder in folders for file in folder.rglob("*") if file.is_file()}

    before = content()
    yield
    assert content() == before


def lines_of(figure: Figure, panel: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The named lines of a panel."""
    return {
        str(line.get_label()): (np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float))
        for line in figure.axes[panel].lines
        if not str(line.get_label()).startswith("_")
    }


def texts_of(figure: Figure) -> list[str]:
    """All that is written in the panels of a figure."""
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_all_figures_are_written(tmp_path: Path, make_runs: MakeRuns, format: str) -> None:
    runs = make_runs(rounds=3, seeds=(0, 1))
    complaints: list[str] = []
    with no_change(tmp_path / "dumps", tmp_path / "saves"):
        written = curves.draw_all(runs, tmp_path / "plots", format, complaints.append)
    names = ["comparison", "training", "layers", "first_layer", "initial_weights"]
    assert written == [tmp_path / "plots" / f"{name}.{format}" for name in names]
    assert complaints == []
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for file in written:
        content = file.read_bytes()
        assert content.startswith(starts[format])
        if format == "png":
            width, _ = struct.unpack(">II", content[16:24])
            assert width == style.WIDTH * style.DPI


def test_the_same_numbers_give_the_same_file(tmp_path: Path, make_runs: MakeRuns) -> None:
    runs = make_runs(arms=["lt"], seeds=[0], rounds=2, saves=False)
    for format in ("svg", "pdf"):
        (first,), (second,) = (curves.comparison(runs, tmp_path / name, format) for name in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_comparison_shows_means_bands_dense_and_winners(
    tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]
) -> None:
    accuracies = {
        "lt": [[97.0, 98.0], [97.5, 98.1], [97.4, 97.8], [96.0, 96.6]],
        "reinit": [[97.0, 98.0], [96.9, 97.7], [96.1, 97.0], [95.0, 95.2]],
    }
    runs = make_runs(rounds=4, seeds=(0, 1), accuracy=lambda arm, number, seed: accuracies[arm][number][seed])
    curves.comparison(runs, tmp_path)
    found = lines_of(sheets["comparison"])
    rounds = verdict.paired(runs)
    for arm, values in accuracies.items():
        remaining, means = found[arm]
        np.testing.assert_allclose(means, np.mean(values, axis=1))
        assert remaining.tolist() == rounds[(rounds["arm"] == arm) & (rounds["seed"] == 0)]["remaining"].tolist()
    assert found["dense network"][1].tolist() == [97.5, 97.5]
    wins = verdict.table(runs).query("arm == 'lt' and winning")["round"].tolist()
    assert wins == [1, 2]
    np.testing.assert_allclose(found["winning ticket of lt"][1], [97.8, 97.6])
    left, right = sheets["comparison"].axes
    (band, _) = left.collections
    spots = {tuple(point) for point in band.get_paths()[0].vertices.round(6)}
    assert {(100.0, 97.0), (100.0, 98.0)} <= spots
    assert left.get_xscale() == right.get_xscale() == "log"
    assert left.get_xlim()[0] > 100 > left.get_xlim()[1]
    assert left.get_xlabel() == "weights remaining (%)"
    assert "%" in left.get_ylabel()
    assert "iteration" in right.get_ylabel()
    assert lines_of(sheets["comparison"], 1).keys() == found.keys()


def test_titles_are_in_plain_words(tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]) -> None:
    runs = make_runs(arms=["lt"], seeds=[0], rounds=2, settings="end_iter=500it,prune_percent=20,rewind=2")
    curves.comparison(runs, tmp_path)
    title = sheets["comparison"].get_suptitle()
    assert title.startswith("fc1 on MNIST: ")
    assert "20% pruned a round, 500 iterations a round" in " ".join(title.split())
    assert "rewound to 2 epochs" in " ".join(title.split())
    assert "_" not in title


def test_collapse_does_not_flatten_the_rest_and_is_not_hidden(
    tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]
) -> None:
    runs = make_runs(
        arms=["lt"], rounds=8, accuracy=lambda arm, number, seed: 98.0 - 0.1 * number if number < 6 else 11.0
    )
    curves.comparison(runs, tmp_path)
    left = sheets["comparison"].axes[0]
    bottom, top = left.get_ylim()
    assert 90 < bottom < 98 < top < 99
    assert any("below this axis: down to 11" in text for text in texts_of(sheets["comparison"]))
    edge = [line for line in left.lines if line.get_marker() == "v"]
    assert [float(line.get_ydata()[0]) for line in edge] == pytest.approx([bottom, bottom])


@pytest.mark.parametrize("accuracy", [97.0, 10.0, 0.0, 100.0])
def test_equal_accuracies_have_an_axis(
    tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure], accuracy: float
) -> None:
    curves.comparison(make_runs(accuracy=lambda arm, number, seed: accuracy), tmp_path)
    bottom, top = sheets["comparison"].axes[0].get_ylim()
    assert bottom < accuracy < top


def test_rounds_without_weights_are_said(tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]) -> None:
    runs = make_runs(arms=["lt"], seeds=[0], rounds=4, percent=100.0)
    for draw in (curves.comparison, curves.training, curves.layers, weights.first_layer, weights.initial_weights):
        draw(runs, tmp_path)
    legend = sheets["comparison"].legends[0].get_title().get_text()
    assert "rounds with no weights left (0%) are not shown" in legend


def test_training_has_a_panel_an_arm_and_a_line_a_sparsity(
    tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]
) -> None:
    runs = make_runs(arms=("reinit", "lt", "ticket_reinit", "random"), rounds=12, seeds=(0, 1), saves=False)
    curves.training(runs, tmp_path)
    panels = [axes for axes in sheets["training"].axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["lt", "reinit", "random", "ticket_reinit"]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1
    found = lines_of(sheets["training"], 0)
    chosen = labels.spread(range(12), 6)
    rounds = tables.table(runs[2], "rounds")
    assert runs[2].arm == "lt"
    assert list(found) == [f"{labels.percent(rounds['remaining'][number])}%" for number in chosen]
    evals = [tables.table(run, "evals") for run in runs if run.arm == "lt"]
    last = [table[table["round"] == 11] for table in evals]
    iterations, means = list(found.values())[-1]
    assert iterations.tolist() == last[0]["iteration"].tolist()
    np.testing.assert_allclose(means, np.mean([table["test"] for table in last], axis=0))


def test_layers_of_few_are_lines_and_arms_that_agree_share_a_panel(
    tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]
) -> None:
    curves.layers(make_runs(rounds=5, arms=("lt", "reinit")), tmp_path)
    figure = sheets["layers"]
    assert [axes.get_title() for axes in figure.axes] == ["lt, reinit"]
    found = lines_of(figure)
    assert list(found) == ["fc1 (768)", "fc2 (48)"]
    expected = [100 * count / 768 for count in (768, 614, 491, 393, 314)]
    np.testing.assert_allclose(found["fc1 (768)"][1], expected, atol=1e-3)
    assert figure.axes[0].get_yscale() == "log"


def test_layers_of_many_are_a_map(tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]) -> None:
    curves.layers(make_runs(arms=["lt"], seeds=[0], rounds=7, shapes=DEEP, scope="global"), tmp_path)
    axes = sheets["layers"].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "block0.conv (72)"
    assert names[-1] == "fc (80)"
    assert len(names) == 20
    assert len(axes.texts) == 20 * 7
    steps = np.diff([float(tick) for tick in axes.get_xticks()])
    assert len(set(steps)) == 1


def test_pixels_show_where_the_ticket_looks(tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]) -> None:
    runs = make_runs(rounds=14)
    weights.first_layer(runs, tmp_path)
    panels = [axes for axes in sheets["first_layer"].axes if axes.images]
    assert len(panels) == 12
    assert panels[0].get_title() == "round 0: 100%"
    assert panels[-1].get_title().startswith("round 13: ")
    assert len({image.get_clim() for axes in panels for image in axes.images}) == 1
    dense, last = (np.asarray(panels[place].images[0].get_array()) for place in (0, -1))
    assert (dense == 1).all()
    assert last[2:6, 2:6].mean() > 2 * last.mean()
    assert "lt, seed 0" in sheets["first_layer"].get_suptitle()


def test_pixel_map_counts_weights() -> None:
    mask = torch.zeros(5, 3 * 16, dtype=torch.bool)
    mask[:2, 0] = mask[1, 16] = mask[4, 47] = True  # pixel (0, 0) of channels 0 and 1; pixel (3, 3) of channel 2
    expected = np.zeros((4, 4))
    expected[0, 0], expected[3, 3] = 3, 1
    np.testing.assert_array_equal(weights.pixel_map(mask), expected)


def test_image_shape() -> None:
    assert weights.image_shape(784) == (1, 28, 28)
    assert weights.image_shape(3072) == (3, 32, 32)
    assert weights.image_shape(1024) == (1, 32, 32)
    assert weights.image_shape(300) == (3, 10, 10)
    assert weights.image_shape(500) is None
    assert weights.image_shape(4) is None


def test_filters_show_what_is_pruned(tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]) -> None:
    weights.first_layer(make_runs(arms=["lt"], rounds=5, shapes=CONV), tmp_path)
    titles = [axes.get_title() for axes in sheets["first_layer"].axes if axes.get_title()]
    assert [title.split(",")[0] for title in titles] == ["round 0", "round 4"]
    weight, mask = torch.arange(54.0).view(3, 2, 3, 3), torch.ones(3, 2, 3, 3, dtype=torch.bool)
    mask[0, 1, 2, 0] = False
    sheet = weights.filter_sheet(weight, mask, most=24)
    assert (sheet == weights.PRUNED).sum() == 1
    assert sheet[2, 3] == weights.PRUNED
    np.testing.assert_array_equal(sheet[:3, :3], weight[0, 0])
    shown = sheet[np.isfinite(sheet) & (sheet != weights.PRUNED)]
    np.testing.assert_array_equal(np.sort(shown), weight[mask])


def test_initial_weights_of_survivors(tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]) -> None:
    weights.initial_weights(make_runs(rounds=9), tmp_path)
    assert [axes.get_title() for axes in sheets["initial_weights"].axes] == ["fc1", "fc2"]
    found = lines_of(sheets["initial_weights"])
    assert next(iter(found)) == "100% (all)"
    assert len(found) == 5
    for x, density in found.values():
        assert density.sum() * (x[1] - x[0]) == pytest.approx(1, abs=0.02)
    middle = [density[len(density) // 2] for _, density in found.values()]
    assert middle[-1] < 0.2 * middle[0]  # pruning takes the small ones


def test_initial_weights_of_many_layers_are_pooled(
    tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]
) -> None:
    weights.initial_weights(make_runs(arms=["lt"], seeds=[0], rounds=4, shapes=DEEP), tmp_path)
    assert [axes.get_title() for axes in sheets["initial_weights"].axes] == [weights.POOLED]


def test_density_is_that_of_the_values() -> None:
    values = np.random.default_rng(0).normal(0, 0.5, 20_000)
    x, density = weights.smooth_density(values, 2.0)
    expected = np.exp(-0.5 * (x / 0.5) ** 2) / (0.5 * np.sqrt(2 * np.pi))
    assert np.abs(density - expected).max() < 0.06 * expected.max()
    for few in (np.zeros(3), np.array([0.5, -0.5]), np.full(1000, 0.25)):
        _, density = weights.smooth_density(few, 1.0)
        assert np.isfinite(density).all()


def test_nothing_to_show_is_left_out(tmp_path: Path, make_runs: MakeRuns) -> None:
    begun = Run(tmp_path, "fc1", "mnist", "default", "lt", 0)
    begun.dumps.mkdir(parents=True)
    assert curves.draw_all([begun], tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()
    without_saves = make_runs(rounds=2, saves=False)
    names = [file.stem for file in curves.draw_all(without_saves, tmp_path / "plots")]
    assert names == ["comparison", "training", "layers"]
    dense = make_runs(arms=["lt"], seeds=[5], rounds=1)
    names = [file.stem for file in curves.draw_all(dense, tmp_path / "plots")]
    assert names == ["comparison", "training", "layers", "first_layer"]


def test_a_damaged_file_costs_one_figure_and_is_reported(tmp_path: Path, make_runs: MakeRuns) -> None:
    runs = make_runs(arms=["lt"], seeds=[0], rounds=2)
    file = runs[0].saves / "ticket_01.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    (runs[0].dumps / "layers.csv").write_text("spoiled")
    complaints: list[str] = []
    names = [written.stem for written in curves.draw_all(runs, tmp_path / "plots", complain=complaints.append)]
    assert names == ["comparison", "training"]
    assert len(complaints) == 3
    assert sum("ticket_01" in complaint for complaint in complaints) == 2
    assert sum("layers.csv" in complaint for complaint in complaints) == 1


def test_an_arm_looks_the_same_everywhere(tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]) -> None:
    curves.comparison(make_runs(saves=False), tmp_path)
    curves.comparison(make_runs(arms=["reinit"], dataset="cifar10", saves=False), tmp_path / "other")
    for figure in sheets.values():
        for line in figure.axes[0].lines:
            if line.get_label() in ARMS:
                wanted = style.look(str(line.get_label()))
                assert (to_rgb(line.get_color()), line.get_marker()) == (to_rgb(wanted.color), wanted.marker)
    looks = [style.look(arm) for arm in (*style.LOOKS, "lr_rewind", "one_shot")]
    assert len({to_rgb(look.color) for look in looks}) == len(looks)
    assert len({look.marker for look in looks}) == len(looks)
    assert len({look.dashes for look in looks}) == len(looks)
    assert style.look("a later arm").marker


def test_grid_shares_axes_and_says_what_is_where(
    tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]
) -> None:
    groups = [
        make_runs(arms=["lt"], rounds=10, saves=False),
        make_runs(arms=["lt", "reinit"], rounds=4, arch_type="lenet5", saves=False),
        make_runs(arms=["random"], dataset="cifar10", accuracy=lambda arm, number, seed: 60.0 - number, saves=False),
        [Run(tmp_path, "conv2", "mnist", "default", "lt", 0)],  # nothing finished yet
    ]
    assert grid(groups, tmp_path / "plots") == [tmp_path / "plots" / "grid.png"]
    panels = [axes for axes in sheets["grid"].axes if axes.lines]
    assert len(panels) == 6
    titles = [axes.get_title().splitlines()[0] for axes in panels if axes.get_title()]
    assert titles == ["fc1 on MNIST", "lenet5 on MNIST", "fc1 on CIFAR-10"]
    assert len({axes.get_xlim() for axes in panels}) == 1
    accuracy = {axes.get_title().splitlines()[0]: axes.get_ylim() for axes in panels if axes.get_title()}
    assert accuracy["fc1 on MNIST"] == accuracy["lenet5 on MNIST"] != accuracy["fc1 on CIFAR-10"]
    names = {text.get_text() for text in sheets["grid"].legends[0].get_texts()}
    assert names == {"lt", "reinit", "random", "dense network"}
    assert grid([groups[-1]], tmp_path / "plots") == []


def test_ticks_of_weights_remaining() -> None:
    axes = Figure().subplots()
    style.remaining_axis(axes, [100 * 0.8**number for number in range(12)])
    labels = [axes.xaxis.get_major_formatter()(tick) for tick in axes.get_xticks()]
    assert labels == ["100", "64", "41", "26", "17", "11"]
    assert axes.get_xlim()[1] < 100 * 0.8**11
    style.remaining_axis(axes, [100.0])
    assert axes.get_xlim()[0] > 100 > axes.get_xlim()[1]


def test_long_training_curves_are_means_over_windows(
    tmp_path: Path, make_runs: MakeRuns, sheets: dict[str, Figure]
) -> None:
    runs = make_runs(arms=["lt"], seeds=[0], rounds=1, evaluations=250, saves=False)
    curves.training(runs, tmp_path)
    evals = tables.table(runs[0], "evals")
    (x, y) = lines_of(sheets["training"])["100%"]
    assert len(x) == 84  # of three evaluations each, and the last one
    assert (x[0], y[0]) == pytest.approx((evals["iteration"][:3].mean(), evals["test"][:3].mean()))
    assert (x[-1], y[-1]) == pytest.approx((evals["iteration"][249], evals["test"][249]))
    assert "each point that of 3 evaluations" in sheets["training"].legends[0].get_title().get_text()


def test_settings_break_after_commas() -> None:
    text = "20% pruned a round, 50,000 iterations a round, output layer 10%, evaluated every 100 iterations"
    first, second = style.wrapped(text, 80)
    assert first == "20% pruned a round, 50,000 iterations a round,"
    assert f"{first} {second}" == text
    assert style.wrapped("short", 80) == ["short"]
    assert style.wrapped("", 80) == []
    assert max(map(len, style.wrapped(f"{'x' * 90}, {text}", 80))) <= 80
