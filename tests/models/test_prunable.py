"""What counts as a weight, how weights of every kind are drawn and masked, and what is said of the rest."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU, Capture, add_model, do, random_masks, settings
from hypothesis import given
from hypothesis import settings as quick
from hypothesis import strategies as st
from nets import Attending, prune_lowest
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from lth import prune, pruning
from lth.commands import session
from lth.models import building, prunable
from lth.records import tables
from lth.records.store import Store
from lth.training.network import Network
from lth.training.optimizers import Fused


class Mine(nn.Module):
    """Matrices of one's own among other parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.w_q = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5, 4))
        self.W2, self.kernel = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 3, 3, 3))
        self.scale_weight = nn.Parameter(torch.ones(1, 4, 1, 1))  # a vector
        self.position, self.window = nn.Parameter(torch.randn(1, 7, 5)), nn.Parameter(torch.randn(3, 3))


def test_matrices_of_modules_of_ones_own_are_known_by_their_names() -> None:
    model = nn.ModuleDict({"mine": Mine()})
    for name, kind in (("norm", "RowNorm"), ("tokens", "TokenEmbedding")):
        model[name] = type(kind, (nn.Module,), {})()
        model[name].weight = nn.Parameter(torch.ones(9, 5))
    expected = {"mine.weight": "fc", "mine.w_q": "fc", "mine.W2": "fc", "mine.kernel": "conv"}
    assert pruning.layer_kinds(model) == expected
    assert pruning.layer_kinds(model, embeddings=True) == {**expected, "tokens.weight": "fc"}


class By(nn.Module):
    """A parametrisation by a function of the weight and perhaps of a number that is learned."""

    def __init__(self, of: Callable[..., Tensor], *start: float) -> None:
        super().__init__()
        self.of, self.learned = of, nn.ParameterList([torch.tensor([value]) for value in start])

    def forward(self, weight: Tensor) -> Tensor:
        return self.of(weight, *self.learned)


def by(of: Callable[..., Tensor], *start: float) -> Callable[[nn.Module], nn.Module]:
    return lambda layer: parametrize.register_parametrization(layer, "weight", By(of, *start))


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 4), lambda: nn.Linear(5, 1), lambda: nn.Conv2d(2, 3, 3)])
def test_a_weight_under_spectral_norm_is_pruned(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(parametrizations.spectral_norm(make()), nn.Flatten())
    (name,) = pruning.prunable(model)
    assert name == "0.parametrizations.weight.original"
    masks = random_masks(model)
    prune.attach(model, masks)
    assert [name for _, name in prune.fetch_layers(model)] == ["original"]
    assert torch.equal(model[0].weight != 0, masks[name])
    assert torch.equal(prune.detach(model)[name], masks[name])
    assert torch.equal(model[0].weight != 0, masks[name])


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,  # divides by the length of a row, which may have nothing left
        parametrizations.orthogonal,
        by(lambda weight: weight - weight.mean()),
        by(lambda weight, scale: weight * scale, 1.0),  # nobody knows that zeros stay zeros
        old_weight_norm,
    ],
)
def test_other_parametrised_weights_are_left_alone_and_said(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.ModuleDict({"plain": nn.Linear(5, 5), "odd": wrap(nn.Linear(5, 5))})
    assert list(pruning.prunable(model)) == ["plain.weight"]
    assert "odd." in prunable.unpruned_note(model)


def test_what_is_left_alone_is_said_with_its_share_where_it_exceeds_one_percent() -> None:
    assert prunable.unpruned_note(nn.Linear(99, 100)) == "" != prunable.unpruned_note(nn.Linear(98, 100))
    model = nn.ModuleDict({"embedding": nn.Embedding(60, 5), "fc": nn.Linear(5, 100), "norm": nn.BatchNorm1d(50)})
    assert prunable.unpruned_note(model) == (
        "pruning leaves 50.0% of all 1,000 parameters alone: embedding.weight (an embedding: see prune_embeddings) "
        "30.0%, biases, normalisation and other vectors 20.0%"
    )
    assert "embedding" not in prunable.unpruned_note(model, embeddings=True)
    assert "20.0%" in prunable.unpruned_note(model, embeddings=True)


@pytest.mark.parametrize("init, gain", [("glorot", None), ("kaiming", 2.0)])
def test_stacked_matrices_are_drawn_each_as_one_of_its_own(init: str, gain: float | None) -> None:
    """Deviations of Glorot & Bengio (2010) and He et al. (2015) from the inputs and outputs of one gate or head."""
    made = {
        "lstm": nn.LSTM(200, 100, proj_size=50),
        "gru": nn.GRUCell(200, 100),
        "rnn": nn.RNN(200, 100),
        "attention": nn.MultiheadAttention(100, 2),
        "apart": nn.MultiheadAttention(100, 2, kdim=150, vdim=50),
        "bilinear": nn.Bilinear(20, 30, 40),
        "spectral": parametrizations.spectral_norm(nn.Linear(200, 100)),
    }
    fans = {
        **{"lstm.weight_ih_l0": (200, 100), "lstm.weight_hh_l0": (50, 100), "lstm.weight_hr_l0": (100, 50)},
        **{"gru.weight_ih": (200, 100), "gru.weight_hh": (100, 100)},
        **{"rnn.weight_ih_l0": (200, 100), "rnn.weight_hh_l0": (100, 100)},
        **{"attention.in_proj_weight": (100, 100), "attention.out_proj.weight": (100, 100)},
        **{"apart.q_proj_weight": (100, 100), "apart.k_proj_weight": (150, 100), "apart.v_proj_weight": (50, 100)},
        **{"apart.out_proj.weight": (100, 100), "bilinear.weight": (600, 1200)},
        "spectral.parametrizations.weight.original": (200, 100),
    }
    model = building.build(lambda: nn.ModuleDict(made), init, 0)
    weights = pruning.prunable(model)
    assert weights.keys() == fans.keys()
    for name, (inputs, outputs) in fans.items():
        expected = (gain / inputs if gain else 2 / (inputs + outputs)) ** 0.5
        assert weights[name].detach().std().item() == pytest.approx(expected, rel=0.05), name
    biases = [part.parameter for part in prunable.parts(model) if part.kind == prunable.BIAS]
    assert len(biases) == 12 and not any(bias.any() for bias in biases)


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "linear": lambda a, b, more: nn.Conv2d(a, b, 2, bias=False) if more else nn.Linear(a, b),
    "rnn": lambda a, b, more: nn.RNN(a, b, num_layers=1 + more, bidirectional=more),
    "lstm": lambda a, b, more: nn.LSTM(a, b + 1, bidirectional=more, proj_size=b if more else 0),
    "gru": lambda a, b, more: nn.GRU(a, b, num_layers=1 + more),
    "cell": lambda a, b, more: (nn.LSTMCell if more else nn.GRUCell)(a, b),
    "attention": lambda a, b, more: nn.MultiheadAttention(2 * a, 2, kdim=b if more else None, add_bias_kv=more),
    "bilinear": lambda a, b, more: nn.Bilinear(a, b, 3, bias=more),
    "spectral": lambda a, b, more: parametrizations.spectral_norm(nn.Conv1d(a, b, 2) if more else nn.Linear(a, b)),
    "embedding": lambda a, b, more: nn.EmbeddingBag(a, b) if more else nn.Embedding(a, b),
}
SIZES = st.integers(2, 6)
MODULES = st.lists(st.tuples(st.sampled_from(sorted(MAKERS)), SIZES, SIZES, st.booleans()), min_size=1, max_size=3)


def built(spec: list[tuple[str, int, int, bool]]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(MAKERS[kind](a, b, more) for kind, a, b, more in spec))


@quick(max_examples=50, deadline=None)
@given(MODULES, st.integers(4, 60).map(lambda part: part / 64), st.sampled_from(["layer", "global"]))
def test_rules_and_masks_agree_on_every_kind_of_weight(spec: Any, amount: float, scope: str) -> None:
    """torch.nn.utils.prune's rules on the modules, and mask arithmetic on the weights, round after round."""
    model = built(spec)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    weights = pruning.prunable(model, embeddings=True)
    masks = pruning.dense(weights)
    scores = {name: before[name].abs() for name in masks}
    prune.attach(model, masks)
    for _ in range(3):
        masks = prune_lowest(scores, masks, dict.fromkeys(masks, 100 * amount), scope)
        prune.magnitude(amount, scope)(model)
        counts = {name: int(mask.sum()) for name, mask in masks.items()}
        assert pruning.prunable(model, embeddings=True).keys() == masks.keys()
        found = {
            name: getattr(part.module, f"{part.name}_mask").bool()
            for name, part in pruning._prunable(model, True).items()
        }
        assert pruning.survivors(found) == counts
        assert all(torch.equal(found[name], mask) for name, mask in masks.items())
    found = prune.detach(model)
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value * masks[name] if name in masks else value)
    for module in model:
        if isinstance(module, nn.RNNBase):
            own = set(map(id, module.parameters()))
            assert {id(weight) for weight in module._flat_weights} == own, "the layer computes with other tensors"


class Flat(nn.LSTM):
    """Keeps all its parameters in one piece of memory, as cuDNN wants them on a GPU."""

    flat: Tensor

    def flatten_parameters(self) -> None:
        if all(isinstance(weight, Tensor) for weight in self._flat_weights):
            self.flat = torch.cat([weight.detach().flatten() for weight in self._flat_weights])
            sizes = [weight.numel() for weight in self._flat_weights]
            for weight, part in zip(self._flat_weights, self.flat.split(sizes), strict=True):
                weight.data = part.view_as(weight)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("recurrent", [nn.LSTM, Flat])
def test_pruned_weights_of_attention_and_recurrent_layers_stay_0_in_training(kind: str, recurrent: Any) -> None:
    torch.manual_seed(0)
    model = Attending()
    model.lstm = recurrent(8, 6, num_layers=2, bidirectional=True, batch_first=True)
    masks, state = random_masks(model), building.state_of(model)
    network = Network(model, [state], [masks], CPU)
    optimizer = Fused(kind, network, 0.05, weight_decay=0.01)
    x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % 4
    for _ in range(3):
        optimizer.step(torch.autograd.grad(network.losses(x, y), network.leaves))
    after = network.state(0)
    for name, mask in masks.items():
        assert not after[name][~mask].any() and (after[name] != state[name])[mask].all(), name
    logits = building.load_state(Attending(), after)(x)
    same = torch.allclose(network.logits(x, True)[0], logits, rtol=1e-4, atol=1e-6)  # some processors round otherwise
    assert same, "the recurrent layer computes with other weights"
    if recurrent is Flat:
        assert model.lstm.weight_hh_l1.untyped_storage().data_ptr() == model.lstm.flat.untyped_storage().data_ptr()


READER_WEIGHTS = {"attention.self_attn.in_proj_weight": 192, "attention.self_attn.out_proj.weight": 64}
READER_WEIGHTS |= {"attention.linear1.weight": 64, "attention.linear2.weight": 64, "head.weight": 32}


@pytest.mark.parametrize("stack", [None, 2])
def test_a_recurrent_model_goes_through_a_whole_experiment(place: Path, stack: int | None, capsys: Capture) -> None:
    """Also where runs cannot be stacked into one network, which is said."""
    add_model(place, "reader", "nets.Reader()")
    config = settings(
        place,
        **{"arch_type": "reader", "prune_type": ("lt", "reinit"), "trials": 2, "stack": stack, "quiet": False},
        **{"prune_percent": 25, "output_percent": 0, "prune_iterations": 2},
    )
    weights = {**READER_WEIGHTS, "recurrent.weight_ih_l0": 256, "recurrent.weight_hh_l0": 256}
    for run in session.run(config):
        layers_csv = tables.table(run, "layers").pivot(index="round", columns="layer", values="weights")
        assert layers_csv.loc[0].to_dict() == weights
        assert layers_csv.loc[1].to_dict() == {n: w if n == "head.weight" else 3 * w // 4 for n, w in weights.items()}
        rounds = tables.table(run, "rounds")
        assert rounds["remaining"].tolist() == pytest.approx([100, 100 * (0.75 * 896 + 32) / 928], abs=1e-3)
        state, masks = Store(run).weights("trained_01"), Store(run).ticket(1).masks
        assert all((state[name] != 0).equal(mask) for name, mask in masks.items())
    said = capsys.readouterr().out
    assert "embedding.weight (an embedding: see prune_embeddings)" in said
    assert ("--stack 2: torch.func.vmap cannot follow this model" in said) == (stack == 2)


def test_embeddings_are_pruned_on_request_as_other_matrices(place: Path) -> None:
    add_model(place, "reader", "nets.Reader(nn.GRU)")
    (run,) = do(settings(place, arch_type="reader", prune_embeddings=True, prune_percent=50, prune_iterations=2))
    layers_csv = tables.table(run, "layers").pivot(index="round", columns="layer", values="weights")
    assert layers_csv["embedding.weight"].tolist() == [320, 160]
    assert layers_csv["recurrent.weight_hh_l0"].tolist() == [192, 96]
