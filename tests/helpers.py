"""Tiny data sets, models and experiments that the tests share."""

import contextlib
import io
import itertools
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from nets import CLASSES, SIDE
from nets import Conv as Conv
from nets import Mlp as Mlp
from PIL import Image
from torch import nn

from lth import data, pruning
from lth.commands.queue import Queue, Work
from lth.data.images import Feed, Images
from lth.experiment import Experiment, start_tickets
from lth.experiment.trainer import Event, Note
from lth.models import building
from lth.pruning import Masks
from lth.records import files, journal, lock, tables
from lth.records.tables import Run, runs_of
from lth.settings import names
from lth.settings.config import PROJECT, Config
from lth.training.network import Network
from lth.training.optimizers import Fused
from lth.training.schedule import Plan
from lth.training.train import Stopped, Training

CPU = torch.device("cpu")
EXHAUSTIVE = "LTH_EXHAUSTIVE" in os.environ
Capture = pytest.CaptureFixture[str]  # of the fixture capsys
Patch = pytest.MonkeyPatch

MODELS = """
from torch import nn


class {name}(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.layers = nn.Sequential({layers})

    def forward(self, x):
        return self.layers(x)
"""
LAYERS = {
    "mlp": "nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, num_classes)",
    "drop": "nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), "
    "nn.Linear(12, num_classes)",
    "conv": "nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), "
    "nn.Linear(16, num_classes)",
}


def arrays(count: int = 120, tests: int = 40, seed: int = 0, shape: tuple[int, ...] = (SIDE, SIDE)) -> dict[str, Any]:
    """Images of CLASSES classes that a small network can learn: a bright block in one corner, and noise."""
    rng = np.random.default_rng(seed)

    def half(number: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(number) % CLASSES
        x = rng.integers(0, 120, (number, *shape))
        for i, label in enumerate(y):
            top, left = 4 * (label // 2), 4 * (label % 2)
            x[i, top : top + 4, left : left + 4] += 100
        return x.astype(np.uint8), y.astype(np.uint8)

    (x_train, y_train), (x_test, y_test) = half(count), half(tests)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def make_images(**options: Any) -> Images:
    """The same as a data set in memory."""
    made = arrays(**options)
    x = {key: made[f"x_{key}"] for key in ("train", "test")}
    planes = {key: torch.from_numpy(v[:, None] if v.ndim == 3 else v.transpose(0, 3, 1, 2)) for key, v in x.items()}
    labels = {key: torch.from_numpy(made[f"y_{key}"]).long() for key in ("train", "test")}
    return Images("tiny", planes["train"], labels["train"], planes["test"], labels["test"], CLASSES)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks are quickest, and sums the same, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def blank_figures(request: pytest.FixtureRequest, monkeypatch: Patch) -> None:
    """Figures are written as one pixel but where files are looked at: drawing is most of what a short command takes."""
    if request.node.path.name not in ("test_draw.py", "test_report.py"):
        Image.new("L", (1, 1)).save(pixel := io.BytesIO(), "PNG")
        monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(pixel.getvalue()))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A folder with archs/tiny/{mlp,drop,conv}.py and data/tiny.npz, which `lth` takes its models from."""
    return lay_out(tmp_path, monkeypatch)


def lay_out(tmp_path: Path, monkeypatch: Patch) -> Path:
    """Make `tmp_path` such a folder."""
    folder = tmp_path / "archs" / "tiny"
    folder.mkdir(parents=True)
    for name, layers in LAYERS.items():
        (folder / f"{name}.py").write_text(MODELS.format(name=name.capitalize(), layers=layers))
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "tiny.npz", **arrays())
    monkeypatch.setattr(names, "ARCHS", [tmp_path / "archs"])
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and no one pulls the plug here
    return tmp_path


def add_model(place: Path, name: str, code: str) -> None:
    """Write archs/tiny/NAME.py, whose model is made by this code with the classes of tests/nets.py."""
    text = f"import nets\nfrom torch import nn\n\n\ndef {name}(num_classes=4):\n    return {code}\n"
    (place / "archs" / "tiny" / f"{name}.py").write_text(text)


def settings(place: Path, **changes: Any) -> Config:
    """Settings of an experiment in `place` that lasts a fraction of a second."""
    usual: dict[str, Any] = {
        **{"arch_type": "mlp", "dataset": "tiny", "data": place / "data", "root": place, "gpu": "cpu", "jobs": 1},
        **{"prune_iterations": 3, "prune_percent": 30, "end_iter": "8it", "valid_freq": "4it", "valid_size": 40},
        **{"batch_size": 10, "lr": 0.01, "quiet": True},
    }
    return Config(**(usual | changes))


def argv_of(place: Path, *more: str) -> list[str]:
    """Flags of main.py for the same experiment; later ones win."""
    words = "--arch_type mlp --dataset tiny --gpu cpu --jobs 1 --prune_iterations 3 --prune_percent 30 --end_iter 8it"
    words += " --valid_freq 4it --valid_size 40 --batch_size 10"
    return [*words.split(), "--data", str(place / "data"), "--root", str(place), *more]


class Told(list[Event]):
    """Listens to an experiment."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    @property
    def notes(self) -> str:
        """All sentences for the user."""
        return "\n".join(event.text for event in self if isinstance(event, Note))


def experiment(
    config: Config, tell: Callable[[Event], None] | None = None, device: torch.device = CPU, **options: Any
) -> Experiment:
    """The experiment of these settings on `device`."""
    problem = start_tickets.problem(config, data.load(config.dataset, config.data, config.pixels))
    return Experiment(config, problem, device, Told() if tell is None else tell, **options)


def do(config: Config, tell: Callable[[Event], None] | None = None, **options: Any) -> list[Run]:
    """Do all rounds of all runs of these settings, in this process."""
    work(experiment(config, tell, **options))
    return runs_of(config)


def work(made: Experiment) -> None:
    """Let an experiment do what its settings ask for."""
    config = made.trainer.config
    queue = Queue(works(config, piece_size=99 if config.stack else 1))
    while ready := next(queue.ready(), None):
        made.run(*ready)
        queue.failed.update(made.failed)


def works(*configs: Config, piece_size: int = 1) -> list[Work]:
    """These experiments for a queue."""
    facts = {"fingerprint": {}, "sparse_up_to": {}}
    made = []
    for config in configs:
        images = data.load(config.dataset, config.data, config.pixels)
        made.append(Work(config, runs_of(config), images, start_tickets.problem(config, images), facts, piece_size))
    return made


def results(root: Path, kinds: tuple[str, ...] = ("dumps", "saves")) -> dict[str, bytes]:
    """The files that must not depend on stops: all tables but times.csv, tickets and weights."""
    unsteady = ("times.csv", "config.json", "checkpoint.safetensors")
    return {
        str(file.relative_to(root)): file.read_bytes()
        for kind in kinds
        for file in sorted((root / kind).rglob("*"))
        if file.suffix in (".csv", ".safetensors") and file.name not in unsteady
    }


def assert_same(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> None:
    """The same files with the same bytes; names those that differ."""
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether these states, or masks, are the same to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def write_table(run: Run, name: str, table: pd.DataFrame) -> None:
    """Put another table of that name into the journal of a run."""
    lines = {number: rows.to_csv(index=False, header=False).splitlines() for number, rows in table.groupby("round")}
    known = [{**entry, name: lines[number]} for number, entry in enumerate(tables.entries(run))]
    journal.save(run.dumps, known)


def random_masks(model: nn.Module, keep: float = 0.5, seed: int = 0) -> Masks:
    """Masks that keep about that share of the prunable weights."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(weight.shape, generator=generator) < keep for name, weight in pruning.prunable(model).items()
    }


def training(
    make: Callable[[], nn.Module],
    plan: Plan,
    *,
    seeds: tuple[int, ...] = (0,),
    kind: str = "adam",
    lr: float = 0.01,
    keep: float | None = None,
    images: Images | None = None,
    resume: Any = None,
    feed: Mapping[str, Any] | None = None,
    sparse: Sequence[str] = (),
    device: torch.device = CPU,
    autocast: bool = False,
    choose: Callable[[Sequence[Masks]], Sequence[str]] = lambda masks: (),
    **options: Any,
) -> Training:
    """A training of one trial a seed, at its beginning; pruned at random to `keep` if given, the weights `sparse` or
    those that `choose` names trained sparsely."""
    states = [building.state_of(building.build(make, "glorot", seed)) for seed in seeds]
    masks = [
        random_masks(make(), keep, seed) if keep is not None else pruning.dense(pruning.prunable(make()))
        for seed in seeds
    ]
    ways: dict[str, Any] = {
        "autocast": autocast,
        "sparse": sparse or choose(masks),
        "changing": plan.updates is not None,
    }
    network = Network(make(), states, masks, device, channels_last=True, **ways)
    made = Feed(images or make_images(), seeds, 40, 10, device, **(feed or {}))
    optimizer = Fused(kind, network, lr, **options)
    return Training(
        network, optimizer, made, plan, [(seed, "order", 0) for seed in seeds], 7, resume, choose_sparse=choose
    )


def constant(lr: float = 0.01) -> Callable[[int], float]:
    """A learning rate that stays."""
    return lambda iteration: lr


class Killed(KeyboardInterrupt):
    """What a process that is killed would notice of it, if it noticed anything."""


@contextlib.contextmanager
def killed_at(operation: int, monkeypatch: Patch) -> Iterator[list[int]]:
    """Within it, change number `operation` of a file (write, rename, link, deletion) raises Killed before it is done,
    as do all later ones. Gives a list with the number of changes so far."""
    count, sync = [0], os.fsync

    def synced(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # what a folder lists does not change by syncing it
            checked_sync(descriptor)

    def guarded(change: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] > operation:
                raise Killed
            return change(*arguments, **options)

        return checked

    checked_sync = guarded(sync)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        for name in ("replace", "rename", "unlink"):
            patch.setattr(Path, name, guarded(getattr(Path, name)))
        with contextlib.suppress(Killed):
            yield count


def assert_kills_change_nothing(config: Config, monkeypatch: Patch) -> None:
    """A command that is killed between any two changes of files continues as if nothing had happened."""
    roots = [config.root / name for name in ("whole", "killed")]
    with killed_at(10**9, monkeypatch) as operations:
        do(replace(config, root=roots[0]))
    assert operations[0] > 30
    for operation in range(0, operations[0], 1 if EXHAUSTIVE else 11):
        with killed_at(operation, monkeypatch):
            do(replace(config, root=roots[1]))
        for file in roots[1].rglob("*.csv"):
            assert file.read_bytes().endswith(b"\n")
        do(replace(config, root=roots[1]))
        assert_same(results(roots[1]), results(roots[0]))
        shutil.rmtree(roots[1])


def do_in_pieces(config: Config, turns: int) -> None:
    """Do it, stopped after so many turns again and again."""
    for _ in range(200):
        asked = itertools.count()
        with contextlib.suppress(Stopped):
            do(config, stop=lambda asked=asked: next(asked) >= turns)
            return


@contextlib.contextmanager
def held(folder: Path, pid: int = 77, host: str = "elsewhere") -> Iterator[None]:
    """Within it, another process has the lock of a folder."""
    with lock.Locks() as locks:
        locks.take(folder)
        files.write_json(lock.holder_file(folder), {"host": host, "pid": pid, "token": "another's"})
        yield


def assert_released(root: Path) -> None:
    """No lock under `root` is held."""
    assert not [file for file in root.rglob("*.lock") if lock.is_held(file.with_suffix(""))]


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


class Command:
    """main.py as somebody starts it in a terminal of its own."""

    def __init__(self, root: Path, *argv: str) -> None:
        root.parent.mkdir(parents=True, exist_ok=True)
        self.root, self.began, self.log = root, time.time(), root.with_suffix(f".{time.monotonic_ns()}.log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "main.py", *argv, "--data", str(root.parent), "--root", str(root)],
                cwd=PROJECT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_training(self) -> bool:
        """Whether somebody has written a checkpoint since: before that, Python and PyTorch are loaded."""
        with contextlib.suppress(FileNotFoundError):
            return any(file.stat().st_mtime > self.began for file in self.root.rglob("checkpoint*"))
        return False

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def signal(self, signum: int) -> None:
        """What the terminal, or another process, sends to it and its children."""
        os.killpg(self.process.pid, signum)

    def ends(self, code: int = 0) -> str:
        """Wait for its end with that exit code; gives what it printed."""
        assert self.process.wait(timeout=400) == code, self.log.read_text()
        return self.log.read_text()
