"""Accuracy and early stop against the weights remaining: lines, bars, marks, axes; several in a grid; and accuracies
during training."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MakeRuns
from drawn import caption_of, legends_of, lines_in, panels
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from lth.analysis import labels, verdict
from lth.models.probe import Cost
from lth.plots import style
from lth.plots.comparison import comparison, grid, grouped, thinned, training
from lth.records import tables
from lth.records.tables import Run
from lth.settings.arms import ARMS

pytestmark = pytest.mark.versions

BETTER, NO_WORSE = "winning ticket: better than dense", "winning ticket: no worse than dense"


def test_means_bars_dense_and_winners(make_runs: MakeRuns) -> None:
    accuracies = {
        "lt": [[97.0, 97.2], [97.5, 97.72], [97.0, 97.22], [96.0, 96.6]],
        "reinit": [[97.0, 97.2], [96.9, 97.7], [96.1, 97.0], [95.0, 95.2]],
    }
    runs = make_runs(rounds=4, seeds=(0, 1), accuracy=lambda arm, number, seed: accuracies[arm][number][seed])
    figure = comparison(runs)
    left, right = figure.axes
    found, rounds, table = lines_in(left), verdict.paired(runs), verdict.table(runs)
    for arm, values in accuracies.items():
        remaining, means = found[arm]
        np.testing.assert_allclose(means, np.mean(values, axis=1))
        assert remaining.tolist() == rounds[(rounds["arm"] == arm) & (rounds["seed"] == 0)]["remaining"].tolist()
        stops = rounds[rounds["arm"] == arm].groupby("round")["ES"].mean()
        np.testing.assert_allclose(lines_in(right)[arm][1], stops)
    bars = [shape for shape in left.collections if isinstance(shape, LineCollection)]
    for arm, bar in zip(accuracies, bars, strict=True):
        (drawn,) = (line for line in left.lines if line.get_label() == arm)
        assert to_rgb(bar.get_color()[0]) == to_rgb(drawn.get_color()) == to_rgb(style.look(arm).color)
        last = table.query("arm == @arm").iloc[-1]  # the interval by which the verdict judges the difference
        low, high = bar.get_segments()[-1][:, 1]
        expected = (last["low"], last["high"] - last["low"])
        assert (low - last["test"] + last["difference"], high - low) == pytest.approx(expected)
    dots = [line for line in left.lines if line.get_marker() == "."]
    assert sorted(np.concatenate([line.get_ydata() for line in dots])) == sorted(np.ravel([*accuracies.values()]))
    np.testing.assert_allclose(found["dense network"][1], 97.1)
    assert table.query("winning")["accuracy"].tolist() == ["better", "no worse"]
    np.testing.assert_allclose(found[BETTER][1], [97.61])
    np.testing.assert_allclose(found[NO_WORSE][1], [97.11])
    assert left.get_xscale() == right.get_xscale() == "log"
    assert left.get_xlim()[0] > 100 > left.get_xlim()[1]
    assert lines_in(right).keys() == found.keys() == set(legends_of(figure))
    assert "mean of 2 trials (dots); bars: 95% interval" in caption_of(figure).replace("\n", " ")
    marks = {line.get_label(): line for line in left.lines}
    assert marks[BETTER].get_marker() == "*" and marks[NO_WORSE].get_markerfacecolor() == "none"


def test_one_trial_has_no_marks_and_no_bars(make_runs: MakeRuns) -> None:
    figure = comparison(make_runs(arms=["lt"], seeds=[0], rounds=4, saves=False))
    assert set(lines_in(figure.axes[0])) == {"lt", "dense network"} and not figure.axes[0].collections
    assert caption_of(figure).startswith("1 trial: no winning ticket")
    left, right = comparison(
        make_runs(arms=["lt"], rounds=2, evaluations=1, saves=False, accuracy=lambda *_: 100.0)
    ).axes
    assert [text.get_text() for text in right.texts] == ["always the last evaluation"]
    bottom, top = left.get_ylim()
    assert bottom < 100.0 < top, "equal accuracies have an axis"


def test_collapse_does_not_flatten_the_rest_and_is_not_hidden(make_runs: MakeRuns) -> None:
    def collapsing(arm: str, number: int, seed: int) -> float:
        return 98.0 - 0.1 * number if number < 6 else {"lt": 11.0, "reinit": 30.0}[arm]

    figure = comparison(make_runs(rounds=14, accuracy=collapsing))
    axes = figure.axes[0]
    place = axes.transAxes.inverted().transform(axes.transData.transform([(100, y) for y in (97.5, 98, 11)]))[:, 1]
    assert place[1] - place[0] > 0.05 and place[2] < 0  # half a point among the good ones; the collapsed ones are below
    assert "accuracy cut off at 90% (lowest: 11%)" in caption_of(figure).replace("\n", " ")


def test_many_arms_stand_in_groups_beside_lt(make_runs: MakeRuns) -> None:
    arms = list(ARMS)
    figure = comparison(make_runs(arms=arms, rounds=4, seeds=(0, 1), saves=False))
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
    for axes in accuracy[1:]:  # lt's marks are in the first panel
        found = lines_in(axes)
        assert any(map(verdict.finds_tickets, list(found)[1:])) or not {BETTER, NO_WORSE} & found.keys()
    assert {BETTER, NO_WORSE} & lines_in(accuracy[0]).keys()
    groups = grouped([*ARMS, "snip_shuffle", "snip_reinit", "what is this", *(f"x{i}" for i in range(7))])
    assert all(2 <= len(arms) <= 4 and arms[0] == "lt" for arms in groups)
    assert len({arm for arms in groups for arm in arms}) == len(ARMS) + 10


def test_a_grid_has_axes_of_its_own_in_every_panel_and_says_what_is_where(tmp_path: Path, make_runs: MakeRuns) -> None:
    def low(arm: str, number: int, seed: int) -> float:
        return 60.0 - number

    groups = [
        make_runs(arms=["lt"], rounds=10, saves=False),
        make_runs(rounds=4, seeds=[0], settings="end_iter=5,prune_percent=40", percent=40.0, saves=False),
        make_runs(arms=["random"], dataset="cifar10", accuracy=low, saves=False),
        make_runs(arms=["lt"], arch_type="conv2", dataset="cifar10", accuracy=low, saves=False),
        [Run(tmp_path, "conv2", "mnist", "default", "lt", 0)],  # nothing finished yet
    ]
    figure = grid(groups)
    upper = [axes for axes in panels(figure) if axes.get_title()]
    assert len(panels(figure)) == 8 and len(upper) == 4
    assert [axes.get_title().splitlines() for axes in upper] == [
        ["fc1 on MNIST", "20% pruned per round", "3 trials"],
        ["fc1 on MNIST", "40% pruned per round", "1 trial"],
        ["fc1 on CIFAR-10", "20% pruned per round", "3 trials"],
        ["conv2 on CIFAR-10", "20% pruned per round", "3 trials"],
    ]
    assert figure.get_suptitle().strip() == "accuracy and early stop"
    assert figure.texts[1].get_text() == "5 epochs per round"
    assert "mean of the trials" in caption_of(figure) and "scales differ" in caption_of(figure)
    for axes, accuracy in zip(upper, ([97, 99], [97, 99], [50, 61], [50, 61]), strict=True):
        bottom, top = axes.get_ylim()
        assert accuracy[0] - 5 < bottom < top < accuracy[1] + 5  # its own numbers fill it
        remaining = np.concatenate([x for name, (x, _) in lines_in(axes).items() if name in ARMS])
        first, last = axes.get_xlim()
        assert np.log(100 / remaining.min()) > 0.85 * np.log(first / last)  # in width too
    assert set(legends_of(figure)) - {BETTER, NO_WORSE} == {"lt", "reinit", "random", "dense network"}
    assert grid([groups[-1]]) is None


def test_a_grid_of_several_models_tells_where_accuracies_are_cut_off(make_runs: MakeRuns) -> None:
    def collapsing(arm: str, number: int, seed: int) -> float:
        return 98.0 if number < 6 else 11.0

    figure = grid([make_runs(accuracy=collapsing, rounds=8, saves=False), make_runs(arch_type="conv2", saves=False)])
    titles = [axes.get_title() for axes in panels(figure) if axes.get_title()]
    assert ["accuracy cut off at 93% (lowest: 11%)" in title for title in titles] == [True, False]


def test_a_grid_of_two_settings_has_one_in_rows_one_in_columns_and_one_axis(make_runs: MakeRuns) -> None:
    def group(lr: str, end: str) -> list[Run]:
        return make_runs(arms=["lt"], seeds=[0, 1], rounds=2, settings=f"end_iter={end},lr={lr}", saves=False)

    figure = grid([group(lr, end) for lr, end in (("0.1", "5"), ("0.2", "6"), ("0.2", "5"), ("0.1", "6"))])
    drawn = sorted((axes for axes in panels(figure) if axes.get_title()), key=lambda axes: axes.get_subplotspec().num1)
    words = [[f"{end} epochs" in axes.get_title() for end in (5, 6)] for axes in drawn]
    rates = [["rate 0.1" in axes.get_title()] for axes in drawn]
    assert (words[:2], rates[0], rates[2]) in (
        ([words[2], words[3]], rates[1], rates[3]),  # one differs along columns
        ([words[1], words[0]], rates[2], rates[0]),  # or along rows
    )
    assert len({tuple(word) for word in words}) == len({tuple(rate) for rate in rates}) == 2
    assert len({axes.get_ylim() for axes in drawn}) == 1 and "scales differ" not in caption_of(figure)


def test_captions_count_the_trials_of_every_point(make_runs: MakeRuns) -> None:
    runs = [*make_runs(arms=["lt"], rounds=4, seeds=(0, 1)), *make_runs(arms=["lt"], rounds=2, seeds=(2,))]
    for draw in (comparison, training):
        assert "mean of 2 to 3 trials" in caption_of(draw(runs))
    assert panels(grid([runs]))[0].get_title().endswith("2 to 3 trials")


@pytest.mark.parametrize("x", ["flops", "compression"])
def test_the_axis_may_be_multiply_adds_or_compression(tmp_path: Path, make_runs: MakeRuns, x: str) -> None:
    """Of two layers of 100 weights each at 51.2%, the first used three times, and 88 multiply-adds left alone."""
    cost = Cost({"a": 3.0, "b": 1.0}, {"a": "conv", "b": "fc"}, rest=88)
    axes = comparison(make_runs(rounds=4, shapes={"a": (10, 10), "b": (10, 10)}, saves=False, cost=cost), x=x).axes[0]
    assert axes.get_xlabel() == style.SPARSITY[x][0]
    weights = np.array([100, 80, 64, 51])
    expected = 100 * (4 * weights + 88) / 488 if x == "flops" else weights
    assert lines_in(axes)["lt"][0] == pytest.approx(expected, rel=0.02)
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert ticks[0] == ("100" if x == "flops" else "1") and len(ticks) == 4
    assert x == "compression" or comparison(make_runs(tmp_path / "older", saves=False), x=x) is None


def test_training_has_a_panel_per_arm_and_a_line_per_sparsity(make_runs: MakeRuns) -> None:
    runs = make_runs(arms=("reinit", "lt", "ticket_reinit", "random"), rounds=12, seeds=(0, 1), saves=False)
    drawn = training(runs).axes
    assert [axes.get_title() for axes in drawn] == ["lt", "reinit", "random", "ticket_reinit"]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in drawn}) == 1
    found, rounds = lines_in(drawn[0]), tables.table(runs[2], "rounds")
    assert list(found) == [f"{labels.percent(rounds['remaining'][number])}%" for number in labels.spread(range(12), 6)]
    evals = tables.combined([run for run in runs if run.arm == "lt"], "evals").query("round == 11")
    iterations, means = list(found.values())[-1]
    expected = evals.groupby("iteration")["test"].mean()
    assert iterations.tolist() == expected.index.tolist()
    np.testing.assert_allclose(means, expected)


def test_an_arm_that_is_behind_has_the_lines_of_its_own_rounds(make_runs: MakeRuns) -> None:
    runs = [*make_runs(arms=["lt"], rounds=4, saves=False), *make_runs(arms=["reinit"], rounds=2, saves=False)]
    assert [list(lines_in(axes)) for axes in training(runs).axes] == [["100%", "80%", "64%", "51%"], ["100%", "80%"]]


def test_long_training_curves_are_means_over_windows(make_runs: MakeRuns) -> None:
    runs = make_runs(arms=["lt"], seeds=[0], rounds=1, evaluations=250, saves=False)
    figure, evals = training(runs), tables.table(runs[0], "evals")
    (x, y) = lines_in(figure.axes[0])["100%"]
    assert len(x) == 83  # of three evaluations each; one that is left over at the end would be a hook
    assert (x[0], y[0]) == pytest.approx((evals["iteration"][:3].mean(), evals["test"][:3].mean()))
    assert (x[-1], y[-1]) == pytest.approx((evals["iteration"][246:249].mean(), evals["test"][246:249].mean()))
    assert "each point the mean of 3 evaluations" in caption_of(figure)
    assert [*thinned(pd.Series([1.0, 2, 3, 4], index=[300, 600, 900, 980]), 1)] == [1, 2, 3], "the last one is early"
    assert [*thinned(pd.Series([1.0, 2, 3], index=[300, 600, 900]), 1)] == [1, 2, 3]


def test_arms_can_be_told_apart() -> None:
    names = [*ARMS, *(f"{arm}_shuffle" for arm in ("random", "one_shot")), "a later arm"]
    assert sum(to_rgb(style.look(arm).color) == to_rgb(style.look("lt").color) for arm in names) == 1
    assert len({style.look(arm).marker for arm in ARMS}) == min(len(ARMS), len(style.MARKERS))
    for start in range(len(names) - 2):
        together = style.looks(["lt", *names[1:][start : start + 3]])
        assert len({to_rgb(look.color) for look in together.values()}) == len(together)
    assert style.look("a later arm") == style.look("a later arm")
