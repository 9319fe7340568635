"""How PyTorch computes on this machine: precision and threads, memory, the layout of convolutions, a GPU's pace."""

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lth import rng
from lth.models.building import Build

BACKENDS: Any = torch.backends
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # parameters of mallopt(3)
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}  # no block outside of the heap, and the heap never shrinks
USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}  # the most that glibc's own rules arrive at
BEAT = 0.2  # seconds between two beats


@contextmanager
def numerics(precision: str, threads: int) -> Iterator[None]:
    """Within it, float32 products are as `--precision` says and PyTorch uses that many threads.

    fast: TF32 on GPUs; oneDNN's quickest on CPUs, which is bfloat16 products where the processor has AMX and float32
    elsewhere; numbers below 1e-38 are flushed to 0, since processors are slow on them. fp32: none of this.
    """
    strict = precision == "fp32"
    onednn = (BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn)
    cuda = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn)
    before = [(knob, knob.fp32_precision) for knob in (*onednn, *cuda)]
    threads_before, flushed = torch.get_num_threads(), bool(torch.full((1,), 1e-40) * 1 == 0)
    for knob, _ in before:
        knob.fp32_precision = "ieee" if strict else "bf16" if knob in onednn else "tf32"
    torch.set_flush_denormal(not strict)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        for knob, value in before:
            knob.fp32_precision = value
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(threads_before)


def has_amx() -> bool:
    """Whether this processor has tiles for products of bfloat16 matrices (AMX), as far as PyTorch reports."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


def uses_amx() -> bool:
    """Whether float32 products are computed with such tiles now (see `numerics`)."""
    return BACKENDS.mkldnn.matmul.fp32_precision == "bf16" and has_amx()


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep the memory that this process frees within the context, and return it to the system on exit.

    glibc returns large blocks to the system as soon as they are freed, so that each step takes them again page by page:
    30% of the time of conv2. Nothing changes without glibc, or where MALLOC_* or GLIBC_TUNABLES are set.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    library = ctypes.CDLL(None) if sys.platform == "linux" and not chosen else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    for parameter, value in KEEPING.items():
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)


def channels_last(make: Build, example: Tensor, bf16: bool = False) -> bool:
    """Whether models that `make` gives compute in channels_last, the layout that convolutions are quickest in; tried
    with an example (two or more images). On a GPU that is so where convolutions use tensor cores: under `bf16`, or from
    compute capability 8.0 (TF32) on.

    Not those whose own code needs the usual one, as `x.view(len(x), -1)` behind a convolution does: they fail in this
    layout alone, forward or backward, in training or in evaluation. Nor those with convolutions of three dimensions.
    """
    if example.device.type == "cuda" and not bf16 and torch.cuda.get_device_capability(example.device) < (8, 0):
        return False
    with rng.preserved(example.device):
        model = make()
        tensors = [*model.parameters(), *model.buffers()]
        if any(tensor.ndim == 5 for tensor in tensors) or all(weight.ndim != 4 for weight in model.parameters()):
            return False
        model.to(example.device).to(memory_format=torch.channels_last)
        # A model that cannot be tried with these examples at all fails in both layouts.
        return all(_runs(model, example, mode) or not _runs(make(), example, mode) for mode in (True, False))


def _runs(model: nn.Module, example: Tensor, training: bool) -> bool:
    try:
        with torch.set_grad_enabled(training):
            logits = model.to(example.device).train(training)(example.clone())
            if training:
                logits.float().sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model's own code raises
        return False
    return True


class Beat:
    """Tells when BEAT seconds of training have passed.

    A GPU is handed steps faster than it does them. At a beat the host waits for it, so that a stop and the progress bar
    are at most about a beat behind; the number of steps between two beats follows from the pace so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.last, self.steps, self.every = time.monotonic(), 0, 1
        self.event = torch.cuda.Event() if device.type == "cuda" else None

    def due(self) -> bool:
        """Whether a beat ends with this step."""
        if self.event is None:
            passed = time.monotonic() - self.last
            self.last += passed if passed >= BEAT else 0
            return passed >= BEAT
        self.steps += 1
        if self.steps < self.every:
            return False
        self.event.record()
        self.event.synchronize()
        passed = time.monotonic() - self.last
        self.every = max(1, min(2 * self.every, int(self.every * BEAT / max(passed, 1e-9))))
        self.last, self.steps = self.last + passed, 0
        return True
