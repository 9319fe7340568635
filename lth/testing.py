"""Is a network the ticket that its owner believes it is? `lth.audit`, and `assert_ticket` for tests in pytest."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from itertools import chain
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from lth import pruning
from lth.models.building import State, unwrapped_name
from lth.models.probe import changes_weight
from lth.prune import torch_masks
from lth.pruning import Masks
from lth.settings import checks
from lth.settings.checks import short_repr

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


def assert_ticket(model: Any, ticket: Any = None, **options: Any) -> None:
    """AssertionError, with the sentences of `lth.audit`, unless `model` is the ticket. `ticket` and `options` are the
    arguments of `lth.audit`."""
    __tracebackhide__ = True
    try:
        audit(model, ticket, **options)
    except AuditError as error:
        raise AssertionError(str(error)) from None


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
            under the first of their names (in a state dict: those that share memory).
        ticket: what `lth.load_ticket` returns (of arms whose trainings change their masks, an untrained model must have
            its start_masks), or anything else with `masks` and `start`; or the masks alone: a dict
            from parameter names to tensors of the parameters' shapes, 1 (True) kept, 0 (False) pruned; or a network
            that torch.nn.utils.prune has put masks on. None: `model` is such a network. `previous` and `original` too.
        initial: a network or a state dict with the initial weights, or with the weights that are rewound to. All
            survivors, biases and buffers too, must equal them exactly. None: the ticket's start, if it has one.
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
    checks.boolean("trained", trained)
    if control is not None:
        checks.one_of("control", control, CONTROLS)
    if (control is None) != (original is None):
        raise ValueError("control and original must be given together")
    given = model if ticket is None else ticket
    masks = _masks("ticket", given if trained else getattr(given, "start_masks", given))
    value, start = _state("model", model), _start(ticket)
    reset_to = start if initial is None else _state("initial", initial)
    if (start or initial is not None) and (missing := [name for name in masks if name not in reset_to]):
        raise ValueError(f"initial must have all parameters under masks, but has no {missing[0]}")
    before = pruning.dense(masks) if previous is None else _masks("previous", previous)
    is_reinit = control == "reinit"
    found = list(_other_shapes(value, masks)) or list(  # with other shapes, nothing can be compared
        chain(
            _changed(model, masks),
            _zeros(value, masks, start or reset_to),
            _reinitialised(masks, start if trained else value, original, reset_to) if is_reinit else (),
            _at_random(masks, original, control == "shuffle") if control in ("shuffle", "random") else (),
            () if trained else _not_reset("model", value, masks, start if is_reinit else reset_to),
            () if is_reinit else _not_reset("ticket", start, masks, reset_to),
            _frozen(value, masks, reset_to) if trained else (),
            _revived(masks, before),
            _counts(masks, before, remaining, percent),
        )
    )
    if found:
        raise AuditError(*_sentences(found))


def _sentences(problems: list[Problem]) -> list[str]:
    """The problems in words; one sentence for those that differ in the layer alone."""
    groups: dict[tuple[str, str], list[str]] = {}
    for begin, layer, end in problems:
        groups.setdefault((begin, end), []).append(layer)
    return [
        f"{begin}{'; '.join(layers[:SHOWN])}{f'; and {len(layers) - SHOWN} more' * (len(layers) > SHOWN)}{end}"
        for (begin, end), layers in groups.items()
    ]


def _masks(where: str, given: Any) -> Masks:
    """The masks of a ticket, of a network that has some, or given as such, on the CPU."""
    given = _unpacked(given)
    state = given.state_dict() if isinstance(given, nn.Module) else given
    masks = (isinstance(state, Mapping) and torch_masks(state)) or getattr(given, "masks", given)
    if not isinstance(masks, Mapping) or not masks or not all(isinstance(mask, Tensor) for mask in masks.values()):
        raise TypeError(f"{where} must be {TICKET}, not {short_repr(given)}")
    for name, mask in masks.items():
        if bad := int(((mask != 0) & (mask != 1)).sum()):
            raise ValueError(f"{where} must have masks of 0 and 1, but {bad} values of that of {name} are others")
    return {unwrapped_name(str(name)): mask.detach().cpu().bool() for name, mask in masks.items()}


def _unpacked(given: Any) -> Any:
    """The state dict of a checkpoint {"state_dict": ...}, or what else was given."""
    return given["state_dict"] if isinstance(given, Mapping) and "state_dict" in given else given


def _start(ticket: Any) -> State:
    """The weights that the training of a ticket starts from; empty if it does not have them."""
    start = getattr(ticket, "start", None)
    return {} if start is None else _state("ticket.start", start)


def _state(where: str, given: Any) -> State:
    """Parameters (tied ones once), buffers and masks (`.._mask`) by name, on the CPU, without the `_orig` of
    torch.nn.utils.prune."""
    given = _unpacked(given)
    if not isinstance(given, (nn.Module, Mapping)):
        raise TypeError(f"{where} must be a torch.nn.Module or a state dict, not {short_repr(given)}")
    state = given.state_dict() if isinstance(given, nn.Module) else given
    state = {unwrapped_name(name): value for name, value in state.items() if isinstance(value, Tensor)}
    first: dict[Hashable, str] = {}
    return {
        name.removesuffix("_orig") if f"{name.removesuffix('_orig')}_mask" in state else name: value.detach().cpu()
        for name, value in state.items()
        if first.setdefault(_place(value), name) == name
    }


def _place(tensor: Tensor) -> Hashable:
    """Where its values lie in memory: the same for tied tensors, but not for equal ones."""
    if tensor.layout != torch.strided or not tensor.data_ptr():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _other_shapes(value: State, masks: Masks) -> Problems:
    """Masks of parameters that the model does not have, or has in another shape."""
    for name, mask in masks.items():
        if name not in value:
            yield "the ticket has a mask for ", name, ", but the model has no such parameter"
        for whose, tensor in (("parameter", value.get(name)), ("mask", value.get(f"{name}_mask"))):
            if tensor is not None and tensor.shape != mask.shape:
                shapes = f"{tuple(mask.shape)} in the ticket and {tuple(tensor.shape)} as the model's {whose}"
                yield "a mask must have the shape of its parameter, but ", f"{name} has {shapes}", ""


def _changed(model: Any, masks: Masks) -> Problems:
    """Layers that fill the zeros of their weights before they multiply."""
    for path, layer in model.named_modules() if isinstance(model, nn.Module) else ():
        mask = masks.get(unwrapped_name(f"{path}.weight" if path else "weight"))
        if mask is not None and not mask.all() and changes_weight(layer):
            end = " changes its weight before it multiplies: pruned weights are not 0 in the forward pass"
            yield "", f"{path} ({type(layer).__name__})", end


def _zeros(value: State, masks: Masks, start: State) -> Problems:
    """Parameters that are not 0 where they are pruned, or are 0 elsewhere, and masks on the model that differ."""
    for name, mask in masks.items():
        own, kept = value.get(f"{name}_mask"), int(mask.sum())
        if own is None:
            if count := int((value[name][~mask] != 0).sum()):
                of = f"{count} of the {mask.numel() - kept} pruned weights of {name}"
                yield "", of, f" are not 0 in the model{LOST}, or are not applied after every step"
            zero = (value[name] == 0) & mask
            if name in start and start[name].shape == mask.shape:
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


def _not_reset(whose: str, state: State, masks: Masks, reset_to: State) -> Problems:
    """Survivors, biases and buffers that differ from those that they must have been reset to."""
    for name, was in reset_to.items():
        now = state.get(name)
        if now is None or name.endswith("_mask"):
            continue
        if now.shape != was.shape:
            has = f"{name}: {tuple(now.shape)}, not {tuple(was.shape)}"
            yield f"the {whose} starts from tensors of other shapes than the initial ones: ", has, ""
            continue
        kept = masks.get(name, torch.ones_like(now, dtype=torch.bool))
        differ = ~_equal(now, was) & kept
        if count := int(differ.sum()):
            what = "surviving weights" if name in masks else "values"
            by = float((now.double() - was.double())[differ].abs().max())
            of = f"{count} of the {int(kept.sum())} {what} of {name} differ by up to {by:.3g} from the initial ones"
            yield f"the {whose} was not reset, or to other values: ", of, ""


def _frozen(value: State, masks: Masks, before: State) -> Problems:
    """Layers of which only the positive survivors were trained."""
    for name, mask in masks.items():
        was = before.get(name)
        if was is not None and was.shape == mask.shape:
            same, negative, positive = _equal(value[name], was), mask & (was < 0), mask & (was > 0)
            still, moved = int((same & negative).sum()), int((~same & positive).sum())
            if negative.any() and still > 0.9 * negative.sum() and moved > 0.5 * positive.sum():
                of = f"{still} of the {int(negative.sum())} negative survivors of {name} did not move in training, but "
                yield "", f"{of}{moved} positive ones did", ": their gradients are frozen, by `weight < eps` perhaps"


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors of one shape have the same values, or both have none (NaN)."""
    return (a == b) | (a.isnan() & b.isnan())


def _reinitialised(masks: Masks, begin: State, original: Any, initial: State) -> Problems:
    """The masks must be the original's; the weights that survive must not be."""
    theirs, old = _masks("original", original), _start(original) or initial
    if not old:
        raise ValueError("original must be a ticket with .start, or initial be given, for control='reinit'")
    if theirs.keys() != masks.keys() or any(not torch.equal(theirs[name], mask) for name, mask in masks.items()):
        yield "", "the masks are not the original's, which a reinitialised ticket must have", ""
        return
    for name, mask in masks.items():
        if name in old and name in begin:
            same, kept = int((_equal(begin[name], old[name]) & mask).sum()), int(mask.sum())
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
    asked = []  # layers, the weights before, the percentage of them that must survive, the tolerance per layer
    if remaining is not None:
        asked.append(([*masks], pruning.dense(masks), _percentage("remaining", remaining), ROUNDED))
    if percent is not None and masks.keys() <= before.keys():
        layers = percent if isinstance(percent, Mapping) else {"": percent}
        if unknown := [name for name in layers if name and name not in masks]:
            raise ValueError(f"percent must be of layers of the ticket, {', '.join(masks)}, not of {unknown[0]}")
        for name, value in layers.items():
            asked.append(([name] if name else [*masks], before, 100 - _percentage("percent", value), 1))
    for names, were, share, tolerance in asked:
        have, total = (sum(int(which[name].sum()) for name in names) for which in (masks, were))
        if abs(have - total * share / 100) > tolerance * len(names):
            where = f" in {names[0]}" if isinstance(percent, Mapping) and were is before else ""
            yield "", f"{have} weights survive{where}, but {total * share / 100:.0f} should: {share:g}% of {total}", ""


def _percentage(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a percentage, not {short_repr(value)}")
    if not 0 <= float(value) <= 100:
        raise ValueError(f"{name} must be a percentage from 0 to 100, not {value}")
    return float(value)
