"""Published claims: what counts as agreeing, what is another experiment, the table of claims itself, reproduce.py."""

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MakeRuns
from helpers import Capture, Patch, arrays, results
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

import lth
import reproduce
import utils
from lth.analysis import verdict
from lth.claims import CLAIMS, Claim, Statement
from lth.claims import reproduce as reproduce_claims
from lth.claims.claim import PERCENT, TIMES, Form, accuracy, barrier, early_stop, form, overlap, untrained
from lth.claims.findings import Records, check, findings, judge, markdown, renew, text
from lth.commands import forecast, session
from lth.records.journal import write_connectivity
from lth.records.store import Store
from lth.records.tables import Run, runs_of, table
from lth.settings.config import ConfigError

ABOVE = (0.0, math.inf)


def claim(*statements: Statement, experiments: Mapping[str, str] | None = None, quick: str = "") -> Claim:
    told = {"about": "a test", "paper": "Nobody 2020", "where": "Figure 0", "source": "arXiv:0000.00000"}
    return Claim(name="tiny", experiments=experiments or {"": ""}, quick=quick, statements=statements, **told)


@examples(max_examples=200, deadline=None)
@given(*[st.floats(-5, 5) for _ in range(4)])
def test_an_interval_agrees_disagrees_or_includes_both(a: float, b: float, c: float, d: float) -> None:
    low, high, *holds = min(a, b), max(a, b), min(c, d), max(c, d)
    inside = [holds[0] <= value <= holds[1] for value in (low, high, *np.linspace(low, high, 300))]
    around = low <= holds[0] <= high or low <= holds[1] <= high
    expected = "agrees" if all(inside) else "not decided" if any(inside) or around else "disagrees"
    expected = "not decided" if low == high and low in holds else expected  # no effect is on neither side
    assert judge(low, high, (holds[0], holds[1])) == expected


def gains(by_seed: Mapping[int, float]) -> Callable[[str, int, int], float]:
    """Accuracies of lt above dense from round 1 on, by seed."""
    return lambda arm, number, seed: 90 + seed + (by_seed[seed] if number and arm == "lt" else 0)


def test_a_statement_is_judged_by_the_paired_interval_of_its_trials(make_runs: MakeRuns) -> None:
    cases: list[tuple[dict[int, float], str]] = [
        ({0: 0.5, 1: 0.52, 2: 0.48}, "agrees"),
        ({0: -0.5, 1: -0.52, 2: -0.48}, "disagrees"),
        ({0: 0.5, 1: -0.4, 2: 0.2}, "not decided"),
        ({0: 0.5}, "not decided"),
    ]
    for number, (gained, expected) in enumerate(cases):
        runs = make_runs(seeds=tuple(gained), accuracy=gains(gained), saves=False, settings=f"seed={number}")
        found = check(Statement("more accurate", accuracy("lt"), at=51.2, holds=ABOVE), Records.from_runs({"": runs}))
        assert (found.verdict, found.trials) == (expected, len(gained))
        assert found.mean == pytest.approx(np.mean(list(gained.values())))
        assert found.remaining == pytest.approx(51.2, abs=0.3)
        if len(gained) > 1:
            assert (found.low, found.high) == pytest.approx(verdict.interval(list(gained.values())))


@pytest.mark.parametrize("beside", ["lt", ""])  # another arm, or the trial's dense network
def test_arms_are_compared_within_a_trial_and_ratios_by_their_logarithms(make_runs: MakeRuns, beside: str) -> None:
    runs = make_runs(seeds=(0, 1, 2), saves=False)
    statement = Statement("later", early_stop("reinit", beside), at=51.2, holds=(1, math.inf), unit=TIMES)
    found = check(statement, Records.from_runs({"": runs}))
    ES = {(run.arm, run.seed): table(run, "rounds")["ES"] for run in runs}
    others = [ES["lt", seed][3] if beside else ES["reinit", seed][0] for seed in range(3)]
    ratios = np.log([ES["reinit", seed][3] / others[seed] for seed in range(3)])
    assert found.mean == pytest.approx(np.exp(ratios.mean()))
    assert (found.low, found.high) == pytest.approx(tuple(map(math.exp, verdict.interval(list(ratios)))))


def test_a_round_counts_if_it_is_near_enough_and_of_the_experiment_that_is_asked_for(make_runs: MakeRuns) -> None:
    records = Records.from_runs({"": make_runs(rounds=4, saves=False)})  # down to 51%
    one = Statement("more accurate", accuracy("lt"), at=41, holds=ABOVE)
    assert check(one, records).verdict == "not measured"
    assert check(one, records, factor=1.3).remaining == pytest.approx(51.2, abs=0.3)

    def fixed(gain: float) -> list[Run]:
        return make_runs(arms=["lt"], settings=f"lr={gain}", accuracy=lambda arm, number, seed: 90 + gain, saves=False)

    records = Records.from_runs({"high": fixed(2.0), "low": fixed(0.5)})
    one = Statement("more accurate", accuracy("high/lt", "low/lt"), at=51, holds=ABOVE)
    assert check(one, records).mean == pytest.approx(1.5)


def line(train: tuple[float, ...], test: tuple[float, ...]) -> list[dict[str, float]]:
    """The points of a line with these errors."""
    return [
        {"point": at / (len(train) - 1), "train_error": one, "test_error": other}
        for at, (one, other) in enumerate(zip(train, test, strict=True))
    ]


def test_a_barrier_is_that_of_the_round_on_training_or_test_images(make_runs: MakeRuns) -> None:
    runs = make_runs(arms=["lt", "reinit"], seeds=(0, 1, 2), rounds=3, saves=False)
    for run in runs[:2]:  # of one trial the line is not measured yet
        for number in range(3):
            train, test = (4.0, 5.0 + number + run.seed, 4.0), (1.0, 2.0, 3.0)
            write_connectivity(run, number, line(train, test) if number else line((1.0, 1.0, 1.0), (1.0, 1.5, 1.0)))
    statements = [Statement("stable", barrier("lt"), at=at, holds=(-math.inf, 2.0)) for at in (100, 64)]
    records = Records.from_runs({"": runs})
    dense, sparse = (check(statement, records) for statement in statements)
    assert (dense.mean, dense.trials, dense.verdict) == (0.5, 2, "agrees")
    assert (sparse.mean, sparse.trials, sparse.low < 3.5 < sparse.high) == (3.5, 2, True), "3 and 4: two trials"
    assert check(Statement("stable", barrier("reinit"), at=64, holds=(0, 2)), records).verdict == "not measured"


def test_masks_are_compared_in_pairs_that_share_no_trial(make_runs: MakeRuns) -> None:
    runs = make_runs(arms=["lt"], seeds=range(5), rounds=4)
    found = check(Statement("alike", overlap("lt"), at=64, holds=(0, 1.5), unit=TIMES), Records.from_runs({"": runs}))
    one, other = (Store(run).masks(2) for run in runs[2:4])
    both = lth.compare(one, other).set_index("layer").loc["all"]
    values = Records.from_runs({"": runs}).near(64).overlaps("lt")
    assert list(values.index) == [0, 2] and found.trials == 2
    assert values[2] == pytest.approx(both["jaccard"] / both["jaccard_chance"])


def test_trials_may_start_from_the_initial_weights_of_a_run_that_is_trained_before(tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays(shape=(28, 28)))
    tiny = f"--data {tmp_path} --root {tmp_path} --valid_size 40 --batch_size 10"
    tiny += " --end_iter 4it --valid_freq 4it --prune_iterations 2 --trials 2 --jobs 1 --quiet"
    asked = form(CLAIMS["masks"], tiny.split(), quick=True)
    assert "8 trainings, at most" in reproduce_claims.duration(asked, {}), "before anything is there"
    for config in asked.configs.values():
        session.run(config)
    one, other = (lth.load_ticket(run.saves, round=1) for run in runs_of(asked.configs["siblings"]))
    both = {name: mask & other.masks[name] for name, mask in one.masks.items()}
    assert all(torch.equal(one.start[name][mask], other.start[name][mask]) for name, mask in both.items())
    assert any(not torch.equal(mask, other.masks[name]) for name, mask in one.masks.items())


def changes(*argv: str) -> list[str]:
    return [change.split("=")[0] for change in form(CLAIMS["lenet"], argv).changes]


def test_changes_of_the_published_experiment_are_reported() -> None:
    assert changes() == changes("--dataset", "MNIST", "--arch_type", "FC1") == []
    assert changes("--trials", "2", "--jobs", "1", "--precision", "bf16", "--prune_iterations", "20") == []
    assert changes("--pixels", "standard") == ["pixels"]  # the default of main.py, not of the claim
    assert changes("--prune_iterations", "16") == ["prune_iterations"]
    assert changes("--prune_type", "lt") == ["without ticket_reinit"]
    assert form(CLAIMS["lenet"], quick=True).changes


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_is_measured_by_the_runs_it_asks_for(name: str, make_runs: MakeRuns, tmp_path: Path) -> None:
    of_pairs = bool(CLAIMS[name].start_of)
    asked = form(CLAIMS[name], ["--root", str(tmp_path), "--trials", "2" if of_pairs else "1"])
    for config in asked.configs.values():
        arms = list(dict.fromkeys(run.arm for run in runs_of(config)))
        facts = {"arch_type": config.arch_type, "dataset": config.dataset, "settings": config.folder()}
        rounds = {"rounds": config.prune_iterations, "percent": config.prune_percent}
        runs = make_runs(arms=arms, seeds=config.seeds, saves=of_pairs, **facts, **rounds)
        for run, number in itertools.product(runs if config.connectivity else [], range(config.prune_iterations)):
            write_connectivity(run, number, line((4.0, 5.0 + number, 6.0), (1.0, 2.0, 3.0)))
    assert [found.statement.says for found in findings(asked) if found.trials != 1] == []
    assert form(CLAIMS[name], quick=True).configs.keys() == asked.configs.keys()


def test_all_mistakes_of_a_command_line_come_once(capsys: Capture) -> None:
    assert utils.exit_code(reproduce.main, ["criteria", "lennet", "--lr", "x", "--nonsense"]) == 2
    said = capsys.readouterr().err.splitlines()
    words = ("mean lenet?", "--lr", "--nonsense")
    assert len(said) == 3 and all(any(word in line for line in said) for word in words)
    assert utils.exit_code(reproduce.main, []) == 2
    with pytest.raises(ConfigError, match="--name cannot be given"):
        form(CLAIMS["criteria"], ["--name", "mine"])


def asked(root: Path, *argv: str) -> Form:
    one = claim(Statement("more accurate", accuracy("lt"), at=51.2, holds=ABOVE, published=0.3), quick="--trials 2")
    return form(one, ["--root", str(root), "--prune_percent", "20", "--end_iter", "5", *argv])


def test_a_report_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "r.md"
    file.write_bytes("é".encode("latin-1"))
    for name in ("r.md", "r.md/r.md", "."):
        argv = ["lenet", "--quick", "--report", str(tmp_path / name), "--root", str(tmp_path)]
        assert utils.exit_code(reproduce.main, argv) == 2
        assert "--report must be a file of text or a new one" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == [file]


def test_a_report_renews_its_own_section_and_leaves_the_rest(make_runs: MakeRuns, tmp_path: Path) -> None:
    make_runs()
    file = tmp_path / "report.md"
    file.write_text("# Mine\n\nBefore.\n")
    first, second = asked(tmp_path, "--trials", "3"), asked(tmp_path, "--trials", "3", "--precision", "fp32")
    written = renew(file, first, findings(first))
    assert [path.name for path in written] == ["report.md", *(path.name for path in written[1:])] and len(written) == 2
    file.write_text(file.read_text() + "\nAfter.\n")
    renew(file, second, findings(second))
    before = file.read_text()
    renew(file, first, findings(first))
    text = file.read_text()
    assert text == before
    assert text.startswith("# Mine\n\nBefore.\n") and "\nAfter.\n" in text and text.count("### tiny") == 2
    assert "Nothing is finished yet" in text.split("After.")[1] and f"]({written[1].name})" in text
    assert str(tmp_path) not in text
    assert "python reproduce.py tiny --prune_percent 20 --end_iter 5 --trials 3 --precision fp32\n" in text


def test_a_report_shows_what_its_statements_are_about(make_runs: MakeRuns, tmp_path: Path) -> None:
    above = (20, math.inf)
    before = Statement("good before training", untrained("lt"), at=None, holds=above, published=86, unit=PERCENT)
    stable = Statement("stable", barrier("lt"), at=100, holds=(-math.inf, 2.0))
    flags = ["--root", str(tmp_path), "--prune_percent", "20", "--end_iter", "5", "--trials", "3"]
    asked_for = form(claim(before, stable), flags)
    for run in make_runs(rounds=3):
        for number in range(3):
            write_connectivity(run, number, line((1.0, 1.0, 1.0), (1.0, 1.5, 1.0)))
    _, comparison, lines = renew(tmp_path / "r.md", asked_for, findings(asked_for))
    text = (tmp_path / "r.md").read_text()
    assert "| good before training | | 86.00 | 12.00 [12.00, 12.00] |" in text, "a level, no difference"
    assert "| stable | 100% | | +0.50 [+0.50, +0.50] |" in text
    assert "lt, 3 trials" in text and "vs dense" in text
    assert (comparison.name, lines.name) == (f"{asked_for.slug}.png", f"{asked_for.slug}-connectivity.png")
    assert f"]({lines.name})" in text


def test_changed_settings_are_never_printed_as_the_claim(make_runs: MakeRuns, tmp_path: Path) -> None:
    make_runs(seeds=(0, 1, 2), accuracy=gains({0: 0.5, 1: 0.52, 2: 0.48}))
    changed = asked(tmp_path, "--trials", "3")
    said = text(changed, findings(changed), 100)
    assert "CHANGED SETTINGS, not the published experiment: end_iter=5, published 100" in said
    assert "(agrees)" in said and " agrees" not in said.split("measured: mean")[0]
    assert "CHANGED SETTINGS" in markdown(changed, findings(changed), {})
    assert all(len(line) <= 100 for line in said.splitlines())


@pytest.fixture
def tiny(place: Path, monkeypatch: Patch) -> Claim:
    """A claim that takes a second, among the known ones."""
    usual = "--arch_type mlp --dataset tiny --prune_type lt reinit --prune_percent 30 --end_iter 8it --valid_freq 4it "
    made = claim(
        Statement("no worse", accuracy("lt", "reinit"), at=49, holds=(-math.inf, math.inf)),
        experiments={"": usual + "--valid_size 40 --batch_size 10 --trials 2 --prune_iterations 3 --gpu cpu --jobs 1"},
        quick="--end_iter 4it",
    )
    monkeypatch.setitem(CLAIMS, "tiny", made)
    return made


def test_a_claim_from_the_command_line(tiny: Claim, place: Path, capsys: Capture) -> None:
    where = ["--root", str(place), "--data", str(place / "data"), "--quiet"]
    dry = ["tiny", "--dry_run", *where, "--report", str(place / "new" / "r.md")]
    assert utils.exit_code(reproduce.main, dry) == 0
    assert not any((place / name).exists() for name in ("dumps", "plots", "new"))
    assert utils.exit_code(reproduce.main, ["tiny", "--finished", *where]) == 0
    assert "not measured 1" in capsys.readouterr().out and results(place) == {}
    assert utils.exit_code(reproduce.main, [*where, "tiny", "--report", str(place / "r.md")]) == 0
    said = capsys.readouterr().out
    assert "agrees 1" in said and "CHANGED" not in said
    written = pd.read_csv(place / "plots" / "claims" / "tiny.csv")
    assert written["verdict"].tolist() == ["agrees"] and written["trials"].tolist() == [2]
    trained = results(place)
    assert len([name for name in trained if name.endswith("rounds.csv")]) == 4
    assert "10 trainings" in (place / "r.md").read_text()
    assert utils.exit_code(reproduce.main, ["tiny", *where]) == 0 and results(place) == trained  # nothing is left to do
    assert utils.exit_code(reproduce.main, ["tiny", "--quick", *where]) == 0
    assert "QUICK FORM, not the published experiment: end_iter=4it, published 8it" in capsys.readouterr().out
    assert (place / "plots" / "claims" / "tiny-quick.csv").exists()
    own = [*where, "--name", "mine"]
    assert utils.exit_code(reproduce.main, ["tiny", "--lr", "0.01", *own]) == 0
    assert utils.exit_code(reproduce.main, ["tiny", "--finished", *own]) == 2
    assert "holds results of different settings (lr 0.01, now 0.0012)" in " ".join(capsys.readouterr().err.split())


def test_the_list_says_what_a_claim_takes_and_writes_nothing(tiny: Claim, place: Path, capsys: Capture) -> None:
    assert utils.exit_code(reproduce.main, ["tiny", "--list", "--data", str(place / "data"), "--root", str(place)]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("tiny  Nobody 2020, Figure 0: 10 trainings, at most 10 seconds here")
    assert not (place / "dumps").exists()
    assert [forecast.in_words(n) for n in (0.01, 0.7, 1.4, 119.6, 121, 600)] == (
        ["10 seconds", "40 seconds", "80 seconds", "120 minutes", "2 hours", "10 hours"]
    )
    assert "are not here" in reproduce_claims.duration(form(tiny, ["--data", str(place)]), {})
