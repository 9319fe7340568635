"""How far masks overlap: by hand, beside random masks by exact fractions, for all pairs of runs."""

import math
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import MakeRuns
from hypothesis import given, settings
from hypothesis import strategies as st

import lth
from lth import pruning
from lth.analysis import overlap
from lth.records.store import Store
from lth.records.tables import Run

Counts = tuple[int, int, int]
COUNTS = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n)))


def exact(layers: list[Counts]) -> dict[int, Fraction]:
    """The distribution of the number of common weights of two random masks, by counting."""
    whole = {0: Fraction(1)}
    for total, one, other in layers:
        ways = {
            both: Fraction(math.comb(one, both) * math.comb(total - one, other - both), math.comb(total, other))
            for both in range(max(0, one + other - total), min(one, other) + 1)
        }
        sums: dict[int, Fraction] = {}
        for before, p in whole.items():
            for both, q in ways.items():
                sums[before + both] = sums.get(before + both, Fraction(0)) + p * q
        whole = sums
    return whole


@settings(max_examples=80, deadline=None)
@given(st.lists(COUNTS, min_size=1, max_size=3))
def test_random_masks_are_hypergeometric_and_layers_add_up(layers: list[Counts]) -> None:
    ways, found = exact(layers), overlap.chance(*layers)
    assert found.mean == pytest.approx(float(sum(both * p for both, p in ways.items())))
    below = {both: sum(p for other, p in ways.items() if other <= both) for both in ways}
    for quantile, share in ((found.low, Fraction(1, 40)), (found.high, Fraction(39, 40))):
        reached = {both for both, p in below.items() if p >= share}
        close = {both for both, p in below.items() if abs(p - share) < 1e-9}  # where rounding decides
        assert quantile == min(reached) or close & {quantile, quantile - 1}


A = {"a": torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]).bool(), "b": torch.tensor([1, 1, 0, 0]).bool()}
B = {"a": torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0]]).bool(), "b": torch.tensor([0, 0, 1, 0]).bool()}


def test_two_masks_by_hand() -> None:
    found = lth.compare(A, {name: mask.float() for name, mask in B.items()}).set_index("layer")
    assert list(found.index) == ["a", "b", "all"]
    assert found[["weights", "kept_a", "kept_b", "both"]].values.tolist() == [[8, 3, 4, 2], [4, 2, 1, 0], [12, 5, 5, 2]]
    assert found["jaccard"].tolist() == pytest.approx([2 / 5, 0, 2 / 8])
    assert found["of_smaller"].tolist() == pytest.approx([2 / 3, 0, 2 / 5])
    assert found["chance"].tolist() == pytest.approx([1.5 / 3, 0.5 / 1, 2 / 5])
    assert found["jaccard_chance"].tolist() == pytest.approx([1.5 / 5.5, 0.5 / 2.5, 2 / 8])
    # Of 56 choices of 3 from 8, 4 and 4 have none and all in common with the 4; in b, 2 of 4 have it.
    assert found.loc["a", ["chance_low", "chance_high"]].tolist() == pytest.approx([0, 3 / 3])
    assert found.loc["b", ["jaccard_low", "jaccard_high"]].tolist() == pytest.approx([0, 1 / 2])
    assert found[["signs_start", "signs_trained"]].isna().all(axis=None)
    assert lth.compare(A, A)["jaccard"].tolist() == [1, 1, 1]
    empty = {name: torch.zeros_like(mask) for name, mask in A.items()}
    assert lth.compare(A, empty)[["jaccard", "of_smaller"]].iloc[0].fillna(-1).tolist() == [0, -1]


def test_signs_are_those_of_weights_that_both_keep() -> None:
    def ticket(masks: pruning.Masks, a: list[float], b: list[float]) -> SimpleNamespace:
        state = {"a": torch.tensor(a).view(2, 4), "b": torch.tensor(b), "bias": torch.ones(2)}
        return SimpleNamespace(masks=masks, start=state, trained={name: -value.abs() for name, value in state.items()})

    one, other = ticket(A, [1, 1, -1, 9, 9, 9, 9, 9], [1, 1, 1, 1]), ticket(B, [9, 5, 1, 9, 9, -9, 9, 9], [1] * 4)
    found = lth.compare(one, other).set_index("layer")
    assert found["signs_start"].fillna(-1).tolist() == [0.5, -1, 0.5] and found["signs_trained"]["a"] == 1
    assert lth.compare(one, B)["signs_start"].isna().all()


@pytest.mark.parametrize(
    ("other", "error", "says"),
    [
        ({"a": A["a"]}, ValueError, "tickets of one model.* but b differs"),
        ({**A, "b": torch.ones(5)}, ValueError, "but b differs"),
        ("saves/fc1", TypeError, "b must be a ticket of lth.load_ticket or a dict of masks, not str"),
        ({"a": [1, 0]}, TypeError, "b must be"),
    ],
)
def test_what_is_no_ticket_of_the_same_model_is_refused(other: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        lth.compare(A, other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="they have no masks"):
        lth.compare({}, {})


def test_all_pairs_of_runs_in_every_round_that_both_have(make_runs: MakeRuns, tmp_path: Path) -> None:
    arms = ("lt", "snip", "ticket_reinit", "ticket_shuffle")
    runs = make_runs(arms=arms, seeds=(0, 1), rounds={**dict.fromkeys(arms, 3), "snip": 2})
    found = overlap.pairs(runs[::-1])
    whole = found[found["layer"] == "all"]
    assert set(whole["arm_a"]) | set(whole["arm_b"]) == {"lt", "snip", "ticket_shuffle"}, "masks of lt taken twice"
    assert whole.groupby("round").size().to_dict() == {1: 15, 2: 6}, "pairs of 6 masks, and of 4"
    pair = whole.query("round == 2 and arm_a == 'lt' and arm_b == 'lt'").iloc[0]
    masks = [Store(Run(tmp_path, "fc1", "mnist", runs[0].settings, "lt", seed)).masks(2) for seed in (0, 1)]
    assert (pair["seed_a"], pair["seed_b"]) == (0, 1)
    assert pair["remaining"] == pytest.approx(pruning.remaining(masks[0]), abs=1e-3)
    assert pair["both"] == sum(int((masks[0][name] & masks[1][name]).sum()) for name in masks[0])
    same = whole.query("arm_a == 'lt' and arm_b == 'snip' and seed_a == seed_b")
    assert (same["signs_start"] == 1).all() and same["signs_trained"].isna().all()
    assert overlap.write(runs, tmp_path) and len(pd.read_csv(tmp_path / "masks.csv")) == len(found)
    assert not overlap.write(runs[:1], tmp_path) and not (tmp_path / "masks.csv").exists()
