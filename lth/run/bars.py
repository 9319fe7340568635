"""Several bars below one another, each in one line of a terminal of any width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress, Task
from rich.progress_bar import ProgressBar
from rich.table import Table

BAR = 8  # columns that a bar needs at least
ECHO = 4  # columns left free at the right: where the terminal's own ^C would begin a line, the bars would be misplaced
DROPPED = ("loss", "speed", "val", "done")  # what goes first where there is no room


class Bars(Progress):
    """A bar a task; the fields `loss` and `val` of a task are texts to be shown beside it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """All bars, drawn for the width that the terminal has then."""
        yield _Lines(self.tasks)


class _Lines:
    def __init__(self, tasks: Iterable[Task]) -> None:
        self.tasks = list(tasks)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self.tasks:
            yield lines(self.tasks, options.max_width - ECHO)


def lines(tasks: list[Task], width: int) -> Table:
    """A line a task: its name, its bar, and as much of the rest as `width` columns have room for."""
    columns = {
        "done": [f"{task.completed:.0f}/{task.total:.0f}" for task in tasks],
        "speed": [_speed(task.speed) for task in tasks],
        "loss": [task.fields["loss"] for task in tasks],
        "val": [task.fields["val"] for task in tasks],
    }
    room = width - BAR - 1 - max(len(task.description) for task in tasks)
    for name in DROPPED:
        if sum(1 + max(map(len, column)) for column in columns.values()) > room:
            del columns[name]
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    table.width = width
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for _ in columns:
        table.add_column(no_wrap=True, justify="right")
    for number, task in enumerate(tasks):
        bar = ProgressBar(total=task.total, completed=task.completed)
        table.add_row(task.description, bar, *(column[number] for column in columns.values()))
    return table


def _speed(iterations: float | None) -> str:
    return "" if iterations is None else f"{iterations:.{0 if iterations >= 10 else 1}f} it/s"
