"""Small networks and masks that the tests share."""

import functools
import random
from collections.abc import Callable, Mapping
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from lth.pruning import Masks, Weights, keep_highest, quotas

CLASSES, SIDE = 4, 8


def prune_lowest(scores: Weights, masks: Masks, percents: Mapping[str, float], scope: str = "layer") -> Masks:
    """The masks after one round that prunes `percents` percent of the survivors of each layer, lowest scores first."""
    return keep_highest(scores, masks, quotas(masks, percents, scope))


class Mlp(nn.Module):
    """64 - 12 - 4, for images of 1 x 8 x 8."""

    def __init__(self, hidden: int = 12, act: Callable[[Tensor], Tensor] = torch.tanh) -> None:  # so no unit dies
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(SIDE * SIDE, hidden), nn.Linear(hidden, CLASSES), act

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x.flatten(1))))


class Conv(nn.Module):
    """A convolution with batch norm, and a Linear layer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)  # batch norm would leave it a gradient of noise
        self.norm = nn.BatchNorm2d(4)
        self.dropout, self.fc = nn.Dropout(dropout), nn.Linear(4 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2)).flatten(1))


def dropping() -> nn.Module:
    return Conv(dropout=0.4)


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


class Deep(Conv):
    """With a convolution of three dimensions beside that of two."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.deep(x[:, None])[:, 0])


class Views(Conv):
    """Needs the usual layout of memory in these modes."""

    def __init__(self, in_training: bool = True, in_evaluation: bool = True) -> None:
        super().__init__()
        self.views = {True: in_training, False: in_evaluation}

    def forward(self, x: Tensor) -> Tensor:
        if self.views[self.training]:
            self.conv(x).view(len(x), -1)
        return super().forward(x)


class Scaled(Mlp):
    """Multiplies its images by a factor, 1 or as Python decides in some `way` in each pass. Remembers activations,
    which are the same when a step is done again."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.way, self.calls, self.noise, self.seen = way, 0, np.random.default_rng(0), torch.zeros(())
        if way == "holds a computed weight":  # which copy.deepcopy refuses
            nn.utils.weight_norm(self.fc1)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach().mean()
        factors = {"random": random.random, "numpy": np.random.rand, "own generator": self.noise.random}
        factor = factors.get(self.way, lambda: 1.0)()
        if self.way == "torch":
            factor = torch.rand(1).item()
        elif self.way == "counts":
            self.calls += self.training
            factor = 1 / (1 + self.calls)
        elif self.way == "begins with the first batch" and not self.calls:
            self.fc1.bias.data.fill_(0.5)
            self.calls = 1
        return super().forward(x * factor)


class NoCopy(Scaled):
    def __deepcopy__(self, memo: object) -> NoReturn:
        raise RuntimeError("no copy")


class Running(Mlp):
    """Takes a mean of its images in evaluation too: in place, or as a new tensor."""

    mean: Tensor

    def __init__(self, replaced: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.replaced = replaced

    def forward(self, x: Tensor) -> Tensor:
        mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        if self.replaced:
            self.mean = mean
        else:
            self.mean.copy_(mean)
        return super().forward(x - self.mean)


class Restless(Conv):
    """Draws, and takes batch norm's statistics, in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train()
        return super().forward(nn.functional.dropout(x, 0.1))


class Squeezing(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class TwoWeights(Mlp):
    """Adds two weights, which get one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3 = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fc1.weight + self.fc3.weight
        return self.fc2(nn.functional.linear(x.flatten(1), weight, self.fc1.bias).tanh())


class TwoTypes(nn.Module):
    """With parameters of float32 and of float64."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 12), nn.Linear(12, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x.flatten(1)).tanh().double()).float()


class Waits(Mlp):
    """Looks at a number of each batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum().item() else x + 1)


class Attention(nn.Module):
    """Reads the rows of an image as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0]
        return self.fc((rows + self.attention(rows, rows, rows, need_weights=False)[0]).flatten(1))


class Attending(nn.Module):
    """Attention and a recurrent layer over the rows of an image."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 10, dropout=dropout, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.encoder(x.flatten(0, -3))
        attended = self.attention(rows, rows, rows, need_weights=False)[0]
        return self.head(self.lstm(attended)[0][:, -1])


class Reader(nn.Module):
    """Turns the rows of an image into words, and reads them."""

    def __init__(self, recurrent: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 8)
        self.attention = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
        self.recurrent, self.head = recurrent(8, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        words = self.embedding((8 * x.flatten(0, -3).mean(2) + 20).long().clamp(0, 39))
        return self.head(self.recurrent(self.attention(words))[0][:, -1])


class Heads(nn.Module):
    """An old head, one that only training uses, a stem without gradients and a branch that few examples take."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.beside = nn.Linear(64, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.old, self.rare = nn.Linear(16, 20), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.stem(x.flatten(1)).relu()
        if len(x) > 2:
            return self.head(h) + self.rare(h)
        return self.head(h) + self.beside(h) if self.training else self.head(h)


class Centred(nn.Linear):
    """Changes its weight before it multiplies, as weight standardisation does."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight - self.weight.mean(), self.bias)


def with_old_layer(model: nn.Module) -> nn.Module:
    """The model with a layer that nothing uses."""
    model.old = nn.Linear(12, 100)
    model.forward = lambda x: functools.reduce(lambda x, layer: layer(x), [*model.children()][:-1], x)
    return model


class Centring(nn.Linear):
    """Changes the values of its weight, later than in any trial of the model before training."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 8:
            self.weight.data.sub_(self.weight.data.mean(1, keepdim=True))
        return super().forward(x)


class Fails(Mlp):
    """Fails in training, but not with as few images as when it is tried out."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 2:
            raise self.error("in training only")
        return super().forward(x)


class Failing(Mlp):
    """Fails with these messages, one in each of its first passes: all copies share them."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self.left = lambda: messages  # functions are not copied

    def forward(self, x: Tensor) -> Tensor:
        if self.left():
            raise RuntimeError(self.left().pop(0))
        return super().forward(x)


class Biased(Mlp):
    """Cannot draw its weights: biases are no matrices."""

    def _initialize_weights(self) -> None:
        for parameter in self.parameters():
            nn.init.kaiming_normal_(parameter)


class Pretrained(nn.Module):
    """With weights that nobody has drawn, and a layer that begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.norm = nn.Linear(64, 12), nn.Linear(12, 4), nn.BatchNorm1d(12)
        self.zero = nn.Linear(12, 12, bias=False)
        nn.init.zeros_(self.zero.weight)
        self.body.load_state_dict({"weight": torch.arange(768.0).view(12, 64).sin() / 8, "bias": torch.zeros(12)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.body(x.flatten(1))).relu()
        return self.head(x + self.zero(x))


class Hooked(nn.Module):
    """One layer; with a running mean in a buffer that every pass replaces, or a hook."""

    mean: Tensor

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.fc, self.way = nn.Linear(64, 4), way
        self.register_buffer("mean", torch.zeros(1))
        if way == "hook on the gradient":
            self.fc.bias.register_hook(lambda gradient: 2 * gradient)
        elif way == "hook on the stored gradient":
            self.fc.bias.register_post_accumulate_grad_hook(lambda bias: None)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "replaced buffer":
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return self.fc((x - self.mean).flatten(1))


class Table(nn.Module):
    """Fills a buffer at its first pass, which an attribute remembers, as the caches of rotary embeddings do."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(64))
        self.filled, self.layer = False, nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not self.filled:
            self.table.fill_(1.0)
            self.filled = True
        return self.layer(x.flatten(1) * self.table)
