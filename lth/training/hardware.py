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
KEEP_MEMORY = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}  # all blocks are in the heap, and the heap never shrinks
DEFAULTS = {MMAP_MAX: 65536, MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}  # the maxima of glibc's dynamic thresholds
BEAT = 0.2  # seconds between two beats


@contextmanager
def numerics(precision: str, threads: int) -> Iterator[None]:
    """Set the precision of float32 products (`--precision`) and the number of threads within the context.

    fast: TF32 on GPUs; on CPUs oneDNN's quickest, which is bfloat16 products on processors with AMX and float32 on
    others; numbers below 1e-38 are flushed to 0, since processors are slow on them. fp32: none of this.
    """
    strict = precision == "fp32"
    onednn = (BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn)
    cuda = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn)
    before = [(backend, backend.fp32_precision) for backend in (*onednn, *cuda)]
    threads_before, flush_before = torch.get_num_threads(), bool(torch.full((1,), 1e-40) * 1 == 0)
    for backend, _ in before:
        backend.fp32_precision = "ieee" if strict else "bf16" if backend in onednn else "tf32"
    torch.set_flush_denormal(not strict)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        for backend, value in before:
            backend.fp32_precision = value
        torch.set_flush_denormal(flush_before)
        torch.set_num_threads(threads_before)


def has_amx() -> bool:
    """Whether this processor has tiles for products of bfloat16 matrices (AMX), as far as PyTorch reports."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


def uses_amx() -> bool:
    """Whether float32 products currently use AMX tiles (see `numerics`)."""
    return BACKENDS.mkldnn.matmul.fp32_precision == "bf16" and has_amx()


@contextmanager
def keep_memory() -> Iterator[None]:
    """Keep the memory that this process frees within the context, and return it to the system on exit.

    glibc returns large blocks to the system as soon as they are freed, and each step gets them again page by page: 30%
    of the time of conv2. Has no effect without glibc, or if MALLOC_* or GLIBC_TUNABLES are set.
    """
    configured = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    library = ctypes.CDLL(None) if sys.platform == "linux" and not configured else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    for parameter, value in KEEP_MEMORY.items():
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in DEFAULTS.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)


def channels_last(make: Build, example: Tensor, bf16: bool = False) -> bool:
    """Whether models from `make` are to use channels_last, the quickest layout for convolutions; tried with an example
    (two or more images). On a GPU only if convolutions use tensor cores: under `bf16`, or from compute capability 8.0
    (TF32) on.

    False for models that fail in this layout only, in training or in evaluation, because their code needs the default
    one, such as `x.view(len(x), -1)` after a convolution; and for models with 3-D convolutions.
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

    A GPU is sent steps faster than it runs them. At a beat the host waits for it, so that a stop and the progress bar
    are at most about a beat late; the number of steps between two beats is adapted to their speed.
    """

    def __init__(self, device: torch.device) -> None:
        self.last, self.steps, self.every = time.monotonic(), 0, 1
        self.event = torch.cuda.Event() if device.type == "cuda" else None

    def due(self) -> bool:
        """Whether a beat ends with this step; call it once per step."""
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
