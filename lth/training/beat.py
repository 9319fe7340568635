"""The pace of a training, as the process that waits for it sees it."""

from __future__ import annotations

import time

import torch

BEAT = 0.2  # seconds between two beats


class Beat:
    """Tells when BEAT seconds of training have passed.

    A GPU is handed steps faster than it does them. At a beat the host waits for it, so that a stop and the progress bar
    are at most about a beat behind; the number of steps between two beats follows from the pace so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.last, self.steps, self.every = time.monotonic(), 0, 1
        self.event = torch.cuda.Event() if device.type == "cuda" else None

    def due(self) -> bool:
        """Whether a beat ends with this step."""
        if self.event is None:
            passed = time.monotonic() - self.last
            self.last += passed if passed >= BEAT else 0
            return passed >= BEAT
        self.steps += 1
        if self.steps < self.every:
            return False
        self.event.record()
        self.event.synchronize()
        passed = time.monotonic() - self.last
        self.every = max(1, min(2 * self.every, int(self.every * BEAT / max(passed, 1e-9))))
        self.last, self.steps = self.last + passed, 0
        return True
