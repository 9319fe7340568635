"""What is random in a training: the data order, dropout; which trainings share it and which must not."""

from pathlib import Path
from typing import Any

import torch
from helpers import CPU, Conv, Patch, do, settings
from torch import Tensor

from lth import pruning
from lth.experiment.trainer import Trainer
from lth.models import building
from lth.training.network import Network
from lth.training.train import Training


def record(monkeypatch: Patch) -> list[dict[str, Any]]:
    """Notes of each training its runs and round, each trial's order of the data in two epochs, and dropout's state."""
    found: list[dict[str, Any]] = []
    train, run = Trainer.train, Training.run

    def noted(self: Trainer, stack: Any, started: Any) -> Any:
        found.append({"runs": [(run.arm, run.seed) for run in stack], "round": started[0].round})
        return train(self, stack, started)

    def begun(self: Training, *args: Any, **options: Any) -> Any:
        orders = [self.feed.epoch(self.order_seeds, epoch) for epoch in (0, 1)]
        # Places among the training images, since each trial has other ones.
        parts = [(order[:, trial], i) for order in orders for trial, i in enumerate(self.feed.train_indices)]
        found[-1]["orders"] = [torch.searchsorted(indices, order.contiguous()) for order, indices in parts]
        found[-1]["dropout"] = torch.get_rng_state()
        return run(self, *args, **options)

    monkeypatch.setattr(Trainer, "train", noted)
    monkeypatch.setattr(Training, "run", begun)
    return found


def one_of_each(tensors: list[Tensor]) -> bool:
    return len({tuple(tensor.flatten().tolist()) for tensor in tensors}) == len(tensors)


def test_rounds_and_trials_draw_their_own_order_and_dropout_and_arms_the_same(place: Path, monkeypatch: Patch) -> None:
    found = record(monkeypatch)
    do(settings(place, arch_type="drop", trials=2, prune_type=("lt", "reinit"), end_iter="2it", valid_freq="2it"))
    assert len(found) == 2 * (1 + 2 * 2)
    by_arm = {(*training["runs"][0], training["round"]): training for training in found}
    lt = [training for (arm, _, _), training in by_arm.items() if arm == "lt"]
    assert len(lt) == 6
    assert one_of_each([order for training in lt for order in training["orders"]]), "an order of the data comes twice"
    assert one_of_each([training["dropout"] for training in lt]), "dropout is the same in two trainings"
    for (arm, seed, number), training in by_arm.items():  # the arms of a trial differ by their weights alone
        twin = by_arm["lt", seed, number]
        assert arm == "lt" or torch.equal(training["dropout"], twin["dropout"])
        assert all(torch.equal(a, b) for a, b in zip(training["orders"], twin["orders"], strict=True))


def test_dropout_drops_other_units_in_each_trial_of_a_stack() -> None:
    state = building.state_of(building.build(lambda: Conv(dropout=0.5), "glorot", 0))
    masks = pruning.dense(pruning.prunable(Conv()))
    network = Network(Conv(dropout=0.5), [state] * 3, [masks] * 3, CPU)
    images, labels = torch.randn(8, 1, 8, 8).repeat(3, 1, 1, 1), torch.arange(8).remainder(4).repeat(3)
    network.model.train()
    losses = network.losses(images, labels).tolist()
    assert len(set(losses)) == 3, "equal trials, equal images: only dropout can make a difference"
    network.model.eval()
    assert len(set(network.losses(images, labels).tolist())) == 1
