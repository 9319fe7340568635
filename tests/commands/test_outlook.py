"""What is said before a command begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import settings

from lth.commands import session


@pytest.mark.parametrize("dry_run", [True, False])
def test_overwrite_says_whose_masks_are_trained_again_too(
    place: Path, capsys: pytest.CaptureFixture[str], dry_run: bool
) -> None:
    config = settings(place, prune_type=("ticket_reinit",), prune_iterations=2, quiet=False, dry_run=dry_run)
    told = "--overwrite starts lt again too, whose masks ticket_reinit takes"
    session.run(config)
    assert told not in capsys.readouterr().out
    session.run(replace(config, overwrite=True))
    assert told in " ".join(capsys.readouterr().out.split())


def test_what_continues_says_which_rounds_are_finished(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session.run(settings(place, prune_iterations=1))
    session.run(settings(place, prune_iterations=3, quiet=False))
    told = capsys.readouterr().out
    assert "Continuing lt seed0: 1 of 3 rounds are finished\n  round 0: 100.00% of the weights, ES " in told
    session.run(settings(place, prune_iterations=4, overwrite=True, quiet=False))
    assert "Continuing" not in capsys.readouterr().out


def test_stacks_of_one_leave_the_processes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--stack 1 is the default, said aloud."""
    sizes = []

    def work(size: int, *rest: object) -> None:
        sizes.append(size)
        raise KeyboardInterrupt

    monkeypatch.setattr(session.loop, "work_in_processes", work)
    monkeypatch.setattr(session.loop, "work_here", lambda *rest: work(1))
    for stack in (None, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            session.run(settings(place, trials=2, jobs=2, stack=stack))
    assert sizes == [2, 2, 1]
