"""The experiments of main.py from Python (`lth.run`, `lth.plot`), and what they came to: table, verdict and figure."""

from __future__ import annotations

import base64
import html
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from lth import rng
from lth.analysis import labels, sentences
from lth.api.saved_ticket import placed
from lth.commands import command, loop, session
from lth.records import journal, tables
from lth.records.events import Callback
from lth.records.tables import Run
from lth.settings import checks, flags
from lth.settings.checks import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALLOWED = [name for name in (*flags.FIELDS, "preset") if name not in ("dry_run", "debug", "format")]


def run(callback: Callback | None = None, **settings: Any) -> Result:
    """Run the experiment that `python main.py` runs with these settings, or continue it, and return its result.

    Args:
        callback: is called with each evaluation and each finished round, as a dict: `event` ("evaluation" or "round"),
            arch_type, dataset, settings, arm, seed, round; of an evaluation iteration, train_loss, val_loss, val and
            test; of a round the columns of rounds.csv, and seconds (0 where another arm's dense round is shared).
        settings: any of `lth.Config` but dry_run, debug and format, as arch_type="fc1", prune_type=["lt", "reinit"],
            trials=2, root="results"; and preset, a name in docs/models.md.

    Trials train in several processes on a CPU; a script needs no `if __name__ == "__main__"` for that.

    Raises TypeError and ValueError (ConfigError) that name the setting, before anything is written;
    lth.commands.session.TrialsFailed if a loss was not finite; lth.records.files.RecordError if a file cannot be
    written.
    """
    checks.settings("lth.run", settings, ALLOWED)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of a dict, not {checks.shown(callback)}")
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        config = flags.parse(flags.as_argv(given))
        with rng.preserved(placed(config.gpu)[0]):
            runs = session.run(config, callback=callback)
    except loop.Interrupted:
        raise KeyboardInterrupt from None
    except ConfigError as error:
        raise error.named({}) from error.__cause__
    return Result([runs])


def plot(
    root: str | os.PathLike[str] = ".",
    arch_type: str | None = None,
    dataset: str | None = None,
    name: str | None = None,
) -> Result:
    """The result of all runs under `root`, the folder with dumps/: those of one model (`arch_type`), `dataset` or
    folder of settings (`name`), if given. Nothing is trained or written.

    Runs that cannot be read, or that must not be averaged, are left out with a warning. Raises ValueError if none is
    found.
    """
    skipped: list[Any] = []
    found = tables.find(checks.path("root", root), arch_type, dataset, name, skipped.append)
    groups, reasons = command.grouped(found)
    for problem in (*skipped, *reasons):
        warnings.warn(str(problem), stacklevel=2)
    if not groups:
        raise ValueError(f"root must be a folder with finished rounds under dumps/ of what is asked for, not {root}")
    return Result(groups)


class Result:
    """What one or several experiments came to. Notebooks show the verdict and the figure.

    `groups` are runs with finished rounds, those of one model, data set and settings together. Iterating gives a
    Result for each.
    """

    def __init__(self, groups: Sequence[Sequence[Run]]) -> None:
        self.groups = [list(runs) for runs in groups]

    def __iter__(self) -> Iterator[Result]:
        return (Result([runs]) for runs in self.groups)

    @property
    def table(self) -> pd.DataFrame:
        """A row per round of every run: arch_type, dataset, settings, arm, seed and the columns of rounds.csv."""
        frames = []
        for runs in self.groups:
            about = {name: getattr(runs[0], name) for name in ("arch_type", "dataset", "settings")}
            frames.append(tables.lines(runs, "rounds").assign(**about))
        found = pd.concat(frames, ignore_index=True)
        return found[[*about, "arm", "seed", *journal.ROUNDS]]

    @property
    def verdict(self) -> str:
        """Its sentences, one per line, each headed by whose it is where there are several experiments."""
        heads = [f"{head}: " for head in labels.told_apart(self.groups)] if len(self.groups) > 1 else [""]
        return "\n".join(
            f"{head}{sentence}"
            for head, runs in zip(heads, self.groups, strict=True)
            for sentence in sentences.of_runs(runs)
        )

    def plot(self) -> Figure:
        """The figure of accuracy and early stop against the weights remaining, several experiments side by side."""

        from lth.plots import comparison, grid

        figure = comparison.draw(self.groups[0]) if len(self.groups) == 1 else grid.draw(self.groups)
        assert figure is not None, "there are finished rounds"
        return figure

    def _repr_html_(self) -> str:
        picture = io.BytesIO()
        self.plot().savefig(picture, format="png", dpi=120)
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self.verdict.splitlines())
        encoded = base64.b64encode(picture.getvalue()).decode()
        return f'{lines}<img alt="accuracy and early stop" src="data:image/png;base64,{encoded}">'

    def __repr__(self) -> str:
        return self.verdict
