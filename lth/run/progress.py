"""What the terminal shows while rounds are trained: one bar a running round, or plain lines where it is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import TaskID

from lth.records.events import Connected, Evaluated, Event, Moved, Note, RoundDone
from lth.records.tables import Run
from lth.run.bars import Bars
from lth.run.terminal import fill, wrapped

HEADS = {  # of the columns of a round's line: how wide, and which go first where the terminal is narrow
    "round": (5, 9),
    "remaining": (9, 9),
    "ES": (7, 4),
    "val": (6, 2),
    "test": (6, 9),
    "seconds": (8, 1),
    "time left": (9, 3),
}
REFRESH = 0.1  # seconds between two pictures of the bars


class Progress:
    """Shows events. `rounds` is how many rounds are to be trained in all, for the time left; `runs` are trained."""

    def __init__(
        self,
        rounds: int,
        print_freq: int,
        quiet: bool,
        out: TextIO | None = None,
        runs: Sequence[Run] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rounds, self.print_freq, self.quiet, self.clock = rounds, print_freq, quiet, clock
        self.out = out or sys.stdout
        self.done, self.began = 0, clock()
        self.shown: dict[Run, int] = {}  # the epochs, in units of print_freq, at which a run's last line was due
        console = Console(file=self.out, highlight=False, markup=False, emoji=False)
        self.live = self.out.isatty() and console.is_terminal and not console.is_dumb_terminal
        both = self.live and sys.stderr.isatty()  # what others say then stands above the bars
        self.bars = Bars(console=console, auto_refresh=False, transient=True, redirect_stderr=both, get_time=clock)
        self.tasks: dict[Run, tuple[str, TaskID]] = {}  # what each run is at, and its bar
        self.drawn = 0.0
        self.name_width = max((len(str(run)) for run in runs), default=24)
        self.heads = self._heads(console.width if self.live else sys.maxsize)
        if not quiet:
            self._row("run", {name: name for name in HEADS})

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Note):
            if event.failed:
                self._aside(event.text)
            elif not self.quiet:
                self._line(event.text)
        elif isinstance(event, RoundDone):
            self._round(event)
        elif isinstance(event, Connected):
            self._connected(event)
        elif not self.quiet and self.live:
            self._bar(event)
        elif not self.quiet and isinstance(event, Evaluated):
            self._evaluation(event)

    def close(self) -> None:
        """Take the bars off the screen."""
        for _, task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks.clear()
        self._stop()

    def _bar(self, event: Evaluated | Moved) -> None:
        """Move the bar of a run to where its round is; a round that begins gets a new one, with its name."""
        iteration = event.iteration if isinstance(event, Moved) else event.evaluation.iteration
        what = f"{event.round} again" if isinstance(event, Moved) and event.again else f"{event.round}"
        shown, task = self.tasks.get(event.run, ("", None))
        if task is None or shown != what:
            self._remove(event.run)
            name = f"{event.run} round {what}"
            task = self.bars.add_task(name, total=event.steps, completed=iteration, loss="", val="")
            self.tasks[event.run] = (what, task)
            self.bars.start()
        self.bars.update(task, completed=iteration)
        if isinstance(event, Evaluated):
            found = event.evaluation
            self.bars.update(task, loss=f"loss {found.train_loss:.4f}", val=f"val {found.val:.2f}%")
        if not self.drawn <= self.clock() < self.drawn + REFRESH:
            self.drawn = self.clock()
            self.bars.refresh()

    def _remove(self, run: Run) -> None:
        if run in self.tasks:
            self.bars.remove_task(self.tasks.pop(run)[1])

    def _evaluation(self, event: Evaluated) -> None:
        found = event.evaluation
        epochs, last = found.iteration // event.epoch, found.iteration == event.steps
        due = last or epochs // self.print_freq > self.shown.get(event.run, 0)
        self.shown[event.run] = 0 if last else max(self.shown.get(event.run, 0), epochs // self.print_freq)
        if due:
            whole = event.steps % event.epoch == 0
            place = (
                f"epoch {epochs} of {event.steps // event.epoch}" if whole else f"{found.iteration} of {event.steps}"
            )
            text = f"loss {found.train_loss:.4f}  val {found.val:.2f}%"
            self._line(f"{event.run!s:{self.name_width}} {event.round:5}   {place}: {text}")

    def _round(self, event: RoundDone) -> None:
        self._remove(event.run)
        self.done += 1
        if self.quiet:
            return
        row, left = event.row, (self.clock() - self.began) / self.done * (self.rounds - self.done)
        cells = {
            "round": f"{int(row['round'])}",
            "remaining": f"{row['remaining']:.2f}%",
            "ES": f"{int(row['ES'])}",
            "val": f"{row['val']:.2f}",
            "test": f"{row['test']:.2f}",
            "seconds": f"{event.seconds:.1f}" if event.seconds else "shared",
            "time left": _duration(left),
        }
        self._row(str(event.run), cells)
        if event.empty:
            self._line(f"{event.run}: no weights left in {', '.join(event.empty)}")

    def _connected(self, event: Connected) -> None:
        self._remove(event.run)
        if not self.quiet:
            self._line(
                f"{event.run}: error barrier of round {event.round} {event.test:.2f} points (test), {event.train:.2f} "
                f"(train): {'stable' if event.stable else 'not stable'}"
            )

    def _heads(self, columns: int) -> list[str]:
        """The columns of a round's line that fit."""
        heads = list(HEADS)
        for name in sorted(HEADS, key=lambda name: HEADS[name][1]):
            if self.name_width + sum(HEADS[head][0] + 1 for head in heads) > columns and HEADS[name][1] < 9:
                heads.remove(name)
        return heads

    def _row(self, name: str, cells: dict[str, str]) -> None:
        found = (f"{cells[head]:>{HEADS[head][0]}}" for head in self.heads)
        self._line(" ".join([f"{name:{self.name_width}}", *found]))

    def _line(self, text: str) -> None:
        if self.live:
            self.bars.console.print(fill(text, self.bars.console.width), soft_wrap=True)
        else:
            print(text, file=self.out, flush=True)

    def _aside(self, text: str) -> None:
        """Say something on stderr, which may be no terminal or another."""
        started = self.bars.live.is_started
        self._stop()
        print(wrapped(text, sys.stderr), file=sys.stderr, flush=True)
        if started:
            self.bars.start()

    def _stop(self) -> None:
        if self.bars.live.is_started:  # else rich ends a line that was never begun
            self.bars.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"
