"""Pictures of masks and of the weights that survivors begin with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeRuns
from drawn import lines_in
from matplotlib.figure import Figure

from lth.plots import weights
from lth.records.files import read_json, write_json
from lth.records.store import Store, Ticket

pytestmark = pytest.mark.versions

Sheets = dict[str, Figure]
CONV = {"conv.weight": (6, 3, 3, 3), "fc.weight": (10, 24)}
DEEP = {f"block{i}.conv.weight": (4, 2, 3, 3) for i in range(19)} | {"fc.weight": (10, 8)}


def test_pixels_show_where_the_ticket_looks(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
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
    empty = make_runs(arms=["lt"], seeds=[0], rounds=4, percent=100.0)
    ticket = Store(empty[0]).ticket(0)
    mask = torch.zeros(12, 8, 8, dtype=torch.bool)
    mask[:, 0, 5] = True  # in the first row, to the right
    Store(empty[0], "test").write_ticket(Ticket(0, {**ticket.masks, "fc1.weight": mask.flatten(1)}, ticket.start))
    for draw in (weights.first_layer, weights.initial_weights):  # without weights too
        draw(empty, tmp_path)
    image = sheets["first_layer"].axes[0].images[0]
    assert np.argwhere(np.asarray(image.get_array()) > 0).tolist() == [[0, 5]] and image.origin == "upper"


@pytest.mark.parametrize(
    "shapes, image, drawn",
    [
        ({"fc1.weight": (12, 64), "fc2.weight": (4, 12)}, (1, 4, 16), ("fc1.weight", (4, 16))),
        ({"head.weight": (4, 16), "body.weight": (16, 192)}, (3, 8, 8), ("body.weight", (8, 8))),
        ({"head.weight": (4, 64), "conv.weight": (6, 1, 3, 3)}, (1, 8, 8), ("conv.weight", None)),
        ({"groups.weight": (6, 2, 3, 3), "fc.weight": (4, 16)}, (4, 8, 8), ("groups.weight", None)),
        ({"rows.weight": (9, 16), "fc.weight": (4, 9)}, (1, 16, 16), None),
    ],
)
def test_the_layer_that_reads_the_images_is_drawn_in_their_shape(
    tmp_path: Path,
    make_runs: MakeRuns,
    sheets: Sheets,
    shapes: dict[str, tuple[int, ...]],
    image: tuple[int, int, int],
    drawn: tuple[str, tuple[int, int] | None] | None,
) -> None:
    (run,) = make_runs(arms=["lt"], seeds=[0], rounds=2, shapes=shapes)
    write_json(run.dumps / "config.json", {**read_json(run.dumps / "config.json"), "image_shape": list(image)})
    source = weights.ticket_run([run])
    found = weights.input_layer(source) if source else None
    assert (found and found.name) == (drawn and drawn[0])
    weights.first_layer([run], tmp_path)
    assert list(sheets) == ["first_layer"] * bool(drawn)
    if drawn and drawn[1]:
        high, wide = drawn[1]
        (shown,) = sheets["first_layer"].axes[0].images
        assert shown.get_array().shape == (high, wide)
    else:
        assert not any(axes.images for sheet in sheets.values() for axes in sheet.axes)


def test_filters_show_what_is_pruned(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    weights.first_layer(make_runs(arms=["lt"], rounds=5, shapes=CONV), tmp_path)
    titles = [axes.get_title() for axes in sheets["first_layer"].axes if axes.get_title()]
    assert [title.split(",")[0] for title in titles] == ["round 0", "round 4"]
    weight, mask = torch.arange(54.0).view(3, 2, 3, 3), torch.ones(3, 2, 3, 3, dtype=torch.bool)
    mask[0, 1, 2, 0] = False
    sheet = weights.filter_sheet(weight, mask)
    assert (sheet == weights.PRUNED).sum() == 1
    assert sheet[2, 3] == weights.PRUNED
    np.testing.assert_array_equal(sheet[:3, :3], weight[0, 0])
    shown = sheet[np.isfinite(sheet) & (sheet != weights.PRUNED)]
    np.testing.assert_array_equal(np.sort(shown), weight[mask])


def test_initial_weights_of_survivors(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    weights.initial_weights(make_runs(rounds=9), tmp_path)
    assert [axes.get_title() for axes in sheets["initial_weights"].axes] == ["fc1", "fc2"]
    found = lines_in(sheets["initial_weights"].axes[0])
    assert next(iter(found)) == "100% (all)"
    assert len(found) == 5
    for name, (x, density) in found.items():  # what lies below a curve is the share that remains
        share = float(name.split("%")[0]) / 100
        assert density.sum() * (x[1] - x[0]) == pytest.approx(share, abs=0.02)
    middle = [density[len(density) // 2] for _, density in found.values()]
    assert middle[-1] < 0.2 * middle[0]  # pruning takes the small ones
