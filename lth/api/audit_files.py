"""Check saved tickets: a run's rounds, or a state dict that any program has saved.

    lth audit dumps/fc1/mnist/default/lt/seed0
    lth audit .
    lth audit weights.pt --ticket dumps/fc1/mnist/default/lt/seed0:7
    lth audit after.pt --ticket before.pt

Of a run, or of all runs below a folder, each round's trained weights must be 0 where the ticket is pruned, survivors
must start as the arm says, nothing pruned may come back, controls must be controls, and counts must be those of
rounds.csv. A .pt file is a state dict (or has one as state_dict), read by torch.load with weights_only; without
--ticket its own sparsity is shown. The exit code is 1 if something is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lth import pruning
from lth.api.saved_ticket import SavedTicket, load_ticket
from lth.prune import torch_masks
from lth.records import tables
from lth.records.store import Store
from lth.records.tables import Run
from lth.settings.arms import ARMS
from lth.settings.checks import ConfigError, error_message
from lth.settings.flags import Parser, unknown_problems
from lth.settings.values import TicketName
from lth.testing import AuditError, audit


def main(argv: Sequence[str]) -> int:
    """Check what the command line names, and say what is wrong with it."""
    made = Parser(prog="lth audit", description=__doc__ or "")
    made.add_argument("what", type=Path, metavar="FOLDER|FILE.pt", help="a run, or a state dict")
    made.add_argument("--ticket", metavar="RUN:ROUND|FILE.pt", help="what the state dict must be pruned as")
    made.add_argument("--debug", action="store_true", help="tracebacks with error messages")
    flags, unknown = made.parse_known_args(argv)
    if problems := unknown_problems(made, unknown):
        raise ConfigError(*problems)
    if not flags.what.exists():
        raise ConfigError(f"there is no {flags.what}")
    if flags.what.is_dir():
        if flags.ticket is not None:
            raise ConfigError("--ticket is for a file: the rounds of a run are checked against their own tickets")
        return _check_runs(flags.what)
    state = _read(flags.what)
    if flags.ticket is None:
        print(_sparsity(state))
        return 0
    try:
        audit(state, _ticket(flags.ticket), trained=True)
    except AuditError as error:
        print(f"{flags.what.name} is not the ticket:\n  " + "\n  ".join(error.problems))
        return 1
    print(f"{flags.what.name} is pruned as the ticket is")
    return 0


def _check_runs(folder: Path) -> int:
    try:
        runs = tables.runs_in("FOLDER", folder)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    wrong = 0
    for run in runs:
        rounds, problems = Store(run).files_by_round("ticket"), list(_problems(run))
        wrong += len(problems)
        state = "wrong" if problems else "as they should be"
        print("\n  ".join([f"{run.dumps}: {len(rounds)} rounds, {state}", *problems]))
    return int(wrong > 0)


def _problems(run: Run) -> Iterator[str]:
    """What is wrong with the rounds of a run."""
    arm, tickets = ARMS[run.arm], dict[int, SavedTicket]()
    nested = arm.masks == "iterative"  # each round prunes what the one before has left
    first = 0 if tables.read_config(run).get("deciding", {}).get("rewind") == "0" else 1  # to start like the later ones
    other = run.of_arm(arm.mask_of) if arm.mask_of else None
    control = "shuffle" if arm.shuffled else "reinit" if arm.start == "fresh" else None
    for number in Store(run).files_by_round("ticket"):
        ticket = tickets[number] = load_ticket(run.dumps, round=number)
        options: dict[str, Any] = {}
        if nested and number > 0:
            options["previous"] = tickets[number - 1]
            if number > first and arm.start == "original":
                options["initial"] = tickets[first].start
        if other and control and number > 0 and number in Store(other).files_by_round("ticket"):
            options |= {"control": control, "original": load_ticket(other.dumps, round=number)}
        for state, trained in ((ticket.start, False), (ticket.trained, True)):
            known = ticket.row and (trained or not arm.changes_masks)  # the row is about the masks at the end
            remaining = ticket.row["remaining"] if known else None
            try:
                if state is not None:
                    audit(state, ticket, trained=trained, remaining=remaining, **options)
            except AuditError as error:
                yield from (f"round {number}: {problem}" for problem in error.problems)
                break


def _ticket(text: str) -> Any:
    """The ticket that `text` names, of a run or a file."""
    if Path(text).is_file():
        return _masks(_read(Path(text)))
    try:
        ticket = TicketName.parse(text)
        return load_ticket(ticket.folder, round=ticket.round)
    except ValueError as error:
        raise ConfigError(f"--ticket {error_message(error)}") from None


def _read(file: Path) -> dict[str, Tensor]:
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise a dozen kinds of it
        raise ConfigError(f"{file} cannot be read as a state dict ({error_message(error)})") from None
    inner = next((held[key] for key in ("state_dict", "model_state_dict", "model") if key in held), held)
    state = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not state:
        raise ConfigError(f"{file} must hold a state dict: names and tensors")
    return state


def _masks(state: Mapping[str, Tensor]) -> pruning.Masks:
    """What is pruned: by the masks of torch.nn.utils.prune, or else where weights of two or more dimensions are 0."""
    return torch_masks(state) or {name: value != 0 for name, value in state.items() if value.ndim > 1}


def _sparsity(state: Mapping[str, Tensor]) -> str:
    masks = _masks(state)
    rows = [
        (name, mask.numel(), int(mask.sum()), f"{pruning.remaining({name: mask}):.2f}%") for name, mask in masks.items()
    ]
    total, left = sum(mask.numel() for mask in masks.values()), sum(pruning.survivors(masks).values())
    rows.append(("all", total, left, f"{pruning.remaining(masks):.2f}%"))
    return pd.DataFrame(rows, columns=["weights of", "all", "not 0", "remaining"]).to_string(index=False)
