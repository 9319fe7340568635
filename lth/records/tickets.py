"""Weights on disk: initial weights, tickets, trained weights, checkpoints, in safetensors files.

Nothing in these files is ever executed. Each says which settings it belongs to and carries a checksum.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lth import pruning
from lth.models.building import State
from lth.pruning import Masks
from lth.records import identity as same
from lth.records import tables
from lth.records.files import GONE, NOWHERE, RecordError, Unreadable, problem, read, write
from lth.records.journal import run_name
from lth.records.tables import Run
from lth.training.train import Evaluation, Trained

ENDS = ("first", "second")  # files of --connectivity's two trainings; `first` has the round's order of the data
SHARED = ("initial", "rewind", "dense", "ticket_00", "trained_00")  # by all arms of a trial
FORMAT = 1  # of the files under saves/; raised when an older program could not read them


class Damaged(Exception):
    """A file is there but cannot be used: truncated, from other settings or from a newer program."""


MALFORMED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, EOFError)
UNUSABLE = (RecordError, Damaged, FileNotFoundError)  # what reading a run's files raises


@dataclass(frozen=True)
class Ticket:
    """A mask with the weights that its training starts from (not yet masked).

    origin: `initial` or `rewind`, the file that holds the start, or `own` where the ticket's own file does.
    at_random: how many survivors were drawn from weights whose scores were equal.
    """

    round: int
    masks: Masks
    start: State
    origin: str = "initial"
    at_random: int = 0


def save_tensors(file: Path, tensors: Mapping[str, Tensor], identity: str, **facts: Any) -> None:
    """Write tensors and `facts` (anything JSON holds) to a .safetensors file that `load_tensors` can check."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"name": file.stem, "run": _whose(file), **facts}, sort_keys=True)
    settings, _, prints = identity.partition(" ")
    about = {"format": str(FORMAT), "identity": settings, "facts": text, "checksum": _checksum(tensors, text)}
    if prints:
        about["fingerprint"] = prints
    write(file, _serialised(tensors, about))


def _whose(file: Path) -> str:
    """What a file says about whose it is: lt/seed0, or seed0 where all arms of a trial share it."""
    run = run_name(file.parent)
    return run.rpartition("/")[2] if file.stem in SHARED else run


def _serialised(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """A .safetensors file whose bytes depend on its content alone: the library puts metadata in a random order."""
    content = safetensors.torch.save(dict(tensors), metadata=dict(about))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps({**json.loads(content[8:end]), "__metadata__": about}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join([len(header).to_bytes(8, "little"), header, content[end:]])


def load_tensors(file: Path, identity: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file. FileNotFoundError if there is none; Damaged, with the reason, if it is
    truncated or altered, written by a newer program, or belongs to another `identity`; RecordError if it is
    Unreadable, which is no damage."""
    what = problem(file)
    if what in (GONE, NOWHERE):
        raise FileNotFoundError(f"{file} {what}")
    if what:
        raise Damaged(f"{file} {what}")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            about = opened.metadata() or {}
            if int(about.get("format", 0)) > FORMAT:
                raise Damaged(f"{file} was written by a newer version of this program")
            settings, _, prints = (identity or "").partition(" ")
            if identity is not None and about.get("identity") != settings:
                raise Damaged(f"{file} belongs to other settings")
            if differ := same.differing(same.parsed(about.get("fingerprint", "")), same.parsed(prints)):
                raise Damaged(f"{file} belongs to another experiment ({', '.join(differ)})")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if about.get("checksum") != _checksum(tensors, about["facts"]):
            raise Damaged(f"{file} is damaged: its checksum is wrong")
        facts = json.loads(about["facts"])
        if (facts["name"], facts["run"]) != (file.stem, _whose(file)):
            raise Damaged(f"{file} is a copy of {facts['name']}.safetensors of {facts['run']}")
        return tensors, facts
    except FileNotFoundError as error:  # as safetensors calls whatever is in the way of opening it
        read(file)  # says what it is
        raise Unreadable.of(file, error) from None
    except OSError as error:
        raise Unreadable.of(file, error) from None
    except (safetensors.SafetensorError, *MALFORMED) as error:
        raise Damaged(f"{file} is damaged: {error}") from None


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def identity(deciding: Mapping[str, str], run: Run, prints: Mapping[str, str] | None = None) -> str:
    """What a file of `run` must say that it belongs to: the names of model and data set, the seed and the settings
    that decide numbers, in one hash, and the fingerprints of what these do not tell: `012345... data=... model=...`"""
    whose = {**deciding, "arch_type": run.arch_type, "dataset": run.dataset, "seed": run.seed}
    settings = hashlib.sha256(json.dumps(whose, sort_keys=True).encode()).hexdigest()[:16]
    return " ".join([settings, *(f"{name}={value}" for name, value in sorted((prints or {}).items()))])


def write_state(run: Run, name: str, state: State, identity: str) -> None:
    """Write a set of weights: `initial`, `rewind`, `dense` or `trained_07`."""
    save_tensors(run.saves / f"{name}.safetensors", state, identity)


def read_state(run: Run, name: str, identity: str | None = None) -> State:
    """The weights that `write_state` wrote."""
    return load_tensors(run.saves / f"{name}.safetensors", identity)[0]


def numbered(kind: str, round: int) -> str:
    """The name of a round's file: ticket_07 or trained_07."""
    return f"{kind}_{round:02d}"


def write_ticket(run: Run, ticket: Ticket, identity: str) -> None:
    """Write a ticket: its masks as bits and, where it is its own, its start."""
    tensors = {f"mask/{name}": pruning.pack(mask) for name, mask in ticket.masks.items()}
    if ticket.origin == "own":
        tensors |= {f"start/{name}": value for name, value in ticket.start.items()}
    shapes = [[name, list(mask.shape)] for name, mask in ticket.masks.items()]  # in the order of the layers
    ties = {"at_random": ticket.at_random} if ticket.at_random else {}
    file = run.saves / f"{numbered('ticket', ticket.round)}.safetensors"
    save_tensors(file, tensors, identity, round=ticket.round, shapes=shapes, origin=ticket.origin, **ties)


def of_rounds(run: Run, kind: str) -> dict[int, Path]:
    """The files of that kind, `ticket` or `trained`, by their rounds; what else lies beside them is the user's."""
    files = {file.stem.removeprefix(f"{kind}_"): file for file in run.saves.glob(f"{kind}_*.safetensors")}
    return {
        int(number): file
        for number, file in sorted(files.items())
        if number.isdecimal() and numbered(kind, int(number)) == file.stem
    }


def rounds_with_ticket(run: Run) -> list[int]:
    """The rounds whose tickets are on disk."""
    return sorted(of_rounds(run, "ticket"))


def last_finished(run: Run) -> int:
    """The last finished round that has a ticket; where none is finished, the only one that has. ValueError if there are
    several."""
    have, finished = rounds_with_ticket(run), tables.finished_rounds(run)
    if not finished and len(have) > 1:
        raise ValueError(f"{run.saves} has tickets of {len(have)} rounds, of which {run.dumps} knows none as finished")
    return max((number for number in have if number < finished), default=next(iter(have), 0))


def read_ticket(run: Run, round: int, identity: str | None = None) -> Ticket:
    """The ticket that a round's training starts from."""
    file = run.saves / f"{numbered('ticket', round)}.safetensors"
    tensors, facts = load_tensors(file, identity)
    masks, origin = _masks(file, tensors, facts), facts.get("origin")
    if origin == "own":
        start = {name.removeprefix("start/"): value for name, value in tensors.items() if name.startswith("start/")}
    elif origin in ("initial", "rewind"):
        start = read_state(run, origin, identity)
    else:
        raise Damaged(f"{file} is damaged: it starts from {origin!r}")
    if any(name not in start or start[name].shape != mask.shape for name, mask in masks.items()):
        raise Damaged(f"{file} is damaged: its masks do not fit the weights that it starts from")
    return Ticket(round, masks, start, origin, facts.get("at_random", 0))


def read_masks(run: Run, round: int, identity: str | None = None) -> Masks:
    """The masks of that ticket, whatever has become of the weights that it starts from."""
    file = run.saves / f"{numbered('ticket', round)}.safetensors"
    return _masks(file, *load_tensors(file, identity))


def _masks(file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Masks:
    with _wellformed(file):
        shapes = {name: tuple(shape) for name, shape in facts["shapes"]}
        for name, shape in shapes.items():
            if min(shape, default=1) < 0 or tensors[f"mask/{name}"].shape != (-(-math.prod(shape) // 8),):
                raise ValueError(f"the mask of {name} is not as long as its layer")
        return {name: pruning.unpack(tensors[f"mask/{name}"], shape) for name, shape in shapes.items()}


@contextmanager
def _wellformed(file: Path) -> Iterator[None]:
    """Within it, a file whose checksum is right but that does not say what it should is Damaged."""
    try:
        yield
    except MALFORMED as error:
        raise Damaged(f"{file} is damaged: {type(error).__name__} {error}") from None


_PARTS = ("final", "best", "rewind", "extra")


def write_checkpoint(run: Run, round: int, trained: Trained, identity: str, name: str = "checkpoint") -> None:
    """Write where a round is, complete or not."""
    tensors = {f"{part}/{name}": value for part in _PARTS for name, value in getattr(trained, part).items()}
    tensors["evals"] = torch.tensor([list(asdict(e).values()) for e in trained.evals], dtype=torch.float64)
    facts = {"round": round, "iteration": trained.iteration, "seconds": trained.seconds}
    save_tensors(run.saves / f"{name}.safetensors", tensors, identity, supermask=trained.supermask, **facts)


def read_checkpoint(run: Run, identity: str | None = None, name: str = "checkpoint") -> tuple[int, Trained]:
    """The round that the checkpoint belongs to, and where it is."""
    file = run.saves / f"{name}.safetensors"
    tensors, facts = load_tensors(file, identity)
    parts: dict[str, State] = {part: {} for part in _PARTS}
    for key, value in tensors.items():
        part, _, rest = key.partition("/")
        if part in parts:
            parts[part][rest] = value
    with _wellformed(file):
        round, iteration, seconds = int(facts["round"]), int(facts["iteration"]), dict(facts["seconds"])
        evals = [Evaluation(int(row[0]), *map(float, row[1:])) for row in tensors["evals"].tolist()]
        final, best, rewind, extra = (parts[part] for part in _PARTS)
        return round, Trained(iteration, evals, final, best, rewind, extra, None, seconds, facts["supermask"])
