"""Check saved tickets: a run's rounds, or a state dict that any program has saved.

    lth audit dumps/fc1/mnist/default/lt/seed0
    lth audit .
    lth audit weights.pt --ticket dumps/fc1/mnist/default/lt/seed0:7
    lth audit after.pt --ticket before.pt

In each round of a run, or of all runs below a folder, trained weights must be 0 where the ticket is pruned, survivors
must start as the arm requires, pruned weights must not come back, controls must be valid, and counts must agree with
rounds.csv. A .pt file is a state dict (or has one as state_dict), read by torch.load with weights_only; without
--ticket its own sparsity is shown. The exit code is 1 if something is wrong.
"""

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
    """Check the runs or the file that the command line names, and print what is wrong with them."""
    parser = Parser(prog="lth audit", description=__doc__ or "")
    parser.add_argument("path", type=Path, metavar="FOLDER|FILE.pt", help="a run, or a state dict")
    parser.add_argument("--ticket", metavar="RUN:ROUND|FILE.pt", help="what the state dict must be pruned as")
    parser.add_argument("--debug", action="store_true", help="tracebacks with error messages")
    options, unknown = parser.parse_known_args(argv)
    if problems := unknown_problems(parser, unknown):
        raise ConfigError(*problems)
    path = options.path
    if not path.exists():
        raise ConfigError(f"there is no {path}")
    if path.is_dir():
        if options.ticket is not None:
            raise ConfigError("--ticket is for a file: the rounds of a run are checked against their own tickets")
        return _check_runs(path)
    state = _read(path)
    if options.ticket is None:
        print(_sparsity(state))
        return 0
    try:
        audit(state, _ticket(options.ticket), trained=True)
    except AuditError as error:
        print(f"{path.name} is not the ticket:\n  " + "\n  ".join(error.problems))
        return 1
    print(f"{path.name} is pruned as the ticket is")
    return 0


def _check_runs(folder: Path) -> int:
    exit_code = 0
    for run in tables.runs_in("FOLDER", folder):
        rounds, problems = Store(run).files_by_round("ticket"), list(_problems(run))
        exit_code = 1 if problems else exit_code
        verdict = "wrong" if problems else "as they should be"
        print("\n  ".join([f"{run.dumps}: {len(rounds)} rounds, {verdict}", *problems]))
    return exit_code


def _problems(run: Run) -> Iterator[str]:
    """What is wrong with the rounds of a run."""
    arm, tickets = ARMS[run.arm], dict[int, SavedTicket]()
    rewinds = tables.read_config(run).get("deciding", {}).get("rewind") != "0"
    first = 1 if rewinds else 0  # the first round that starts from the same weights as the later ones
    original = run.of_arm(arm.mask_of) if arm.mask_of else None
    control = "shuffle" if arm.shuffled else "reinit" if arm.start == "fresh" else None
    for number in Store(run).files_by_round("ticket"):
        ticket = tickets[number] = load_ticket(run.dumps, round=number)
        options: dict[str, Any] = {}
        if arm.masks == "iterative" and number > 0:  # each round prunes the survivors of the previous one
            options["previous"] = tickets[number - 1]
            if number > first and arm.start == "original":
                options["initial"] = tickets[first].start
        if original and control and number > 0 and number in Store(original).files_by_round("ticket"):
            options |= {"control": control, "original": load_ticket(original.dumps, round=number)}
        for state, trained in ((ticket.start, False), (ticket.trained, True)):
            known = ticket.row and (trained or not arm.changes_masks)  # the row is about the masks at the end
            remaining = ticket.row["remaining"] if known else None
            try:
                if state is not None:
                    audit(state, ticket, trained=trained, remaining=remaining, **options)
            except AuditError as error:
                yield from (f"round {number}: {problem}" for problem in error.problems)
                break


def _ticket(text: str) -> SavedTicket | pruning.Masks:
    """The ticket of a run, as RUN:ROUND, or the masks of a file."""
    if Path(text).is_file():
        return _masks(_read(Path(text)))
    try:
        ticket = TicketName.parse(text)
        return load_ticket(ticket.folder, round=ticket.round)
    except ValueError as error:
        raise ConfigError(f"--ticket {error_message(error)}") from None


def _read(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise a dozen kinds
        raise ConfigError(f"{file} cannot be read as a state dict ({error_message(error)})") from None
    inner = next((content[key] for key in ("state_dict", "model_state_dict", "model") if key in content), content)
    state = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not state:
        raise ConfigError(f"{file} must hold a state dict: names and tensors")
    return state


def _masks(state: Mapping[str, Tensor]) -> pruning.Masks:
    """The masks of torch.nn.utils.prune or, without them, the zeros of tensors with two or more dimensions."""
    return torch_masks(state) or {name: value != 0 for name, value in state.items() if value.ndim > 1}


def _sparsity(state: Mapping[str, Tensor]) -> str:
    """A table of the remaining weights of each layer and of all."""
    masks, rows = _masks(state), []
    for layer, group in [*((name, {name: mask}) for name, mask in masks.items()), ("all", masks)]:
        total, left = sum(mask.numel() for mask in group.values()), sum(pruning.survivors(group).values())
        rows.append((layer, total, left, f"{pruning.remaining(group):.2f}%"))
    return pd.DataFrame(rows, columns=["weights of", "all", "not 0", "remaining"]).to_string(index=False)
