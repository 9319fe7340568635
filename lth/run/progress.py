"""What the terminal shows while rounds are trained: one bar a running round, or plain lines where it is no terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

from lth.records.events import Evaluated, Event, Note, RoundDone
from lth.records.tables import Run


class Progress:
    """Shows events. `rounds` is how many rounds are to be trained in all, for the time left."""

    def __init__(self, rounds: int, print_freq: int, quiet: bool, out: TextIO | None = None) -> None:
        self.rounds, self.print_freq, self.quiet = rounds, print_freq, quiet
        self.out = out or sys.stdout
        self.bars: dict[Run, tqdm] = {}
        self.done, self.began, self.failures = 0, time.monotonic(), 0
        self.shown: dict[Run, int] = {}  # the epochs, in units of print_freq, at which a run's last line was due
        self.live = self.out.isatty()
        if not quiet:
            self._line(
                f"{'run':24} {'round':>5} {'remaining':>9} {'ES':>7} {'val':>6} {'test':>6} {'seconds':>8}  time left"
            )

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Note):
            self.failures += event.failed
            if event.failed:
                self.close()
                print(event.text, file=sys.stderr, flush=True)
            elif not self.quiet:
                self._line(event.text)
        elif isinstance(event, RoundDone):
            self._round(event)
        elif not self.quiet:
            self._evaluation(event)

    def close(self) -> None:
        """Take the bars off the screen."""
        for bar in self.bars.values():
            bar.close()
        self.bars.clear()

    def _evaluation(self, event: Evaluated) -> None:
        found = event.evaluation
        epochs, last = found.iteration // event.epoch, found.iteration == event.steps
        due = last or epochs // self.print_freq > self.shown.get(event.run, 0)
        self.shown[event.run] = 0 if last else max(self.shown.get(event.run, 0), epochs // self.print_freq)
        text = f"loss {found.train_loss:.4f}  val {found.val:.2f}%"
        if self.live:
            bar = self.bars.get(event.run)
            if bar is None:
                bar = self.bars[event.run] = tqdm(
                    total=event.steps, leave=False, file=self.out, unit="it", dynamic_ncols=True
                )
            bar.set_description(f"{event.run} round {event.round}", refresh=False)
            if due or not bar.n:
                bar.set_postfix_str(text, refresh=False)
            bar.update(found.iteration - bar.n)
        elif due:
            whole = event.steps % event.epoch == 0
            place = (
                f"epoch {epochs} of {event.steps // event.epoch}" if whole else f"{found.iteration} of {event.steps}"
            )
            self._line(f"{event.run!s:24} {event.round:5}   {place}: {text}")

    def _round(self, event: RoundDone) -> None:
        bar = self.bars.pop(event.run, None)
        if bar is not None:
            bar.close()
        self.done += 1
        if self.quiet:
            return
        row, left = event.row, (time.monotonic() - self.began) / self.done * (self.rounds - self.done)
        seconds = f"{event.seconds:8.1f}" if event.seconds else "  shared"
        line = (
            f"{event.run!s:24} {int(row['round']):5} {row['remaining']:8.2f}% {int(row['ES']):7} "
            f"{row['val']:6.2f} {row['test']:6.2f} {seconds}  {_duration(left)}"
        )
        if event.empty:
            line += f"  no weights left in {', '.join(event.empty)}"
        self._line(line)

    def _line(self, text: str) -> None:
        if self.live:
            tqdm.write(text, file=self.out)
        else:
            print(text, file=self.out, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"
