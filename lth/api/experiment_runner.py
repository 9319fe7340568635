"""The front door for those who describe an experiment by one object."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch

from lth import rng
from lth.api.saved_ticket import placed
from lth.commands import loop, session
from lth.models import building
from lth.records import files, tables
from lth.records.tables import Run
from lth.settings import checks
from lth.settings.config import Config, ConfigError
from lth.settings.values import LONGEST

MODELS = {"lenet_fc": "fc1", "lenet_conv": "lenet5"}  # other names of models under archs/
DATASETS = {"fashion": "fashionmnist"}
SCOPES = {"layerwise": "layer", "global": "global"}
ARMS = {  # of each pruning type, by what survivors start from
    "magnitude": {"rewind": "lt", "random": "reinit", "none": "finetune"},
    "random": {"rewind": "random", "random": "random_reinit", "none": "random_finetune"},
}
COLUMNS = ["round", "remaining", "ES", "val", "test"]
NAMES = {  # of the arguments, by the settings that they give
    "dataset": "dataset",
    "arch_type": "model_name",
    "prune_scope": "pruning_scope",
    "prune_percent": "pruning_rate",
    "prune_iterations": "num_rounds",
    "end_iter": "iterations",
    "lr": "learning_rate",
    "gpu": "device",
    "root": "results_dir",
}
SETTINGS = {spec.name for spec in fields(Config)} - {*NAMES, "prune_type", "trials", "target_remaining"}


class ExperimentRunner:
    """One experiment: `ExperimentRunner(...).run().save_results("name.csv")`.

    Args:
        dataset: mnist, fashion (fashionmnist), cifar10, cifar100, or another for which there is archs/<dataset>/.
        model_name: lenet_fc (fc1), lenet_conv (lenet5), conv6 or any other model under archs/.
        pruning_type: "magnitude" (Frankle & Carbin, arXiv:1803.03635) or "random".
        pruning_scope: "layerwise" or "global".
        reinit_method: what survivors start from: "rewind" (their initial values), "random" (fresh random weights) or
            "none" (their trained values).
        pruning_rate: fraction of the surviving weights that a round prunes, from 0 to below 1.
        num_rounds: trainings, the dense one included.
        iterations: of each training.
        learning_rate, batch_size: of the training, by Adam.
        device: "cpu", "cuda", "cuda:0", "mps" or a torch.device; None: a GPU where there is one, else the CPU.
        results_dir: gets dumps/ (all numbers), saves/ (tickets and weights) and the files of `save_results`.
        seed: of the initial weights, the validation split and the order of the data.
        settings: any other setting of `lth.Config` but `trials` and `target_remaining`, as optimizer="sgd",
            valid_freq="100it", quiet=True.

    Raises TypeError and ValueError that name the argument; what needs the data to be found wrong, `run` raises.
    """

    def __init__(
        self,
        dataset: str = "mnist",
        model_name: str = "lenet_fc",
        pruning_type: str = "magnitude",
        pruning_scope: str = "layerwise",
        reinit_method: str = "rewind",
        pruning_rate: float = 0.2,
        num_rounds: int = 16,
        iterations: int = 50000,
        learning_rate: float = 0.0012,
        batch_size: int = 60,
        device: str | torch.device | None = None,
        results_dir: str | os.PathLike[str] = "results",
        seed: int = 0,
        **settings: Any,
    ) -> None:
        checks.settings("ExperimentRunner", settings, SETTINGS)
        arms = ARMS[checks.word("pruning_type", pruning_type, ARMS)]
        model, data_set = (
            checks.of_type(name, value, str, "a name")
            for name, value in (("model_name", model_name), ("dataset", dataset))
        )
        asked = {
            **settings,
            "arch_type": MODELS.get(model.lower(), model),
            "dataset": DATASETS.get(data_set.lower(), data_set),
            "data": checks.path("data", settings.get("data", Config.data)),
            "prune_type": arms[checks.word("reinit_method", reinit_method, arms)],
            "prune_scope": SCOPES[checks.word("pruning_scope", pruning_scope, SCOPES)],
            "prune_percent": round(100 * checks.fraction("pruning_rate", pruning_rate), 10),
            "prune_iterations": checks.whole("num_rounds", num_rounds, 1, 9999),
            "end_iter": f"{checks.whole('iterations', iterations, 1, LONGEST)}it",
            "lr": learning_rate,
            "batch_size": checks.whole("batch_size", batch_size, 1),
            "gpu": checks.device("device", device),
            "root": checks.path("results_dir", results_dir),
            "seed": checks.whole("seed", seed, 0, 2**62),
        }
        try:
            self.config = Config(**asked)
            building.find(self.config.arch_type, self.config.dataset, data=self.config.data)
        except ConfigError as error:
            raise error.named(NAMES) from error.__cause__
        self._run: Run | None = None

    def run(self) -> Results:
        """Run the experiment, or continue it where an earlier `run` with these arguments stopped; returns its table.

        ValueError, naming the argument, if it cannot be done with these data; lth.commands.session.TrialsFailed
        if a loss was not finite; lth.records.files.RecordError if a file cannot be written.
        """
        try:
            with rng.preserved(placed(self.config.gpu)[0]):
                self._run = session.run(self.config)[0]
        except loop.Interrupted:
            raise KeyboardInterrupt from None
        except ConfigError as error:
            raise error.named(NAMES) from error.__cause__
        return self.results

    @property
    def results(self) -> Results:
        """A row per round: round, remaining (percent of the weights), ES (early-stop iteration), val and test
        (accuracies there, in percent). RuntimeError before `run`."""
        found = Results(tables.table(self._done, "rounds")[COLUMNS].head(self.config.prune_iterations))
        found.runner = self
        return found

    @property
    def folder(self) -> Path:
        """The run's folder under results_dir/dumps, which `lth.load_ticket` takes too. RuntimeError before `run`."""
        return self._done.dumps

    @property
    def _done(self) -> Run:
        if self._run is None:
            raise RuntimeError("there are no results yet: call run() first")
        return self._run

    def save_results(self, name: str) -> Path:
        """Write the results to the CSV file `name` inside results_dir, and return its path."""
        checks.of_type("name", name, str, "the name of a file, as 'results.csv'")
        if name != Path(name).name or Path(name).suffix != ".csv":
            raise ValueError(f"name must be the name of a .csv file that results_dir gets, not {name!r}")
        file = self.config.root / name
        files.write(file, self.results.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode())
        return file

    def __repr__(self) -> str:
        config = self.config
        what = f"{config.arch_type} on {config.dataset}, {config.prune_type[0]}, {config.prune_iterations} rounds"
        return f"<ExperimentRunner: {what}, {f'results in {self._run.dumps}' if self._run else 'not run yet'}>"


class Results(pd.DataFrame):
    """The table of a run, a row per round: a DataFrame that knows its `runner`. Parts and sums are plain DataFrames."""

    _metadata: ClassVar[list[str]] = ["runner"]  # what pandas may keep beside the columns
    runner: ExperimentRunner

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    def save_results(self, name: str) -> Path:
        """Write the table to a CSV file, as `ExperimentRunner.save_results`."""
        return self.runner.save_results(name)
