"""Progress of training: one bar over all iterations, or plain lines if there is no terminal; and TensorBoard logs."""

import contextlib
import itertools
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, TextIO

import tqdm.auto
from tensorboardX import SummaryWriter

from lth.analysis import sentences
from lth.commands.terminal import wrapped
from lth.experiment.trainer import BarriersMeasured, Evaluated, Event, Note, RoundDone, Stepped
from lth.records import tables
from lth.records.files import UNUSABLE
from lth.records.store import Store, numbered
from lth.records.tables import Run

WIDTHS = {"round": 5, "remaining": 9, "ES": 7, "val": 6, "test": 6, "seconds": 8, "time left": 9}
REFRESH = 0.1  # seconds between two drawings of the bar
ECHO = 4  # columns kept free at its right end, where the terminal writes ^C
NOTEBOOK = tqdm.auto.notebook_tqdm is not tqdm.auto.std_tqdm
CURVES = {  # of TensorBoard, by the columns of evals.csv
    "train_loss": "loss/train",
    "val_loss": "loss/validation",
    "val": "accuracy/validation",
    "test": "accuracy/test",
}


class _Bar(tqdm.auto.tqdm):
    monitor_interval = 0  # Progress decides when it is drawn
    _lock = RLock()  # tqdm's own is shared between processes, but only this one draws


class Progress:
    """Shows events.

    left: the number of trainings that each run still needs.
    print_freq, quiet: the settings with these names.
    """

    def __init__(self, left: Mapping[Run, int], print_freq: int, quiet: bool) -> None:
        self.left, self.print_freq, self.quiet = Counter(left), print_freq, quiet
        self.finished = Counter[Run]()
        self.steps: dict[Run, int] = {}  # iterations of one training
        self.running: dict[Run, tuple[int, int]] = {}  # round and iteration
        self.began, self.before = 0.0, 0.0  # the time of the first event, and the iterations that were done before
        self.printed: dict[Run, int] = {}  # epochs, divided by print_freq, at the last line of a run
        self.out, self.drawn = sys.stdout, 0.0
        self.bar: _Bar | None = None
        self.live = NOTEBOOK or "ipykernel" in sys.modules or self.out.isatty()
        self.name_width = max((len(str(run)) for run in left), default=24)
        room = shutil.get_terminal_size().columns - self.name_width if self.live else math.inf
        ends = itertools.accumulate(width + 1 for width in WIDTHS.values())
        self.columns = [column for column, end in zip(WIDTHS, ends, strict=True) if end <= room]
        if self.live and "time left" in self.columns:  # the bar has it
            self.columns.remove("time left")
        self._row("run", {column: column for column in WIDTHS})

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Note):
            if event.failed:  # the run is not trained any further
                self.left.pop(event.failed, None)
                self.running.pop(event.failed, None)
            if event.failed or event.warning:
                self._write(event.text, sys.stderr)
            else:
                self._line(event.text)
        elif isinstance(event, RoundDone):
            self.began = self.began or time.monotonic() - event.seconds  # it ran on another machine
            self._ended(event.run, bool(event.seconds))
            self._round(event)
        elif isinstance(event, BarriersMeasured):
            self._ended(event.run)
            barriers = f"error barrier of round {event.round} {event.test:.2f} points (test), {event.train:.2f} (train)"
            last = "" if event.from_last is None else f"; from round {event.round - 1}: {event.from_last:.2f} (test)"
            self._line(f"{event.run}: {barriers}: {'stable' if event.stable else 'not stable'}{last}")
        else:
            self._stepped(event)
        known = self.steps or self.finished
        if self.live and not self.quiet and known and time.monotonic() >= self.drawn + REFRESH:
            self._draw()

    def close(self) -> None:
        """Take the bar off the screen."""
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def time_left(self) -> float:
        """Seconds until everything is trained, by the pace since the first step; 0 while that is unknown."""
        done, total = self._iterations()
        if not self.began or done <= self.before:
            return 0
        return (total - done) * (time.monotonic() - self.began) / (done - self.before)

    def _iterations(self) -> tuple[float, float]:
        """The iterations that are done, and the total. A run that has not begun counts with the average length of the
        others."""
        average = sum(self.steps.values()) / len(self.steps) if self.steps else 1
        done, left = (
            sum(count * self.steps.get(run, average) for run, count in trainings.items())
            for trainings in (self.finished, self.left)
        )
        return done + sum(iteration for _, iteration in self.running.values()), done + left

    def _stepped(self, event: Stepped | Evaluated) -> None:
        iteration = event.iteration if isinstance(event, Stepped) else event.evaluation.iteration
        if event.run not in self.running:
            self.before += iteration  # it may continue from a checkpoint
        self.running[event.run], self.steps[event.run] = (event.round, iteration), event.steps
        self.began = self.began or time.monotonic()
        if not isinstance(event, Evaluated) or self.live:
            return
        epochs = iteration // event.epoch_steps // self.print_freq
        last = iteration == event.steps
        if last or epochs > self.printed.get(event.run, 0):
            self.printed[event.run], evaluation = 0 if last else epochs, event.evaluation
            results = f"loss {evaluation.train_loss:.4f}  val {evaluation.val:.2f}%"
            text = f"iteration {iteration} of {event.steps}: {results}"
            self._line(f"{event.run!s:{self.name_width}} {event.round:5}   {text}")

    def _ended(self, run: Run, elsewhere: bool = False) -> None:
        """Count a training that has ended, here or `elsewhere`; a round copied from another arm is no training."""
        if self.running.pop(run, None) or elsewhere:
            self.finished[run] += 1
            self.left[run] = max(self.left[run] - 1, 0)

    def _draw(self) -> None:
        if self.bar is None:
            form = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt}{postfix}"
            self.bar = _Bar(total=1, leave=False, file=self.out, bar_format=form)
        done, total = self._iterations()
        self.bar.n, self.bar.total = round(done), max(round(total), 1)
        if not NOTEBOOK:
            self.bar.ncols = shutil.get_terminal_size().columns - ECHO
        parts = [f"{duration(left)} left"] if (left := self.time_left()) else []
        parts += [f"{run} r{number}" for run, (number, _) in self.running.items()]
        room = math.inf if NOTEBOOK else self.bar.ncols - len(f"100%|{'':10}| {self.bar.n}/{self.bar.total}, ")
        count, text = len(parts), ", ".join(parts)
        while count and len(text) > room:  # whole names, as many as fit
            count -= 1
            text = ", ".join([*parts[:count], "..."])
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.refresh()
        self.drawn = time.monotonic()

    def _round(self, event: RoundDone) -> None:
        row = event.row
        cells = {
            "round": f"{row['round']:.0f}",
            "remaining": f"{row['remaining']:.2f}%",
            "ES": f"{row['ES']:.0f}",
            "val": f"{row['val']:.2f}",
            "test": f"{row['test']:.2f}",
            "seconds": f"{event.seconds:.1f}" if event.seconds else "shared",
            "time left": duration(self.time_left()),
        }
        self._row(str(event.run), cells)
        if event.empty:
            self._line(f"{event.run}: no weights left in {', '.join(event.empty)}")
        if event.at_random and (ties := sentences.ties(event.at_random, row["weights"])):
            self._line(f"{event.run}: {ties}")

    def _row(self, name: str, cells: Mapping[str, str]) -> None:
        texts = [f"{cells[column]:>{WIDTHS[column]}}" for column in self.columns]
        self._line(" ".join([f"{name:{self.name_width}}", *texts]))

    def _line(self, text: str) -> None:
        if not self.quiet:
            self._write(text, self.out)

    def _write(self, text: str, stream: TextIO) -> None:
        """Write a line, above the bar if there is one and over the ^C that a terminal has written beside it."""
        first, *more = wrapped(text, stream).split("\n")
        if self.bar is not None and not NOTEBOOK:
            columns = shutil.get_terminal_size().columns  # it may have shrunk since the last drawing
            first = first.ljust(min(self.bar.ncols + ECHO, columns) - 1)
        _Bar.write("\n".join([first, *more]), file=stream)
        stream.flush()


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


class Board:
    """Logs events for TensorBoard, in folders under <root>/runs/ as under dumps/. The x axis of curves is the iteration
    over all rounds; results of rounds are logged by round, so that arms are comparable. Closing it writes the rest."""

    def __init__(self) -> None:
        self.writers: dict[Run, SummaryWriter] = {}
        self.last: dict[Run, dict[str, Any]] = {}
        self.logged: set[tuple[Run, int]] = set()  # rounds whose evaluations have been logged

    def __call__(self, event: Event) -> None:
        """Log one event."""
        if isinstance(event, Evaluated):
            self.logged.add((event.run, event.round))
            self._curves(event.run, event.round * event.steps, vars(event.evaluation))
        elif isinstance(event, RoundDone):
            self._round(event.run, event.row)

    def close(self) -> None:
        """Write buffered events, and each run's settings with the results of its last round (the HPARAMS view)."""
        for run, row in self.last.items():
            metrics = {f"last/{name}": float(row[name]) for name in ("remaining", "ES", "test")}
            settings = tables.read_config(run).get("deciding", {})
            columns = {name: value for name, value in run.columns.items() if name != "settings"}
            self._writer(run).add_hparams({**settings, **columns}, metrics, name=".")
        for writer in self.writers.values():
            writer.close()

    def _writer(self, run: Run) -> SummaryWriter:
        if run not in self.writers:
            self.writers[run] = SummaryWriter(str(run.folder("runs")))
        return self.writers[run]

    def _curves(self, run: Run, before: int, evaluation: Mapping[str, Any]) -> None:
        for column, tag in CURVES.items():
            if not math.isnan(evaluation[column]):
                self._writer(run).add_scalar(tag, evaluation[column], before + int(evaluation["iteration"]))

    def _round(self, run: Run, row: dict[str, Any]) -> None:
        number = int(row["round"])
        if (run, number) not in self.logged:  # it was trained by another arm or another process
            with contextlib.suppress(*UNUSABLE):  # the next command reports them
                evals = tables.table(run, "evals").query("round == @number")
                for evaluation in evals.to_dict("records"):
                    self._curves(run, number * int(evals["iteration"].max()), evaluation)
        for name in ("remaining", "ES", "val", "test"):
            self._writer(run).add_scalar(f"round/{name}", row[name], number)
        with contextlib.suppress(*UNUSABLE):  # with --keep_weights none there are no weights
            trained = Store(run).weights(numbered("trained", number))
            for name, mask in Store(run).masks(number).items():
                if mask.any():
                    self._writer(run).add_histogram(name, trained[name][mask].numpy(), number)
        self.last[run] = row


def add_figures(run: Run, files: Sequence[Path]) -> None:
    """Log the PNG figures of the settings of `run`, once for all arms and trials."""
    from matplotlib.image import imread

    with SummaryWriter(str(run.folder("runs").parents[1] / "figures")) as writer:
        for file in files:
            if file.suffix == ".png":
                writer.add_image(file.stem, imread(file)[..., :3], dataformats="HWC")
