"""The auditor and its callback for Lightning: sound tickets pass in every form, each fault is told in a sentence."""

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune as torch_prune
from nets import Centred, prune_lowest
from own import EXAMPLES, batches, seeded
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lth
from lth import prune, pruning

Masks = dict[str, Tensor]


def masks_of(net: nn.Module, percent: float = 50.0, before: Masks | None = None, seed: int | None = None) -> Masks:
    """The masks of one more round; at random with a seed."""
    weights = pruning.prunable(net)
    masks = before or pruning.dense(weights)
    if seed is not None:
        weights = pruning.random_scores(masks, torch.Generator().manual_seed(seed))  # type: ignore[assignment]
    scores = {name: weight.abs() for name, weight in weights.items()}
    return prune_lowest(scores, masks, dict.fromkeys(masks, percent))


def masked(net: nn.Module, masks: Masks) -> nn.Module:
    net = copy.deepcopy(net)
    with torch.no_grad():
        for name, mask in masks.items():
            net.get_parameter(name).mul_(mask)
    return net


def trained(net: nn.Module, masks: Masks | None = None) -> nn.Module:
    """A copy (or the net itself, if it has masks) after a few steps, with `masks` applied after each."""
    net = net if torch_prune.is_pruned(net) else copy.deepcopy(net)
    optim = torch.optim.Adam(net.parameters(), lr=0.01)
    for x, y in batches(30):
        optim.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optim.step()
        with torch.no_grad():
            for name, mask in (masks or {}).items():
                net.get_parameter(name).mul_(mask)
    return net


NET = seeded()
MASKS = masks_of(NET)
TICKET = SimpleNamespace(masks=MASKS, start=masked(NET, MASKS).state_dict())


def _state(model: Any) -> dict[str, Tensor]:
    return dict(model) if isinstance(model, dict) else model.state_dict()


def found(model: Any, ticket: Any, **options: Any) -> str:
    """What the audit finds; nothing may be changed by it."""
    before = {name: x.clone() for name, x in _state(model).items()}
    with pytest.raises(lth.AuditError) as caught:
        lth.audit(model, ticket, **options)
    after = _state(model)
    assert before.keys() == after.keys() and all(x.equal(after[name]) for name, x in before.items())
    assert str(caught.value) == "\n".join(caught.value.problems)
    return str(caught.value)


@pytest.mark.parametrize("ticket", [MASKS, {name: mask.float() for name, mask in MASKS.items()}, TICKET])
def test_a_sound_ticket_passes_in_every_form(ticket: Any) -> None:
    start = masked(NET, MASKS)
    pruned, again = (prune.attach(copy.deepcopy(NET), MASKS) for _ in range(2))
    for model in (start, pruned, start.state_dict(), pruned.state_dict()):
        for initial in (NET, NET.state_dict(), prune.attach(copy.deepcopy(NET), MASKS)):
            lth.audit(model, ticket, initial=initial, remaining=50, percent=50)
        lth.audit(model, ticket)
    for model in (trained(start, MASKS), trained(pruned), trained(again).state_dict()):
        lth.audit(model, ticket, trained=True, initial=NET, percent=dict.fromkeys(MASKS, 50))
    later = masks_of(NET, 20, MASKS)
    lth.audit(masked(NET, later), later, previous=ticket, percent=20, remaining=40, initial=NET)


def test_masks_that_were_lost() -> None:
    after = trained(masked(NET, MASKS))  # nothing kept them
    text = found(after, MASKS, trained=True)
    assert "of the 24 pruned weights of fc2.weight are not 0 in the model: the masks were lost, in saving" in text
    loaded = prune.attach(copy.deepcopy(NET), pruning.dense(MASKS))  # a file without them, into a fresh network
    for model in (loaded, loaded.state_dict()):
        text = found(model, MASKS)
        assert text == (
            "the model's masks are not the ticket's: that of fc1.weight keeps 384 weights that the ticket prunes, and "
            "prunes 0 that it keeps; that of fc2.weight keeps 24 weights that the ticket prunes, and prunes 0 that it "
            "keeps: the masks were lost, in saving perhaps"
        )


def test_masks_of_another_round_or_layer() -> None:
    later = masks_of(NET, 20, MASKS)
    for model in (masked(NET, later), prune.attach(copy.deepcopy(NET), later)):
        for ticket in (MASKS, TICKET):
            assert "fc1.weight" in found(model, ticket, trained=True)
    assert "are 0 in the model: it is pruned further" in found(masked(NET, later), MASKS, trained=True)
    assert "prunes 77 that it keeps" in found(prune.attach(copy.deepcopy(NET), later), MASKS)
    only = {"fc1.weight": MASKS["fc1.weight"]}
    assert "has masks that the ticket has not: on fc2.weight, of 24 weights" in found(
        prune.attach(copy.deepcopy(NET), MASKS), only
    )
    soft = prune.attach(copy.deepcopy(NET), MASKS)
    soft.get_buffer("fc1.weight_mask").mul_(0.5)
    assert "masks must be 0 and 1, but 384 values of the mask of fc1.weight are not" in found(soft, MASKS)
    assert "has a mask for fc3.weight, but the model has no such" in found(NET, {"fc3.weight": torch.ones(2, 2)})
    assert "must have the shape of its parameter, but fc1.weight" in found(NET, {"fc1.weight": torch.ones(2, 2)})


def test_weights_that_were_not_reset() -> None:
    start = masked(NET, MASKS)
    text = found(trained(start, MASKS), MASKS, initial=NET)
    assert text.startswith("the model was not reset, or to other values: 384 of the 384 surviving weights of fc1")
    assert text.endswith("from the initial ones; and 1 more"), "biases too"
    assert "was not reset" in found(trained(prune.attach(copy.deepcopy(NET), MASKS)), MASKS, initial=NET)
    assert "was not reset" in found(trained(start, MASKS), TICKET), "the ticket knows its start"
    bias = masked(NET, MASKS)
    with torch.no_grad():
        bias.get_parameter("fc2.bias")[1] += 1e-6
    (line,) = found(bias, MASKS, initial=NET).splitlines()
    assert "1 of the 4 values of fc2.bias" in line
    one = SimpleNamespace(masks=MASKS, start=trained(start, MASKS).state_dict())
    text = found(trained(start, MASKS), one, initial=NET, trained=True)
    assert text.startswith("the ticket was not reset, or to other values: 384 of the 384 surviving weights of fc1")


def test_counts_that_were_not_asked_for() -> None:
    start = masked(NET, MASKS)
    assert found(start, MASKS, remaining=np.float32(80)) == "408 weights survive, but 653 should: 80% of 816"
    assert found(start, MASKS, percent=20) == "408 weights survive, but 653 should: 80% of 816"
    assert found(start, MASKS, percent={"fc1.weight": 50, "fc2.weight": 25}) == (
        "24 weights survive in fc2.weight, but 36 should: 75% of 48"
    )
    other = masks_of(NET, 60, seed=1)
    assert "weights of fc2.weight survive that the round before had pruned: they came back" in found(
        masked(NET, other), other, previous=MASKS
    )


def test_controls_that_are_none() -> None:
    lt = masked(NET, MASKS)
    text = found(lt, MASKS, control="reinit", original=TICKET)
    assert "24 of the 24 surviving weights of fc2.weight start as in the original ticket: it is no control" in text
    assert found(lt, MASKS, control="reinit", original=MASKS, initial=NET) == text
    assert "are the original's, by chance 12 would be: the control is not random" in found(
        lt, MASKS, control="random", original=TICKET
    )
    other = seeded(seed=7)
    lth.audit(masked(other, MASKS), MASKS, control="reinit", original=TICKET)
    mine = masks_of(NET, seed=3)
    for kind in ("shuffle", "random"):
        lth.audit(masked(NET, mine), mine, control=kind, original=TICKET, initial=NET)
    assert "masks are not the original's" in found(masked(other, mine), mine, control="reinit", original=TICKET)
    fewer = masks_of(NET, 75, seed=3)
    lth.audit(masked(NET, fewer), fewer, control="random", original=MASKS)
    assert "fc2.weight keeps 12 weights, but 24 in the original: shuffling must not change that" in found(
        masked(NET, fewer), fewer, control="shuffle", original=MASKS
    )
    inverse = {name: ~mask for name, mask in MASKS.items()}
    assert "0 of the 384 survivors" in found(masked(NET, inverse), inverse, control="shuffle", original=MASKS)


def test_tied_weights_are_checked_once() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    net[1].weight = net[0].weight
    masks = masks_of(net)
    assert list(masks) == ["0.weight"]
    pruned = prune.attach(copy.deepcopy(net), masks)
    for model in (masked(net, masks), pruned, pruned.state_dict(), masked(net, masks).state_dict()):
        for initial in (net, net.state_dict(), prune.attach(copy.deepcopy(net), masks)):
            lth.audit(model, masks, initial=initial)
    for layer in net:  # equal values are no tie
        nn.init.zeros_(layer.bias)
    torch_prune.identity(net[1], "bias")
    for model in (net, net.state_dict()):
        lth.audit(model, {"0.bias": torch.arange(8) < 4}, initial=net)


def test_bad_arguments_are_said() -> None:
    for kind, words, arguments in (
        (TypeError, "model must be a torch.nn.Module or a state dict, not 3", {"model": 3}),
        (TypeError, "ticket must be a ticket .* not 'x'", {"ticket": "x"}),
        (TypeError, "ticket.start must be", {"ticket": SimpleNamespace(masks=MASKS, start=torch.zeros(3))}),
        (ValueError, "ticket must have masks of 0 and 1, but 768", {"ticket": {"fc1.weight": torch.rand(12, 64)}}),
        (ValueError, "initial must have all parameters under masks, but has no fc1.weight", {"initial": {}}),
        (ValueError, "remaining must be a percentage from 0 to 100, not 120", {"remaining": 120}),
        (TypeError, "remaining must be a percentage, not True", {"remaining": True}),
        (ValueError, "percent must be of layers of the ticket, .* not of fc3", {"percent": {"fc3": 5}}),
        (ValueError, "control must be one of reinit, shuffle, random", {"control": "lt", "original": MASKS}),
        (ValueError, "control and original must be given together", {"control": "shuffle"}),
        (ValueError, "original must be a ticket with .start, or initial", {"control": "reinit", "original": MASKS}),
    ):
        with pytest.raises(kind, match=f"^{words}"):
            lth.audit(**{"model": masked(NET, MASKS), "ticket": MASKS, **arguments})


def test_a_layer_that_fills_its_zeros_is_found() -> None:
    net = nn.Sequential(nn.Linear(8, 6), Centred(6, 4))
    masks = {"1.weight": torch.arange(24).view(4, 6) % 2 > 0}
    assert found(masked(net, masks), masks) == (
        "1 (Centred) changes its weight before it multiplies: pruned weights are not 0 in the forward pass"
    )
    masks = {"0.weight": torch.arange(48).view(6, 8) % 2 > 0}
    lth.audit(masked(net, masks), masks)


def test_names_and_state_dicts_of_wrappers_are_those_of_the_network() -> None:
    state = masked(NET, MASKS).state_dict()
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        given = {f"{prefix}{name}": value for name, value in state.items()}
        lth.audit(given, TICKET)
        lth.audit({"state_dict": given, "epoch": 3}, TICKET)
        moved = given | {f"{prefix}fc1.bias": state["fc1.bias"] + 1}
        assert "12 of the 12 values of fc1.bias differ" in found(moved, TICKET)
    lth.audit(nn.DataParallel(masked(NET, MASKS)), TICKET)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("resets, problem", [(True, ""), (False, "the model was not reset"), (None, "")])
def test_each_pruning_is_audited(resets: bool | None, problem: str) -> None:
    pytest.importorskip("lightning")
    from lightning.pytorch import Callback, LightningModule, Trainer

    from lth.integrations.lightning import TicketAudit

    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 4)

        def training_step(self, batch: Any) -> Any:
            return nn.functional.cross_entropy(self.fc(batch[0].flatten(1)), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Pruner(Callback):
        def __init__(self, net: Net) -> None:
            self.initial = copy.deepcopy(net.state_dict())

        def on_train_epoch_end(self, trainer: Trainer, net: Any) -> None:
            torch_prune.l1_unstructured(net.fc, "weight", 0.5)
            if resets:
                net.fc.weight_orig.data.copy_(self.initial["fc.weight"])
                net.fc.bias.data.copy_(self.initial["fc.bias"])

    net = Net()
    audits = [TicketAudit(reset=resets is not None, strict=False), TicketAudit(reset=resets is not None)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=2, callbacks=[Pruner(net), *audits], enable_model_summary=False, **quiet)
    loader = DataLoader(TensorDataset(*EXAMPLES), batch_size=20)
    if problem:
        with pytest.raises(lth.AuditError, match=problem):
            trainer.fit(net, loader)
    else:
        trainer.fit(net, loader)
        assert [int(one.masks["fc.weight"].sum()) for one in audits] == [64, 64], "a quarter of 256"
