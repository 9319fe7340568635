"""Tickets in other forms, files and smaller networks, give the answers that PyTorch gives."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import Patch, random_masks, settings
from own import find, seeded
from torch import Tensor, nn

import lth
from lth import data, pruning
from lth.api import export
from lth.api.export import compact
from lth.api.saved_ticket import SavedTicket
from lth.commands import session
from lth.models import building
from lth.records import tables
from lth.settings.config import PROJECT

pytestmark = pytest.mark.versions


@pytest.fixture
def ticket(place: Path, request: pytest.FixtureRequest) -> SavedTicket:
    """A ticket of the model, and with the --pixels, that the test names: of so few weights that units have died."""
    arch, pixels = getattr(request, "param", ("mlp", "standard"))
    (run,) = session.run(settings(place, arch_type=arch, pixels=pixels, prune_percent=85))
    return lth.load_ticket(run.saves)


def trained(ticket: SavedTicket) -> nn.Module:
    """The network that the ticket means, in evaluation mode."""
    return ticket.apply(building.find(ticket.run.arch_type, "tiny", 4)(), weights="trained").eval()


def examples(count: int) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def images_and_logits(ticket: SavedTicket) -> tuple[Tensor, Tensor]:
    """The test images with pixels from 0 to 1, and the logits that `ticket.evaluate` counts for them."""
    images = data.load("tiny", ticket.run.root / "data", tables.read_config(ticket.run)["settings"]["pixels"])
    seen = torch.cat([x for x, _ in images.feed([0], 1, 1, torch.device("cpu")).test()])
    logits = trained(ticket)(seen)
    right = (logits.argmax(1) == images.test_labels).double().mean()
    assert 100 * right.item() == pytest.approx(ticket.row["test"])
    return images.test / 255, logits


@pytest.mark.parametrize("ticket", [("mlp", "norm"), ("mlp", "unit"), ("conv", "standard")], indirect=True)
def test_files_take_pixels_from_0_to_1_and_give_the_same_logits(ticket: SavedTicket, tmp_path: Path) -> None:
    """For any batch size; a .pt2 file holds the pruned weights as zeros."""
    told, (images, logits) = {"input": ""}, images_and_logits(ticket)
    made = torch.export.load(ticket.export(tmp_path / "ticket.pt2"), extra_files=told).module()
    assert "with pixels from 0 to 1" in told["input"]
    torch.testing.assert_close(made(images), logits, rtol=1e-4, atol=1e-5)
    state = dict(made.named_parameters())
    assert all((state[f"model.{name}"][~mask] == 0).all() for name, mask in ticket.masks.items())
    onnxruntime = pytest.importorskip("onnxruntime")
    file = ticket.export(tmp_path / "ticket.onnx")
    assert list(tmp_path.glob("ticket.on*")) == [file]  # the weights are in it, not beside it
    made = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert "with pixels from 0 to 1" in made.get_modelmeta().custom_metadata_map["input"]
    for count in (1, 3, len(images)):
        (found,) = made.run(None, {made.get_inputs()[0].name: images[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits[:count], rtol=1e-4, atol=1e-5)


def test_a_network_of_ones_own_on_a_named_set_takes_pixels_from_0_to_1(place: Path) -> None:
    file = place / "data" / "tiny.npz"
    find(seeded(), file, save=place / "mine")
    ticket, images = lth.load_ticket(place / "mine"), data.read(file)
    made = torch.export.load(ticket.export(place / "ticket.pt2", model=seeded())).module()
    seen = torch.cat([x for x, _ in images.feed([0], 1, 1, torch.device("cpu")).test()])
    torch.testing.assert_close(made(images.test / 255), ticket.apply(seeded(), weights="trained").eval()(seen))


@pytest.mark.parametrize("ticket", [("mlp", "standard"), ("conv", "standard")], indirect=True)
def test_sparse_layers_hold_the_survivors_alone_and_give_the_same_logits(ticket: SavedTicket) -> None:
    made = ticket.sparse()
    torch.testing.assert_close(made(examples(7)), trained(ticket)(examples(7)))
    layers = [module for module in made.modules() if isinstance(module, export.SparseLinear)]
    linear = {name for name, mask in ticket.masks.items() if mask.ndim == 2 and not mask.all()}
    assert len(layers) == len(linear) > 0 and not any(isinstance(module, nn.Linear) for module in made.modules())
    assert sum(layer.weight._nnz() for layer in layers) <= sum(int(ticket.masks[name].sum()) for name in linear)


def with_hooks() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4), nn.Linear(4, 3))
    net[0].register_forward_hook(lambda layer, given, answer: 10 * answer)
    net[1].forward = lambda x: x[..., :4]  # type: ignore[method-assign]
    return net


def encoder(batch_first: bool) -> nn.Module:
    """With batch_first it passes the weights of its Linear layers to one product that takes no sparse ones."""
    return nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)).eval()


@pytest.mark.parametrize(
    ("net", "expected"),
    [(with_hooks(), ["2"]), (encoder(True), ["0"]), (encoder(False), ["0", "1.linear1", "1.linear2"])],
)
def test_a_layer_that_does_more_than_its_class_stays_dense(net: nn.Module, expected: list[str]) -> None:
    masks = random_masks(net)
    with torch.no_grad():
        for name, mask in masks.items():
            net.get_parameter(name).mul_(mask)
        made, x = export.sparse(net, masks), torch.rand(5, 7, 8)
        torch.testing.assert_close(made(x), net(x))
    layers = [name for name, module in made.named_modules() if isinstance(module, export.SparseLinear)]
    assert layers == expected


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Real images of MNIST, in float64."""
    with np.load(PROJECT / "data" / "mnist.npz") as file:
        return torch.from_numpy(file["x_test"][:24]).double()[:, None] / 255


def pruned(net: nn.Module, keep: float, seed: int = 0) -> nn.Module:
    """The network in float64 with about that share of its weights; biases and batch norm as after a training."""
    generator = torch.Generator().manual_seed(seed)
    net.double().eval()
    masks = random_masks(net, keep, seed)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if name in masks:
                value.mul_(masks[name])
            elif name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.is_floating_point():
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return net


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def assert_same(made: nn.Module, net: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(made(x), net.eval()(x), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("arch", "keeps"),
    [
        ("fc1", (1, 0.1, 0.01, 0.003)),
        ("lenet5", (0.3, 0.03, 0.01)),
        ("conv2", (0.01, 0.003)),
        ("resnet20", (0.05, 0.01, 0.003)),
    ],
)
def test_logits_stay_and_the_network_shrinks(arch: str, keeps: tuple[float, ...], images: Tensor) -> None:
    sizes = []
    for keep in keeps:
        net = pruned(building.build(building.find(arch, "mnist"), "glorot", 0), keep)
        before = building.state_of(net)
        made = compact(net, images[:2])
        assert_same(made, net, images)
        assert all(torch.equal(value, before[name]) for name, value in building.state_of(net).items())
        sizes.append(parameters(made))
        assert keep < 1 or sizes[-1] == parameters(net)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.9 * parameters(net)


def test_what_remains_of_a_network_has_a_use(images: Tensor) -> None:
    """Every unit has an outgoing weight, and none has the same value for all images."""
    for seed in range(3):
        net = compact(pruned(building.build(building.find("fc1", "mnist"), "glorot", seed), 0.004, seed), images[:2])
        linear = [layer for layer in net if isinstance(layer, nn.Linear)]
        x = torch.rand(64, 784, dtype=torch.double) * 20 - 10
        for layer, following in itertools.pairwise(linear):
            x = layer(x)
            assert (following.weight != 0).any(0).all() and (x.std(0) > 0).all()
            x = x.relu()


@pytest.mark.parametrize(
    ("bias", "padding", "channels"), [(0.7, 1, 2), (0.7, "same", 2), (-0.7, 1, 1), (0.7, 0, 1), (-0.7, 0, 1)]
)
def test_constant_channels_before_padding(bias: float, padding: int | str, channels: int, images: Tensor) -> None:
    second = nn.Conv2d(2, 3, 3, padding=padding, bias=False)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), second, nn.Flatten(), nn.LazyLinear(4))
    net(images[:2].float())
    net.double()
    with torch.no_grad():
        net[0].weight[1] = 0
        net[0].bias[1] = bias
    made = compact(net, images[:2])
    assert made[0].out_channels == made[3].in_channels == channels
    assert_same(made, net, images)


def test_batch_norm_makes_constants_and_passes_them_on(images: Tensor) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(3 * 169, 6), nn.BatchNorm1d(6, affine=False), nn.Tanh(), nn.Linear(6, 4, bias=False)),
    )
    pruned(net, 1.0)
    with torch.no_grad():
        net[0].weight[0] = 0  # so that the channel is what batch norm makes of 0
        net[1].weight[1] = 0
        net[5].weight[4] = 0
    made = compact(net, images[:2])
    assert (made[0].out_channels, made[1].num_features, made[5].in_features, made[6].num_features) == (1, 1, 169, 5)
    assert made[8].bias is not None, "it takes over what the unit contributed"
    assert_same(made, net, images)


class Odd(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.one, self.two, self.norm = way, nn.Linear(784, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)
        if way == "hooks":
            self.two.register_forward_hook(lambda layer, given, answer: 2 * answer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x.flatten(1)).relu()
        if self.way == "twice":
            x = self.two(x)
        elif self.way == "cat":
            x = torch.cat([x[:, :4], x[:, 4:]], 1)
        elif self.way == "branches" and x.sum() > 0:
            return x
        elif self.way == "sequences":
            return self.two(x[:, None])
        return self.norm(self.two(x)) + (x if self.way == "adds" else 0)


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (Odd("cat"), "it has getitem, and only Linear, Conv2d"),
        (Odd("hooks"), r"it has two \(Linear\).*without groups and hooks"),
        (Odd("twice"), r"it has two \(Linear\).*each layer used once"),
        (Odd("branches"), "model cannot be made smaller: symbolically traced"),
        (Odd("sequences"), "it has getitem"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), r"it has 1 \(Conv2d\)"),
        (nn.Sequential(nn.Linear(28, 4)), r"it has 0 \(Linear\)"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(net: nn.Module, says: str, images: Tensor) -> None:
    with pytest.raises(ValueError, match=says):
        compact(net.double(), images[:2])


def test_residual_additions_keep_all_channels(images: Tensor) -> None:
    net = Odd("adds").double().eval()
    with torch.no_grad():
        net.one.weight[:4] = 0
        net.two.weight[2:] = 0
    made = compact(net, images[:2])
    assert (made.one.out_features, made.two.out_features) == (8, 8)
    assert_same(made, net, images)


@pytest.mark.parametrize("ticket", [("drop", "standard"), ("conv", "standard")], indirect=True)
def test_a_smaller_network_of_a_ticket_in_onnx(ticket: SavedTicket, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    whole = ticket.apply(building.find(ticket.run.arch_type, "tiny", 4)(), weights="trained").eval()
    small = ticket.compact()
    with torch.no_grad():
        torch.testing.assert_close(small(examples(5)), whole(examples(5)))
    assert parameters(small) < parameters(whole)
    file = ticket.export(tmp_path / "ticket.onnx", compact=True)
    images = data.load("tiny", ticket.run.root / "data")
    (seen, _) = next(images.feed([0], 1, 1, torch.device("cpu")).test())
    made = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = made.run(None, {made.get_inputs()[0].name: (images.test[: len(seen)] / 255).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), whole(seen), rtol=1e-4, atol=1e-5)
    assert file.stat().st_size < ticket.export(tmp_path / "whole.onnx").stat().st_size


def test_sizes_are_those_on_disk_and_count_products(ticket: SavedTicket, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(export, "SECONDS", 0.01)
    found, small, kept = ticket.sizes(), ticket.compact(), pruning.survivors(ticket.masks)
    assert list(found.index) == ["dense", "compact", "csr", "packed"]
    assert found["numbers"].tolist() == [64 * 12 + 12 + 12 * 4 + 4, parameters(small), *[sum(kept.values()) + 16] * 2]
    products = sum(layer.weight.numel() for layer in small.modules() if isinstance(layer, nn.Linear))
    assert found["multiply_adds"].tolist()[:3] == [64 * 12 + 12 * 4, products, sum(kept.values())]
    safetensors.torch.save_file(building.state_of(small), file := tmp_path / "small.safetensors")
    assert found["bytes"]["compact"] == file.stat().st_size
    numbers = 4 * (sum(kept.values()) + 16)
    head = found["bytes"] - [4 * 832, 4 * parameters(small), numbers + 4 * (sum(kept.values()) + 13 + 5), numbers + 102]
    assert head.between(100, 700).all(), "what is left is the header"
    assert (found.loc["dense":"csr", ["ms_1", "ms_100"]] > 0).all(axis=None) and found.loc["packed"].isna().sum() == 3


def test_wrong_arguments_are_named(ticket: SavedTicket, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"file must end in \.onnx or \.pt2, not"):
        ticket.export(tmp_path / "ticket.pth", examples(2))
    config = ticket.run.dumps / "config.json"
    whole = config.read_text()
    config.write_text(whole.replace('"normalisation"', '"nothing"'))
    with pytest.raises(ValueError, match=r"folder must have a config\.json that says how images are normalised"):
        ticket.export(tmp_path / "ticket.onnx")
    config.write_text(whole.replace("image_shape", "nothing"))
    with pytest.raises(ValueError, match="example must be given: the shape of the images of tiny is not known"):
        ticket.export(tmp_path / "ticket.onnx")
    with pytest.raises(ValueError, match="model cannot be exported"):
        ticket.export(tmp_path / "ticket.pt2", torch.zeros(2, 3))
    assert not list(tmp_path.glob("ticket*"))
