"""How PyTorch computes: precision, memory that a step frees, channels_last for the models that compute in it."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Conv, Mlp, Patch, add_model, make_images, settings
from nets import Deep, Views

import lth
from lth import rng
from lth.commands import session
from lth.models import building
from lth.records import tables
from lth.settings.config import PROJECT
from lth.training import hardware
from lth.training.hardware import channels_last, numerics

# Precision

BACKENDS: Any = torch.backends
KNOBS = {
    "oneDNN's products": BACKENDS.mkldnn.matmul,
    "oneDNN's convolutions": BACKENDS.mkldnn.conv,
    "oneDNN's recurrent layers": BACKENDS.mkldnn.rnn,
    "CUDA's products": BACKENDS.cuda.matmul,
    "cuDNN's convolutions": BACKENDS.cudnn.conv,
    "cuDNN's recurrent layers": BACKENDS.cudnn.rnn,
}
FAST = {name: "tf32" if name.lower().startswith("cu") else "bf16" for name in KNOBS}
STRICT = dict.fromkeys(KNOBS, "ieee")


def knobs() -> dict[str, str]:
    return {name: knob.fp32_precision for name, knob in KNOBS.items()}


def set_knobs(values: dict[str, str]) -> None:
    for name, knob in KNOBS.items():
        knob.fp32_precision = values[name]


def flushes() -> bool:
    """Whether numbers too small for a normal float32 count as 0."""
    return not torch.full((4,), 1e-40).mul(1.0).any()


@pytest.mark.versions
@pytest.mark.parametrize(
    "precision, expected, flushed", [("fast", FAST, False), ("bf16", FAST, True), ("fp32", STRICT, True)]
)
def test_precision_is_set_and_restored(precision: str, expected: dict[str, str], flushed: bool) -> None:
    usual, before = knobs(), STRICT if expected is FAST else FAST
    set_knobs(before)
    torch.set_flush_denormal(flushed)
    with pytest.raises(ZeroDivisionError), numerics(precision, 2):
        assert (knobs(), flushes(), torch.get_num_threads()) == (expected, expected is FAST, 2)
        raise ZeroDivisionError
    assert (knobs(), flushes(), torch.get_num_threads()) == (before, flushed, 1)
    set_knobs(usual)
    torch.set_flush_denormal(False)


STEPS = """
import resource
import psutil, torch
from lth.training.hardware import keep_memory

def pages_taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (40, 16, 80, 8):
        torch.ones(size * 2**18).mul_(2)  # that many MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

process = psutil.Process()
with keep_memory():
    print(*(pages_taken() * resource.getpagesize() // 2**20 for _ in range(7)))
    held = process.memory_info().rss
print((held - process.memory_info().rss) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own")
def test_what_a_step_frees_serves_the_next_and_is_returned_at_the_end() -> None:
    """In a process of its own, since the heap of a process that has done other work has holes."""
    env = {name: text for name, text in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", STEPS], cwd=PROJECT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    taken, (returned,) = ([*map(int, line.split())] for line in done.stdout.splitlines())
    # Megabytes that each step took from the system: how the blocks of the first steps lie is chance.
    assert taken[0] >= 80 and taken[3:] == [0, 0, 0, 0], taken
    assert returned > 60


@pytest.mark.parametrize("system, variable", [("win32", ""), ("linux", "MALLOC_TRIM_THRESHOLD_"), ("linux", "")])
def test_nothing_changes_without_glibc_or_with_own_settings(system: str, variable: str, monkeypatch: Patch) -> None:
    """Opening the C library would fail on Windows; other C libraries on Linux have no mallopt."""
    asked: list[object] = []
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: asked.append(name) or object())
    if variable:
        monkeypatch.setenv(variable, "1")
    with hardware.keep_memory():
        assert bool(asked) == (system == "linux" and not variable)


EXAMPLE = torch.randn(2, 1, 8, 8)


@pytest.mark.parametrize(
    "make, expected",
    [
        (Conv, True),
        (Mlp, False),
        (Deep, False),
        (lambda: Views(in_evaluation=False), False),
        (lambda: Views(in_training=False), False),
        (building.find("lenet5", "mnist"), None),
        (building.find("conv2", "cifar10"), None),
    ],
)
def test_channels_last_is_the_layout_of_all_convolutions_that_run_in_it(make: Any, expected: bool | None) -> None:
    """As those of the models that come with the program do; trying it disturbs no draws and no example."""
    first = next(make().parameters())
    images = (
        EXAMPLE if expected is not None else torch.randn(2, first.shape[1], *[28 if first.shape[1] == 1 else 32] * 2)
    )
    before, example = rng.state(EXAMPLE.device), images.clone()
    assert channels_last(make, example) is (expected is not False)
    assert all(torch.equal(one, before[name]) for name, one in rng.state(EXAMPLE.device).items())
    assert torch.equal(example, images)


@pytest.mark.parametrize("augment", [False, True])
def test_a_model_that_views_what_convolutions_give_is_trained_and_evaluated(place: Path, augment: bool) -> None:
    add_model(place, "viewing", "nets.Views()")
    (run,) = session.run(settings(place, arch_type="viewing", prune_iterations=2, connectivity=True, augment=augment))
    assert len(tables.table(run, "connectivity")) == (2 + 1) * 30  # a line per round, and one between both
    ticket, images = lth.load_ticket(run.dumps, round=1), make_images()
    test = (images.test.float() - images.train.float().mean()) / images.train.float().std()
    for data in (place / "data" / "tiny.npz", [(test, images.test_labels)]):
        assert ticket.evaluate(data, device="cpu") == pytest.approx(ticket.row["test"], abs=2.6)
