"""Is a network the ticket that its owner believes it is? `lth.audit`, and `assert_ticket` for tests in pytest."""

import math
from collections.abc import Hashable, Iterator, Mapping
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
CHANCE = 6.0  # standard deviations from the expected overlap: about one sound control in a billion fails
SHOWN = 3  # layers named in a sentence about several
LOST = ": the masks were lost, in saving perhaps"

Problem = tuple[str, str, str]  # a sentence in three parts: its beginning, the detail of one layer, its end
Problems = Iterator[Problem]


class AuditError(Exception):
    """The problems that an audit found, one sentence per line; `problems` is a tuple of them."""

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
    (weight_orig, weight_mask) must be the ticket's; surviving weights must not be 0. Further checks are optional.

    Args:
        model: a network, a state dict, or a dict with one as its "state_dict". It is not changed. In all names, the
            prefixes `module.` and `_orig_mod.` of PyTorch's wrappers are ignored. Tied weights are checked under the
            first of their names (in a state dict: those that share memory).
        ticket: the result of `lth.load_ticket` (in arms whose trainings change masks, an untrained model must have its
            start_masks) or another object with `masks` and `start`; or only masks: a dict from parameter names to
            tensors of the parameters' shapes, 1 (True) kept, 0 (False) pruned, or a network with masks of
            torch.nn.utils.prune. None: `model` is such a network. `previous` and `original` are given in the same ways.
        initial: a network or a state dict with the initial weights or, with rewinding, those of the rewind point. All
            survivors, biases and buffers must equal them exactly. None: the ticket's start, if it has one.
        trained: whether the model has been trained since its reset. If so, its zeros are checked, the start of the
            ticket itself and, if its start or `initial` is known, that not only positive weights have learned.
        remaining: percent of the weights under masks that must survive, within five weights per layer, which rounding
            may add up to over the rounds.
        percent: percent of the survivors of `previous` that must have been pruned, within one weight per layer: one
            number for all layers, or a dict by the names of layers.
        previous: the ticket or the masks of the round before, whose pruned weights must not come back. None: dense.
        control: the kind of control that this ticket is: "reinit" (the masks of `original`, other weights), "shuffle"
            (as many survivors per layer at random positions), "random" (random positions).
        original: the ticket that this one is a control for; with "reinit" it must have `start`, or be the masks and
            `initial` be given.

    Raises:
        lth.AuditError: something is wrong with the ticket or the model; the message says what, where and how much.
        TypeError, ValueError: an argument cannot be audited.
    """
    checks.boolean("trained", trained)
    if control is not None:
        checks.one_of("control", control, CONTROLS)
    if (control is None) != (original is None):
        raise ValueError("control and original must be given together")
    source = model if ticket is None else ticket
    masks = _masks("ticket", source if trained else getattr(source, "start_masks", source))
    state, start = _state("model", model), _start("ticket", ticket)
    reset_to = start if initial is None else _state("initial", initial)
    if (start or initial is not None) and (missing := [name for name in masks if name not in reset_to]):
        raise ValueError(f"initial must have all parameters under masks, but has no {missing[0]}")
    before = pruning.dense(masks) if previous is None else _masks("previous", previous)
    is_reinit = control == "reinit"
    problems = list(_other_shapes(state, masks))
    if not problems:  # tensors of other shapes cannot be compared
        problems += _changed(model, masks)
        problems += _zeros(state, masks, start or reset_to)
        if is_reinit:
            problems += _reinitialised(masks, start if trained else state, original, reset_to)
        elif control is not None:
            problems += _at_random(masks, original, control == "shuffle")
        if not trained:
            problems += _not_reset("model", state, masks, start if is_reinit else reset_to)
        if not is_reinit:
            problems += _not_reset("ticket", start, masks, reset_to)
        if trained:
            problems += _frozen(state, masks, reset_to)
        problems += _revived(masks, before)
        problems += _counts(masks, before, remaining, percent)
    if problems:
        raise AuditError(*_sentences(problems))


def _sentences(problems: list[Problem]) -> list[str]:
    """The problems in words, one sentence for all layers that have the same one."""
    groups: dict[tuple[str, str], list[str]] = {}
    for begin, detail, end in problems:
        groups.setdefault((begin, end), []).append(detail)
    sentences = []
    for (begin, end), details in groups.items():
        more = [f"and {len(details) - SHOWN} more"] if len(details) > SHOWN else []
        sentences.append(f"{begin}{'; '.join([*details[:SHOWN], *more])}{end}")
    return sentences


def _masks(argument: str, source: Any) -> Masks:
    """The masks of a ticket or of a network that has some, or `source` itself, on the CPU."""
    source = _unpacked(source)
    state = source.state_dict() if isinstance(source, nn.Module) else source
    masks = (isinstance(state, Mapping) and torch_masks(state)) or getattr(source, "masks", source)
    if not isinstance(masks, Mapping) or not masks or not all(isinstance(mask, Tensor) for mask in masks.values()):
        raise TypeError(f"{argument} must be {TICKET}, not {short_repr(source)}")
    for name, mask in masks.items():
        if count := int(((mask != 0) & (mask != 1)).sum()):
            raise ValueError(f"{argument} must have masks of 0 and 1, but {count} values of the mask of {name} are not")
    return {unwrapped_name(str(name)): mask.detach().cpu().bool() for name, mask in masks.items()}


def _unpacked(source: Any) -> Any:
    """The state dict of a checkpoint {"state_dict": ...}; anything else as it is."""
    return source["state_dict"] if isinstance(source, Mapping) and "state_dict" in source else source


def _state(argument: str, source: Any) -> State:
    """Parameters (tied ones once), buffers and masks (`.._mask`) by name, on the CPU, without the `_orig` of
    torch.nn.utils.prune."""
    source = _unpacked(source)
    if not isinstance(source, (nn.Module, Mapping)):
        raise TypeError(f"{argument} must be a torch.nn.Module or a state dict, not {short_repr(source)}")
    state = source.state_dict() if isinstance(source, nn.Module) else source
    state = {unwrapped_name(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    first: dict[Hashable, str] = {}
    return {
        name.removesuffix("_orig") if f"{name.removesuffix('_orig')}_mask" in state else name: tensor.detach().cpu()
        for name, tensor in state.items()
        if first.setdefault(_memory(tensor), name) == name
    }


def _memory(tensor: Tensor) -> Hashable:
    """Where its values are in memory: the same for tied tensors, but not for equal ones."""
    if tensor.layout != torch.strided or not tensor.data_ptr():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _other_shapes(state: State, masks: Masks) -> Problems:
    """Masks of parameters that the model does not have, or has in another shape."""
    for name, mask in masks.items():
        if name not in state:
            yield "the ticket has a mask for ", name, ", but the model has no such parameter"
        for kind, tensor in (("parameter", state.get(name)), ("mask", state.get(f"{name}_mask"))):
            if tensor is not None and tensor.shape != mask.shape:
                shapes = f"{tuple(mask.shape)} in the ticket and {tuple(tensor.shape)} as the model's {kind}"
                yield "a mask must have the shape of its parameter, but ", f"{name} has {shapes}", ""


def _changed(model: Any, masks: Masks) -> Problems:
    """Layers that fill the zeros of their weights before they multiply."""
    for path, layer in model.named_modules() if isinstance(model, nn.Module) else ():
        mask = masks.get(unwrapped_name(f"{path}.weight" if path else "weight"))
        if mask is not None and not mask.all() and changes_weight(layer):
            end = " changes its weight before it multiplies: pruned weights are not 0 in the forward pass"
            yield "", f"{path} ({type(layer).__name__})", end


def _zeros(state: State, masks: Masks, start: State) -> Problems:
    """Parameters that are not 0 where they are pruned, or are 0 elsewhere, and masks on the model that differ."""
    for name, mask in masks.items():
        own_mask, kept = state.get(f"{name}_mask"), int(mask.sum())
        if own_mask is None:
            if count := int((state[name][~mask] != 0).sum()):
                detail = f"{count} of the {mask.numel() - kept} pruned weights of {name}"
                yield "", detail, f" are not 0 in the model{LOST}, or are not applied after every step"
            zero = (state[name] == 0) & mask
            if name in start and start[name].shape == mask.shape:
                zero &= start[name] != 0
            if (count := int(zero.sum())) > FEW * kept:
                detail = f"{count} of the {kept} weights of {name} that the ticket keeps"
                yield "", detail, " are 0 in the model: it is pruned further, or by another mask"
        elif not torch.equal(own_mask.bool(), mask):
            lost, more = int((own_mask.bool() & ~mask).sum()), int((~own_mask.bool() & mask).sum())
            detail = f"that of {name} keeps {lost} weights that the ticket prunes, and prunes {more} that it keeps"
            yield "the model's masks are not the ticket's: ", detail, LOST if own_mask.bool().all() else ""
        elif count := int(((own_mask != 0) & (own_mask != 1)).sum()):
            yield "the model's masks must be 0 and 1, but ", f"{count} values of the mask of {name}", " are not"
    for key, own_mask in state.items():
        name = key.removesuffix("_mask")
        if key != name and name in state and name not in masks and not own_mask.all():
            pruned = int((own_mask == 0).sum())
            yield "the model has masks that the ticket has not: ", f"on {name}, of {pruned} weights", ""


def _not_reset(owner: str, state: State, masks: Masks, reset_to: State) -> Problems:
    """Survivors, biases and buffers of the model or the ticket (`owner`) that differ from the values that they must
    have been reset to."""
    for name, initial in reset_to.items():
        tensor = state.get(name)
        if tensor is None or name.endswith("_mask"):
            continue
        if tensor.shape != initial.shape:
            detail = f"{name}: {tuple(tensor.shape)}, not {tuple(initial.shape)}"
            yield f"the {owner} starts from tensors of other shapes than the initial ones: ", detail, ""
            continue
        kept = masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
        differ = ~_equal(tensor, initial) & kept
        if count := int(differ.sum()):
            values = f"{int(kept.sum())} {'surviving weights' if name in masks else 'values'} of {name}"
            most = float((tensor.double() - initial.double())[differ].abs().max())
            detail = f"{count} of the {values} differ by up to {most:.3g} from the initial ones"
            yield f"the {owner} was not reset, or to other values: ", detail, ""


def _frozen(state: State, masks: Masks, reset_to: State) -> Problems:
    """Layers in which training moved only the positive survivors."""
    for name, mask in masks.items():
        initial = reset_to.get(name)
        if initial is not None and initial.shape == mask.shape:
            same, negative, positive = _equal(state[name], initial), mask & (initial < 0), mask & (initial > 0)
            still, moved = int((same & negative).sum()), int((~same & positive).sum())
            if negative.any() and still > 0.9 * negative.sum() and moved > 0.5 * positive.sum():
                detail = f"{still} of the {int(negative.sum())} negative survivors of {name} did not move in training, "
                detail += f"but {moved} positive ones did"
                yield "", detail, ": their gradients are frozen, by `weight < eps` perhaps"


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors of one shape have the same values, or both have NaN."""
    return (a == b) | (a.isnan() & b.isnan())


def _start(argument: str, ticket: Any) -> State:
    """The start of a ticket; empty if it has none."""
    start = getattr(ticket, "start", None)
    return {} if start is None else _state(f"{argument}.start", start)


def _reinitialised(masks: Masks, start: State, original: Any, initial: State) -> Problems:
    """The masks must be the original's; the weights that survive must not be."""
    original_masks = _masks("original", original)
    original_start = _start("original", original) or initial
    if not original_start:
        raise ValueError("original must be a ticket with .start, or initial be given, for control='reinit'")
    if original_masks.keys() != masks.keys() or any(not original_masks[name].equal(masks[name]) for name in masks):
        yield "", "the masks are not the original's, which a reinitialised ticket must have", ""
        return
    for name, mask in masks.items():
        if name in original_start and name in start:
            same, kept = int((_equal(start[name], original_start[name]) & mask).sum()), int(mask.sum())
            if same > FEW * kept:
                detail = f"{same} of the {kept} surviving weights of {name}"
                yield "", detail, " start as in the original ticket: it is no control, its weights are not new"


def _at_random(masks: Masks, original: Any, same_counts: bool) -> Problems:
    """In each layer, the number of the original's survivors that also survive here must agree with chance
    (hypergeometric); if `same_counts`, the numbers of survivors must be equal."""
    original = _masks("original", original)
    if masks.keys() != original.keys() or any(masks[name].shape != mask.shape for name, mask in original.items()):
        yield "", "the masks are of other parameters than the original's, which a control must not be", ""
        return
    for name, mask in masks.items():
        total, kept, originally_kept = mask.numel(), int(mask.sum()), int(original[name].sum())
        if same_counts and kept != originally_kept:
            detail = f"{name} keeps {kept} weights, but {originally_kept} in the original"
            yield "", detail, ": shuffling must not change that"
        both, expected = int((mask & original[name]).sum()), kept * originally_kept / total
        deviation = math.sqrt(expected * (1 - originally_kept / total) * (total - kept) / max(total - 1, 1))
        if abs(both - expected) > max(CHANCE * deviation, 1):
            detail = f"{both} of the {kept} survivors of {name} are the original's, by chance {expected:.0f} would be"
            yield "", detail, ": the control is not random"


def _revived(masks: Masks, before: Masks) -> Problems:
    """Survivors that the round before had pruned."""
    for name, mask in masks.items():
        earlier = before.get(name)
        if earlier is None or earlier.shape != mask.shape:
            yield "previous must have a mask ", f"of the shape {tuple(mask.shape)} for {name}", ", but has none"
        elif count := int((mask & ~earlier).sum()):
            yield "", f"{count} weights of {name}", " survive that the round before had pruned: they came back"


def _counts(masks: Masks, before: Masks, remaining: Any, percent: Any) -> Problems:
    """The requested percentages of all weights (`remaining`) and of the survivors of `before` must survive."""
    if remaining is not None:
        yield from _count(masks, pruning.dense(masks), _percentage("remaining", remaining), ROUNDED)
    if percent is not None and masks.keys() <= before.keys():
        layers = percent if isinstance(percent, Mapping) else {"": percent}
        if unknown := [name for name in layers if name and name not in masks]:
            raise ValueError(f"percent must be of layers of the ticket, {', '.join(masks)}, not of {unknown[0]}")
        for name, value in layers.items():
            selected, where = ({name: masks[name]}, f" in {name}") if name else (masks, "")
            yield from _count(selected, before, 100 - _percentage("percent", value), 1, where)


def _count(masks: Masks, before: Masks, percent: float, tolerance: int, where: str = "") -> Problems:
    """`percent` of the weights in `before` must survive, within `tolerance` weights per layer."""
    total = sum(int(before[name].sum()) for name in masks)
    left, expected = sum(pruning.survivors(masks).values()), total * percent / 100
    if abs(left - expected) > tolerance * len(masks):
        yield "", f"{left} weights survive{where}, but {expected:.0f} should: {percent:g}% of {total}", ""


def _percentage(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a percentage, not {short_repr(value)}")
    if not 0 <= float(value) <= 100:
        raise ValueError(f"{name} must be a percentage from 0 to 100, not {value}")
    return float(value)
