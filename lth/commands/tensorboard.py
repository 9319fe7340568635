"""TensorBoard: the numbers of dumps/ as they come, in <root>/runs/ with the same folders.

The steps of curves are iterations over all rounds, and those of a round's results are rounds, so that arms line up.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from lth.experiment.trainer import Evaluated, Event, RoundDone
from lth.records import tables
from lth.records.files import UNUSABLE
from lth.records.store import Store, numbered
from lth.records.tables import Run

CURVES = {
    "loss/train": "train_loss",
    "loss/validation": "val_loss",
    "accuracy/validation": "val",
    "accuracy/test": "test",
}


class Board:
    """Logs events. Close it to write the rest."""

    def __init__(self) -> None:
        self.writers: dict[Run, SummaryWriter] = {}
        self.last: dict[Run, dict[str, Any]] = {}
        self.told: set[tuple[Run, int]] = set()  # rounds whose evaluations were logged as they came

    def __call__(self, event: Event) -> None:
        """Log one event."""
        if isinstance(event, Evaluated):
            self.told.add((event.run, event.round))
            step = event.round * event.steps + event.evaluation.iteration
            self._curves(event.run, step, vars(event.evaluation))
        elif isinstance(event, RoundDone):
            self._round(event.run, event.row)

    def close(self) -> None:
        """Write what is still in memory, and each run's settings beside its last round (the HPARAMS view)."""
        for run, row in self.last.items():
            metrics = {f"last/{name}": float(row[name]) for name in ("remaining", "ES", "test")}
            settings = tables.config_of(run).get("deciding", {})
            whose = {name: getattr(run, name) for name in ("arch_type", "dataset", "arm", "seed")}
            self.writers[run].add_hparams({**settings, **whose}, metrics, name=".")
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()
        self.last.clear()

    def _writer(self, run: Run) -> SummaryWriter:
        if run not in self.writers:
            self.writers[run] = SummaryWriter(str(_folder(run)))
        return self.writers[run]

    def _curves(self, run: Run, step: int, found: Mapping[str, float]) -> None:
        for tag, name in CURVES.items():
            if not math.isnan(found[name]):
                self._writer(run).add_scalar(tag, found[name], step)

    def _round(self, run: Run, row: dict[str, Any]) -> None:
        number = int(row["round"])
        if (run, number) not in self.told:  # the dense round of another arm, or what another process has trained
            with contextlib.suppress(*UNUSABLE):  # the next command reports them
                evals = tables.table(run, "evals").query("round == @number")
                for found in evals.to_dict("records"):
                    self._curves(run, number * int(evals["iteration"].max()) + int(found["iteration"]), found)
        for name in ("remaining", "ES", "val", "test"):
            self._writer(run).add_scalar(f"round/{name}", row[name], number)
        with contextlib.suppress(*UNUSABLE):  # --keep_weights none, for one
            trained = Store(run).weights(numbered("trained", number))
            for name, mask in Store(run).masks(number).items():
                if mask.any():
                    self._writer(run).add_histogram(name, trained[name][mask].numpy(), number)
        self.last[run] = row


def add_figures(run: Run, files: Sequence[Path]) -> None:
    """Log the PNG pictures of the settings that `run` has, once for all their arms and trials."""
    from matplotlib.image import imread

    with SummaryWriter(str(_folder(run).parent.parent / "figures")) as writer:
        for file in files:
            if file.suffix == ".png":
                writer.add_image(file.stem, imread(file)[..., :3], dataformats="HWC")


def _folder(run: Run) -> Path:
    return run.root / "runs" / run.dumps.relative_to(run.root / "dumps")
