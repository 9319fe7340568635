"""Which device a run trains on, and what it is called."""

from __future__ import annotations

import platform

import torch

from lth.settings.problems import ConfigError, Problem


class DeviceError(Exception):
    """This process can no longer use its device; the message is one sentence for the user."""


def choose(gpu: str | None) -> tuple[torch.device, str]:
    """The device that --gpu means, and a sentence about it where nobody asked for it.

    None: a GPU where there is one, else the CPU. ConfigError where a device was asked for that is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if gpu == "cpu":
        return torch.device("cpu"), ""
    if gpu is None:
        if not count and not mps:
            return torch.device("cpu"), "no GPU found: training on the CPU"
        return torch.device("cuda:0" if count else "mps"), ""
    if gpu == "mps" and mps:
        return torch.device("mps"), ""
    if gpu.isdecimal() and int(gpu) < count:
        return torch.device(f"cuda:{int(gpu)}"), ""
    have = [f"below {count}, the number of GPUs that PyTorch finds"] * bool(count) + ["mps"] * mps + ["cpu"]
    found = "" if count or mps else ", since PyTorch finds no GPU here"
    raise ConfigError(Problem("gpu", f"must be {', or '.join(have)}, or be left out{found}, not {gpu}"))


def name(device: torch.device) -> str:
    """The name of a GPU, or the kind of processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"


def answers(device: torch.device) -> bool:
    """Whether a device still computes: after some errors in a GPU, the process that met them can do nothing on it."""
    try:
        return torch.ones(1, device=device).add(1).item() == 2
    except torch.OutOfMemoryError:  # others may have filled it
        return True
    except RuntimeError:
        return False
