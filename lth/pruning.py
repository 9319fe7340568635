"""Masks: which weights can be pruned, and which go next.

A mask set is a dict from parameter name to a boolean tensor of its shape: True kept, False pruned. All functions are
pure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lth.models import prunable as layers
from lth.models.prunable import CONV, EMBEDDING, FC
from lth.settings.arms import CRITERIA

Masks = dict[str, Tensor]
Weights = Mapping[str, Tensor]


def prunable(model: nn.Module, embeddings: bool = False) -> dict[str, nn.Parameter]:
    """The weights of `model` that pruning looks at, by name: see lth/models/prunable.py. Tied ones come once; those of
    embeddings with `embeddings`."""
    return {name: part.parameter for name, part in _prunable(model, embeddings).items()}


def layer_kinds(model: nn.Module, embeddings: bool = False) -> dict[str, str]:
    """`conv`, `fc` or `output` (the Linear layer that is defined last) for each prunable weight of `model`, of
    embeddings too with `embeddings`; all that are no filters are `fc`."""
    parts = _prunable(model, embeddings)
    inner = {id(module.out_proj) for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    linear = [n for n, part in parts.items() if isinstance(part.layer, nn.Linear) and id(part.layer) not in inner]
    kinds = {name: CONV if part.kind == CONV else FC for name, part in parts.items()}
    return {**kinds, linear[-1]: "output"} if linear else kinds


def _prunable(model: nn.Module, embeddings: bool) -> dict[str, layers.Part]:
    names, kinds = layers.names(model), (CONV, FC, *([EMBEDDING] if embeddings else []))
    return {
        names[id(part.parameter)]: part for part in layers.parts(model) if part.kind in kinds and part.parameter.numel()
    }


def dense(weights: Weights) -> Masks:
    """Masks that keep everything, of the shapes of `weights`."""
    return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}


@dataclass(frozen=True)
class Quota:
    """How many weights some layers keep together; they compete with each other."""

    layers: Sequence[str]
    keep: int


def quotas(masks: Masks, percents: Mapping[str, float], scope: str = "layer", rounds: int = 1) -> list[Quota]:
    """What is to be left of the survivors of `masks` after so many rounds that each prune `percents` percent of them.
    Under scope "global" the layers that share a percentage compete with each other, else only weights of one layer."""
    groups: dict[object, list[str]] = {}
    for name in masks:
        groups.setdefault(percents[name] if scope == "global" else name, []).append(name)
    result = []
    for names in groups.values():
        keep = sum(int(masks[name].sum()) for name in names)
        for _ in range(rounds):
            keep -= round(keep * percents[names[0]] / 100)
        result.append(Quota(names, keep))
    return result


def merge_quotas(quotas: Sequence[Quota], percents: Mapping[str, float]) -> list[Quota]:
    """`quotas` that keep as many weights in all, with all layers competing that `percents` prunes at all."""
    spared = [quota for quota in quotas if not percents[quota.layers[0]]]
    pruned = [quota for quota in quotas if quota not in spared]
    names = [name for quota in pruned for name in quota.layers]
    return [*spared, Quota(names, sum(quota.keep for quota in pruned))] if names else spared


def keep_highest(
    scores: Weights, masks: Masks, quotas: Sequence[Quota], generator: torch.Generator | None = None
) -> Masks:
    """New masks that keep, of the survivors of the layers of each of `quotas`, as many as it says: those of the highest
    `scores`, of equal ones any, drawn from `generator`; without one the last in memory order. `masks` are left as they
    are."""
    pruned = {}
    for quota in quotas:
        mask = torch.cat([masks[name].flatten() for name in quota.layers])
        pooled_scores = torch.cat([scores[name].detach().cpu().flatten() for name in quota.layers])
        survivors = mask.nonzero().squeeze(1)
        count = len(survivors) - quota.keep
        if count > 0:
            compared = pooled_scores[survivors]
            highest = compared.kthvalue(count).values  # of those that go; ten times as quick as sorting
            lower, equal = compared < highest, (compared == highest).nonzero().squeeze(1)
            mask[survivors[lower]] = False
            going = count - int(lower.sum())
            if generator is not None and going < len(equal):
                equal = equal[torch.randperm(len(equal), generator=generator)]
            mask[survivors[equal[:going]]] = False
        for name, part in zip(quota.layers, mask.split([masks[name].numel() for name in quota.layers]), strict=True):
            pruned[name] = part.view_as(masks[name]).clone()
    return {name: pruned[name] for name in masks}


def count_ties(scores: Weights, before: Masks, after: Masks, quotas: Sequence[Quota]) -> int:
    """How many survivors of `after` have the score of weights that were pruned from `before` for the same quota."""
    count = 0
    for quota in quotas:
        pooled = torch.cat([scores[name].detach().cpu()[before[name]] for name in quota.layers])
        mask = torch.cat([after[name][before[name]] for name in quota.layers])
        if not mask.all():
            count += int((pooled[mask] == pooled[~mask].max()).sum())
    return count


def keep_highest_in_steps(
    score: Callable[[Masks], Weights],
    masks: Masks,
    quotas: Sequence[Quota],
    steps: int,
    generator: torch.Generator | None = None,
) -> tuple[Masks, int]:
    """`masks` pruned to `quotas` in so many `steps`, and `count_ties` of the last one. The number of survivors shrinks
    by the same factor in each step, and they are scored again, by `score` of the masks (Tanaka et al. 2020,
    arXiv:2006.05467, Algorithm 1)."""
    counts = [sum(int(masks[name].sum()) for name in quota.layers) for quota in quotas]
    for step in range(1, steps + 1):
        goals = [
            Quota(quota.layers, round(count * (quota.keep / max(count, 1)) ** (step / steps)))
            for quota, count in zip(quotas, counts, strict=True)
        ]
        before, scores = masks, score(masks)
        masks = keep_highest(scores, before, goals, generator)
    return masks, count_ties(scores, before, masks, quotas)


def erdos_renyi(masks: Masks, quotas: Sequence[Quota]) -> list[Quota]:
    """`quotas` that keep the same weights in all, divided among the layers of each by Erdos-Renyi-Kernel: the density
    of a layer is proportional to the sum of its shape, that of its mask in `masks`, by its product, at most 1 (Evci et
    al. 2020, arXiv:1911.11134, Section 3)."""
    result = []
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
        result += [Quota([name], whole[name]) for name in quota.layers]
    return result


def score(method: str, initial: Weights, final: Weights) -> dict[str, Tensor]:
    """Scores of the pruning criterion `method` (a name in lth.settings.arms.CRITERIA) for each weight of `initial`, of
    its shape; `final` are the trained ones."""
    return {name: CRITERIA[method](initial[name], final[name]) for name in initial}


def percents(model: nn.Module, rates: Mapping[str, float], embeddings: bool = False) -> dict[str, float]:
    """Percent of the survivors that a round prunes, for each prunable weight of `model` (of embeddings too with
    `embeddings`), from the `rates` of the kinds of layers."""
    return {name: rates[kind] for name, kind in layer_kinds(model, embeddings).items()}


def output_layer_note(model: nn.Module, classes: int, embeddings: bool = False) -> str:
    """A sentence if the Linear layer that counts as the output layer of `model` gives other outputs than one a class,
    and another one gives these; else ""."""
    outputs = {name: getattr(part.layer, "out_features", 0) for name, part in _prunable(model, embeddings).items()}
    output = next((name for name, kind in layer_kinds(model, embeddings).items() if kind == "output"), None)
    others = [name for name, count in outputs.items() if count == classes]
    if output is None or outputs[output] == classes or not others:
        return ""
    return (
        f"output_percent is for {output}, the last Linear layer of the model. It has {outputs[output]} outputs, "
        f"but {others[-1]} has one for each of the {classes} classes: define it last if it is the output layer"
    )


def random_scores(masks: Masks, generator: torch.Generator) -> dict[str, Tensor]:
    """Scores that prune at random, of the shapes of `masks`, drawn from `generator`."""
    return {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()}


def shuffled(masks: Masks, generator: torch.Generator) -> Masks:
    """The survivors of each layer of `masks` moved to random places of the same layer, drawn from `generator` (Frankle
    & Carbin, Appendix E)."""
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
    """A mask as bits, eight weights per byte (1-D uint8)."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack(bits: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The mask of that shape that `pack` made `bits` of."""
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).view(shape)
