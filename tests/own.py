"""Networks, data and short calls of the user's own that the tests of the front doors share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import Mlp, make_images
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lth
from lth import prune as lth_prune

Rule = Callable[[nn.Module], object]


def examples(count: int = 120, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float images (N, 1, 8, 8) and labels of four classes."""
    images = make_images(count=count, seed=seed)
    return images.train.float().div(128).sub(0.5), images.train_labels


def batches(count: int = 120, seed: int = 0, size: int = 10) -> list[tuple[Tensor, Tensor]]:
    x, y = examples(count, seed)
    return list(zip(x.split(size), y.split(size), strict=True))


def tiny() -> dict[str, Any]:
    return {"train": batches(), "validation": batches(40, 1), "test": batches(60, 2)}


def loader(count: int = 120, seed: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*examples(count, seed)), batch_size=10, **options)


def seeded(make: Callable[[], nn.Module] = Mlp, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def find(net: nn.Module, given: Any = None, **changes: Any) -> list[dict[str, Any]]:
    """The history of a very short iterative_pruning of `net`, in place."""
    usual = {"iterations": 12, "rounds": 2, "prune_rule": lth_prune.magnitude(0.3), "quiet": True, "device": "cpu"}
    trained, history = lth.iterative_pruning(net, tiny() if given is None else given, **(usual | changes))
    assert trained is net
    return history


def accuracy(net: nn.Module, parts: list[tuple[Tensor, Tensor]]) -> float:
    net.eval()
    with torch.no_grad():
        right = sum(int((net(x).argmax(1) == y).sum()) for x, y in parts)
    return 100 * right / sum(len(y) for _, y in parts)


class WithOptim(Mlp):
    """Brings its own optimiser, loss and initial weights."""

    def __init__(self, optim: Callable[..., torch.optim.Optimizer] = torch.optim.Adam, **options: Any) -> None:
        super().__init__()
        self._initialize_weights()
        self.optim = optim(self.parameters(), **(options or {"lr": 0.01}))
        self.optim.name = "whatever"  # type: ignore[attr-defined]
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def _initialize_weights(self) -> None:
        for layer in (self.fc1, self.fc2):
            nn.init.normal_(layer.weight, 0, 0.01)
            nn.init.constant_(layer.bias, 0.25)


def nothing(net: nn.Module) -> None:
    return None


def runner(place: Path, **changes: Any) -> lth.ExperimentRunner:
    usual: dict[str, Any] = {
        **{"dataset": "tiny", "model_name": "mlp", "data": place / "data", "valid_size": 40, "quiet": True},
        **{"num_rounds": 3, "iterations": 8, "batch_size": 10, "pruning_rate": 0.3, "device": "cpu"},
        **{"learning_rate": 0.01, "results_dir": place / "results" / "here"},
    }
    return lth.ExperimentRunner(**(usual | changes))


def altered(**attributes: Any) -> nn.Module:
    net = seeded()
    for name, value in attributes.items():
        setattr(net, name, value)
    return net


EXAMPLES = examples()
REST = {"validation": batches(40, 1), "test": batches(60, 2)}
