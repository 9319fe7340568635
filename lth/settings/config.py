"""Every setting of an experiment, declared once: name, type, default, help, valid range.

The flags of main.py, the names of result folders and config.json are all derived from the fields of `Config`.
A new setting is one field here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lth.settings import values
from lth.settings.arms import ARMS, CONTROLS, CRITERIA, of_ticket
from lth.settings.problems import ConfigError, Problem
from lth.settings.ticket import TicketName
from lth.settings.values import PERCENT, Duration, as_text, cluster, device, duration, number, parse_value, plain_name

LTH = Path(__file__).resolve().parents[1]
# Where archs/ and data/ lie: beside main.py in a clone, inside the library where it was installed.
PROJECT = LTH / "packaged" if (LTH / "packaged").is_dir() else LTH.parent


def same_command(overwrite: bool) -> str:
    """What goes on after a stop, in words: with --overwrite it would move aside what has been done."""
    return "the same command without --overwrite" if overwrite else "the same command again"


def usual_valid_size(count: int) -> int:
    """How many of `count` training images are kept for validation where --valid_size does not say."""
    return max(min(VALID_SIZE, count // 10), 1)


def setting(default: Any, group: str, help: str, parse: Callable[[str], Any] = str, **more: Any) -> Any:
    """A field of Config. `more`: choices (and or_else, words about further ones); many (takes several values);
    changes_numbers (False for settings that leave the results of a run alone and so are not part of its folder's name);
    aliases (other flag names)."""
    return field(default=default, metadata={"group": group, "help": help, "parse": parse, **more})


def side(default: Any, group: str, help: str, parse: Callable[[str], Any] = str, **more: Any) -> Any:
    """A setting that leaves the numbers of a run alone."""
    return setting(default, group, help, parse, changes_numbers=False, **more)


VALID_SIZE = 5000  # images kept for validation of sets that have at least ten times as many
RUN, PRUNE, TRAIN, MACHINE, OUTPUT = "experiment", "pruning and resetting", "training", "machine", "output"


def rate_twice(given: Collection[str]) -> list[str]:
    """What is wrong with the names of settings that were given, whatever their values: the percent of a round twice."""
    rates = [name for name in ("conv_percent", "fc_percent", "output_percent", "prune_percent") if name in given]
    if "target_remaining" not in given or not rates:
        return []
    return [Problem("target_remaining", f"already decides what a round prunes: leave out {' and '.join(rates)}")]


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of an experiment; `Config(arch_type="lenet5", prune_percent=20)` leaves the others as they are.

    What each means, with its unit and default, is in its field's metadata["help"], which `main.py --help` prints.
    ConfigError, a ValueError, has a sentence for each that is not valid.
    """

    prune_type: tuple[str, ...] = side(
        ("lt",),
        RUN,
        "the arms to run, one or several, listed below",
        choices=ARMS,
        or_else=f", or one but lt with {' or '.join(f'_{name}' for name in CONTROLS)}",
        many=True,
    )
    arch_type: str = side("fc1", RUN, "the model: a file under archs/<dataset>/", plain_name)
    dataset: str = side(
        "mnist",
        RUN,
        "the images: mnist, fashionmnist, kmnist, qmnist, emnist, cifar10, cifar100, svhn or <data>/NAME.npz",
        values.dataset_name,
    )
    ticket: TicketName | None = setting(
        None,
        RUN,
        "start from a saved ticket: RUN or RUN:ROUND, where RUN is the folder of a run, or that of an arm, of which "
        "each trial takes the run with its own seed (default of ROUND: the last finished one)",
        TicketName.parse,
    )
    trials: int = side(1, RUN, "independent repetitions, with seeds SEED, SEED+1, ...", number(int, 1, 9999))
    seed: int = side(0, RUN, "of the first trial: initial weights, validation split, data order", number(int, 0, 2**62))
    name: str | None = side(
        None, RUN, "name of the results' folder, in place of one made from the settings", plain_name
    )

    prune_percent: float = setting(10.0, PRUNE, "percent of the surviving weights that a round prunes", PERCENT)
    conv_percent: float | None = setting(None, PRUNE, "the same for filters of convolutions (0: never pruned)", PERCENT)
    fc_percent: float | None = setting(
        None, PRUNE, "the same for all other weights: of Linear, attention, recurrent, bilinear layers", PERCENT
    )
    output_percent: float | None = setting(None, PRUNE, "the same for the Linear layer that is defined last", PERCENT)
    target_remaining: float | None = setting(
        None,
        PRUNE,
        "instead of a percent a round: percent of the weights left in the last round",
        number(float, 0, 100, above=True),
    )
    prune_iterations: int = side(
        35, PRUNE, "rounds, the dense one included: n trainings, n - 1 prunings", number(int, 1, 9999)
    )
    prune_scope: str = setting(
        "layer", PRUNE, "compare weights within each layer, or over all layers", choices=("layer", "global")
    )
    prune_method: str = setting(
        "magnitude",
        PRUNE,
        f"what scores a weight, {', '.join(CRITERIA)}; the lowest are pruned",
        choices=tuple(CRITERIA),
    )
    random_rates: str = setting(
        "uniform",
        PRUNE,
        "what the layers keep in random_init: all the same share (but for --conv_percent and so on), or by "
        "Erdos-Renyi-Kernel",
        choices=("uniform", "erk"),
    )
    score_batches: int = setting(10, PRUNE, "training batches that snip and grasp look at", number(int, 1))
    prune_embeddings: bool = setting(False, PRUNE, "prune embeddings too, as much as --fc_percent says")
    rewind: Duration = setting(
        Duration(0), PRUNE, "reset to the weights of this point of round 0", duration(zero=True, percent=True)
    )
    init: str = setting(
        "glorot",
        PRUNE,
        "initial weights of PyTorch's layers: Gaussian Glorot (the paper's), Kaiming, or the model file's own",
        choices=("glorot", "kaiming", "own"),
    )

    optimizer: str = setting("adam", TRAIN, "the optimiser, new in every round", choices=("adam", "adamw", "sgd"))
    lr: float = setting(1.2e-3, TRAIN, "learning rate", number(float, 0, above=True))
    momentum: float = setting(0.0, TRAIN, "momentum of sgd", number(float, 0, 0.9999))
    nesterov: bool = setting(False, TRAIN, "Nesterov momentum in sgd")
    weight_decay: float = setting(0.0, TRAIN, "weight decay", number(float, 0))
    batch_size: int = setting(60, TRAIN, "images a step", number(int, 1), aliases=("--bs",))
    end_iter: Duration = setting(
        Duration(100), TRAIN, "length of a round: 100 (epochs) or 50000it", duration(), aliases=("--epochs",)
    )
    lr_milestones: tuple[Duration, ...] = setting(
        (), TRAIN, "when the learning rate drops", duration(percent=True), many=True
    )
    lr_gamma: float = setting(0.1, TRAIN, "what it is multiplied with then", number(float, 0, 1, above=True))
    warmup: Duration = setting(
        Duration(0), TRAIN, "rise linearly to the learning rate over this time", duration(zero=True, percent=True)
    )
    valid_freq: Duration = setting(Duration(1), TRAIN, "how often to evaluate", duration(percent=True))
    test_freq: Duration | None = side(
        None,
        TRAIN,
        "how often an evaluation has the test images too; it also has them where the validation loss is the lowest so "
        "far, and at the end (default: every evaluation)",
        duration(percent=True),
    )
    valid_size: int | None = setting(
        None,
        TRAIN,
        f"images of the training set kept for validation (default: {VALID_SIZE}, or a tenth of fewer than "
        f"{10 * VALID_SIZE})",
        number(int, 1),
    )
    pixels: str = setting(
        "standard",
        TRAIN,
        "what a model sees: mean 0 and deviation 1 a channel; 0 to 1; each image divided by its Euclidean norm",
        choices=("standard", "unit", "norm"),
    )
    augment: bool = setting(False, TRAIN, "random crops (4 pixels) and, of colour images but svhn's, flips")
    precision: str = setting(
        "fast",
        TRAIN,
        "fast: float32 with the quickest products; fp32: strict; bf16: autocast",
        choices=("fast", "fp32", "bf16"),
    )
    sparse: str = setting(
        "auto",
        TRAIN,
        "auto: on a CPU, Linear layers that are sparse enough compute with their survivors alone, to rounding the "
        "same and quicker; off: none does",
        choices=("auto", "off"),
    )

    gpu: str | None = side(
        None, MACHINE, "number of the GPU, or cpu, or mps (default: a GPU where there is one, else the CPU)", device
    )
    jobs: int | None = side(
        None,
        MACHINE,
        "processes side by side on a CPU (default: one a core); with --ray tasks at once (default: no limit)",
        number(int, 1, 1024),
    )
    threads: int = side(1, MACHINE, "threads of each process on a CPU", number(int, 1, 1024))
    stack: int | None = side(
        None,
        MACHINE,
        "runs trained at once as one stacked network (default: on a GPU as many as have 20 million weights, else 1)",
        number(int, 1),
    )
    data: Path = side(PROJECT / "data", MACHINE, "folder of the data sets", values.folder_path)
    root: Path = side(Path(), MACHINE, "folder that gets dumps/, saves/ and plots/", values.folder_path)
    join: bool = side(
        False, MACHINE, "share the work with all other processes, on any machine, that are given the same command"
    )
    ray: str | None = side(
        None,
        MACHINE,
        "have it done by a Ray cluster whose nodes share --root and --data: auto (that of this machine), local (one "
        "for this command), or host:port",
        cluster,
    )
    checkpoint_every: float = side(
        30.0,
        MACHINE,
        "seconds between checkpoints within a round, written at evaluations (0: at each)",
        number(float, 0),
    )
    keep_weights: str = side("all", MACHINE, "which rounds' trained weights to keep", choices=("all", "last", "none"))
    overwrite: bool = side(False, MACHINE, "move old results of these runs aside and start anew")
    dry_run: bool = side(False, MACHINE, "show what would be trained, and do nothing else")

    connectivity: bool = side(
        False,
        RUN,
        "train every ticket once more with another order of the data, and measure the error on the line between both",
    )

    print_freq: int = side(
        1, OUTPUT, "epochs between printed lines, where output is no terminal and has no bars", number(int, 1)
    )
    quiet: bool = side(False, OUTPUT, "print the verdict and the files only")
    tensorboard: bool = side(False, OUTPUT, "also log to runs/ for TensorBoard")
    format: str = side("png", OUTPUT, "file format of the figures", choices=("png", "svg", "pdf"))
    debug: bool = side(False, OUTPUT, "tracebacks with error messages")

    def __post_init__(self) -> None:
        problems: list[str] = []
        for spec in dataclasses.fields(self):  # for those who build a Config in Python rather than from flags
            value = getattr(self, spec.name)
            try:
                object.__setattr__(self, spec.name, parse_value(spec, value))
            except ValueError as error:
                problems.append(Problem(spec.name, f"{error}, not {value!r}"))
        problems += self._clashes()
        if problems:
            raise ConfigError(*problems)

    def _clashes(self) -> list[str]:
        """What is wrong with settings that are right one by one. Some may still be of the wrong type."""
        changed = {spec.name for spec in dataclasses.fields(self) if getattr(self, spec.name) != spec.default}
        arms = self.prune_type if isinstance(self.prune_type, tuple) else ("lt",)
        found: list[str] = rate_twice(changed)
        if "target_remaining" in changed and self.prune_iterations == 1:
            found.append(Problem("target_remaining", "needs at least 2 rounds (prune_iterations): the first is dense"))
        for name in ("momentum", "nesterov"):
            if name in changed and self.optimizer != "sgd":
                found.append(Problem(name, f"belongs to the optimizer sgd, not to {self.optimizer}"))
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            found.append(Problem("nesterov", "needs a momentum above 0"))
        if "lr_gamma" in changed and not self.lr_milestones:
            found.append(Problem("lr_gamma", "needs lr_milestones, which say when the learning rate drops"))
        if of_ticket(arms) and self.ticket is None:
            found.append(Problem("prune_type", f"{of_ticket(arms)[0]} needs a ticket, which says whose tickets to use"))
        if self.join and self.overwrite:
            found.append(Problem("overwrite", "cannot be given with join: each process would move the others' work"))
        if self.ray and self.gpu not in (None, "cpu"):
            found.append(Problem("gpu", f"{self.gpu} cannot be given with ray, which chooses GPUs: omit it or say cpu"))
        if not arms:
            found.append(Problem("prune_type", f"needs at least one of {', '.join(ARMS)}"))
        return found

    @property
    def seeds(self) -> range:
        """The seeds of the trials."""
        return range(self.seed, self.seed + self.trials)

    @property
    def round_percent(self) -> float:
        """Percent of the survivors that a round prunes, also where --target_remaining decides it."""
        if self.target_remaining is None:
            return self.prune_percent
        return 100 * (1 - (self.target_remaining / 100) ** (1 / (self.prune_iterations - 1)))

    def rates(self) -> dict[str, float]:
        """Percent of the survivors that a round prunes, by the kind of layer."""
        usual = self.round_percent
        fc = usual if self.fc_percent is None else self.fc_percent
        conv = usual if self.conv_percent is None else self.conv_percent
        return {"conv": conv, "fc": fc, "output": fc if self.output_percent is None else self.output_percent}

    def deciding(self) -> dict[str, str]:
        """The settings that decide a run's numbers, as text."""
        chosen = {
            spec.name: as_text(getattr(self, spec.name))
            for spec in dataclasses.fields(self)
            if spec.metadata.get("changes_numbers", True)
        }
        if self.valid_size is None:
            chosen["valid_size"] = str(VALID_SIZE)  # lth.run.session knows the data, and puts their tenth here
        if self.target_remaining is not None:  # the rate of a round then follows from their number
            chosen["prune_iterations"] = str(self.prune_iterations)
        return chosen

    def meaning(self, arm: str) -> dict[str, str]:
        """What the name of the arm means with these settings, where it meant something else in older results."""
        if ARMS[arm].schedule == "final" and (self.lr_milestones or self.warmup.amount):
            return {"finetune": "at the final learning rate"}
        return {}

    def folder(self) -> str:
        """Name of the folder of these settings: --name, or those that differ from the defaults, or `default`."""
        if self.name:
            return self.name
        usual = Config().deciding()
        text = ",".join(f"{key}={value}" for key, value in sorted(self.deciding().items()) if usual.get(key) != value)
        text = re.sub("[/:]", "+", text)  # of --ticket
        if len(text) > 100:  # file systems allow 255 bytes a name; a hash keeps long ones apart
            whole = text[:81].rpartition(",")[0] or text[:80]  # no value is cut in two
            text = f"{whole}...{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return text or "default"
