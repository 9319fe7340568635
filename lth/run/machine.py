"""The machine in words, for records and reports."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path


def processor() -> str:
    """The name of the processor, as `AMD EPYC 9B14`; that of its architecture where there is no knowing it."""
    try:
        if platform.system() == "Linux":
            found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
            return found[1].strip() if found else platform.machine()
        if platform.system() == "Darwin":
            asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.processor() or platform.machine()
