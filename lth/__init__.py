"""Lottery tickets in PyTorch (Frankle & Carbin, ICLR 2019): the public names.

They are loaded when first asked for, so that `import lth` and `python main.py --help` need not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lth import arms, data, experiment, models, network, prune, records, session, tickets, train
    from lth.config import Config, ConfigError, Duration
    from lth.doors import iterative_pruning
    from lth.records import results
    from lth.runner import ExperimentRunner
    from lth.saved import SavedTicket, load_ticket

_HOMES = {
    "Config": "config",
    "ConfigError": "config",
    "Duration": "config",
    "ExperimentRunner": "runner",
    "SavedTicket": "saved",
    "iterative_pruning": "doors",
    "load_ticket": "saved",
    "results": "records",
}
_MODULES = ("arms", "data", "experiment", "models", "network", "prune", "records", "session", "tickets", "train")

__all__ = [
    "Config",
    "ConfigError",
    "Duration",
    "ExperimentRunner",
    "SavedTicket",
    "arms",
    "data",
    "experiment",
    "iterative_pruning",
    "load_ticket",
    "models",
    "network",
    "prune",
    "records",
    "results",
    "session",
    "tickets",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"lth.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"lth.{name}")
    else:
        raise AttributeError(f"module 'lth' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
