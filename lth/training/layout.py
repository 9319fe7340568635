"""How the weights and activations of a convolutional network lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lth import rng
from lth.models.building import Build


def channels_last(make: Build, example: Tensor, bf16: bool = False) -> bool:
    """Whether models that `make` gives compute in channels_last, the layout that convolutions are quickest in; asked
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
