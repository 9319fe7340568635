"""TensorBoard: the same numbers as under dumps/, while they come, in <root>/runs/, a folder a run as there.

Steps count iterations over all rounds in the curves, and rounds in what a round gives, so that arms and trials
line up in TensorBoard's views.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from lth.records import tables, tickets
from lth.records.events import Evaluated, Event, RoundDone
from lth.records.tables import Run


class Board:
    """Logs events. Close it to write the rest."""

    def __init__(self) -> None:
        self.writers: dict[Run, SummaryWriter] = {}
        self.last: dict[Run, dict[str, Any]] = {}
        self.told: set[tuple[Run, int]] = set()  # rounds whose evaluations were told as they came

    def __call__(self, event: Event) -> None:
        """Log one event."""
        if isinstance(event, Evaluated):
            found = event.evaluation
            self.told.add((event.run, event.round))
            self._curves(event.run, event.round * event.steps + found.iteration, vars(found))
        elif isinstance(event, RoundDone):
            self._round(event)

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

    def _curves(self, run: Run, step: int, found: dict[str, float]) -> None:
        writer = self._writer(run)
        writer.add_scalar("loss/train", found["train_loss"], step)
        writer.add_scalar("loss/validation", found["val_loss"], step)
        writer.add_scalar("accuracy/validation", found["val"], step)
        if not math.isnan(found["test"]):
            writer.add_scalar("accuracy/test", found["test"], step)

    def _round(self, event: RoundDone) -> None:
        run, row = event.run, event.row
        number, writer = int(row["round"]), self._writer(run)
        if (run, number) not in self.told:  # the dense round of another arm, or what another process has trained
            with contextlib.suppress(*tickets.UNUSABLE):  # who reads them next says so
                evals = tables.table(run, "evals").query("round == @number")
                for found in evals.to_dict("records"):
                    self._curves(run, number * int(evals["iteration"].max()) + int(found["iteration"]), found)
        for name in ("remaining", "ES", "val", "test"):
            writer.add_scalar(f"round/{name}", row[name], number)
        try:
            trained = tickets.read_state(run, tickets.numbered("trained", number))
            masks = tickets.read_ticket(run, number).masks
        except tickets.UNUSABLE:  # --keep_weights none, for one
            trained, masks = {}, {}
        for name in masks if trained else ():
            survivors = trained[name][masks[name]]
            if len(survivors):
                writer.add_histogram(name, survivors.numpy(), number)
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
