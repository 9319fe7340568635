"""The bridge to torch.nn.utils.prune: rules that prune a model in place, and masks on a model as PyTorch has them.

A pruned parameter `weight` becomes `weight_orig` and `weight_mask` there. Functions that change a model say so.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

from lth import rng
from lth.models import prunable as layers
from lth.models.building import match_names
from lth.models.prunable import BIAS, CONV, EMBEDDING, FC
from lth.pruning import Masks, Weights
from lth.settings.checks import error_with_type, short_repr

Rule = Callable[[nn.Module], object]  # prunes a model in place with torch.nn.utils.prune


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
    """A rule that prunes the fraction `amount` (0 to below 1) of the surviving weights, smallest magnitudes first.
    `scope`: "layer", of each layer, or "global", of all together. ValueError if either is another."""
    return _rule(amount, scope, torch_prune.L1Unstructured)


def random(amount: float, scope: str = "layer") -> Rule:
    """A rule that prunes the fraction `amount` (0 to below 1) of the surviving weights at random. `scope`: "layer", of
    each layer, or "global", of all together. ValueError if either is another."""
    return _rule(amount, scope, torch_prune.RandomUnstructured)


def _rule(amount: float, scope: str, method: type[torch_prune.BasePruningMethod]) -> Rule:
    if not isinstance(amount, (int, float, np.number)) or not 0 <= amount < 1:
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


def check_rule(rule: object) -> Rule:
    """`rule` itself; TypeError unless it can be called with a network and then does its work."""
    expected = "prune_rule must be a function of the network that prunes it with torch.nn.utils.prune"
    if not callable(rule):
        raise TypeError(f"{expected}, not {short_repr(rule)}")
    if inspect.isgeneratorfunction(rule) or inspect.iscoroutinefunction(rule):
        raise TypeError(f"{expected}, not one with `yield` or `async`, which never runs")
    with contextlib.suppress(ValueError):  # some built-in functions have no signature
        try:
            inspect.signature(rule).bind(None)
        except TypeError as error:
            raise TypeError(f"{expected}, but cannot be called with one argument: {error}") from None
    return rule


def apply_rule(rule: Rule, model: nn.Module, final: Weights, masks: Masks, seed: int) -> Masks:
    """`masks` after `rule` has pruned `model` (changed in place) with the weights `final`.

    What the rule masks or sets to 0, in whatever parameter, by torch.nn.utils.prune or in place, is pruned; what was
    pruned before stays so. The rule sees the earlier masks; a random one draws from `seed`.

    Raises RuntimeError if it fails; TypeError, ValueError: it returns another network, replaces layers, changes the
    shapes or names of parameters, or leaves values that are not finite or masks of others than 0 and 1.
    """
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for name, value in final.items():
            tensors[name].copy_(value)
    first_names = {name: names[0] for names in layers.all_names(model).values() for name in names}
    attach(model, masks)
    before, modules = _nonzero(model), dict(model.named_modules())
    try:
        with rng.seeded(seed):
            returned = rule(model)
    except Exception as error:
        raise RuntimeError(f"prune_rule failed with {error_with_type(error)}") from error
    if isinstance(returned, nn.Module) and returned is not model:
        raise TypeError("prune_rule must prune the network that it is given, but returns another one")
    now = dict(model.named_modules())
    if changed := [path for path in {**modules, **now} if modules.get(path) is not now.get(path)]:
        raise ValueError(f"prune_rule must prune the layers that are there, but has replaced or added {changed[0]}")
    if changed := [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]:
        raise ValueError(f"prune_rule must leave finite weights, but leaves NaN or infinity in {changed[0]}")
    after = _nonzero(model)
    if changed := [name for name in {**before, **after} if _shape(before, name) != _shape(after, name)]:
        raise ValueError(
            f"prune_rule must leave the network its parameters and their shapes, but {changed[0]} is another"
        )
    pruned = dict(masks)
    for name, now_nonzero in after.items():
        path, _, parameter = name.rpartition(".")
        mask = model.get_submodule(path)._buffers.get(f"{parameter}_mask")
        kept = pruned.get(first_names[name], torch.ones_like(now_nonzero)) & (now_nonzero | ~before[name])
        if mask is not None:
            if not ((mask == 0) | (mask == 1)).all():
                raise ValueError(f"prune_rule must leave masks of 0 and 1, but {name}_mask has other values")
            kept &= mask.detach().bool().cpu()
        if first_names[name] in masks or not kept.all():
            pruned[first_names[name]] = kept
    return pruned


def _nonzero(model: nn.Module) -> Masks:
    """Where each parameter is not 0, of tied ones under every name. Under a mask of torch.nn.utils.prune there are two
    tensors, what is trained and what a forward pass computes with: 0 in one of them is 0."""
    standing = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                bare = layers.unmasked_name(module, name)
                here = getattr(module, bare).detach().cpu() != 0
                if parameter.shape == here.shape:
                    here &= parameter.detach().cpu() != 0
                standing[f"{path}.{bare}" if path else bare] = here
    return standing


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


def attach(model: nn.Module, masks: Masks) -> nn.Module:
    """Put masks on `model` (changed in place) as torch.nn.utils.prune does, so that PyTorch's tools see them: on a tied
    weight in each of its layers, which continue to share it."""
    aliases = {name: names for names in layers.all_names(model).values() for name in names}
    for name, mask in match_names(masks, aliases).items():
        for alias in aliases[name]:
            path, _, parameter = alias.rpartition(".")
            module = model.get_submodule(path)
            torch_prune.custom_from_mask(module, parameter, mask.to(getattr(module, parameter).device))
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and _masked_output not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_masked_output)
    return model


def _masked_output(attention: nn.Module, inputs: object) -> None:
    """Mask attention's output weights again: it reads them without calling their module, whose hook would."""
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
        buffers = [name for name, _ in module.named_buffers(recurse=False, remove_duplicate=False)]
        for buffer in [name for name in buffers if name.endswith("_mask")]:
            parameter = buffer.removesuffix("_mask")
            if f"{parameter}_orig" in module._parameters:
                mask = module._buffers[buffer]
                assert mask is not None
                name = named[id(module._parameters[f"{parameter}_orig"])]
                masks.setdefault(name, mask.detach().bool().cpu().clone())
                torch_prune.remove(module, parameter)
    return masks


def torch_masks(state: Mapping[str, Tensor]) -> Masks:
    """The masks of torch.nn.utils.prune in a state dict, by the names of the parameters."""
    bare = [name.removesuffix("_orig") for name in state if name.endswith("_orig")]
    return {name: state[f"{name}_mask"].bool() for name in bare if f"{name}_mask" in state}
