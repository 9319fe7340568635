"""Small networks and masks that the tests share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lth.pruning import Masks, Weights, keep_highest, quotas


def prune_lowest(scores: Weights, masks: Masks, percents: Mapping[str, float], scope: str = "layer") -> Masks:
    """The masks after one round that prunes `percents` percent of the survivors of each layer, lowest scores first."""
    return keep_highest(scores, masks, quotas(masks, percents, scope))


class TakesParts(nn.Module):
    """Calls a sequence in `parts`, `one` of its layers by itself, or its layers without those that `chance` skips."""

    def __init__(self, layers: nn.Sequential, way: str) -> None:
        super().__init__()
        self.layers, self.way, self.head = layers, way, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "parts":
            low = self.layers[:3](x)
            return self.head(self.layers[3:](low) + low.mean(1, keepdim=True))
        if self.way == "one":
            return self.head(self.layers(x)) + self.layers[1](x.flatten(1))[:, :4]
        for layer in self.layers:
            if not isinstance(layer, nn.ReLU) or not self.training or torch.rand(()) < 0.7:
                x = layer(x)
        return self.head(x)


class UsesWeight(nn.Module):
    """64 - 12 - 4, whose forward pass uses the first weight outside its layer in some `way`."""

    def __init__(self, way: str = "", passes: range = range(1000)) -> None:
        super().__init__()
        self.fc1, self.fc2, self.way, self.passes, self.count = nn.Linear(64, 12), nn.Linear(12, 4), way, passes, 0
        if way == "hook":
            self.fc1.register_forward_pre_hook(lambda module, inputs: module.weight.data.clamp_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        x = x.flatten(1)
        penalty = torch.zeros(())
        if self.count - 1 in self.passes:
            if self.way == ("clips in training" if self.training else "clips in evaluation"):
                self.fc1.weight.data.clamp_(-1, 1)
            elif self.way == "multiplies":
                x = nn.functional.linear(nn.functional.linear(x, self.fc1.weight), self.fc1.weight.t())
            elif self.way == "replaces":
                self.fc1.weight = nn.Parameter(torch.zeros(12, 64))
            elif self.way == "asks for the device":
                x = x.to(self.fc1.weight.device, self.fc1.weight.dtype)
            elif self.way == "penalises plain layers":
                penalty = sum((layer.weight.sum() for layer in self.children() if type(layer) is nn.Linear), penalty)
            elif self.way in ("penalises matrices", "penalises vectors"):
                size = 2 if self.way == "penalises matrices" else 1
                penalty = sum((value.sum() for value in self.parameters() if value.ndim == size), penalty)
        return self.fc2(self.fc1(x).tanh()) + penalty
