"""Lottery tickets in PyTorch (Frankle & Carbin, ICLR 2019): the public names.

They are loaded when first asked for, so that `import lth` and `python main.py --help` need not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lth import data, prune, pruning, records, testing
    from lth.analysis.overlap import compare
    from lth.api.audit import AuditError, audit
    from lth.api.experiment_runner import ExperimentRunner
    from lth.api.experiments import Result, plot, run
    from lth.api.iterative_pruning import iterative_pruning
    from lth.api.saved_ticket import SavedTicket, load_ticket
    from lth.records.tables import results
    from lth.settings import VERSION as __version__
    from lth.settings.config import Config, ConfigError
    from lth.settings.values import Duration

_HOMES = {  # of each public name
    "AuditError": "api.audit",
    "Config": "settings.config",
    "ConfigError": "settings.config",
    "Duration": "settings.values",
    "ExperimentRunner": "api.experiment_runner",
    "Result": "api.experiments",
    "SavedTicket": "api.saved_ticket",
    "audit": "api.audit",
    "compare": "analysis.overlap",
    "iterative_pruning": "api.iterative_pruning",
    "load_ticket": "api.saved_ticket",
    "plot": "api.experiments",
    "results": "records.tables",
    "run": "api.experiments",
}
_MODULES = ("data", "prune", "pruning", "records", "testing")

__all__ = [
    "AuditError",
    "Config",
    "ConfigError",
    "Duration",
    "ExperimentRunner",
    "Result",
    "SavedTicket",
    "__version__",
    "audit",
    "compare",
    "data",
    "iterative_pruning",
    "load_ticket",
    "plot",
    "prune",
    "pruning",
    "records",
    "results",
    "run",
    "testing",
]


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
