"""Pictures of masks: what survives, layer by layer and in the first one, how masks overlap and how trainings differ."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MakeRuns
from drawn import lines_in, panels
from helpers import Capture, write_table

import combine_plots
import utils
from lth.analysis import labels, overlap
from lth.plots.pairs import FROM_BEFORE, LIMIT, connectivity, masks
from lth.plots.survivors import first_layer, initial_weights, input_layer, layers, tiled
from lth.records import journal, tables
from lth.records.files import read_json, write_json
from lth.records.store import Store, Ticket
from lth.records.tables import Run

pytestmark = pytest.mark.versions
CONV = {"conv.weight": (6, 3, 3, 3), "fc.weight": (10, 24)}
DEEP = {f"block{i}.conv.weight": (4, 2, 3, 3) for i in range(19)} | {"fc.weight": (10, 8)}


def test_a_row_per_layer_and_arms_that_agree_share_a_panel(make_runs: MakeRuns) -> None:
    runs = make_runs(rounds=5, arms=("lt", "reinit"), scope="global")
    axes = layers(runs).axes[0]
    assert axes.get_title() == "lt, reinit"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fc1 (768)", "fc2 (48)"]
    kept = tables.combined(runs, "layers").groupby(["layer", "round"])["remaining"].mean()
    assert [text.get_text() for text in axes.texts] == [labels.percent(value) for value in kept]


def test_many_layers_and_arms_that_differ_have_panels_of_their_own(make_runs: MakeRuns) -> None:
    runs = make_runs(arms=["lt", "random"], seeds=[0], rounds=7, shapes=DEEP, scope="global")
    table = tables.table(runs[1], "layers")
    table.loc[table["round"] > 0, "remaining"] *= 0.8
    write_table(runs[1], "layers", table)
    first, second, _ = layers(runs).axes
    assert (first.get_title(), second.get_title()) == ("lt", "random")
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names[0] == "block0.conv (72)" and names[-1] == "fc (80)" and len(names) == 20


def test_pixels_show_where_the_ticket_looks(make_runs: MakeRuns) -> None:
    figure = first_layer(make_runs(rounds=14))
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 12
    assert panels[0].get_title() == "round 0: 100%" and panels[-1].get_title().startswith("round 13: ")
    assert len({image.get_clim() for axes in panels for image in axes.images}) == 1
    dense, last = (np.asarray(panels[place].images[0].get_array()) for place in (0, -1))
    assert (dense == 1).all() and last[2:6, 2:6].mean() > 2 * last.mean()
    assert "lt, seed 0" in figure.get_suptitle()


def test_pixels_are_where_they_are_in_the_image_and_may_all_be_gone(make_runs: MakeRuns) -> None:
    (run,) = make_runs(arms=["lt"], seeds=[0], rounds=4, percent=100.0)
    ticket, mask = Store(run).ticket(0), torch.zeros(12, 8, 8, dtype=torch.bool)
    mask[:, 0, 5] = True  # in the first row, to the right
    Store(run, "test").write_ticket(Ticket(0, {**ticket.masks, "fc1.weight": mask.flatten(1)}, ticket.start))
    image = first_layer([run]).axes[0].images[0]
    assert np.argwhere(np.asarray(image.get_array()) > 0).tolist() == [[0, 5]] and image.origin == "upper"
    assert initial_weights([run]) is not None, "without weights too"


@pytest.mark.parametrize(
    "shapes, image, drawn, shape",
    [
        ({"fc1.weight": (12, 64), "fc2.weight": (4, 12)}, (1, 4, 16), "fc1.weight", (4, 16)),
        ({"head.weight": (4, 16), "body.weight": (16, 192)}, (3, 8, 8), "body.weight", (8, 8)),
        ({"head.weight": (4, 64), "conv.weight": (6, 1, 3, 3)}, (1, 8, 8), "conv.weight", (3, 6 * 4 - 1)),
        ({"rows.weight": (9, 16), "fc.weight": (4, 9)}, (1, 16, 16), "", ()),
    ],
)
def test_the_input_layer_is_drawn(make_runs: MakeRuns, shapes: Any, image: Any, drawn: str, shape: Any) -> None:
    (run,) = make_runs(arms=["lt"], seeds=[0], rounds=2, shapes=shapes)
    write_json(run.dumps / "config.json", {**read_json(run.dumps / "config.json"), "image_shape": list(image)})
    assert input_layer(Store(run).masks(0), image) == drawn
    figure = first_layer([run])
    assert (figure.axes[0].images[0].get_array().shape if figure else ()) == shape


def test_filters_show_what_is_pruned(make_runs: MakeRuns) -> None:
    runs = make_runs(arms=["lt"], rounds=5, shapes=CONV)
    first, last, _ = first_layer(runs).axes
    assert [axes.get_title().split(",")[0] for axes in (first, last)] == ["round 0", "round 4"]
    assert [tick.get_text() for tick in first.get_yticklabels()] == ["R", "G", "B"]
    pruned, kept = (np.ma.getmaskarray(image.get_array()) for image in last.images)
    assert (~kept).sum() == Store(runs[0]).masks(4)["conv.weight"].sum() and not (~kept & ~pruned).any()
    filters = torch.arange(54.0).view(3, 2, 3, 3)
    sheet = tiled(filters)
    np.testing.assert_array_equal(sheet[4:7, 8:11], filters[2, 1])
    assert np.isnan(sheet[3]).all() and np.isnan(sheet[:, 7]).all() and sheet.shape == (7, 11)


def test_initial_weights_of_survivors(make_runs: MakeRuns) -> None:
    figure = initial_weights(make_runs(rounds=9))
    assert [axes.get_title() for axes in figure.axes] == ["fc1", "fc2"]
    found = lines_in(figure.axes[0])
    assert next(iter(found)) == "100% (all)"
    assert len(found) == 5
    for name, (x, density) in found.items():  # what lies below a curve is the share that remains
        share = float(name.split("%")[0]) / 100
        assert density.sum() * (x[1] - x[0]) == pytest.approx(share, abs=0.02)
    middle = [density[len(density) // 2] for _, density in found.values()]
    assert middle[-1] < 0.2 * middle[0]  # pruning takes the small ones


def measured(run: Run, test: float) -> None:
    """Lines of three rounds of a run: errors of 4 and 6 percent at the ends, 7 and `test` more in the middle."""
    for number in range(3):
        errors = [4.0, 7.0 + test + number, 6.0]
        rows = [
            {"point": point, "train_error": error / 2, "test_error": error}
            for point, error in zip((0.0, 0.5, 1.0), errors, strict=True)
        ]
        rows += [{**row, "test_error": row["test_error"] * 2, "line": "rounds"} for row in rows if number]
        journal.write_connectivity(run, number, rows)


def test_a_line_per_arm_the_limit_and_the_errors_on_the_way(make_runs: MakeRuns) -> None:
    runs = make_runs(rounds=3, seeds=(0, 1), saves=False)
    assert connectivity(runs) is None, "nothing measured"
    for run in runs:
        measured(run, test=run.seed + 3 * (run.arm == "reinit"))
    test, train, along = panels(connectivity(runs))
    found = lines_in(test)
    before = {f"{arm}, {FROM_BEFORE}" for arm in ("lt", "reinit")}
    assert set(found) == {"lt", "reinit", LIMIT} | before and set(found[LIMIT][1]) == {2.0}
    assert found["lt"][0] == pytest.approx([100, 80, 64], rel=0.02)
    assert found["lt"][1] == pytest.approx([2.5, 3.5, 4.5]) and found["reinit"][1] == pytest.approx([5.5, 6.5, 7.5])
    assert found[f"lt, {FROM_BEFORE}"][1] == pytest.approx([7, 9]), "twice those of rounds 1 and 2"
    assert lines_in(train)["lt"][1] == pytest.approx([1.25, 1.75, 2.25])
    way = lines_in(along)
    assert list(way) == ["100%", "80%", "64%"] and way["80%"][1] == pytest.approx([4, 8.5, 6])
    assert [text.get_text() for text in along.get_legend().get_texts()] == list(way)


def test_a_matrix_of_all_pairs_and_lines_beside_random_masks(make_runs: MakeRuns) -> None:
    runs = make_runs(arms=("lt", "reinit"), seeds=(0, 1), rounds={"lt": 4, "reinit": 3})
    assert masks(runs) is None, "not asked for"
    overlap.write(runs, runs[0].plots)
    figure = masks(runs)
    table = pd.read_csv(runs[0].plots / "masks.csv").query("layer == 'all'")
    matrix, (lines,) = figure.axes[0], panels(figure)
    assert [tick.get_text() for tick in matrix.get_yticklabels()] == ["lt 0", "lt 1", "reinit 0", "reinit 1"]
    last = table.query("round == 2").set_index(["arm_a", "seed_a", "arm_b", "seed_b"])["jaccard"]
    shown = matrix.collections[0].get_array().reshape(4, 4)
    assert shown[0, 3] == shown[3, 0] == pytest.approx(last["lt", 0, "reinit", 1])
    assert "63.8% of the weights" in matrix.get_title()
    found = lines_in(lines)
    assert list(found) == ["trials of lt", "trials of reinit", "lt and reinit"]
    own = table.query("arm_a == 'lt' and arm_b == 'lt'")
    assert found["trials of lt"][1] == pytest.approx(own["jaccard"] / own["jaccard_chance"])
    both = table.query("arm_a != arm_b and seed_a == seed_b").assign(ratio=lambda it: it.jaccard / it.jaccard_chance)
    assert found["lt and reinit"][1] == pytest.approx(both.groupby("round")["ratio"].mean())


def test_masks_are_compared_on_request_and_again_later(tmp_path: Path, make_runs: MakeRuns, capsys: Capture) -> None:
    runs, argv = make_runs(rounds=2, seeds=(0, 1)), ["--root", str(tmp_path), "--quiet"]
    assert utils.exit_code(combine_plots.main, [*argv, "--masks"]) == 0
    assert {"masks.csv", "masks.png", "report.html"} <= set(re.findall(r"^  (\S+)$", capsys.readouterr().out, re.M))
    assert "Overlap of masks" in (runs[0].plots / "report.html").read_text()
    make_runs(rounds=3, seeds=(0, 1))
    assert utils.exit_code(combine_plots.main, argv) == 0
    assert pd.read_csv(runs[0].plots / "masks.csv")["round"].max() == 2
