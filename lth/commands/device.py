"""Which device a run trains on, and what it is called."""

from __future__ import annotations

import os
import platform
import traceback
from contextlib import suppress
from pathlib import Path

import torch

from lth.settings.checks import ConfigError, Problem, first_line


class MachineError(Exception):
    """What is wrong with a machine, a device or a cluster rather than with a run; the message is one sentence."""


def choose(gpu: str | None) -> tuple[torch.device, str]:
    """The device that --gpu means, by default a GPU if this PyTorch can use one, and a sentence about a default of cpu.
    ConfigError if a device was asked for that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    cpu = torch.device("cpu")
    if gpu is None and (count or mps):
        device = torch.device("cuda:0" if count else "mps")
        why = _failure(device)  # a card that is too old for this PyTorch, say
        return (cpu, f"{device} cannot be used ({why}): training on the CPU") if why else (device, "")
    if gpu is None or gpu == "cpu":
        return cpu, "" if gpu else "no GPU found: training on the CPU"
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


def cores(quotas: Path = Path("/sys/fs/cgroup")) -> int:
    """The processor cores that this process may use: its affinity mask, and no more than a container's quota,
    which Linux has below `quotas` (cgroups of version 2, then 1)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):  # "max" and -1 are no quota
            quota, period = map(int, " ".join((quotas / file).read_text() for file in files).split())
            return min(count, max(1, quota // period)) if quota > 0 else count
    return count


def answers(device: torch.device) -> bool:
    """Whether a device still computes: after some errors in a GPU, the process that met them can do nothing on it."""
    return not _failure(device)


def _failure(device: torch.device) -> str:
    try:
        return "" if torch.ones(1, device=device).add(1).item() == 2 else "1 + 1 is not 2 there"
    except torch.OutOfMemoryError:  # others may have filled it
        return ""
    except RuntimeError as error:
        return first_line(error)


def release(error: BaseException) -> None:
    """Clear the local variables of the frames that an error keeps alive: a network on the device is among them."""
    following: BaseException | None = error
    while following is not None:
        traceback.clear_frames(following.__traceback__)
        following = following.__cause__ or following.__context__
