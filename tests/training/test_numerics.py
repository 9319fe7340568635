"""What --precision makes of PyTorch's products, and that experiments compute so; nothing stays set afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lth.training.hardware import numerics

pytestmark = pytest.mark.versions

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


@pytest.mark.parametrize("precision, expected", [("fast", FAST), ("bf16", FAST), ("fp32", STRICT)])
@pytest.mark.parametrize("flushed", [False, True])
def test_products_are_as_precision_says_and_as_before_afterwards(
    precision: str, expected: dict[str, str], flushed: bool
) -> None:
    usual, before = knobs(), STRICT if expected is FAST else FAST
    set_knobs(before)
    torch.set_flush_denormal(flushed)
    with pytest.raises(ZeroDivisionError), numerics(precision, 2):
        assert (knobs(), flushes(), torch.get_num_threads()) == (expected, expected is FAST, 2)
        raise ZeroDivisionError
    assert (knobs(), flushes(), torch.get_num_threads()) == (before, flushed, 1)
    set_knobs(usual)
    torch.set_flush_denormal(False)
