"""Tickets for other programs give the answers that PyTorch gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import random_masks, settings
from own import find, seeded
from torch import Tensor, nn

import lth
from lth import data
from lth.api import export
from lth.api.saved_ticket import SavedTicket
from lth.commands import session
from lth.models import building
from lth.records import tables

pytestmark = pytest.mark.versions


@pytest.fixture
def ticket(place: Path, request: pytest.FixtureRequest) -> SavedTicket:
    """A sparse ticket of the model, and with the --pixels, that the test names, trained a little."""
    arch, pixels = getattr(request, "param", ("mlp", "standard"))
    (run,) = session.run(settings(place, arch_type=arch, pixels=pixels, prune_percent=80))
    return lth.load_ticket(run.saves)


EACH = pytest.mark.parametrize("ticket", [("mlp", "norm"), ("mlp", "unit"), ("conv", "standard")], indirect=True)


def trained(ticket: SavedTicket) -> nn.Module:
    """The network that the ticket means, in evaluation mode."""
    return ticket.apply(building.find(ticket.run.arch_type, "tiny", 4)(), weights="trained").eval()


def examples(count: int) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def images_and_logits(ticket: SavedTicket) -> tuple[Tensor, Tensor]:
    """The test images with pixels from 0 to 1, and the logits that `ticket.evaluate` counts for them."""
    images = data.load("tiny", ticket.run.root / "data", tables.config_of(ticket.run)["settings"]["pixels"])
    seen = torch.cat([x for x, _ in images.feed([0], 1, 1, torch.device("cpu")).test()])
    logits = trained(ticket)(seen)
    right = (logits.argmax(1) == images.test_labels).double().mean()
    assert 100 * right.item() == pytest.approx(ticket.row["test"])
    return images.test / 255, logits


@EACH
def test_an_onnx_file_takes_pixels_from_0_to_1_and_gives_the_same_logits_for_any_batch_size(
    ticket: SavedTicket, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    file = ticket.export(tmp_path / "ticket.onnx")
    assert list(tmp_path.glob("ticket*")) == [file]  # the weights are in it, not beside it
    made = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert "with pixels from 0 to 1" in made.get_modelmeta().custom_metadata_map["input"]
    images, logits = images_and_logits(ticket)
    for count in (1, 3, len(images)):
        (found,) = made.run(None, {made.get_inputs()[0].name: images[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits[:count], rtol=1e-4, atol=1e-5)


@EACH
def test_a_pt2_file_takes_pixels_from_0_to_1_and_holds_the_pruned_weights_as_zeros(
    ticket: SavedTicket, tmp_path: Path
) -> None:
    told = {"input": ""}
    made = torch.export.load(ticket.export(tmp_path / "ticket.pt2"), extra_files=told).module()
    assert "with pixels from 0 to 1" in told["input"]
    images, logits = images_and_logits(ticket)
    torch.testing.assert_close(made(images), logits, rtol=1e-4, atol=1e-5)
    state = dict(made.named_parameters())
    assert all((state[f"model.{name}"][~mask] == 0).all() for name, mask in ticket.masks.items())


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
