"""Lottery tickets in PyTorch (Frankle & Carbin, ICLR 2019): the public names.

They are loaded when first asked for, so that `import lth` and `python main.py --help` need not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lth import data as data
    from lth import prune as prune
    from lth import pruning as pruning
    from lth import records as records
    from lth import testing as testing
    from lth.analysis.overlap import compare as compare
    from lth.api.experiments import ExperimentRunner as ExperimentRunner
    from lth.api.experiments import Result as Result
    from lth.api.experiments import plot as plot
    from lth.api.experiments import run as run
    from lth.api.iterative_pruning import iterative_pruning as iterative_pruning
    from lth.api.saved_ticket import SavedTicket as SavedTicket
    from lth.api.saved_ticket import load_ticket as load_ticket
    from lth.records.tables import results as results
    from lth.settings import VERSION as __version__
    from lth.settings.config import Config as Config
    from lth.settings.config import ConfigError as ConfigError
    from lth.settings.values import Duration as Duration
    from lth.testing import AuditError as AuditError
    from lth.testing import audit as audit

_HOMES = {  # the modules of the public names
    "AuditError": "testing",
    "Config": "settings.config",
    "ConfigError": "settings.config",
    "Duration": "settings.values",
    "ExperimentRunner": "api.experiments",
    "Result": "api.experiments",
    "SavedTicket": "api.saved_ticket",
    "audit": "testing",
    "compare": "analysis.overlap",
    "iterative_pruning": "api.iterative_pruning",
    "load_ticket": "api.saved_ticket",
    "plot": "api.experiments",
    "results": "records.tables",
    "run": "api.experiments",
}
_MODULES = ("data", "prune", "pruning", "records", "testing")
__all__ = [*_HOMES, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"lth.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"lth.{name}")
    elif name == "__version__":
        value = importlib.import_module("lth.settings").VERSION
    else:
        raise AttributeError(f"module 'lth' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
