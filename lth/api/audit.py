"""An auditor for training loops of one's own: whether a model is the ticket that one believes it is."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth import pruning
from lth.models.building import State, copy_of, plain
from lth.models.probe import changes_weight
from lth.prune import pruned_by_torch
from lth.pruning import Masks
from lth.settings import checks
from lth.settings.checks import shown

CONTROLS = ("reinit", "shuffle", "random")
TICKET = "a ticket (with .masks and .start) or a dict of masks by the names of parameters"
ROUNDED = 5  # weights per layer that rounding may add up to over the rounds (half a weight each, 10% pruned)
FEW = 0.01  # share of a layer's survivors that may be 0, or equal, by chance
CHANCE = 6.0  # standard deviations from the expected overlap: one audit in a thousand million is wrong
SHOWN = 3  # layers named in a sentence about several
LOST = ": the masks were lost, in saving perhaps"

Problem = tuple[str, str, str]  # a sentence in three parts: its beginning, what concerns one layer, its end
Problems = Iterator[Problem]


class AuditError(Exception):
    """What an audit found, one sentence per line; `problems` is a tuple of them."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def audit(
    model: nn.Module | Mapping[str, Tensor],
    ticket: Any = None,
    *,
    initial: nn.Module | Mapping[str, Tensor] | None = None,
    trained: bool = False,
    remaining: float | None = None,
    percent: float | Mapping[str, float] | None = None,
    previous: Any = None,
    control: str | None = None,
    original: Any = None,
) -> None:
    """Check that `model` is the ticket, before or after its training; raise an error that says what is wrong if not.

    Pruned weights must be 0, in the forward pass too; masks that torch.nn.utils.prune has put on the model
    (weight_orig, weight_mask) must be the ticket's; surviving weights must not be 0. More is checked on request:

    Args:
        model: a network, or a state dict, which may be in a dict as its "state_dict". It is not changed. In all
            names, the prefixes `module.` and `_orig_mod.` of torch's wrappers do not count. Tied weights are checked
            under all their names (in a state dict: those that share memory).
        ticket: what `lth.load_ticket` returns (of arms whose trainings change their masks, an untrained model must have
            its start_masks), or anything else with `masks` and `start`; or the masks alone: a dict
            from parameter names to tensors of the parameters' shapes, 1 (True) kept, 0 (False) pruned; or a network
            that torch.nn.utils.prune has put masks on. None: `model` is such a network. `previous` and `original` too.
        initial: a network or a state dict with the initial weights, or those of the iteration that is rewound to. All
            survivors, biases and buffers too, must equal them bit by bit. None: the ticket's start, if it has one.
        trained: whether the model has been trained since its reset: then its zeros are checked, the start that the
            ticket itself has, and, where its start or `initial` is known, that not only positive weights have learned.
        remaining: percent of the weights under masks that must survive, within five weights per layer, which rounding
            may add up to over the rounds.
        percent: percent of the survivors of `previous` that must have been pruned, within one weight per layer: of all
            together, or per layer as a dict by name.
        previous: the ticket or the masks of the round before; what they pruned must not come back. None: dense.
        control: the kind of control that this ticket is: "reinit" (the masks of `original`, other weights), "shuffle"
            (as many survivors per layer at random places), "random" (random places).
        original: the ticket that it is a control of; for "reinit" one with `start`, or its masks beside `initial`.

    Raises:
        lth.AuditError: something is wrong with the ticket or the model; it says what, where and how much.
        TypeError, ValueError: an argument cannot be audited.
    """
    trained = checks.truth("trained", trained)
    if control is not None:
        checks.word("control", control, CONTROLS)
    if (control is None) != (original is None):
        raise ValueError("control and original must be given together")
    given = model if ticket is None else ticket
    masks = _masks("ticket", given if trained else getattr(given, "start_masks", given))
    start, value = _start(ticket), _state("model", model)
    reset_to = start if initial is None else _state("initial", initial)
    before = pruning.dense(masks) if previous is None else _masks("previous", previous)
    found = list(_other_shapes(value, masks)) or list(  # with other shapes, nothing can be compared
        chain(
            _changed(model, masks),
            _zeros(value, {**masks, **_tied(masks, value, reset_to)}, reset_to if start is None else start),
            _reinitialised(masks, start if trained else value, original, reset_to) if control == "reinit" else (),
            _at_random(masks, original, control == "shuffle") if control in ("shuffle", "random") else (),
            _not_reset(masks, value, start, start if control == "reinit" else reset_to, trained),
            _frozen(masks, value, start if initial is None else reset_to) if trained else (),
            _revived(masks, before),
            _counts(masks, before, remaining, percent),
        )
    )
    if found:
        raise AuditError(*_sentences(found))


def _sentences(problems: list[Problem]) -> list[str]:
    """The problems in words, those that differ in the layer alone in one sentence."""
    groups: dict[tuple[str, str], list[str]] = {}
    for begin, layer, end in problems:
        groups.setdefault((begin, end), []).append(layer)
    return [
        f"{begin}{'; '.join(layers[:SHOWN])}{f'; and {len(layers) - SHOWN} more' * (len(layers) > SHOWN)}{end}"
        for (begin, end), layers in groups.items()
    ]


def _masks(where: str, given: Any) -> Masks:
    """The masks of a ticket, or masks given as such, on the CPU."""
    given = _inside(given)
    state = given.state_dict() if isinstance(given, nn.Module) else given
    masks = (isinstance(state, Mapping) and pruned_by_torch(state)) or getattr(given, "masks", given)
    if not isinstance(masks, Mapping) or not masks or not all(isinstance(mask, Tensor) for mask in masks.values()):
        raise TypeError(f"{where} must be {TICKET}, not {shown(given)}")
    for name, mask in masks.items():
        if bad := int(((mask != 0) & (mask != 1)).sum()):
            raise ValueError(f"{where} must have masks of 0 and 1, but {bad} values of that of {name} are others")
    return {plain(str(name)): mask.detach().cpu().bool() for name, mask in masks.items()}


def _inside(given: Any) -> Any:
    """The state dict of a checkpoint {"state_dict": ...}, or what else was given."""
    return given["state_dict"] if isinstance(given, Mapping) and "state_dict" in given else given


def _start(ticket: Any) -> State | None:
    start = getattr(ticket, "start", None)
    return None if start is None else _state("ticket.start", start)


def _state(where: str, given: Any) -> State:
    """Parameters, buffers and masks (`.._mask`) by name, on the CPU, without the `_orig` of torch.nn.utils.prune. Tied
    ones are the same tensor."""
    given = _inside(given)
    if isinstance(given, nn.Module):
        state = dict(given.state_dict())
        for path, module in given.named_modules():  # a state dict lacks parametrised weights under their own name
            for name, steps in getattr(module, "parametrizations", {}).items():
                state[f"{path}.{name}" if path else name] = copy_of(steps).eval()()  # in training, it may step
    elif isinstance(given, Mapping):
        state = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    else:
        raise TypeError(f"{where} must be a torch.nn.Module or a state dict, not {shown(given)}")
    state = {plain(name): value for name, value in state.items()}
    held = {_place(value): value.detach().cpu() for value in state.values()}
    return {
        name.removesuffix("_orig") if f"{name.removesuffix('_orig')}_mask" in state else name: held[_place(value)]
        for name, value in state.items()
    }


def _place(tensor: Tensor) -> Hashable:
    """Where its values lie in memory: the same for tied tensors, but not for equal ones."""
    if tensor.layout != torch.strided or not tensor.data_ptr():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _tied(masks: Masks, value: State, initial: State | None) -> Masks:
    """The masks of tied parameters under their further names, of which the ticket knows only the first."""
    return {
        name: mask
        for first, mask in masks.items()
        for name in value
        if name not in masks
        and any(name in state and state[name] is state.get(first) for state in (value, initial or {}))
    }


def _other_shapes(value: State, masks: Masks) -> Problems:
    """Masks of parameters that the model does not have, or has in another shape."""
    for name, mask in masks.items():
        if name not in value:
            yield "the ticket has a mask for ", name, ", but the model has no such parameter"
        for whose, tensor in (("parameter", value.get(name)), ("mask", value.get(f"{name}_mask"))):
            if tensor is not None and tensor.shape != mask.shape:
                shapes = f"{tuple(mask.shape)} in the ticket and {tuple(tensor.shape)} as the model's {whose}"
                yield "a mask must have the shape of its parameter, but ", f"{name} has {shapes}", ""


def _zeros(value: State, masks: Masks, start: State | None) -> Problems:
    """Parameters that are not 0 where they are pruned, or are 0 elsewhere, and masks on the model that differ."""
    for name, mask in masks.items():
        own, kept = value.get(f"{name}_mask"), int(mask.sum())
        if own is None:
            if count := int((value[name][~mask] != 0).sum()):
                of = f"{count} of the {mask.numel() - kept} pruned weights of {name}"
                yield "", of, f" are not 0 in the model{LOST}, or are not applied after every step"
            zero = (value[name] == 0) & mask
            if start is not None and name in start and start[name].shape == mask.shape:
                zero &= start[name] != 0
            if (count := int(zero.sum())) > FEW * kept:
                of = f"{count} of the {kept} weights of {name} that the ticket keeps"
                yield "", of, " are 0 in the model: it is pruned further, or by another mask"
        elif not torch.equal(own.bool(), mask):
            lost, more = int((own.bool() & ~mask).sum()), int((~own.bool() & mask).sum())
            keeps = f"that of {name} keeps {lost} weights that the ticket prunes, and prunes {more} that it keeps"
            yield "the model's masks are not the ticket's: ", keeps, LOST if own.bool().all() else ""
        elif soft := int(((own != 0) & (own != 1)).sum()):
            yield "the model's masks must be 0 and 1, but ", f"{soft} values of that of {name}", " are others"
    for key, own in value.items():
        name = key.removesuffix("_mask")
        if key != name and name in value and name not in masks and not own.all():
            yield "the model has masks that the ticket has not: ", f"on {name}, of {int((own == 0).sum())} weights", ""


def _changed(model: Any, masks: Masks) -> Problems:
    """Layers that fill the zeros of their weights before they multiply."""
    for path, layer in model.named_modules() if isinstance(model, nn.Module) else ():
        mask = masks.get(plain(f"{path}.weight" if path else "weight"))
        if mask is not None and not mask.all() and changes_weight(layer):
            of = f"{path} ({type(layer).__name__})"
            yield (
                "",
                of,
                " changes its weight before it multiplies: pruned weights are not 0 in the forward pass",
            )


def _not_reset(masks: Masks, value: State, start: State | None, reset_to: State | None, trained: bool) -> Problems:
    """Survivors of the model, unless it is `trained`, or of the ticket's start that differ from the initial weights."""
    if reset_to is None:
        return
    if missing := [name for name in masks if name not in reset_to]:
        raise ValueError(f"initial must have all parameters under masks, but has no {missing[0]}")
    states = {"model": None if trained else value, "ticket": None if start is reset_to else start}
    for whose, state in states.items():
        every = {**masks, **_tied(masks, state or {}, reset_to)}
        for name, was in reset_to.items():
            now = (state or {}).get(name)
            if now is None or (name.removesuffix("_mask") in every and name not in every):
                continue
            if now.shape != was.shape or now.dtype != was.dtype:
                has = f"{name}: {tuple(now.shape)} of {now.dtype}, not {tuple(was.shape)} of {was.dtype}"
                yield f"the {whose} starts from tensors of another kind than the initial ones: ", has, ""
                continue
            kept = every.get(name, torch.ones_like(now, dtype=torch.bool))
            differ = ~_same_bits(now, was) & kept
            if count := int(differ.sum()):
                what = "surviving weights" if name in every else "values"
                by = float((now.double() - was.double())[differ].abs().max())
                of = f"{count} of the {int(kept.sum())} {what} of {name} differ by up to {by:.3g} from the initial ones"
                yield f"the {whose} was not reset, or to other values: ", of, ""


def _frozen(masks: Masks, value: State, before: State | None) -> Problems:
    """Layers of which only the positive survivors were trained."""
    for name, mask in masks.items():
        was = (before or {}).get(name)
        if was is not None and was.shape == mask.shape and value[name].dtype == was.dtype:
            same, negative = _same_bits(value[name], was) & mask, mask & (was < 0)
            still, moved = int((same & negative).sum()), int((~same & mask & (was > 0)).sum())
            if negative.any() and still > 0.9 * negative.sum() and moved > 0.5 * (mask & (was > 0)).sum():
                of = f"{still} of the {int(negative.sum())} negative survivors of {name} did not move in training, but "
                yield "", f"{of}{moved} positive ones did", ": their gradients are frozen, by `weight < eps` perhaps"


def _same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors of one shape and type have the same bits."""
    bits = [x.contiguous().reshape(-1).view(torch.uint8).view(x.numel(), x.element_size()) for x in (a, b)]
    return (bits[0] == bits[1]).all(1).view(a.shape)


def _reinitialised(masks: Masks, value: State | None, original: Any, initial: State | None) -> Problems:
    """The masks must be the original's, the weights that survive must not."""
    theirs, old = _masks("original", original), _start(original)
    old = initial if old is None else old
    if old is None:
        raise ValueError("original must be a ticket with .start, or initial be given, for control='reinit'")
    if theirs.keys() != masks.keys() or any(not torch.equal(theirs[name], mask) for name, mask in masks.items()):
        yield "", "the masks are not the original's, which a reinitialised ticket must have", ""
        return
    for name, mask in masks.items():
        if value is not None and name in old and name in value:
            same, kept = int((_same_bits(value[name], old[name]) & mask).sum()), int(mask.sum())
            if same > FEW * kept:
                of = f"{same} of the {kept} surviving weights of {name}"
                yield "", of, " start as in the original ticket: it is no control, its weights are not new"


def _at_random(masks: Masks, original: Any, counted: bool) -> Problems:
    """Layer by layer, as many survivors must be the original's as chance (hypergeometric) allows; if `counted`, there
    must be as many survivors."""
    original = _masks("original", original)
    if masks.keys() != original.keys() or any(masks[name].shape != mask.shape for name, mask in original.items()):
        yield "", "the masks are of other parameters than the original's, which a control must not be", ""
        return
    for name, mask in masks.items():
        total, mine, theirs = mask.numel(), int(mask.sum()), int(original[name].sum())
        if counted and mine != theirs:
            keeps = f"{name} keeps {mine} weights, but {theirs} in the original"
            yield "", keeps, ": shuffling must not change that"
        both, expected = int((mask & original[name]).sum()), mine * theirs / total
        deviation = math.sqrt(expected * (1 - theirs / total) * (total - mine) / max(total - 1, 1))
        if abs(both - expected) > max(CHANCE * deviation, 1):
            of = f"{both} of the {mine} survivors of {name} are the original's, by chance {expected:.0f} would be"
            yield "", of, ": the control is not random"


def _revived(masks: Masks, before: Masks) -> Problems:
    """Survivors that the round before had pruned."""
    for name, mask in masks.items():
        earlier = before.get(name)
        if earlier is None or earlier.shape != mask.shape:
            yield "previous must have a mask ", f"of the shape {tuple(mask.shape)} for {name}", ", but has none"
        elif back := int((mask & ~earlier).sum()):
            yield "", f"{back} weights of {name}", " survive that the round before had pruned: they came back"


def _counts(masks: Masks, before: Masks, remaining: Any, percent: Any) -> Problems:
    """Whether as many weights survive as requested: of all (`remaining`), and of the survivors of `before`."""

    def compare(kept: Masks, of: Masks, share: float, slack: int, where: str = "") -> Problems:
        have, total = (sum(pruning.survivors(which).values()) for which in (kept, of))
        if abs(have - total * share / 100) > slack * len(kept):
            yield "", f"{have} weights survive{where}, but {total * share / 100:.0f} should: {share:g}% of {total}", ""

    if remaining is not None:
        yield from compare(masks, pruning.dense(masks), _percent("remaining", remaining), ROUNDED)
    if percent is None or not masks.keys() <= before.keys():
        return
    if not isinstance(percent, Mapping):
        yield from compare(masks, {name: before[name] for name in masks}, 100 - _percent("percent", percent), 1)
        return
    for name, value in percent.items():
        if name not in masks:
            raise ValueError(f"percent must be of layers of the ticket, {', '.join(masks)}, not of {name}")
        left = 100 - _percent("percent", value)
        yield from compare({name: masks[name]}, {name: before[name]}, left, 1, f" in {name}")


def _percent(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be a percentage, not {shown(value)}")
    if not 0 <= value <= 100:
        raise ValueError(f"{name} must be a percentage from 0 to 100, not {value}")
    return float(value)
