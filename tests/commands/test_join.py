"""--join: what another process holds is left to it, what it leaves is taken up, and all that are stopped let go."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import assert_released, assert_same, do, held, results, settings

import main
import utils
from lth.commands import session
from lth.commands.progress import Progress
from lth.experiment.trainer import Event, Note
from lth.records.lock import Locks
from lth.records.tables import runs_of
from lth.settings import flags
from lth.settings.config import Config

ARMS = {"prune_type": ("lt", "reinit"), "trials": 2}


@pytest.fixture
def whole(place: Path) -> tuple[Config, dict[str, bytes]]:
    """Settings to join in, and what must come of them."""
    undisturbed = place / "undisturbed"
    do(settings(place, root=undisturbed, **ARMS))
    return settings(place, root=place / "joined", join=True, **ARMS), results(undisturbed)


def test_what_another_holds_is_waited_for_and_then_done(
    whole: tuple[Config, dict[str, bytes]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected = whole
    other = contextlib.ExitStack()
    show = Progress.__call__

    def watched(self: Progress, event: Event) -> None:
        show(self, event)
        if isinstance(event, Note) and event.text.startswith("waiting for others"):
            other.close()

    monkeypatch.setattr(Progress, "__call__", watched)
    other.enter_context(held(runs_of(config)[0].dumps))
    session.run(replace(config, quiet=False))
    out = capsys.readouterr().out
    assert out.index("lt seed1 ") < out.index("waiting for others: process 77 on elsewhere has lt seed0")
    assert out.count("waiting for ") == 1
    assert_same(results(config.root), expected)
    assert_released(config.root)


def test_failures_are_not_repeated_and_said_by_all(
    whole: tuple[Config, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = whole
    bad = replace(config, optimizer="sgd", lr=1e30)
    with pytest.raises(session.TrialsFailed, match="4 of 4 runs ended early"):
        session.run(bad)
    said = capsys.readouterr().err
    assert said.count("the loss became") == 4
    lt = runs_of(bad)[0]
    assert "the loss became" in (lt.dumps / "failed.txt").read_text()
    good = replace(config, lr=0.01, name=lt.settings, overwrite=True, join=False)  # a new attempt at the same runs
    session.run(good)
    assert not list(config.root.glob("dumps/*/*/*/*/seed?/failed.txt"))


def test_one_process_draws(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--arch_type", "mlp", "--dataset", "tiny", "--data", str(place / "data"), "--root", str(place), "--quiet"]
    argv += ["--prune_iterations", "2", "--end_iter", "4it", "--valid_size", "40", "--batch_size", "10", "--join"]
    argv += ["--gpu", "cpu", "--jobs", "1"]
    (run,) = runs_of(flags.parse(argv))
    with Locks() as locks:
        locks.take(run.dumps.parent.parent)
        assert utils.exit_code(main.main, argv) == 0
    assert f"another process is drawing the figures: {run.plots}" in capsys.readouterr().out
    assert not list(place.rglob("*.png"))
    assert utils.exit_code(main.main, argv) == 0
    assert (run.plots / "comparison.png").exists()
