"""Accuracy and early stop against the weights remaining: lines, bands, rings, axes; and many of them in a grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import MakeRuns
from drawn import caption_of, legends_of, lines_in, panels
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lth.analysis import verdict
from lth.models.probe import Cost
from lth.plots import style
from lth.plots.comparison import comparison, grouped, training
from lth.plots.grid import grid
from lth.records.tables import Run
from lth.settings.arms import ARMS

pytestmark = pytest.mark.versions

Sheets = dict[str, Figure]
BETTER, NO_WORSE = "winning ticket: better than dense", "winning ticket: no worse than dense"


def test_means_bands_dense_and_winners(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    accuracies = {
        "lt": [[97.0, 97.2], [97.5, 97.72], [97.0, 97.22], [96.0, 96.6]],
        "reinit": [[97.0, 97.2], [96.9, 97.7], [96.1, 97.0], [95.0, 95.2]],
    }
    runs = make_runs(rounds=4, seeds=(0, 1), accuracy=lambda arm, number, seed: accuracies[arm][number][seed])
    comparison(runs, tmp_path)
    left, right = sheets["comparison"].axes
    found = lines_in(left)
    rounds = verdict.paired(runs)
    for arm, values in accuracies.items():
        remaining, means = found[arm]
        np.testing.assert_allclose(means, np.mean(values, axis=1))
        assert remaining.tolist() == rounds[(rounds["arm"] == arm) & (rounds["seed"] == 0)]["remaining"].tolist()
        stops = rounds[rounds["arm"] == arm].groupby("round")["ES"].mean()
        np.testing.assert_allclose(lines_in(right)[arm][1], stops)
    table = verdict.table(runs)
    bars = [shape for shape in left.collections if isinstance(shape, LineCollection)]
    for arm, bar in zip(accuracies, bars, strict=True):
        (drawn,) = (line for line in left.lines if line.get_label() == arm)
        assert to_rgb(bar.get_color()[0]) == to_rgb(drawn.get_color()) == to_rgb(style.look(arm).color)
        last = table.query("arm == @arm").iloc[-1]  # the interval by which the verdict judges the difference
        low, high = bar.get_segments()[-1][:, 1]
        assert (low - last["test"] + last["difference"], high - low) == pytest.approx(
            (last["low"], last["high"] - last["low"])
        )
    dots = [line for line in left.lines if line.get_marker() == "."]
    assert sorted(np.concatenate([line.get_ydata() for line in dots])) == sorted(np.ravel([*accuracies.values()]))
    np.testing.assert_allclose(found["dense network"][1], 97.1)
    assert verdict.table(runs).query("winning")["accuracy"].tolist() == ["better", "no worse"]
    np.testing.assert_allclose(found[BETTER][1], [97.61])
    np.testing.assert_allclose(found[NO_WORSE][1], [97.11])
    assert left.get_xscale() == right.get_xscale() == "log"
    assert left.get_xlim()[0] > 100 > left.get_xlim()[1]
    assert lines_in(right).keys() == found.keys()
    assert set(legends_of(sheets["comparison"])) == found.keys()
    assert "mean of 2 trials (dots); bars: 95% interval" in caption_of(sheets["comparison"]).replace("\n", " ")
    rings = {line.get_label(): line for line in left.lines}
    assert rings[BETTER].get_marker() == "*" and rings[NO_WORSE].get_markerfacecolor() == "none"


def test_one_trial_has_no_rings_and_no_band(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    comparison(make_runs(arms=["lt"], seeds=[0], rounds=4, saves=False), tmp_path)
    assert set(lines_in(sheets["comparison"].axes[0])) == {"lt", "dense network"}
    assert not sheets["comparison"].axes[0].collections
    assert caption_of(sheets["comparison"]).startswith("1 trial: no winning ticket")
    comparison(make_runs(arms=["lt"], rounds=2, evaluations=1, saves=False, accuracy=lambda *_: 100.0), tmp_path)
    assert [text.get_text() for text in sheets["comparison"].axes[1].texts] == ["always the last evaluation"]
    bottom, top = sheets["comparison"].axes[0].get_ylim()
    assert bottom < 100.0 < top, "equal accuracies have an axis"


def test_collapse_does_not_flatten_the_rest_and_is_not_hidden(
    tmp_path: Path, make_runs: MakeRuns, sheets: Sheets
) -> None:
    def collapsing(arm: str, number: int, seed: int) -> float:
        return 98.0 - 0.1 * number if number < 6 else {"lt": 11.0, "reinit": 30.0}[arm]

    comparison(make_runs(rounds=14, accuracy=collapsing), tmp_path)
    axes = sheets["comparison"].axes[0]
    place = axes.transAxes.inverted().transform(axes.transData.transform([(100, y) for y in (97.5, 98, 11)]))[:, 1]
    assert place[1] - place[0] > 0.05 and place[2] < 0  # half a point among the good ones; the collapsed ones are below
    assert "cut off at 90%, the lowest is 11%" in caption_of(sheets["comparison"]).replace("\n", " ")


def test_many_arms_stand_in_groups_beside_lt(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    arms = list(ARMS)
    comparison(make_runs(arms=arms, rounds=4, seeds=(0, 1), saves=False), tmp_path)
    figure = sheets["comparison"]
    accuracy, stop = panels(figure, "accuracy"), panels(figure, "early stop")
    assert len(accuracy) == len(stop) >= 3
    shown = []
    for left, right in zip(accuracy, stop, strict=True):
        here = [name for name in lines_in(left) if name in ARMS]
        assert 2 <= len(here) <= 4 and here[0] == "lt"
        assert here == [name for name in lines_in(right) if name in ARMS]
        colors = {to_rgb(line.get_color()) for line in left.lines if line.get_label() in here}
        assert len(colors) == len(here)
        shown += here[1:]
    assert sorted(shown) == sorted(arms[1:])
    assert len({axes.get_ylim() for axes in accuracy}) == 1  # comparable
    assert set(legends_of(figure)) >= set(arms)
    for axes in accuracy[1:]:  # lt's rings are in the first panel
        found = lines_in(axes)
        assert any(map(verdict.finds_tickets, list(found)[1:])) or not {BETTER, NO_WORSE} & found.keys()
    assert {BETTER, NO_WORSE} & lines_in(accuracy[0]).keys()
    groups = grouped([*ARMS, "snip_shuffle", "snip_reinit", "what is this", *(f"x{i}" for i in range(7))])
    assert all(2 <= len(arms) <= 4 and arms[0] == "lt" for arms in groups)
    assert len({arm for arms in groups for arm in arms}) == len(ARMS) + 10


def test_arms_can_be_told_apart() -> None:
    names = [*ARMS, *(f"{arm}_shuffle" for arm in ("random", "one_shot")), "a later arm"]
    assert sum(to_rgb(style.look(arm).color) == to_rgb(style.look("lt").color) for arm in names) == 1
    assert len({style.look(arm).marker for arm in ARMS}) == min(len(ARMS), len(style.MARKERS))
    for start in range(len(names) - 2):
        together = style.looks(["lt", *names[1:][start : start + 3]])
        assert len({to_rgb(look.color) for look in together.values()}) == len(together)
    assert style.look("a later arm") == style.look("a later arm")


def test_a_grid_has_axes_of_its_own_in_every_panel_and_says_what_is_where(
    tmp_path: Path, make_runs: MakeRuns, sheets: Sheets
) -> None:
    def low(arm: str, number: int, seed: int) -> float:
        return 60.0 - number

    groups = [
        make_runs(arms=["lt"], rounds=10, saves=False),
        make_runs(rounds=4, seeds=[0], settings="end_iter=5,prune_percent=40", percent=40.0, saves=False),
        make_runs(arms=["random"], dataset="cifar10", accuracy=low, saves=False),
        make_runs(arms=["lt"], arch_type="conv2", dataset="cifar10", accuracy=low, saves=False),
        [Run(tmp_path, "conv2", "mnist", "default", "lt", 0)],  # nothing finished yet
    ]
    assert grid(groups, tmp_path / "plots") == [tmp_path / "plots" / "grid.png"]
    figure = sheets["grid"]
    upper = [axes for axes in panels(figure) if axes.get_title()]
    assert len(panels(figure)) == 8 and len(upper) == 4
    titles = [axes.get_title().splitlines() for axes in upper]
    assert titles == [
        ["fc1 on MNIST", "20% pruned per round", "3 trials"],
        ["fc1 on MNIST", "40% pruned per round", "1 trial"],
        ["fc1 on CIFAR-10", "20% pruned per round", "3 trials"],
        ["conv2 on CIFAR-10", "20% pruned per round", "3 trials"],
    ]
    assert (
        figure.get_suptitle().strip() == "accuracy and early stop"
        and figure.texts[1].get_text() == "5 epochs per round"
    )
    assert "mean of the trials" in caption_of(figure) and "scales differ" in caption_of(figure)
    for axes, accuracy in zip(upper, ([97, 99], [97, 99], [50, 61], [50, 61]), strict=True):
        bottom, top = axes.get_ylim()
        assert accuracy[0] - 5 < bottom < top < accuracy[1] + 5  # its own numbers fill it
        remaining = np.concatenate([x for name, (x, _) in lines_in(axes).items() if name in ARMS])
        first, last = axes.get_xlim()
        assert np.log(100 / remaining.min()) > 0.85 * np.log(first / last)  # in width too
    assert set(legends_of(figure)) - {BETTER, NO_WORSE} == {"lt", "reinit", "random", "dense network"}
    assert grid([groups[-1]], tmp_path / "plots") == []


def test_a_grid_of_two_settings_has_one_in_rows_one_in_columns_and_one_axis(
    tmp_path: Path, make_runs: MakeRuns, sheets: Sheets
) -> None:
    def group(lr: str, end: str) -> list[Run]:
        return make_runs(arms=["lt"], seeds=[0, 1], rounds=2, settings=f"end_iter={end},lr={lr}", saves=False)

    grid([group(lr, end) for lr, end in (("0.1", "5"), ("0.2", "6"), ("0.2", "5"), ("0.1", "6"))], tmp_path)
    upper = panels(sheets["grid"])[::2]
    titles = [axes.get_title() for axes in sorted(panels(sheets["grid"]), key=lambda axes: axes.get_subplotspec().num1)]
    titles = [title for title in titles if title]
    words = [
        [f"{end} epochs" in title for end in (5, 6)] + [f"rate 0.{lr}" in title for lr in (1, 2)] for title in titles
    ]
    assert len({tuple(word[:2]) for word in words[:2]}) != len({tuple(word[2:]) for word in words[:2]}), "one differs"
    assert [word[:2] for word in words[:2]] == [word[:2] for word in words[2:]] or words[0][:2] == words[1][:2]
    assert len({axes.get_ylim() for axes in upper}) == 2 and "scales differ" not in caption_of(sheets["grid"])


def test_captions_count_the_trials_of_every_point(tmp_path: Path, make_runs: MakeRuns, sheets: Sheets) -> None:
    runs = [*make_runs(arms=["lt"], rounds=4, seeds=(0, 1)), *make_runs(arms=["lt"], rounds=2, seeds=(2,))]
    for draw in (comparison, training):
        draw(runs, tmp_path)
        assert "mean of 2 to 3 trials" in caption_of(sheets[draw.__name__])
    grid([runs], tmp_path)
    assert panels(sheets["grid"])[0].get_title().endswith("2 to 3 trials")


@pytest.mark.parametrize("x", ["flops", "compression"])
def test_the_axis_may_be_multiply_adds_or_compression(
    tmp_path: Path, make_runs: MakeRuns, sheets: Sheets, x: str
) -> None:
    """Of two layers of 100 weights each at 51.2%, the first used three times, and 88 multiply-adds left alone."""
    cost = Cost({"a": 3.0, "b": 1.0}, {"a": "conv", "b": "fc"}, rest=88)
    runs = make_runs(rounds=4, shapes={"a": (10, 10), "b": (10, 10)}, saves=False, cost=cost)
    assert comparison(runs, tmp_path, x=x) == [tmp_path / f"comparison_{x}.png"]
    axes = sheets[f"comparison_{x}"].axes[0]
    assert axes.get_xlabel() == style.SPARSITY[x][0]
    weights = np.array([100, 80, 64, 51])
    expected = 100 * (4 * weights + 88) / 488 if x == "flops" else weights
    assert lines_in(axes)["lt"][0] == pytest.approx(expected, rel=0.02)
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert ticks[0] == ("100" if x == "flops" else "1") and len(ticks) == 4
    assert x == "compression" or not comparison(make_runs(tmp_path / "older", saves=False), tmp_path, x=x)


def test_ticks_of_weights_remaining() -> None:
    axes = Figure().subplots()

    def ticks(values: list[float], **options: int) -> list[str]:
        style.remaining_axis(axes, values, **options)
        return [axes.xaxis.get_major_formatter()(tick) for tick in axes.get_xticks()]

    for rounds in (2, 8, 22, 35):
        values = [100 * 0.8**number for number in range(rounds)]
        found = ticks(values)
        assert found[0] == "100" and found[-1] == axes.xaxis.get_major_formatter()(values[-1])
        assert min(rounds, 5) <= len(found) <= 8
        places = -np.log(axes.get_xticks())
        assert np.diff(places).max() <= 2.01 * np.diff(places).min()
        assert axes.get_xlim()[1] < values[-1]
    assert ticks([100.0, 11.0, 10.0, 9.9, 1.0]) == ["100", "11", "1"]  # those too near each other are left out
    assert ticks([100.0]) == ["100"]
