"""Masks: which weights can be pruned, which go next, and the bridge to `torch.nn.utils.prune`.

A mask set is a dict from parameter name to a boolean tensor of its shape: True kept, False pruned. The functions
on masks are pure; those of the bridge, at the end, change the model they are given and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lth.settings.arms import CRITERIA

Masks = dict[str, Tensor]
Weights = Mapping[str, Tensor]
Rule = Callable[[nn.Module], object]  # prunes a model in place with torch.nn.utils.prune


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that pruning looks at: those of Linear, Conv and transposed Conv layers, tied ones once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    weights = {}
    for module in model.modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            weight = module._parameters.get("weight")
            if weight is not None:
                weights[names[id(weight)]] = weight
    return weights


def layer_kinds(model: nn.Module) -> dict[str, str]:
    """`conv`, `fc` or `output` (the last Linear layer) for each prunable weight."""
    kinds = {name: "fc" if weight.ndim == 2 else "conv" for name, weight in prunable(model).items()}
    linear = [name for name, kind in kinds.items() if kind == "fc"]
    return {**kinds, linear[-1]: "output"} if linear else kinds


def dense(weights: Weights) -> Masks:
    """Masks that keep everything."""
    return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}


def prune_lowest(
    scores: Weights, masks: Masks, percents: Mapping[str, float], scope: str = "layer", times: int = 1
) -> Masks:
    """New masks without the lowest-scored `percents` percent of the survivors (Frankle & Carbin, Section 2).

    Exactly round(survivors * percent / 100) go, also where scores tie: then the first in memory order goes first,
    as in torch.nn.utils.prune. Under scope "global" the layers that share a percentage compete with each other.
    `times`: as many go at once as in so many rounds.
    """
    if scope == "global":
        shared: dict[float, list[str]] = {}
        for name in masks:
            shared.setdefault(percents[name], []).append(name)
        pools = list(shared.values())
    else:
        pools = [[name] for name in masks]
    pruned = {}
    for names in pools:
        kept = torch.cat([masks[name].flatten() for name in names])
        score = torch.cat([scores[name].detach().cpu().flatten() for name in names])
        survivors = kept.nonzero().squeeze(1)
        count = len(survivors) - after_rounds(len(survivors), percents[names[0]], times)
        kept[survivors[score[survivors].argsort(stable=True)[:count]]] = False
        for name, part in zip(names, kept.split([masks[name].numel() for name in names]), strict=True):
            pruned[name] = part.view_as(masks[name]).clone()
    return {name: pruned[name] for name in masks}


def after_rounds(count: int, percent: float, rounds: int) -> int:
    """How many of `count` weights are left when each round prunes that percentage of the survivors."""
    for _ in range(rounds):
        count -= round(count * percent / 100)
    return count


def score(method: str, initial: Weights, final: Weights) -> dict[str, Tensor]:
    """Scores of the pruning criterion `method` (a name in lth.settings.arms.CRITERIA) for each weight of `initial`."""
    return {name: CRITERIA[method](initial[name], final[name]) for name in initial}


def percents(model: nn.Module, rates: Mapping[str, float]) -> dict[str, float]:
    """Percent of the survivors that a round prunes, for each prunable weight, from the rates of the kinds of layers."""
    return {name: rates[kind] for name, kind in layer_kinds(model).items()}


def random_scores(masks: Masks, generator: torch.Generator) -> dict[str, Tensor]:
    """Scores that prune at random."""
    return {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()}


def shuffled(masks: Masks, generator: torch.Generator) -> Masks:
    """The survivors of each layer moved to random places of the same layer (Frankle & Carbin, Appendix F)."""
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view_as(mask)
        for name, mask in masks.items()
    }


def survivors(masks: Masks) -> dict[str, int]:
    """How many weights each layer keeps."""
    return {name: int(mask.sum()) for name, mask in masks.items()}


def remaining(masks: Masks) -> float:
    """Percent of the prunable weights that survive."""
    return 100 * sum(survivors(masks).values()) / max(sum(mask.numel() for mask in masks.values()), 1)


def pack(mask: Tensor) -> Tensor:
    """A mask as bits, eight weights a byte (1-D uint8)."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack(bits: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The mask of that shape that `pack` made `bits` of."""
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).view(shape)


# The bridge to torch.nn.utils.prune, in which a pruned parameter `weight` becomes `weight_orig` and `weight_mask`.


def fetch_layers(net: nn.Module, biases: bool = False) -> list[tuple[nn.Module, str]]:
    """The prunable parameters of `net` as the (module, name) pairs that torch.nn.utils.prune takes; its biases too
    if asked. Tied weights come once. TypeError if `net` is no module."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, not {type(net).__name__}")
    found: list[tuple[nn.Module, str]] = []
    seen = set()
    for module in net.modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            for name in ("weight", "bias") if biases else ("weight",):
                parameter = module._parameters.get(name, module._parameters.get(f"{name}_orig"))
                if parameter is not None and id(parameter) not in seen:
                    seen.add(id(parameter))
                    found.append((module, name))
    return found


def magnitude(amount: float, scope: str = "layer") -> Rule:
    """A rule that prunes the fraction `amount` of the surviving weights, those of the smallest magnitude."""
    return _rule(amount, scope, torch_prune.L1Unstructured)


def random(amount: float, scope: str = "layer") -> Rule:
    """A rule that prunes the fraction `amount` of the surviving weights at random."""
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
    """`masks` after `rule` has pruned `model` (changed in place) with the weights `final`; a random rule draws from
    `seed`."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for name, value in final.items():
            tensors[name].copy_(value)
    attach(model, masks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rule(model)
    return {**masks, **detach(model)}


def attach(model: nn.Module, masks: Masks) -> nn.Module:
    """Put masks on `model` (changed in place) as torch.nn.utils.prune does, so that PyTorch's tools see them."""
    for name, mask in masks.items():
        path, _, parameter = name.rpartition(".")
        module = model.get_submodule(path)
        torch_prune.custom_from_mask(module, parameter, mask.to(getattr(module, parameter).device))
    return model


def detach(model: nn.Module) -> Masks:
    """Take the masks of torch.nn.utils.prune off `model` (changed in place: pruned weights become 0.0)."""
    masks = {}
    for path, module in model.named_modules():
        for buffer in [name for name in module._buffers if name.endswith("_mask")]:
            parameter = buffer.removesuffix("_mask")
            if f"{parameter}_orig" in module._parameters:
                mask = module._buffers[buffer]
                assert mask is not None
                masks[f"{path}.{parameter}" if path else parameter] = mask.detach().bool().cpu().clone()
                torch_prune.remove(module, parameter)
    return masks
