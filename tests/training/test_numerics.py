"""What --precision makes of PyTorch's products, and that experiments compute so; nothing stays set afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import do, settings
from torch import Tensor, nn

from lth.training.numerics import numerics

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


@pytest.mark.parametrize(
    "precision, dtype, expected",
    [("fast", torch.float32, FAST), ("fp32", torch.float32, STRICT), ("bf16", torch.bfloat16, FAST)],
)
def test_an_experiment_trains_and_evaluates_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype, expected: dict[str, str]
) -> None:
    seen = set()
    linear = nn.Linear.forward

    def forward(layer: nn.Linear, x: Tensor) -> Tensor:
        out = linear(layer, x)
        if len(x) > 1:  # one image is what multiply-adds are counted of
            seen.add((layer.training, out.dtype, layer.weight.dtype, tuple(knobs().items()), flushes()))
        return out

    monkeypatch.setattr(nn.Linear, "forward", forward)
    do(settings(place, prune_iterations=2, precision=precision, stack=1))
    how = (dtype, torch.float32, tuple(expected.items()), expected is FAST)
    assert seen == {(True, *how), (False, *how)}
    assert not flushes()
