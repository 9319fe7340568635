"""A pruning rule of the user's own: what it must be, and what it must leave of a network."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lth.data.prints import of_arrays
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
    """`rule`, whose own errors are said to be its own (RuntimeError), and which must leave the network's layers in
    their places and without NaN, under masks of 0 and 1, and must not prune the user's `own` network in its stead
    (ValueError)."""

    def prune(net: nn.Module) -> Any:
        modules, put_back = dict(net.named_modules()), _noted(own)
        before, parameters, values = _print(net), dict(own.named_parameters()), _print(own)
        try:
            result = rule(net)
        except Exception as error:
            put_back()
            raise RuntimeError(f"prune_rule failed with {said(error)}") from error
        masked = dict(own.named_parameters()).keys() != parameters.keys()
        if masked or (_print(own) != values and _print(net) == before):
            put_back()
            raise ValueError(
                "prune_rule must prune the network that it is given, a trained copy of net, and not net itself, which "
                "it has changed (it is as it was before again)"
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


def _noted(net: nn.Module) -> Callable[[], None]:
    """A function that puts a network back to where it is now."""
    held = {module: {key: _copied(part) for key, part in vars(module).items()} for module in net.modules()}
    values = [(parameter, parameter.detach().clone()) for parameter in net.parameters()]

    def put_back() -> None:
        for module, parts in held.items():
            for key in vars(module).keys() - parts.keys():  # what masks have computed
                del vars(module)[key]
            for key, part in parts.items():
                if isinstance(part, dict):  # the same one as before, which handles of hooks know
                    vars(module)[key].clear()
                    vars(module)[key].update(part)
        with torch.no_grad():
            for parameter, value in values:
                parameter.copy_(value)

    return put_back


def _copied(part: Any) -> Any:
    return dict(part) if isinstance(part, dict) else part


def _of_layers(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a network and, where torch.nn.utils.prune is at work, the masks and what they leave."""
    for path, module in net.named_modules():
        for name, parameter in module._parameters.items():
            bare = name.removesuffix("_orig")
            masked = bare != name and f"{bare}_mask" in module._buffers
            for key in (name, f"{bare}_mask", bare) if masked else (name,):
                if parameter is not None:
                    yield f"{path}.{key}" if path else key, getattr(module, key)
