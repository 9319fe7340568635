"""Masks: which weights can be pruned, which go next, and the bridge to `torch.nn.utils.prune`.

A mask set is a dict from parameter name to a boolean tensor of its shape: True kept, False pruned. The functions
on masks are pure; those of the bridge, at the end, change the model they are given and say so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

from lth import chance, layers
from lth.layers import BIAS, CONV, EMBEDDING, FC
from lth.settings.arms import CRITERIA

Masks = dict[str, Tensor]
Weights = Mapping[str, Tensor]
Rule = Callable[[nn.Module], object]  # prunes a model in place with torch.nn.utils.prune


def prunable(model: nn.Module, embeddings: bool = False) -> dict[str, nn.Parameter]:
    """The weights of `model` that pruning looks at, by name: see lth.layers. Tied ones come once; those of embeddings
    with `embeddings`."""
    return {name: part.parameter for name, part in _prunable(model, embeddings).items()}


def layer_kinds(model: nn.Module, embeddings: bool = False) -> dict[str, str]:
    """`conv`, `fc` or `output` (the last Linear layer) for each prunable weight of `model`, of embeddings too with
    `embeddings`; all that are no filters are `fc`."""
    found = _prunable(model, embeddings)
    inner = {id(module.out_proj) for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    linear = [n for n, part in found.items() if isinstance(part.layer, nn.Linear) and id(part.layer) not in inner]
    kinds = {name: CONV if part.kind == CONV else FC for name, part in found.items()}
    return {**kinds, linear[-1]: "output"} if linear else kinds


def _prunable(model: nn.Module, embeddings: bool) -> dict[str, layers.Part]:
    names, kinds = layers.names(model), (CONV, FC, *([EMBEDDING] if embeddings else []))
    return {names[id(part.parameter)]: part for part in layers.parts(model) if part.kind in kinds}


def dense(weights: Weights) -> Masks:
    """Masks that keep everything, of the shapes of `weights`."""
    return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}


@dataclass(frozen=True)
class Quota:
    """How many weights some layers keep together; they compete with each other."""

    layers: Sequence[str]
    keep: int


def prune_lowest(scores: Weights, masks: Masks, percents: Mapping[str, float], scope: str = "layer") -> Masks:
    """New masks without the lowest-scored `percents` percent of the survivors (Frankle & Carbin, Section 2): one round.
    Experiments prune by `quotas` and `keep_highest` themselves, for as many rounds at once as an arm asks for.

    Exactly round(survivors * percent / 100) go, also where scores tie: then the first in memory order goes first,
    as in torch.nn.utils.prune. Under scope "global" the layers that share a percentage compete with each other.
    """
    return keep_highest(scores, masks, quotas(masks, percents, scope))


def quotas(masks: Masks, percents: Mapping[str, float], scope: str = "layer", rounds: int = 1) -> list[Quota]:
    """What is to be left of the survivors of `masks` after so many rounds that each prune `percents` percent of them.
    Under scope "global" the layers that share a percentage compete with each other."""
    pools: dict[object, list[str]] = {}
    for name in masks:
        pools.setdefault(percents[name] if scope == "global" else name, []).append(name)
    found = []
    for names in pools.values():
        keep = sum(int(masks[name].sum()) for name in names)
        for _ in range(rounds):
            keep -= round(keep * percents[names[0]] / 100)
        found.append(Quota(names, keep))
    return found


def together(quotas: Sequence[Quota], percents: Mapping[str, float]) -> list[Quota]:
    """`quotas` that keep the same weights in all, with all layers competing that `percents` prunes at all."""
    spared = [quota for quota in quotas if not percents[quota.layers[0]]]
    pruned = [quota for quota in quotas if quota not in spared]
    layers = [name for quota in pruned for name in quota.layers]
    return [*spared, Quota(layers, sum(quota.keep for quota in pruned))] if layers else spared


def keep_highest(scores: Weights, masks: Masks, quotas: Sequence[Quota]) -> Masks:
    """New masks that keep, of the survivors of the layers of each of `quotas`, as many as it says: those of the highest
    `scores`, of equal ones the last in memory order. `masks` are left as they are."""
    pruned = {}
    for quota in quotas:
        kept = torch.cat([masks[name].flatten() for name in quota.layers])
        score = torch.cat([scores[name].detach().cpu().flatten() for name in quota.layers])
        survivors = kept.nonzero().squeeze(1)
        count = len(survivors) - quota.keep
        if count > 0:
            compared = score[survivors]
            highest = compared.kthvalue(count).values  # of those that go; ten times as quick as sorting
            lower, equal = compared < highest, (compared == highest).nonzero().squeeze(1)
            kept[survivors[lower]] = False
            kept[survivors[equal[: count - int(lower.sum())]]] = False
        for name, part in zip(quota.layers, kept.split([masks[name].numel() for name in quota.layers]), strict=True):
            pruned[name] = part.view_as(masks[name]).clone()
    return {name: pruned[name] for name in masks}


def keep_highest_in_steps(
    score: Callable[[Masks], Weights], masks: Masks, quotas: Sequence[Quota], steps: int
) -> Masks:
    """`masks` pruned to `quotas` in so many `steps`: what is left shrinks by the same factor in each, and is scored
    anew, by `score` of the masks (Tanaka et al. 2020, arXiv:2006.05467, Algorithm 1)."""
    before = [sum(int(masks[name].sum()) for name in quota.layers) for quota in quotas]
    for step in range(1, steps + 1):
        shares = [quota.keep / max(count, 1) for quota, count in zip(quotas, before, strict=True)]
        goals = [
            Quota(quota.layers, round(count * share ** (step / steps)))
            for quota, count, share in zip(quotas, before, shares, strict=True)
        ]
        masks = keep_highest(score(masks), masks, goals)
    return masks


def erdos_renyi(masks: Masks, quotas: Sequence[Quota]) -> list[Quota]:
    """`quotas` that keep the same weights in all, divided among the layers of each by Erdos-Renyi-Kernel: the density
    of a layer is proportional to the sum of its shape, that of its mask in `masks`, by its product, at most 1 (Evci et
    al. 2020, arXiv:1911.11134, Section 3)."""
    found = []
    for quota in quotas:
        dense: set[str] = set()
        sizes = {name: int(masks[name].sum()) for name in quota.layers}
        while True:
            sparse = [name for name in quota.layers if name not in dense]
            rest = quota.keep - sum(sizes[name] for name in dense)
            scale = rest / max(sum(sum(masks[name].shape) for name in sparse), 1)
            counts = {name: scale * sum(masks[name].shape) for name in sparse}
            full = {name for name in sparse if counts[name] >= sizes[name]}
            if not full:
                break
            dense |= full
        whole = {name: int(counts.get(name, sizes[name])) for name in quota.layers}
        # What rounding down has left goes to the layers that lost most by it.
        by_loss = sorted(sparse, key=lambda name: whole[name] - counts[name])
        for name in by_loss[: quota.keep - sum(whole.values())]:
            whole[name] += 1
        found += [Quota([name], whole[name]) for name in quota.layers]
    return found


def score(method: str, initial: Weights, final: Weights) -> dict[str, Tensor]:
    """Scores of the pruning criterion `method` (a name in lth.settings.arms.CRITERIA) for each weight of `initial`, of
    its shape; `final` are the trained ones."""
    return {name: CRITERIA[method](initial[name], final[name]) for name in initial}


def percents(model: nn.Module, rates: Mapping[str, float], embeddings: bool = False) -> dict[str, float]:
    """Percent of the survivors that a round prunes, for each prunable weight of `model` (of embeddings too with
    `embeddings`), from the `rates` of the kinds of layers."""
    return {name: rates[kind] for name, kind in layer_kinds(model, embeddings).items()}


def random_scores(masks: Masks, generator: torch.Generator) -> dict[str, Tensor]:
    """Scores that prune at random, of the shapes of `masks`, drawn from `generator`."""
    return {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()}


def shuffled(masks: Masks, generator: torch.Generator) -> Masks:
    """The survivors of each layer of `masks` moved to random places of the same layer, drawn from `generator` (Frankle
    & Carbin, Appendix F)."""
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view_as(mask)
        for name, mask in masks.items()
    }


def survivors(masks: Masks) -> dict[str, int]:
    """How many weights each layer keeps, by the names of `masks`."""
    return {name: int(mask.sum()) for name, mask in masks.items()}


def remaining(masks: Masks) -> float:
    """Percent of the prunable weights that survive in `masks`."""
    return 100 * sum(survivors(masks).values()) / max(sum(mask.numel() for mask in masks.values()), 1)


def pack(mask: Tensor) -> Tensor:
    """A mask as bits, eight weights a byte (1-D uint8)."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack(bits: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The mask of that shape that `pack` made `bits` of."""
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).view(shape)


# The bridge to torch.nn.utils.prune, in which a pruned parameter `weight` becomes `weight_orig` and `weight_mask`.


def fetch_layers(net: nn.Module, biases: bool = False, embeddings: bool = False) -> list[tuple[nn.Module, str]]:
    """The prunable parameters of `net` as the (module, name) pairs that torch.nn.utils.prune takes; its biases and
    embeddings too if asked, and embeddings that have a mask already. Tied weights come once. TypeError if `net` is no
    module."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, not {type(net).__name__}")
    kinds = {CONV, FC, *([BIAS] if biases else []), *([EMBEDDING] if embeddings else [])}
    return [
        (part.module, part.name)
        for part in layers.parts(net)
        if part.kind in kinds or (part.kind == EMBEDDING and f"{part.name}_mask" in part.module._buffers)
    ]


def magnitude(amount: float, scope: str = "layer") -> Rule:
    """A rule that prunes the fraction `amount` (0 to below 1) of the surviving weights, those of smallest magnitude.
    `scope`: "layer", of each layer, or "global", of all together. ValueError if either is another."""
    return _rule(amount, scope, torch_prune.L1Unstructured)


def random(amount: float, scope: str = "layer") -> Rule:
    """A rule that prunes the fraction `amount` (0 to below 1) of the surviving weights at random. `scope`: "layer", of
    each layer, or "global", of all together. ValueError if either is another."""
    return _rule(amount, scope, torch_prune.RandomUnstructured)


def _rule(amount: float, scope: str, method: type[torch_prune.BasePruningMethod]) -> Rule:
    if not isinstance(amount, (int, float)) or not 0 <= amount < 1:
        raise ValueError(f"amount must be a fraction from 0 to below 1, not {amount!r}")
    if scope not in ("layer", "global"):
        raise ValueError(f"scope must be 'layer' or 'global', not {scope!r}")

    def rule(net: nn.Module) -> nn.Module:
        if scope == "global":
            torch_prune.global_unstructured(fetch_layers(net), pruning_method=method, amount=float(amount))
        else:
            for layer, name in fetch_layers(net):
                method.apply(layer, name, amount=float(amount))
        return net

    return rule


def by_rule(rule: Rule, model: nn.Module, final: Weights, masks: Masks, seed: int) -> Masks:
    """`masks` after `rule` has pruned `model` (changed in place) with the weights `final`.

    What the rule masks or sets to 0, in whatever parameter, by torch.nn.utils.prune or in place, is pruned; what was
    pruned before stays so. The rule sees the earlier masks; a random one draws from `seed`. TypeError, ValueError: it
    returns another network, changes the shapes or names of parameters, or masks a tied weight in two of its layers.
    """
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for name, value in final.items():
            tensors[name].copy_(value)
    first = {name: names[0] for names in layers.all_names(model).values() for name in names}
    attach(model, masks)
    before = _standing(model)
    laid = {name: _mask_of(model, name) for name in before}
    with chance.seeded(seed):
        result = rule(model)
    if isinstance(result, nn.Module) and result is not model:
        raise TypeError("prune_rule must prune the network that it is given, but returns another one")
    if inspect.isgenerator(result):
        raise TypeError("prune_rule must be a plain function: with a `yield` in it, calling it does nothing")
    after = _standing(model)
    wrong = [name for name, stood in before.items() if name not in after or after[name].shape != stood.shape]
    if wrong or (came := after.keys() - before.keys()):
        name = wrong[0] if wrong else min(came)
        raise ValueError(f"prune_rule must leave the network its parameters and their shapes, but {name} is another")
    pruned, places = dict(masks), dict[str, str]()
    for name, stands in after.items():
        kept = pruned.get(first[name], torch.ones_like(stands)) & (stands | ~before[name])
        mask, earlier = _mask_of(model, name), laid[name]
        if mask is not None:
            gone = ~mask if earlier is None else earlier & ~mask
            if gone.any() and (place := places.setdefault(first[name], name)) != name:
                raise ValueError(
                    f"prune_rule must prune tied weights once, as fetch_layers gives them: {name} is {place} too"
                )
            kept &= mask
        if first[name] in masks or not kept.all():
            pruned[first[name]] = kept
    return pruned


def _standing(model: nn.Module) -> Masks:
    """Where each parameter is not 0, of tied ones under every name. Under a mask of torch.nn.utils.prune there are two
    tensors, what is trained and what a forward pass computes with: 0 in one of them is 0."""
    standing = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                bare = layers.bare(module, name)
                here = getattr(module, bare).detach().cpu() != 0
                if parameter.shape == here.shape:
                    here &= parameter.detach().cpu() != 0
                standing[f"{path}.{bare}" if path else bare] = here
    return standing


def _mask_of(model: nn.Module, name: str) -> Tensor | None:
    """The mask of torch.nn.utils.prune that is on a parameter."""
    path, _, parameter = name.rpartition(".")
    mask = model.get_submodule(path)._buffers.get(f"{parameter}_mask")
    return None if mask is None else mask.detach().bool().cpu()


def attach(model: nn.Module, masks: Masks) -> nn.Module:
    """Put masks on `model` (changed in place) as torch.nn.utils.prune does, so that PyTorch's tools see them: on a tied
    weight in each of its layers, which go on sharing it."""
    tied = {name: names for names in layers.all_names(model).values() for name in names}
    for name, mask in masks.items():
        for each in tied[name]:
            path, _, parameter = each.rpartition(".")
            module = model.get_submodule(path)
            torch_prune.custom_from_mask(module, parameter, mask.to(getattr(module, parameter).device))
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and _masked_output not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_masked_output)
    return model


def _masked_output(attention: nn.Module, inputs: object) -> None:
    """Put the mask on attention's output weights anew: it reads them without calling their module, whose hook would."""
    for hook in attention.out_proj._forward_pre_hooks.values():  # type: ignore[union-attr]
        hook(attention.out_proj, inputs)


def detach(model: nn.Module) -> Masks:
    """Take the masks of torch.nn.utils.prune off `model` (changed in place: pruned weights become 0.0). Those of tied
    weights come once."""
    masks: Masks = {}
    named = layers.names(model)
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is _masked_output:
                del module._forward_pre_hooks[key]
        for buffer in [name for name in module._buffers if name.endswith("_mask")]:
            parameter = buffer.removesuffix("_mask")
            if f"{parameter}_orig" in module._parameters:
                mask = module._buffers[buffer]
                assert mask is not None
                name = named[id(module._parameters[f"{parameter}_orig"])]
                masks.setdefault(name, mask.detach().bool().cpu().clone())
                torch_prune.remove(module, parameter)
    return masks
