"""Every setting of an experiment, declared once: name, type, default, help, valid range.

The flags of main.py, the names of result folders and config.json are derived from the fields of `Config`. A new setting
is one field here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lth.settings import values
from lth.settings.arms import ARMS, CONTROLS, CRITERIA, ticket_arms
from lth.settings.checks import ConfigError, Problem
from lth.settings.values import Duration, TicketName, as_text, duration, number

LTH = Path(__file__).resolve().parents[1]
# The folder of archs/ and data/: that of main.py in a clone, inside the library where it is installed.
PROJECT = LTH / "packaged" if (LTH / "packaged").is_dir() else LTH.parent

VALID_SIZE = 5000  # images held out for validation from sets that have at least ten times as many
RUN, PRUNE, TRAIN, MACHINE, OUTPUT = "experiment", "pruning and resetting", "training", "machine", "output"
PERCENT = number(float, 0, 100, below=True)  # 100 would leave no network to train
COUNT = number(int, 1)
RATES = frozenset(("prune_percent", "conv_percent", "fc_percent", "output_percent"))
TIME, TIME_OR_NONE = duration(percent=True), duration(zero=True, percent=True)


def same_command(overwrite: bool) -> str:
    """The command that continues after a stop, in words: --overwrite would move the results aside."""
    return "the same command without --overwrite" if overwrite else "the same command again"


def usual_valid_size(count: int) -> int:
    """The default of --valid_size for `count` training images."""
    return max(min(VALID_SIZE, count // 10), 1)


def setting(
    group: str, default: Any, help: str, valid: Callable[[str], Any] | Collection[str] = str, **more: Any
) -> Any:
    """A field of Config. `valid` is a parser of text or the choices. `more`: or_else (words about further choices);
    many (takes several values); changes_numbers (False for settings that do not affect the results of a run and so are
    not part of its folder's name); aliases (other flag names)."""
    parser = {"parse": valid} if callable(valid) else {"choices": valid}
    return field(default=default, metadata={"group": group, "help": help, **parser, **more})


experiment = partial(setting, RUN, changes_numbers=False)
pruning, training = partial(setting, PRUNE), partial(setting, TRAIN)
machine, output = partial(setting, MACHINE, changes_numbers=False), partial(setting, OUTPUT, changes_numbers=False)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of an experiment, as in `Config(arch_type="lenet5", prune_percent=20)`.

    The metadata["help"] of a field explains the setting and its unit; `main.py --help` prints all of them. Raises
    ConfigError, a ValueError, with a sentence for each setting that is not valid.
    """

    prune_type: tuple[str, ...] = experiment(
        ("lt",),
        "one or several arms, listed below",
        ARMS,
        or_else=f", or one but lt with {' or '.join(f'_{name}' for name in CONTROLS)}",
        many=True,
    )
    arch_type: str = experiment("fc1", "the model: a file under archs/<dataset>/", values.plain_name)
    dataset: str = experiment(
        "mnist",
        "mnist, fashionmnist, ... (all in docs/models.md), or the NAME of <data>/NAME.npz or of a folder of pictures",
        values.dataset_name,
    )
    image_size: int | None = setting(RUN, None, "scale pictures to squares of N x N pixels (default: as is)", COUNT)
    ticket: TicketName | None = setting(
        RUN, None, "folder of the tickets to start from, or RUN:ROUND (default: last)", TicketName.parse
    )
    trials: int = experiment(1, "repetitions, with seeds SEED, SEED+1, ...", number(int, 1, 9999))
    seed: int = experiment(0, "seed of the first trial: weights, split, data order", number(int, 0, 2**62))
    name: str | None = experiment(None, "folder of the results (default: made from the settings)", values.plain_name)
    connectivity: bool = experiment(False, "error barriers: train each ticket again in another data order")

    prune_percent: float = pruning(10.0, "percent of surviving weights pruned per round", PERCENT)
    conv_percent: float | None = pruning(None, "the same for convolutions (0: never pruned)", PERCENT)
    fc_percent: float | None = pruning(None, "the same for all other layers (Linear, attention, ...)", PERCENT)
    output_percent: float | None = pruning(None, "the same for the Linear layer that is defined last", PERCENT)
    target_remaining: float | None = pruning(
        None, "instead: percent of the weights that the last round keeps", number(float, 0, 100, above=True)
    )
    prune_iterations: int = pruning(35, "rounds, the dense one included", number(int, 1, 9999), changes_numbers=False)
    prune_scope: str = pruning("layer", "within layers, over all layers, or in erk shares", ("layer", "global", "erk"))
    prune_method: str = pruning("magnitude", "criterion that scores weights, listed below", CRITERIA)
    random_rates: str = pruning("uniform", "shares of layers in random_init, set, rigl, ...", ("uniform", "erk"))
    score_batches: int = pruning(10, "training batches for the scores of snip and grasp", COUNT)
    prune_embeddings: bool = pruning(False, "prune embeddings too, by --fc_percent")
    update_freq: Duration = pruning(Duration(100, "it"), "set, rigl, gmp: how often masks change", TIME)
    update_end: Duration = pruning(Duration(75, "%"), "set, rigl, gmp: until when masks change", TIME)
    update_fraction: float = pruning(0.3, "share that set and rigl replace at first", number(float, 0, 1, above=True))
    rewind: Duration = pruning(Duration(0), "reset to the weights of this point of round 0", TIME_OR_NONE)
    draw_at: Duration | None = pruning(None, "draw masks at this point of a round (default: its end)", TIME)
    init: str = pruning("glorot", "initial weights (own: the model's)", ("glorot", "kaiming", "own"))

    optimizer: str = training("adam", "the optimiser, new in every round", ("adam", "adamw", "sgd"))
    lr: float = training(1.2e-3, "learning rate", number(float, 0, above=True))
    momentum: float = training(0.0, "momentum of sgd", number(float, 0, 0.9999))
    nesterov: bool = training(False, "Nesterov momentum in sgd")
    weight_decay: float = training(0.0, "weight decay", number(float, 0))
    batch_size: int = training(60, "images per step", COUNT, aliases=("--bs",))
    end_iter: Duration = training(
        Duration(100), "length of a round: 100 (epochs) or 50000it", duration(), aliases=("--epochs",)
    )
    lr_schedule: str = training("steps", "drops at lr_milestones, or half a cosine to 0", ("steps", "cosine"))
    lr_milestones: tuple[Duration, ...] = training((), "when the learning rate drops", TIME, many=True)
    lr_gamma: float = training(0.1, "factor of the learning rate at each drop", number(float, 0, 1, above=True))
    warmup: Duration = training(Duration(0), "linear rise to the learning rate over this time", TIME_OR_NONE)
    valid_freq: Duration = training(Duration(1), "how often to evaluate", TIME)
    test_freq: Duration | None = training(
        None, "how often to test, besides at new lowest losses (default: always)", TIME, changes_numbers=False
    )
    valid_size: int | None = training(
        None, f"images held out for validation (default: {VALID_SIZE}, at most a tenth)", COUNT
    )
    pixels: str = training("standard", "standardised per channel, 0 to 1, or norm 1", ("standard", "unit", "norm"))
    augment: bool = training(False, "random crops (4 pixels), and flips of colour images except svhn")
    precision: str = training("fast", "fastest or strict float32, or bfloat16", ("fast", "fp32", "bf16"))
    sparse: str = training("auto", "multiply by surviving weights only, on a CPU", ("auto", "off"))

    gpu: str | None = machine(
        None,
        "number of a GPU, cpu or mps (default: a GPU if there is one)",
        values.matching(r"cpu|mps|\d+", "the number of a GPU, or cpu, or mps"),
    )
    jobs: int | None = machine(None, "processes on a CPU (default: one per core), or Ray tasks", number(int, 1, 1024))
    threads: int | None = machine(
        None, "threads per run on a CPU (default: by network, runs and cores)", number(int, 1, 1024)
    )
    stack: int | None = machine(None, "runs trained as one network (default: on a GPU, 20M weights)", COUNT)
    data: Path = machine(PROJECT / "data", "folder of the data sets", values.folder_path)
    root: Path = machine(Path(), "folder for dumps/, saves/ and plots/", values.folder_path)
    join: bool = machine(False, "share the work with all processes that run the same command")
    ray: str | None = machine(
        None,
        "Ray cluster to use: auto (this machine's), local (new), host:port",
        values.matching(r"auto|local|([\w.-]+|\[[\da-fA-F:.]+\]):\d+", "auto, local or the host:port of a Ray cluster"),
    )
    checkpoint_every: float = machine(30.0, "seconds between checkpoints, 0: every evaluation", number(float, 0))
    keep_weights: str = machine("all", "rounds whose trained weights are kept", ("all", "last", "none"))
    overwrite: bool = machine(False, "move old results of these runs aside and start again")
    dry_run: bool = machine(False, "show what would be trained, and do nothing else")

    print_freq: int = output(1, "epochs per printed line without a progress bar", COUNT)
    quiet: bool = output(False, "print the verdict and the files only")
    tensorboard: bool = output(False, "also log to runs/ for TensorBoard")
    format: str = output("png", "file format of the figures", ("png", "svg", "pdf"))
    debug: bool = output(False, "tracebacks with error messages")

    def __post_init__(self) -> None:
        problems: list[str] = []
        for spec in dataclasses.fields(self):
            try:
                object.__setattr__(self, spec.name, values.parse_value(spec, getattr(self, spec.name)))
            except ValueError as error:
                problems.append(Problem(spec.name, str(error)))
        problems += self._clashes()
        if problems:
            raise ConfigError(*problems)

    def _clashes(self) -> list[str]:
        """Problems of settings that exclude each other. Some values may be invalid, and of any type."""
        changed = {spec.name for spec in dataclasses.fields(self) if getattr(self, spec.name) != spec.default}
        arms = self.prune_type if isinstance(self.prune_type, tuple) else ("lt",)
        sgd, cosine, target = self.optimizer == "sgd", self.lr_schedule == "cosine", self.target_remaining is not None
        only_sgd = f"belongs to the optimizer sgd, not to {self.optimizer}"
        ticket_arm, rates = "".join(ticket_arms(arms)[:1]), " and ".join(sorted(changed & RATES))
        no_ticket = f"{ticket_arm} needs a ticket, which says whose tickets to use"
        rules = [
            ("target_remaining", target and rates, f"already decides what a round prunes: leave out {rates}"),
            ("target_remaining", target and self.prune_iterations == 1, "needs at least 2 rounds (prune_iterations)"),
            ("momentum", "momentum" in changed and not sgd, only_sgd),
            ("nesterov", "nesterov" in changed and not sgd, only_sgd),
            ("nesterov", self.nesterov and sgd and not self.momentum, "needs a momentum above 0"),
            ("lr_milestones", cosine and self.lr_milestones, "cannot be given with lr_schedule cosine"),
            ("lr_gamma", "lr_gamma" in changed and not self.lr_milestones, "needs lr_milestones, which say when"),
            ("prune_type", ticket_arm and not self.ticket, no_ticket),
            ("prune_type", not arms, f"needs at least one of {', '.join(ARMS)}"),
            ("overwrite", self.join and self.overwrite, "cannot be given with join: each would move the others' work"),
            ("gpu", self.ray and self.gpu not in (None, "cpu"), f"{self.gpu} cannot be given with ray"),
        ]
        return [Problem(name, sentence) for name, broken, sentence in rules if broken]

    @property
    def seeds(self) -> range:
        """The seeds of the trials."""
        return range(self.seed, self.seed + self.trials)

    def rates(self) -> dict[str, float]:
        """The percentage of the survivors that a round prunes, by kind of layer."""
        default = self.prune_percent
        if self.target_remaining is not None:
            default = 100 * (1 - (self.target_remaining / 100) ** (1 / (self.prune_iterations - 1)))
        fc = default if self.fc_percent is None else self.fc_percent
        conv = default if self.conv_percent is None else self.conv_percent
        return {"conv": conv, "fc": fc, "output": fc if self.output_percent is None else self.output_percent}

    def deciding(self) -> dict[str, str]:
        """The settings that decide a run's results, as text."""
        settings = {
            spec.name: as_text(getattr(self, spec.name))
            for spec in dataclasses.fields(self)
            if spec.metadata.get("changes_numbers", True)
        }
        if self.valid_size is None:
            settings["valid_size"] = str(VALID_SIZE)  # lth.commands.session, which has the data, replaces it by a tenth
        if self.target_remaining is not None:  # the number of rounds then decides how much each prunes
            settings["prune_iterations"] = str(self.prune_iterations)
        return settings

    def folder(self) -> str:
        """The name of the results' folder: --name, or the settings that differ from their defaults, or `default`."""
        if self.name:
            return self.name
        defaults = Config().deciding()
        text = ",".join(
            f"{key}={value}" for key, value in sorted(self.deciding().items()) if defaults.get(key) != value
        )
        text = re.sub("[/:]", "+", text)  # in the name of a ticket
        if len(text) > 100:  # file systems allow 255 bytes per name; a hash keeps long ones apart
            whole = text[:81].rpartition(",")[0] or text[:80]  # no value is cut in two
            text = f"{whole}...{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return text or "default"
