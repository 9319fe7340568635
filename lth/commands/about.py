"""What config.json says of a run: its settings, and all else that its numbers may depend on."""

from __future__ import annotations

import contextlib
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lth import data
from lth.commands import device as devices
from lth.data.images import Images
from lth.experiment import start_tickets
from lth.models import building
from lth.models import fingerprints as identity
from lth.records.tables import Run, config_of
from lth.settings import flags, names
from lth.settings.config import PROJECT, Config
from lth.settings.values import Duration, TicketName
from lth.training import kernels, sparse

LIBRARIES = ("torch", "torchvision", "numpy", "safetensors")


def about(asked: Config, config: Config, device: torch.device, command: Sequence[str] = ()) -> dict[str, Any]:
    """The content of config.json for the settings that were `asked` for and what they came to, `config`."""
    return {**about_command(asked, config, command), **about_machine(config, device)}


def about_command(asked: Config, config: Config, command: Sequence[str] = ()) -> dict[str, Any]:
    """The part that is the same wherever the training is done."""
    return {
        "settings": plain_settings(asked),
        "deciding": config.deciding(),
        "program": program(),
        "command": list(command),
        "git_commit": commit(PROJECT) if (PROJECT / "main.py").exists() else None,  # not an installed library's
    }


def program() -> list[str]:
    """What `python` was given before the flags."""
    if Path(sys.argv[0]).stem in flags.LTH:
        return ["-m", "lth", *(word for word in sys.argv[1:2] if word in flags.COMMANDS.values())]
    return [Path(sys.argv[0]).name]


def about_machine(config: Config, device: torch.device) -> dict[str, Any]:
    """The part about the machine that does the training."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "device": devices.name(device),
        "processor": _processor(),
        "cpu_precision": _cpu_precision(config) if device.type == "cpu" else None,
        "sparse_up_to": sparse.limits(config) if device.type == "cpu" else {},
    }


def plain_settings(config: Config) -> dict[str, Any]:
    """All settings for JSON; --config reads them back. `data` is null for the project's own folder, which another
    machine has elsewhere; the folder of the results is left out."""
    settings: dict[str, Any] = {}
    for spec in fields(config):
        value = getattr(config, spec.name)
        if spec.name == "data":
            settings["data"] = None if value.resolve() == Config.data.resolve() else str(value.resolve())
        elif spec.name not in ("root", "overwrite", "dry_run", "join", "ray"):
            plain = [str(item) for item in value] if isinstance(value, tuple) else value
            settings[spec.name] = str(plain) if isinstance(plain, (Path, Duration, TicketName)) else plain
    return settings


def commit(folder: Path) -> str | None:
    """The git commit of the program in `folder`, and whether its files are as that has them; None outside of git."""
    try:
        head, changes = (
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "."))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + (" with uncommitted changes" if changes.strip() else "")


def _cpu_precision(config: Config) -> str:
    """What float32 products on this CPU really are, since --precision fast depends on the processor."""
    if config.precision != "fast":
        return {"fp32": "float32", "bf16": "bfloat16"}[config.precision]
    return "bfloat16 products (AMX)" if kernels.amx() else "float32 by oneDNN"


def about_data(images: Images) -> dict[str, Any]:
    """The part about the data besides their fingerprint."""
    return {
        "classes": images.classes,
        "image_shape": list(images.shape),
        "normalisation": images.normalisation,
    }


def fingerprints_now(config: Config, run: Run) -> dict[str, str]:
    """The fingerprints of the experiment that the settings mean now, for a run that is finished: nothing is downloaded,
    and data that are no longer there are not missed. Empty if nothing can be compared with them."""
    about = config_of(run)
    if not about.get("classes") or "data" not in about.get("fingerprint", ()):
        return {}
    found = {"model": identity.of_model(building.find(config.arch_type, config.dataset, about["classes"], config.data))}
    name = names.dataset(config.dataset)
    if names.npz(config.data, name, config.image_size).exists() or names.pictures(name, config.data):
        found["data"] = data.load(name, config.data, image_size=config.image_size).fingerprint
    return {**found, **start_tickets.fingerprints(config)}


def _processor() -> str:
    """The name of the processor, as `AMD EPYC 9B14`; that of its architecture where the name is unknown."""
    with contextlib.suppress(OSError):  # Linux alone has it
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()
