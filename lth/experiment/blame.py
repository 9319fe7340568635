"""Who is to blame for an error: the code of a model, the memory of a device, or files of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lth.records.files import RecordError
from lth.records.tickets import Damaged
from lth.settings import checks
from lth.training.train import TrialError


@contextmanager
def model(failed: str, exhausted: str, all_of_it: bool = False) -> Iterator[None]:
    """Within it, errors of the model's own code become a TrialError: `failed`, as `fc1 failed in round 3`, and the
    error itself. Memory that runs out becomes one that says `exhausted`, where that is given. Errors of files pass, as
    do those that this library raises itself, unless the model is to blame for `all_of_it`."""
    try:
        yield
    except torch.OutOfMemoryError:
        if not exhausted:
            raise
        raise TrialError(exhausted) from None
    except (OSError, RecordError, TrialError):
        raise
    except (Exception, SystemExit) as error:
        if checks.ours(error) and not all_of_it:
            raise
        raise TrialError(f"{failed} with {checks.said(error)}") from error


@contextmanager
def run(ended: Callable[[str], object], again: str) -> Iterator[None]:
    """Within it, a TrialError ends one run and no other: `ended` gets the reason. A file that is gone or damaged, which
    was sound when the run was picked up, ends the whole command; `again` is the command that continues it."""
    try:
        yield
    except TrialError as error:
        ended(str(error))
    except (FileNotFoundError, Damaged) as error:
        raise RecordError(f"{error}: {again} continues from the last good round") from None
