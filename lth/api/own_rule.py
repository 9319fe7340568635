"""A pruning rule of the user's own: what it must be, and what it must leave of a network."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import nn

from lth.pruning import Rule
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


def checked(rule: Rule) -> Rule:
    """`rule`, whose own errors are said to be its own (RuntimeError), and which must leave the network's layers in
    their places and without NaN (ValueError)."""

    def prune(net: nn.Module) -> Any:
        modules = dict(net.named_modules())
        try:
            result = rule(net)
        except Exception as error:
            raise RuntimeError(f"prune_rule failed with {said(error)}") from error
        now = dict(net.named_modules())
        for path in [*modules, *now]:
            if modules.get(path) is not now.get(path):
                raise ValueError(f"prune_rule must prune the layers that are there, but has replaced or added {path}")
        for name, parameter in net.named_parameters():
            if not torch.isfinite(parameter).all():
                raise ValueError(f"prune_rule must leave finite weights, but leaves NaN or infinity in {name}")
        return result

    return prune
