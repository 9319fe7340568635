"""The experiments of main.py from Python: `lth.run` and `lth.plot` with their table, verdict and figure, and
ExperimentRunner, one object for one experiment."""

from __future__ import annotations

import base64
import html
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch

from lth import rng
from lth.analysis import labels, sentences
from lth.commands import command, loop, session
from lth.commands import device as devices
from lth.experiment.trainer import Callback
from lth.models import building
from lth.records import files, journal, tables
from lth.records.tables import Run
from lth.settings import checks, flags
from lth.settings.checks import ConfigError
from lth.settings.config import Config
from lth.settings.values import LONGEST

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALLOWED = [name for name in (*flags.FIELDS, "preset") if name not in ("dry_run", "debug", "format")]

# ExperimentRunner's own names of models, data sets and scopes, its arms, and its arguments by setting.
MODELS = {"lenet_fc": "fc1", "lenet_conv": "lenet5"}
DATASETS = {"fashion": "fashionmnist"}
SCOPES = {"layerwise": "layer", "global": "global"}
ARMS = {  # by pruning type and by what survivors start from
    "magnitude": {"rewind": "lt", "random": "reinit", "none": "finetune"},
    "random": {"rewind": "random", "random": "random_reinit", "none": "random_finetune"},
}
ARGUMENTS = {
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
OTHER_SETTINGS = {*flags.FIELDS} - {*ARGUMENTS, "prune_type", "trials", "target_remaining"}
COLUMNS = ["round", "remaining", "ES", "val", "test"]


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
    checks.known_arguments("lth.run", settings, ALLOWED)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of a dict, not {checks.short_repr(callback)}")
    with _errors_named({}):
        config = flags.parse(flags.as_argv({name: value for name, value in settings.items() if value is not None}))
        return Result([_run(config, callback)])


@contextmanager
def _errors_named(names: Mapping[str, str]) -> Iterator[None]:
    """Inside the `with` block, problems of settings name arguments (`names` has those with other names than their
    settings), and a signal raises KeyboardInterrupt."""
    try:
        yield
    except loop.Interrupted:
        raise KeyboardInterrupt from None
    except ConfigError as error:
        raise error.named(names) from error.__cause__


def _run(config: Config, callback: Callback | None = None) -> list[Run]:
    with rng.preserved(devices.choose(config.gpu)[0]):
        return session.run(config, callback=callback)


def plot(
    root: str | os.PathLike[str] = ".",
    arch_type: str | None = None,
    dataset: str | None = None,
    name: str | None = None,
) -> Result:
    """The result of all runs under `root`, the folder with dumps/, optionally of one model (`arch_type`), `dataset` or
    folder of settings (`name`) only. Nothing is trained or written.

    Runs that cannot be read, or that must not be averaged, are left out with a warning. Raises ValueError if none is
    found.
    """
    errors: list[Any] = []
    groups, reasons = command.grouped(tables.find(checks.path("root", root), arch_type, dataset, name, errors.append))
    for problem in (*errors, *reasons):
        warnings.warn(str(problem), stacklevel=2)
    if not groups:
        raise ValueError(f"root must be a folder with finished rounds under dumps/ that match, not {root}")
    return Result(groups)


class Result:
    """The result of one or several experiments. Notebooks show the verdict and the figure.

    `groups`: the runs with finished rounds, a list for each model, data set and settings. Iterating gives a Result for
    each group.
    """

    def __init__(self, groups: Sequence[Sequence[Run]]) -> None:
        self.groups = [list(runs) for runs in groups]

    def __iter__(self) -> Iterator[Result]:
        return (Result([runs]) for runs in self.groups)

    @property
    def table(self) -> pd.DataFrame:
        """A row per round of every run: arch_type, dataset, settings, arm, seed and the columns of rounds.csv."""
        keys = ["arch_type", "dataset", "settings"]
        frames = [
            tables.combined(runs, "rounds").assign(**{name: getattr(runs[0], name) for name in keys})
            for runs in self.groups
        ]
        return pd.concat(frames, ignore_index=True)[[*keys, "arm", "seed", *journal.ROUNDS]]

    @property
    def verdict(self) -> str:
        """Its sentences, one per line; of several experiments, each begins with a label of its experiment."""
        prefixes = [f"{label}: " for label in labels.distinct_names(self.groups)] if len(self.groups) > 1 else [""]
        return "\n".join(
            f"{prefix}{sentence}"
            for prefix, runs in zip(prefixes, self.groups, strict=True)
            for sentence in sentences.of_runs(runs)
        )

    def plot(self) -> Figure:
        """The figure of accuracy and early stop against the weights remaining, several experiments side by side."""
        from lth.plots.comparison import comparison, grid

        figure = comparison(self.groups[0]) if len(self.groups) == 1 else grid(self.groups)
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
        num_rounds: number of trainings, the dense one included.
        iterations: length of each training.
        learning_rate, batch_size: of the training, by Adam.
        device: "cpu", "cuda", "cuda:0", "mps" or a torch.device; None: a GPU where there is one, else the CPU.
        results_dir: gets dumps/ (all numbers), saves/ (tickets and weights) and the files of `save_results`.
        seed: of the initial weights, the validation split and the order of the data.
        settings: any other setting of `lth.Config` but `trials` and `target_remaining`, as optimizer="sgd",
            valid_freq="100it", quiet=True.

    Raises TypeError and ValueError that name the argument; `run` raises those for which the data are needed.
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
        checks.known_arguments("ExperimentRunner", settings, OTHER_SETTINGS)
        arms = ARMS[checks.one_of("pruning_type", pruning_type, ARMS)]
        checks.of_type("model_name", model_name, str, "a name")
        checks.of_type("dataset", dataset, str, "a name")
        options: dict[str, Any] = {
            **settings,
            "arch_type": MODELS.get(model_name.lower(), model_name),
            "dataset": DATASETS.get(dataset.lower(), dataset),
            "prune_type": arms[checks.one_of("reinit_method", reinit_method, arms)],
            "prune_scope": SCOPES[checks.one_of("pruning_scope", pruning_scope, SCOPES)],
            "prune_percent": round(100 * checks.fraction("pruning_rate", pruning_rate), 10),
            "prune_iterations": num_rounds,
            "end_iter": f"{checks.integer('iterations', iterations, 1, LONGEST)}it",
            "lr": learning_rate,
            "batch_size": batch_size,
            "gpu": checks.device("device", device),
            "root": checks.path("results_dir", results_dir),
            "seed": seed,
        }
        with _errors_named(ARGUMENTS):
            self.config = Config(**options)
            building.find(self.config.arch_type, self.config.dataset, data=self.config.data)
        self._run: Run | None = None

    def run(self) -> Results:
        """Run the experiment, or continue it where an earlier `run` with these arguments stopped; returns its table.

        Raises ValueError, which names the argument, if the data do not allow it; lth.commands.session.TrialsFailed if a
        loss was not finite; lth.records.files.RecordError if a file cannot be written.
        """
        with _errors_named(ARGUMENTS):
            self._run = _run(self.config)[0]
        return self.results

    @property
    def results(self) -> Results:
        """A row per round: round, remaining (percent of the weights), ES (early-stop iteration), val and test
        (accuracies there, in percent). RuntimeError before `run`."""
        rows = tables.table(self._finished_run(), "rounds")[COLUMNS].head(self.config.prune_iterations)
        results = Results(rows)
        results.runner = self
        return results

    @property
    def folder(self) -> Path:
        """The run's folder under results_dir/dumps, which `lth.load_ticket` takes too. RuntimeError before `run`."""
        return self._finished_run().dumps

    def _finished_run(self) -> Run:
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
        config, run = self.config, self._run
        experiment = f"{config.arch_type} on {config.dataset}, {config.prune_type[0]}, {config.prune_iterations} rounds"
        return f"<ExperimentRunner: {experiment}, {f'results in {run.dumps}' if run else 'not run yet'}>"


class Results(pd.DataFrame):
    """The table of a run, a row per round: a DataFrame that knows its `runner`. Selections are plain DataFrames."""

    _metadata: ClassVar[list[str]] = ["runner"]  # attributes that pandas allows beside columns
    runner: ExperimentRunner

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    def save_results(self, name: str) -> Path:
        """Write the table to a CSV file, as `ExperimentRunner.save_results`."""
        return self.runner.save_results(name)
