"""An auditor for training loops of one's own: whether a model is the ticket that one believes it is."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth import pruning
from lth.pruning import Masks
from lth.settings import checks
from lth.settings.checks import shown
from lth.training.models import State

CONTROLS = ("reinit", "shuffle", "random")
TICKET = "a ticket (with .masks and .start) or a dict of masks by the names of parameters"
ROUNDED = 5  # weights a layer that rounding may add up to over the rounds (half a weight each, 10% pruned)
FEW = 0.01  # of a layer's survivors: what may be 0, or equal, by chance
CHANCE = 6.0  # standard deviations from what chance gives: one audit in a thousand million is wrong
SHOWN = 3  # layers that a sentence about several names
LOST = ": the masks were lost, in saving perhaps"

Problem = tuple[str, str, str]  # a sentence: its beginning, what is said of one layer, its end


class AuditError(Exception):
    """What an audit found, one sentence per line; `problems` is a tuple of them."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def audit(
    model: nn.Module | Mapping[str, Tensor],
    ticket: Any,
    *,
    initial: nn.Module | Mapping[str, Tensor] | None = None,
    trained: bool = False,
    remaining: float | None = None,
    percent: float | Mapping[str, float] | None = None,
    previous: Any = None,
    control: str | None = None,
    original: Any = None,
) -> None:
    """Check that `model` is the ticket, as it is to be trained or as it has been, and say what is wrong if it is not.

    Pruned weights must be 0, in the forward pass too; masks that torch.nn.utils.prune has put on the model
    (weight_orig, weight_mask) must be the ticket's; survivors must not be 0; and whatever more is asked for:

    Args:
        model: a network, or a state dict as it was saved. It is not changed. Tied weights are looked at under all their
            names: those that share memory, which a state dict keeps unless its tensors were cloned.
        ticket: what `lth.load_ticket` gives, or anything else with `masks` and `start`; or the masks alone: a dict from
            the name of a parameter to a tensor of its shape, 1 (True) kept, 0 (False) pruned.
        initial: a network or a state dict with the initial weights, or those of the iteration that is rewound to. All
            that survives, biases and buffers too, must be equal to them, bit by bit. None: those of the ticket, if it
            has any.
        trained: whether the model has been trained since its reset, so that only its zeros can be looked at, and of its
            start only what the ticket says.
        remaining: percent of the weights under masks that must survive, but for five weights a layer, which rounding
            may add up to over the rounds.
        percent: percent of the survivors of `previous` that must have gone, but for one weight a layer: of all
            together, or of each layer, as a dict by its name.
        previous: the ticket, or the masks, of the round before, of which nothing may have come back. None: dense.
        control: what kind of control this ticket is: "reinit" (the masks of `original`, other weights), "shuffle" (its
            survivors moved to random places of their layer), "random" (random places).
        original: the ticket that it is a control of; for "reinit" one with `start`, or its masks beside `initial`.

    Raises:
        lth.AuditError: something is wrong with the ticket or the model; it says what, where and how much.
        TypeError, ValueError: an argument is none that can be audited.
    """
    trained = checks.truth("trained", trained)
    if control is not None:
        checks.word("control", control, CONTROLS)
    if (control is None) != (original is None):
        raise ValueError("control and original must be given together")
    masks, begun = _masks("ticket", ticket), _start(ticket)
    known, value = _state("initial", initial) if initial is not None else begun, _state("model", model)
    before = _masks("previous", previous) if previous is not None else pruning.dense(masks)
    found = list(_consistent(value, masks))
    if not found:  # else nothing can be compared
        every = {**masks, **_tied(masks, value, known)}
        were = known if begun is None else begun
        found += [problem for name, mask in every.items() for problem in _zeros(name, value, mask, were)]
        found += _pruned_beside(value, every)
        if control == "reinit":
            found += _reinitialised(masks, begun if trained else value, original, known)
        elif control is not None:
            found += _at_random(masks, _masks("original", original), counted=control == "shuffle")
        meant = begun if control == "reinit" else known
        if meant is not None:
            found += () if trained else _equal(value, masks, meant, "model")
            found += () if begun is None or begun is meant else _equal(begun, masks, meant, "ticket")
        found += _nothing_back(masks, before)
        found += _counts(masks, before, remaining, percent)
    if found:
        raise AuditError(*_sentences(found))


def _sentences(problems: Sequence[Problem]) -> list[str]:
    """The problems in words, those of one kind in one sentence."""
    groups: dict[tuple[str, str], list[str]] = {}
    for begin, layer, end in problems:
        groups.setdefault((begin, end), []).append(layer)
    return [
        f"{begin}{'; '.join(layers[:SHOWN])}{f'; and {more} more' * (more > 0)}{end}"
        for (begin, end), layers in groups.items()
        for more in [len(layers) - SHOWN]
    ]


def _masks(where: str, given: Any) -> Masks:
    """The masks of a ticket, or masks given as such, on the CPU."""
    masks = getattr(given, "masks", given)
    if not isinstance(masks, Mapping) or not masks or not all(isinstance(mask, Tensor) for mask in masks.values()):
        raise TypeError(f"{where} must be {TICKET}, not {shown(given)}")
    for name, mask in masks.items():
        if bad := int(((mask != 0) & (mask != 1)).sum()):
            raise ValueError(f"{where} must have masks of 0 and 1, but {bad} values of that of {name} are others")
    return {str(name): mask.detach().cpu().bool() for name, mask in masks.items()}


def _start(ticket: Any) -> State | None:
    start = getattr(ticket, "start", None)
    return None if start is None else _state("ticket.start", start)


def _state(where: str, given: Any) -> State:
    """Parameters, buffers and masks (`.._mask`) by name, on the CPU, without `_orig` where torch.nn.utils.prune is.
    Tied ones are the same tensor."""
    if isinstance(given, nn.Module):
        state = dict(given.state_dict())
        for path, module in given.named_modules():  # parametrised weights are no part of a state by their own name
            for name, listed in getattr(module, "parametrizations", {}).items():
                with _evaluated(listed):
                    state[f"{path}.{name}" if path else name] = getattr(module, name)
    elif isinstance(given, Mapping):
        state = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    else:
        raise TypeError(f"{where} must be a torch.nn.Module or a state dict, not {shown(given)}")
    held = {_place(value): value.detach().cpu() for value in state.values()}
    return {
        name.removesuffix("_orig") if f"{name.removesuffix('_orig')}_mask" in state else name: held[_place(value)]
        for name, value in state.items()
    }


def _place(tensor: Tensor) -> Hashable:
    """Where its values lie: tied tensors have the same place, equal ones have not."""
    if tensor.layout != torch.strided or not tensor.data_ptr():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


@contextmanager
def _evaluated(parametrisation: nn.Module) -> Iterator[None]:
    """Within it, reading the weight changes nothing: in training, spectral norm takes a step at every look."""
    training = [module for module in parametrisation.modules() if module.training]
    parametrisation.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _consistent(value: State, masks: Masks) -> Iterator[Problem]:
    """Whether the masks are of these parameters at all."""
    for name, mask in masks.items():
        if name not in value:
            yield "the ticket has a mask for ", name, ", but the model has no such parameter"
        elif value[name].shape != mask.shape:
            shapes = f"{tuple(mask.shape)} in the ticket and {tuple(value[name].shape)} in the model"
            yield "a mask must have the shape of its parameter, but ", f"{name} has {shapes}", ""


def _tied(masks: Masks, value: State, initial: State | None) -> Masks:
    """The masks of tied parameters under their further names, of which the ticket knows only the first."""
    return {
        name: mask
        for first, mask in masks.items()
        for name in value
        if name not in masks
        and any(name in state and state[name] is state.get(first) for state in (value, initial or {}))
    }


def _zeros(name: str, value: State, mask: Tensor, begun: State | None) -> Iterator[Problem]:
    """Whether one parameter is 0 where it is pruned, and only there."""
    own, kept = value.get(f"{name}_mask"), int(mask.sum())
    if own is not None:
        if own.shape != mask.shape:
            yield "a mask must have the shape of its parameter, but ", f"{name} has one of {tuple(own.shape)}", ""
            return
        lost, more = int((own.bool() & ~mask).sum()), int((~own.bool() & mask).sum())
        if lost or more:
            keeps = f"that of {name} keeps {lost} weights that the ticket prunes, and prunes {more} that it keeps"
            yield "the model's masks are not the ticket's: ", keeps, LOST if own.bool().all() else ""
        elif soft := int(((own != 0) & (own != 1)).sum()):
            yield "the model's masks must be 0 and 1, but ", f"{soft} values of that of {name}", " are others"
        return
    if count := int((value[name][~mask] != 0).sum()):
        of = f"{count} of the {mask.numel() - kept} pruned weights of {name}"
        yield "", of, f" are not 0 in the model{LOST}, or are not applied after every step"
    zero = (value[name] == 0) & mask
    if begun is not None and name in begun and begun[name].shape == mask.shape:
        zero &= begun[name] != 0
    if (count := int(zero.sum())) > FEW * kept:
        of = f"{count} of the {kept} weights of {name} that the ticket keeps"
        yield "", of, " are 0 in the model: it is pruned further, or by another mask"


def _pruned_beside(value: State, masks: Masks) -> Iterator[Problem]:
    """Masks on the model that the ticket knows nothing of."""
    for key, own in value.items():
        name = key.removesuffix("_mask")
        if key != name and name in value and name not in masks and not own.all():
            yield "the model has masks that the ticket has not: ", f"on {name}, of {int((own == 0).sum())} weights", ""


def _equal(value: State, masks: Masks, initial: State, whose: str) -> Iterator[Problem]:
    """Whether all that survives is what it was initially, bit by bit."""
    if missing := [name for name in masks if name not in initial]:
        raise ValueError(f"initial must have all parameters under masks, but has no {missing[0]}")
    masks = {**masks, **_tied(masks, value, initial)}
    for name, was in initial.items():
        now = value.get(name)
        if now is None or (name.removesuffix("_mask") in masks and name not in masks):
            continue
        if now.shape != was.shape or now.dtype != was.dtype:
            has = f"{name}: {tuple(now.shape)} of {now.dtype}, not {tuple(was.shape)} of {was.dtype}"
            yield f"the {whose} starts from tensors of another kind than the initial ones: ", has, ""
            continue
        kept = masks.get(name, torch.ones_like(now, dtype=torch.bool))
        differ = ~_same_bits(now, was) & kept
        if count := int(differ.sum()):
            what = f"{count} of the {int(kept.sum())} {'surviving weights' if name in masks else 'values'} of {name}"
            by = f"by up to {float((now.double() - was.double())[differ].abs().max()):.3g}"
            yield f"the {whose} was not reset, or to other values: ", f"{what} differ {by} from the initial ones", ""


def _same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors of one shape and type have the same bits."""
    size = a.element_size()
    bits = [x.contiguous().reshape(-1).view(torch.uint8).view(x.numel(), size) for x in (a, b)]
    return (bits[0] == bits[1]).all(1).view(a.shape)


def _reinitialised(masks: Masks, value: State | None, original: Any, initial: State | None) -> Iterator[Problem]:
    """Whether this is the ticket `original` with other weights."""
    theirs, old = _masks("original", original), _start(original)
    old = initial if old is None else old
    if old is None:
        raise ValueError("original must be a ticket with .start, or initial be given, for control='reinit'")
    if theirs.keys() != masks.keys() or any(not torch.equal(theirs[name], mask) for name, mask in masks.items()):
        yield "", "the masks are not the original's, which a reinitialised ticket must have", ""
        return
    for name, mask in masks.items():
        if value is not None and name in old and name in value:  # one that was trained may not say its start
            same, kept = int((_same_bits(value[name], old[name]) & mask).sum()), int(mask.sum())
            if same > FEW * kept:
                of = f"{same} of the {kept} surviving weights of {name}"
                yield "", of, " start as in the original ticket: it is no control, its weights are not new"


def _at_random(masks: Masks, original: Masks, counted: bool) -> Iterator[Problem]:
    """Whether no more survivors stand where the original's do than chance puts there (hypergeometric), layer by
    layer, and, if `counted`, whether there are as many."""
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
        if abs(both - expected) > CHANCE * deviation and abs(both - expected) > 1:
            of = f"{both} of the {mine} survivors of {name} are the original's, by chance {expected:.0f} would be"
            yield "", of, ": the control is not random"


def _nothing_back(masks: Masks, before: Masks) -> Iterator[Problem]:
    """Whether everything that survives has survived the round before."""
    for name, mask in masks.items():
        earlier = before.get(name)
        if earlier is None or earlier.shape != mask.shape:
            yield "previous must have a mask ", f"of the shape {tuple(mask.shape)} for {name}", ", but has none"
        elif back := int((mask & ~earlier).sum()):
            yield "", f"{back} weights of {name}", " survive that the round before had pruned: they came back"


def _counts(masks: Masks, before: Masks, remaining: float | None, percent: Any) -> Iterator[Problem]:
    """Whether as many weights survive as was asked for."""
    kept = pruning.survivors(masks)

    def compare(names: Sequence[str], share: float, of: int, slack: int, what: str) -> Iterator[Problem]:
        have, goal = sum(kept[name] for name in names), of * share / 100
        if abs(have - goal) > slack * len(names):
            yield "", f"{have} weights survive{what}, but {goal:.0f} should: {share:g}% of {of}", ""

    if remaining is not None:
        yield from compare(
            [*masks], _percent("remaining", remaining), sum(mask.numel() for mask in masks.values()), ROUNDED, ""
        )
    was = {name: int(before[name].sum()) for name in masks if name in before}
    if percent is None or len(was) < len(masks):
        return
    if not isinstance(percent, Mapping):
        yield from compare([*masks], 100 - _percent("percent", percent), sum(was.values()), 1, "")
        return
    for name, value in percent.items():
        if name not in masks:
            raise ValueError(f"percent must be of layers of the ticket, {', '.join(masks)}, not of {name}")
        yield from compare([name], 100 - _percent("percent", value), was[name], 1, f" in {name}")


def _percent(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be a percentage, not {shown(value)}")
    if not 0 <= value <= 100:
        raise ValueError(f"{name} must be a percentage from 0 to 100, not {value}")
    return float(value)
