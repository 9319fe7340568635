"""How exactly PyTorch computes: what --precision and --threads mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def numerics(precision: str, threads: int) -> Iterator[None]:
    """Within it, float32 products are as `--precision` says and PyTorch uses that many threads.

    fast: TF32 on GPUs; oneDNN's quickest on CPUs, which is bfloat16 products where the processor has AMX and float32
    elsewhere; numbers below 1e-38 are flushed to 0, since processors are slow on them. fp32: none of this.
    """
    strict = precision == "fp32"
    backends: Any = torch.backends
    onednn = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
    cuda = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    knobs = [(knob, "ieee" if strict else "bf16") for knob in onednn]
    knobs += [(knob, "ieee" if strict else "tf32") for knob in cuda]
    before = [knob.fp32_precision for knob, _ in knobs]
    threads_before, flushed = torch.get_num_threads(), bool(torch.full((1,), 1e-40) * 1 == 0)
    for knob, value in knobs:
        knob.fp32_precision = value
    torch.set_flush_denormal(not strict)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        for (knob, _), value in zip(knobs, before, strict=True):
            knob.fp32_precision = value
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(threads_before)
