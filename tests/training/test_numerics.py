"""What --precision makes of PyTorch's products, and that experiments compute so; nothing stays set afterwards."""

from __future__ import annotations

from collections.abc import Iterator
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


def flushes() -> bool:
    """Whether numbers too small for a normal float32 count as 0."""
    return not torch.full((4,), 1e-40).mul(1.0).any()


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    before = knobs()
    yield
    for name, knob in KNOBS.items():
        knob.fp32_precision = before[name]
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("precision, expected", [("fast", FAST), ("bf16", FAST), ("fp32", STRICT)])
def test_products_are_as_precision_says_whatever_was_set_before(precision: str, expected: dict[str, str]) -> None:
    for name, knob in KNOBS.items():
        knob.fp32_precision = "ieee" if expected is FAST else FAST[name]
    before = knobs()
    with numerics(precision, 1):
        assert knobs() == expected
        assert flushes() == (expected is FAST)
    assert knobs() == before


@pytest.mark.parametrize("precision", ["fast", "fp32"])
@pytest.mark.parametrize("before", [False, True])
def test_denormal_numbers_are_flushed_as_before_when_it_is_over(precision: str, before: bool) -> None:
    torch.set_flush_denormal(before)
    with pytest.raises(ZeroDivisionError), numerics(precision, 2):
        assert torch.get_num_threads() == 2
        raise ZeroDivisionError
    assert flushes() == before and torch.get_num_threads() == 1


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
