"""Arguments of iterative_pruning that are wrong, and what fails in the user's code, are named."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from helpers import Capture, Mlp, add_model, argv_of
from own import WithOptim, altered, batches, find, loader, nothing, seeded, tiny
from torch import Tensor, nn

import lth
import main
import utils
from lth.training.train import TrialError


def net_of_views() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 4))
    net[2].weight.data = net[1].weight.data.t()
    return net


def hooked_net() -> nn.Module:
    net = seeded()
    net.fc1.bias.register_hook(torch.zeros_like)  # type: ignore[operator, union-attr]
    return net


def net_with_buffer(buffer: Tensor) -> nn.Module:
    net = seeded()
    net.register_buffer("at", buffer)
    return net


def penalised_net() -> nn.Module:
    net = seeded()
    net.criterion = lambda logits, y: nn.functional.cross_entropy(logits, y) + net.fc1.weight.square().sum()
    return net


def other_net_returned(net: nn.Module) -> nn.Module:
    return seeded()


def yields(net: nn.Module) -> Iterator[None]:
    torch_prune.l1_unstructured(net.fc1, "weight", amount=0.1)  # type: ignore[arg-type]
    yield


class Once:
    """Its second pass goes on where the first one stopped."""

    def __init__(self) -> None:
        self.batches = iter(batches())

    def __iter__(self) -> Iterator[Any]:
        yield from self.batches


class Broken:
    def __iter__(self) -> Iterator[Any]:
        raise KeyError("no such file")


WRONG = [
    ({"net": "lenet"}, TypeError, "net must be a torch.nn.Module, not 'lenet'"),
    ({"net": nn.Sequential(nn.Flatten(), nn.LazyLinear(4))}, ValueError, "net must know its shapes"),
    ({"net": nn.Sequential(nn.Flatten())}, ValueError, "net must have parameters"),
    ({"net": nn.BatchNorm2d(1)}, ValueError, "net must have weights to prune"),
    ({"net": nn.Sequential(nn.Flatten(), nn.Linear(60, 4))}, ValueError, r"net must take .* \(B, 1, 8, 8\)"),
    ({"net": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}, ValueError, "net must give a logit .* 4 classes"),
    ({"net": nn.Conv2d(1, 4, 3)}, ValueError, r"net must give one row of logits .*not \(2, 4, 6, 6\)"),
    ({"net": net_of_views()}, ValueError, "net must have tied weights as one Parameter, but 1.weight and 2.weight are"),
    ({"net": net_with_buffer(torch.ones(1).expand(9))}, ValueError, "net must have plain tensors, but at shares"),
    ({"net": net_with_buffer(torch.eye(4).to_sparse())}, ValueError, "net must have plain tensors, but at is torch.sp"),
    (
        {"net": nn.Linear(64, 4, dtype=torch.complex64)},
        ValueError,
        "net must have plain tensors, but weight has complex",
    ),
    ({"net": Mlp().to(torch.bfloat16)}, ValueError, r"fc1\.weight is torch.bfloat16, but examples are float32: call"),
    ({"net": hooked_net()}, ValueError, "net must have no hooks on gradients, but fc1.bias has some"),
    ({"net": penalised_net()}, ValueError, "net.criterion must use outputs and labels alone, not net"),
    ({"net": altered(optim="adam")}, TypeError, "net.optim must be a torch.optim.Optimizer, not 'adam'"),
    ({"net": altered(optim=torch.optim.SGD(Mlp().parameters(), lr=1))}, ValueError, "net.optim must hold parameters"),
    ({"net": WithOptim(torch.optim.SGD, lr=0.0)}, ValueError, "net.optim must have a learning rate above 0"),
    ({"net": altered(criterion=3)}, TypeError, "net.criterion must be a function"),
    ({"net": altered(criterion=nn.CrossEntropyLoss(reduction="none"))}, ValueError, "net.criterion must return one"),
    ({"net": altered(criterion=lambda logits: logits.sum())}, ValueError, "net.criterion must take"),
    ({"data": "nope"}, ValueError, "^data must be one of mnist, .* or have a file .*, not 'nope'$"),
    ({"data": None}, TypeError, "data must be the name of a data set"),
    ({"data": loader()}, TypeError, "data must be .* train, validation and test"),
    ({"data": {"train": batches()}}, TypeError, "its validation is missing"),
    ({"data": {**tiny(), "train": iter(batches())}}, TypeError, "data.train must be .* gives them again in each pass"),
    ({"data": {**tiny(), "train": Once()}, "in_memory": True}, ValueError, "data.train must give its batches again in"),
    ({"data": {**tiny(), "test": Broken()}}, RuntimeError, "^data.test failed with KeyError: 'no such file'$"),
    ({"data": {**tiny(), "train": 3}}, TypeError, "data.train must be a DataLoader or another .*not 3"),
    ({"data": {**tiny(), "train": [(torch.ones(3, 2), torch.ones(2).long())]}}, ValueError, "must give examples"),
    ({"data": {**tiny(), "train": [(torch.ones(3, 2), torch.ones(3))]}}, ValueError, "labels 0, 1, ... as whole"),
    ({"data": {**tiny(), "test": [*batches(), (torch.ones(3, 9), torch.ones(3).long())]}}, ValueError, "one shape"),
    ({"iterations": 0}, ValueError, "iterations must be a whole number of at least 1 and at most 1000000000, not 0"),
    ({"prune_rule": 0.2}, TypeError, "prune_rule must be a function of the network .*not 0.2"),
    ({"prune_rule": lambda: None}, TypeError, "prune_rule .*cannot be called with one argument"),
    ({"prune_rule": yields}, TypeError, "prune_rule must be a function .* not one with `yield`"),
    ({"prune_rule": other_net_returned}, TypeError, "prune_rule must prune the network that it is given"),
    ({"rewind": 12}, ValueError, "rewind must be a number of iterations below 12"),
    ({"rewind": 5, "random": True}, ValueError, "rewind must be 0 with random=True"),
    ({"recover": "/no/such/folder"}, ValueError, "recover must be a folder with results"),
    ({"device": "gpu"}, ValueError, "device must be None, 'cpu', 'cuda'"),
    ({"trials": 0}, ValueError, "trials must be a whole number of at least 1"),
    ({"batch_size": 121}, ValueError, "batch_size must be at most 120"),
    ({"batch_size": 5, "in_memory": False}, ValueError, "batch_size must be that of the streamed batches, 10"),
    ({"lr": -1}, ValueError, "lr must be a number above 0"),
    ({"net": WithOptim(), "lr": 0.1}, ValueError, "lr cannot be given: net.optim already sets it"),
]


@pytest.mark.parametrize(("changes", "kind", "words"), WRONG, ids=[f"{words[:40]}" for _, _, words in WRONG])
def test_bad_input_is_named(changes: dict[str, Any], kind: type[Exception], words: str, tmp_path: Path) -> None:
    arguments = {"net": seeded(), "data": tiny(), "iterations": 12, "rounds": 1, "prune_rule": nothing, "quiet": True}
    with pytest.raises(kind, match=words):
        lth.iterative_pruning(**{"save": tmp_path / "results", **arguments, **changes})  # type: ignore[arg-type]
    if changes.get("prune_rule") is not other_net_returned:
        assert not (tmp_path / "results").exists()


class FailsLater(Mlp):
    """Works when it is tried out; its forward pass, or its loss, fails in the 9th call."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.calls = dict.fromkeys(("forward", "loss"), 0)
        self.where, self.criterion = where, self._loss

    def _count(self, where: str) -> None:
        self.calls[where] += 1
        if self.calls[where] == 9 and where == self.where:
            raise RuntimeError(f"no such {where}\nand more")

    def forward(self, x: Tensor) -> Tensor:
        self._count("forward")
        return super().forward(x)

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        self._count("loss")
        return nn.functional.cross_entropy(outputs, labels)


@pytest.mark.parametrize("where", ["forward", "loss"])
def test_a_network_that_fails_is_named(where: str) -> None:
    with pytest.raises(TrialError) as caught:
        find(seeded(lambda: FailsLater(where)))
    assert str(caught.value) == f"FailsLater failed in round 0 with RuntimeError: no such {where}"
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("error", ["IndexError", "SystemExit"])
def test_a_model_of_archs_that_fails_is_named(place: Path, capsys: Capture, error: str) -> None:
    add_model(place, "fails", f"nets.Fails({error})")
    assert utils.exit_code(main.main, argv_of(place, "--arch_type", "fails", "--quiet")) == 1
    assert capsys.readouterr().err == f"error: fails failed in round 0 with {error}: in training only\n"


def breaks(net: nn.Module) -> None:
    net.fc9.weight.zero_()  # type: ignore[operator, union-attr]


def replaces(net: nn.Module) -> None:
    net.fc1 = nn.Linear(64, 12)


def spoils(net: nn.Module) -> None:
    net.fc1.weight_orig.data[0, 0] = torch.nan  # type: ignore[index, union-attr]


def halves(net: nn.Module) -> None:
    net.fc1.weight_mask *= 0.5  # type: ignore[operator, union-attr]


@pytest.mark.parametrize(
    ("rule", "kind", "said"),
    [
        (breaks, RuntimeError, "prune_rule failed with AttributeError: 'Mlp' object has no attribute 'fc9'"),
        (replaces, ValueError, "prune_rule must prune the layers that are there, but has replaced or added fc1"),
        (spoils, ValueError, "prune_rule must leave finite weights, but leaves NaN or infinity in fc1.weight_orig"),
        (halves, ValueError, "prune_rule must leave masks of 0 and 1, but fc1.weight_mask has other values"),
    ],
)
def test_failing_or_spoiling_rules(rule: Callable[[nn.Module], object], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=f"^{said}") as caught:
        find(seeded(), prune_rule=rule)
    assert isinstance(caught.value.__cause__, AttributeError) == (rule is breaks)


class Endless:
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from batches()


def test_training_data_without_an_end_are_streamed() -> None:
    given = {**tiny(), "train": Endless()}
    assert find(seeded(), given) == find(seeded(), given, in_memory=False)
