"""What an experiment consists of, as data: its runs, and the trainings in them with what each one needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lth.records.tables import Run
from lth.settings import names
from lth.settings.arms import ARMS
from lth.settings.config import Config


@dataclass(frozen=True)
class Task:
    """One round of one run.

    needs: the rounds, as (run, round), that must be finished before it can start, with the ticket that follows them.
    shared: whether it is the dense round that another arm of the trial trains, so that nothing is trained here.
    """

    run: Run
    round: int
    needs: tuple[tuple[Run, int], ...] = ()
    shared: bool = False


def runs_of(config: Config, about: str = "") -> list[Run]:
    """The runs that the settings ask for, a trial's arms one after another; first those whose masks others need.
    `about` tells them from those of other settings where several are named."""
    needed = [ARMS[arm].mask_of for arm in config.prune_type if ARMS[arm].mask_of]
    arms = dict.fromkeys([*needed, *config.prune_type])
    dataset = names.dataset(config.dataset)
    model = names.model(config.arch_type, dataset, config.data)
    place = (config.root, model, dataset, config.folder())
    return [Run(*place, arm, seed, about=about) for seed in config.seeds for arm in arms]


def tasks_of(config: Config, about: str = "") -> list[Task]:
    """The graph of an experiment, run by run.

    A run's rounds follow each other. The dense round of a trial is trained by its first arm and taken over by the
    others. An arm that takes the masks of another needs, for a round's ticket, the one that the other made for the same
    round, which is there when the other's round before has ended.
    """
    tasks, first = [], dict[int, Run]()
    for run in runs_of(config, about):
        dense = first.setdefault(run.seed, run)
        masks = ARMS[run.arm].mask_of
        tasks.append(Task(run, 0, () if dense == run else ((dense, 0),), shared=dense != run))
        for number in range(1, config.prune_iterations):
            others = ((run.of_arm(masks), number - 1),) if masks else ()
            tasks.append(Task(run, number, ((run, number - 1), *others)))
    return tasks


def by_run(tasks: Iterable[Task]) -> dict[Run, list[Task]]:
    """The tasks of each run, in the order of its rounds; of a run that is there twice the longer list."""
    found: dict[Run, list[Task]] = {}
    for task in tasks:
        rounds = found.setdefault(task.run, [])
        if task.round == len(rounds):
            rounds.append(task)
    return found


def plan(tasks: Sequence[Task], finished: Callable[[Run], int]) -> list[str]:
    """Of each arm its trainings, how many are finished, and what its rounds need beside those before them."""
    lines = []
    for arm in dict.fromkeys(task.run.arm for task in tasks):
        mine = [task for task in tasks if task.run.arm == arm]
        trials, rounds = len({task.run for task in mine}), max(task.round for task in mine) + 1
        done = sum(not task.shared and task.round < finished(task.run) for task in mine)
        line = f"{arm}: {trials} trials x {rounds} rounds, {trainings(mine)} trainings, {done} finished"
        others = {(other.arm, task.shared) for task in mine for other, _ in task.needs if other.arm != arm}
        needs = [f"the {'dense round' if shared else 'masks'} of {other}" for other, shared in sorted(others)]
        lines.append(f"{line}; needs {' and '.join(reversed(needs))}" if needs else line)
    return lines


def trainings(tasks: Sequence[Task]) -> int:
    """How many of these tasks train something."""
    return sum(not task.shared for task in tasks)
