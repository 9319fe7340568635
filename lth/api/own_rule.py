"""A pruning rule of the user's own: what it must be, and what it must leave of a network."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lth.data.images import of_arrays
from lth.prune import Rule
from lth.settings.checks import said, shown


def check_rule(rule: Any) -> Rule:
    """TypeError unless `rule` can be called with a network and then does its work."""
    expected = "a function of the network that prunes it with torch.nn.utils.prune"
    if not callable(rule):
        raise TypeError(f"prune_rule must be {expected}, not {shown(rule)}")
    if inspect.isgeneratorfunction(rule) or inspect.iscoroutinefunction(rule):
        raise TypeError(f"prune_rule must be {expected}, not one with `yield` or `async`, which never runs")
    with contextlib.suppress(ValueError):  # some built-in functions have no signature
        try:
            inspect.signature(rule).bind(None)
        except TypeError as error:
            raise TypeError(f"prune_rule must be {expected}, but cannot be called with one argument: {error}") from None
    return rule


def checked(rule: Rule, own: nn.Module) -> Rule:
    """`rule` with its errors reported as its own (RuntimeError). ValueError unless it leaves the network's layers in
    their places, finite weights and masks of 0 and 1, or if it prunes the user's `own` network instead."""

    def prune(net: nn.Module) -> Any:
        modules, names = dict(net.named_modules()), [name for name, _ in own.named_parameters()]
        before, values = _print(net), _print(own)
        try:
            result = rule(net)
        except Exception as error:
            raise RuntimeError(f"prune_rule failed with {said(error)}") from error
        masked = [name for name, _ in own.named_parameters()] != names
        if masked or (_print(own) != values and _print(net) == before):
            raise ValueError(
                "prune_rule must prune the network that it is given, a trained copy of net, not net itself, which it "
                "has changed: build net again"
            )
        now = dict(net.named_modules())
        for path in [*modules, *now]:
            if modules.get(path) is not now.get(path):
                raise ValueError(f"prune_rule must prune the layers that are there, but has replaced or added {path}")
        for name, tensor in _of_layers(net):
            if not torch.isfinite(tensor).all():
                raise ValueError(f"prune_rule must leave finite weights, but leaves NaN or infinity in {name}")
            if name.endswith("_mask") and not ((tensor == 0) | (tensor == 1)).all():
                raise ValueError(f"prune_rule must leave masks of 0 and 1, but {name} has other values")
        return result

    return prune


def _print(net: nn.Module) -> str:
    return of_arrays(tensor for _, tensor in _of_layers(net))


def _of_layers(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a network and, where torch.nn.utils.prune is at work, the masks and what they leave."""
    for path, module in net.named_modules():
        for name, parameter in module._parameters.items():
            bare = name.removesuffix("_orig")
            masked = bare != name and f"{bare}_mask" in module._buffers
            for key in (name, f"{bare}_mask", bare) if masked else (name,):
                if parameter is not None:
                    yield f"{path}.{key}" if path else key, getattr(module, key)
