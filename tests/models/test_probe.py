"""What a forward pass does: what it does not use, or changes before it multiplies, is not pruned; multiply-adds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Capture, Conv, Mlp, add_model, settings
from nets import Attending, Centred, Heads
from torch import Tensor, nn
from torch.nn import functional

from lth import pruning
from lth.commands import session
from lth.models import building, prunable
from lth.models.probe import cost, parameters_to_leave_out
from lth.models.prunable import CHANGED, UNUSED
from lth.records import tables


class Scaled(nn.Linear):
    """Changes its weight, but leaves zeros as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, functional.normalize(self.weight) * 2, self.bias)


class LowRank(nn.Linear):
    """Adds a product that starts at 0, as adapters do."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.up, self.down = nn.Parameter(torch.zeros(outputs, 2)), nn.Parameter(torch.randn(2, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight + self.up @ self.down, self.bias)


EXAMPLES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "expected"), [(Centred, ["1.weight"]), (LowRank, ["1.weight"]), (Scaled, [])])
def test_weights_that_lose_their_zeros_before_a_product_are_found(kind: Any, expected: list[str]) -> None:
    found = parameters_to_leave_out(lambda: nn.Sequential(nn.Flatten(), kind(64, 4)), EXAMPLES)
    assert found == dict.fromkeys(expected, CHANGED)


def test_what_no_pass_uses_is_no_part_of_pruning_and_percentages() -> None:
    model = prunable.leave_out(Heads(), parameters_to_leave_out(Heads, EXAMPLES))
    assert vars(model)["_left_out"] == {"old.bias": UNUSED, "old.weight": UNUSED}
    assert list(pruning.prunable(model)) == [f"{name}.weight" for name in ("stem", "head", "beside", "rare")]
    (told,) = prunable.left_out_notes(model)
    assert told.startswith("no forward pass uses old.bias, old.weight (21.5% of all parameters), in training or in")
    assert "old" not in prunable.unpruned_note(building.copy_model(model))


def test_an_experiment_reports_both_at_its_start_and_prunes_neither(place: Path, capsys: Capture) -> None:
    layers = "nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nets.Centred(12, 12), nn.ReLU(), nn.Linear(12, 4)"
    add_model(place, "odd", f"nets.with_old_layer(nn.Sequential({layers}))")
    (run,) = session.run(settings(place, arch_type="odd", prune_iterations=2, prune_percent=50, quiet=False))
    said = capsys.readouterr().out
    assert "no forward pass uses old.bias, old.weight (56.8% of" in said.replace("\n", " ")
    assert "the model changes 3.weight (6.3% of all" in said.replace("\n", " ")
    assert set(tables.table(run, "layers")["layer"]) == {"1.weight", "5.weight"}
    assert tables.table(run, "rounds")["remaining"].tolist() == [100, 50]


def of(model: nn.Module, *shape: int, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """The uses of each prunable weight for one example of that shape; nothing else is multiplied."""
    found = cost(model, torch.zeros(1, *shape, dtype=dtype), pruning.prunable(model))
    assert found.rest == 0
    return dict(found.uses)


def test_fc1_multiplies_by_each_weight_once() -> None:
    model = building.find("fc1", "mnist", 10)()
    found = cost(model, torch.zeros(1, 1, 28, 28), pruning.prunable(model))
    assert set(found.uses.values()) == {1.0}
    assert found.total({name: weight.numel() for name, weight in pruning.prunable(model).items()}) == 266_200
    assert found.total(dict.fromkeys(found.uses, 10)) == 30


def test_a_convolution_multiplies_once_a_position_of_its_output() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.Flatten())
    assert of(model, 3, 9, 7) == {"0.weight": 9 * 7, "2.weight": 4 * 3}


def test_attention_and_recurrent_matrices_are_used_and_multiply_once_a_token() -> None:
    model = Attending()
    found = cost(model, torch.zeros(1, 1, 8, 8), pruning.prunable(model))
    assert found.uses == pytest.approx(dict.fromkeys(pruning.prunable(model), 8.0) | {"head.weight": 1.0})
    assert 0 < found.rest <= 2 * 2 * 8 * 8 * 8  # attention's own products: scores, and their sums over the values
    spectral = nn.utils.parametrizations.spectral_norm
    for make in (Attending, Conv, Mlp, lambda: nn.Sequential(nn.Flatten(), spectral(nn.Linear(64, 4)))):
        assert parameters_to_leave_out(make, EXAMPLES) == {}


def test_what_is_not_pruned_is_the_rest() -> None:
    found = cost(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.zeros(1, 4), ["1.weight"])
    assert found.uses == {"1.weight": 1.0} and found.rest == 16
    assert found.total({"1.weight": 8, "1.bias": 2}) == 24, "a bias, which a rule may prune, multiplies nothing"


class Own(nn.Module):
    """A layer of the user's own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.weight, self.way = nn.Parameter(torch.randn(7, 6)), way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "einsum":
            return torch.einsum("bti,oi->bto", x, self.weight)
        return (x[..., None, :] * self.weight).sum(-1)


class Top(nn.Module):
    """Multiplies by a matrix of its own beside what a layer does, whose weight stands in `held`."""

    def __init__(self, held: nn.Module, layer: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.held, self.layer, self.weight = held, layer, nn.Parameter(torch.randn(3, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.layer(self.held, x), self.weight)


def standardised(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    weight = (weight - weight.mean(1, keepdim=True)) / weight.std(1, keepdim=True)
    return nn.functional.linear(x, weight * torch.ones(7, 6))


class Decoder(nn.Module):
    """Uses one weight in two places, of which the second is no layer, and slices a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.body = nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body[1:](self.body[:1](nn.functional.linear(self.enc(x), self.enc.weight.t())))


def test_a_product_belongs_to_the_weight_that_it_is_made_of_wherever_it_stands() -> None:
    assert of(Decoder(), 6) == {"enc.weight": 2.0, "body.0.weight": 1.0, "body.2.weight": 1.0}
    normed = Top(nn.utils.parametrizations.spectral_norm(Own("einsum")), lambda layer, x: layer(x))
    names = ["weight", "held.parametrizations.weight.original"]
    assert cost(normed, torch.zeros(1, 5, 6), names).uses == dict.fromkeys(names, 5.0)
    changed = Top(nn.ParameterDict({"one": torch.randn(7, 6)}), lambda held, x: standardised(x, held["one"]))
    found = cost(changed, torch.zeros(1, 5, 6), ["weight", "held.one"])
    assert found.uses == {"weight": 5.0, "held.one": 5.0} and found.rest == 0


def test_where_a_product_is_unknown_so_is_the_cost() -> None:
    with pytest.raises(ValueError, match=r"0\.weight is not known"):
        of(nn.Sequential(Own("sum"), nn.Linear(7, 2)), 5, 6)


def test_embeddings_and_what_only_training_needs_cost_nothing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.out, self.beside = nn.Embedding(9, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.tokens(x)
            return self.out(x) + self.beside(x) if self.training else self.out(x)

    found = cost(Net(), torch.zeros(1, 5, dtype=torch.long), pruning.prunable(Net(), embeddings=True))
    assert found.uses == {"tokens.weight": 0, "out.weight": 5, "beside.weight": 0} and found.rest == 0
