"""The device that runs train on, its name, and the number of processor cores."""

import os
import platform
import traceback
from contextlib import suppress
from pathlib import Path

import torch

from lth.settings.checks import ConfigError, Problem, error_message


class MachineError(Exception):
    """A machine, a device or a cluster cannot be used; the message is one sentence."""


def choose(gpu: str | None) -> tuple[torch.device, str]:
    """The device for --gpu, by default a GPU if this PyTorch can use one, and a remark if the default is the CPU.
    ConfigError if there is no such device."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    cpu = torch.device("cpu")
    if gpu is None and (count or mps):
        device = torch.device("cuda:0" if count else "mps")
        reason = failure(device)  # for example, the GPU is too old for this PyTorch
        return (cpu, f"{device} cannot be used ({reason}): training on the CPU") if reason else (device, "")
    if gpu is None or gpu == "cpu":
        return cpu, "" if gpu else "no GPU found: training on the CPU"
    if gpu == "mps" and mps:
        return torch.device("mps"), ""
    if gpu.isdecimal() and int(gpu) < count:
        return torch.device(f"cuda:{int(gpu)}"), ""
    valid = [f"below {count}, the number of GPUs that PyTorch finds"] * bool(count) + ["mps"] * mps + ["cpu"]
    reason = "" if count or mps else ", since PyTorch finds no GPU here"
    raise ConfigError(Problem("gpu", f"must be {', or '.join(valid)}, or be left out{reason}, not {gpu}"))


def name(device: torch.device) -> str:
    """The name of a GPU, or the type and architecture of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"


def cores(quotas: Path = Path("/sys/fs/cgroup")) -> int:
    """The number of processor cores that this process may use, by its affinity mask and the quota of its container,
    which Linux shows below `quotas` (in cgroups of version 2 or 1)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):  # "max" and -1 are no quota
            quota, period = map(int, " ".join((quotas / file).read_text() for file in files).split())
            return min(count, max(1, quota // period)) if quota > 0 else count
    return count


def failure(device: torch.device) -> str:
    """Why a device does not compute; empty if it does. After some errors of a GPU, the process can no longer use it."""
    try:
        return "" if torch.ones(1, device=device).add(1).item() == 2 else "1 + 1 is not 2 there"
    except torch.OutOfMemoryError:  # other processes may use its memory
        return ""
    except RuntimeError as error:
        return error_message(error)


def release(error: BaseException) -> None:
    """Clear the local variables of all frames that an error keeps alive, among them networks on the device."""
    current: BaseException | None = error
    while current is not None:
        traceback.clear_frames(current.__traceback__)
        current = current.__cause__ or current.__context__
