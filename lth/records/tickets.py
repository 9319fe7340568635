"""Files of weights under saves/: safetensors that say which experiment they belong to, with a checksum.

Nothing in these files is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lth import pruning
from lth.models.building import State
from lth.pruning import Masks
from lth.records.files import RecordError, read, write
from lth.records.identity import differing
from lth.records.journal import run_name
from lth.records.tables import Run

SHARED = ("initial", "rewind", "drawn", "dense", "ticket_00", "trained_00", "end_00")  # by all arms of a trial
FORMAT = 1  # of the files under saves/; raised when an older program could not read them


class Damaged(Exception):
    """A file is there but cannot be used: truncated, from other settings or from a newer program."""


MALFORMED = (
    safetensors.SafetensorError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
)
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
    content = read(file)
    with wellformed(file):
        end = 8 + int.from_bytes(content[:8], "little")
        about = json.loads(content[8:end])["__metadata__"]
        if int(about["format"]) > FORMAT:
            raise Damaged(f"{file} was written by a newer version of this program")
        settings, _, prints = (identity or "").partition(" ")
        if identity is not None and about["identity"] != settings:
            raise Damaged(f"{file} belongs to other settings")
        if differ := differing(_parsed(about.get("fingerprint", "")), _parsed(prints)):
            raise Damaged(f"{file} belongs to another experiment ({', '.join(differ)})")
        tensors = dict(sorted(safetensors.torch.load(content).items()))
        if about["checksum"] != _checksum(tensors, about["facts"]):
            raise ValueError("its checksum is wrong")
        facts = json.loads(about["facts"])
        if (facts["name"], facts["run"]) != (file.stem, _whose(file)):
            raise Damaged(f"{file} is a copy of {facts['name']}.safetensors of {facts['run']}")
        return tensors, facts


@contextmanager
def wellformed(file: Path) -> Iterator[None]:
    """Within it, a file that does not say what it should is Damaged, even if its checksum is right."""
    try:
        yield
    except MALFORMED as error:
        missing = " is missing" if isinstance(error, KeyError) else ""
        raise Damaged(f"{file} is damaged: {error}{missing}") from None


def _parsed(text: str) -> dict[str, str]:
    """`data=... model=...` as a dict."""
    return dict(part.split("=", 1) for part in text.split())


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


def numbered(kind: str, round: int) -> str:
    """The name of a round's file: ticket_07 or trained_07."""
    return f"{kind}_{round:02d}"


def packed(masks: Masks) -> tuple[dict[str, Tensor], list[Any]]:
    """Masks as bits, and their shapes in the order of the layers."""
    bits = {f"mask/{name}": pruning.pack(mask) for name, mask in masks.items()}
    return bits, [[name, list(mask.shape)] for name, mask in masks.items()]


def unpacked(bits: Mapping[str, Tensor], shapes: list[Any]) -> Masks:
    """The masks that `packed` was given. ValueError, TypeError or KeyError if these cannot be."""
    sizes = {name: tuple(shape) for name, shape in shapes}
    for name, shape in sizes.items():
        if min(shape, default=1) < 0 or bits[f"mask/{name}"].shape != (-(-math.prod(shape) // 8),):
            raise ValueError(f"the mask of {name} is not as long as its layer")
    return {name: pruning.unpack(bits[f"mask/{name}"], shape) for name, shape in sizes.items()}
