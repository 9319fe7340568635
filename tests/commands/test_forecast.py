"""What is said before a command begins, and how long it is said to take."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import CPU, Capture, Patch, settings

from lth.commands import forecast, prepare, queue, session
from lth.settings.values import Duration


@pytest.mark.parametrize(("sparsely", "minutes"), [(False, 35), (True, 25)])
def test_the_forecast_of_what_is_left(
    place: Path, monkeypatch: Patch, capsys: Capture, sparsely: bool, minutes: int
) -> None:
    def measured(*given: object, **more: object) -> forecast.Cost:
        number, learn = given[4:]
        return forecast.Cost(step=120.0 if learn else 60.0 - 10 * int(str(number)), image=0.0)

    monkeypatch.setattr(forecast, "measure_cost", measured)
    monkeypatch.setattr(forecast, "WORTH_MEASURING", 0.0)
    monkeypatch.setattr(forecast.sparse, "choose", lambda *given: ["fc1.weight"] * sparsely)
    config = settings(place, prune_type=("lt", "reinit"), prune_iterations=4, trials=2, jobs=2, dry_run=True)
    config = replace(config, end_iter=Duration(5, "it"))
    session.run(config)  # two processes; a run of reinit takes over lt's dense round
    assert f"4 rounds of 5 iterations: about {minutes} minutes on this CPU" in capsys.readouterr().out
    monkeypatch.setattr(queue.Queue, "finished", lambda self, run: 3)
    session.run(config)  # the last round of four runs
    assert "about 5 minutes on this CPU" in capsys.readouterr().out
    changes = {"prune_type": ("rigl", "supermask"), "update_freq": Duration(2, "it"), "trials": 1}
    session.run(replace(config, **changes))  # as a dense round; twice as long as that
    assert "about 10 minutes on this CPU" in capsys.readouterr().out


def test_a_measured_step_and_evaluation_make_a_training(place: Path) -> None:
    config = prepare.with_valid_size(
        settings(place, end_iter=Duration(7, "it"), valid_freq=Duration(2, "it"), batch_size=8)
    )
    images, problem = prepare.prepare(config)
    cost = forecast.measure_cost(config, images, problem, CPU, number=1)
    assert 0 < cost.step < 1 and 0 < cost.image < 1 and not (place / "dumps").exists()
    evaluated = 4 * ((config.valid_size or 0) + len(images.test))  # at 2, 4, 6 and 7
    assert forecast.Cost(10, 0.5).training(config, images) == 7 * 10 + evaluated * 0.5


@pytest.mark.parametrize("dry_run", [True, False])
def test_overwrite_says_whose_masks_are_trained_again_too(place: Path, capsys: Capture, dry_run: bool) -> None:
    config = settings(place, prune_type=("ticket_reinit",), prune_iterations=2, quiet=False, dry_run=dry_run)
    told = "--overwrite starts lt again too, whose masks ticket_reinit takes"
    session.run(config)
    assert told not in capsys.readouterr().out
    session.run(replace(config, overwrite=True))
    assert told in " ".join(capsys.readouterr().out.split())


def test_what_continues_says_which_rounds_are_finished(place: Path, capsys: Capture) -> None:
    session.run(settings(place, prune_iterations=1))
    session.run(settings(place, prune_iterations=3, quiet=False))
    told = capsys.readouterr().out
    assert "Continuing lt seed0: 1 of 3 rounds are finished\n  round 0: 100.00% of the weights, ES " in told
    session.run(settings(place, prune_iterations=4, overwrite=True, quiet=False))
    assert "Continuing" not in capsys.readouterr().out


def test_stacks_of_one_leave_the_processes(place: Path, monkeypatch: Patch) -> None:
    """--stack 1 is the default, said aloud."""
    sizes = []

    def work(queue: object, size: int = 1, *rest: object) -> None:
        sizes.append(size)
        raise KeyboardInterrupt

    monkeypatch.setattr(session.loop, "work_in_processes", work)
    monkeypatch.setattr(session.loop, "work_here", lambda queue, *rest: work(queue))
    for stack in (None, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            session.run(settings(place, trials=2, jobs=2, stack=stack))
    assert sizes == [2, 2, 1]
