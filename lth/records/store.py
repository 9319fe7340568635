"""The files of a run under saves/, tickets, weights and checkpoints, and how to continue from them after a stop.

The state of a run is on disk: a round starts from its ticket, and a ticket is made from the weights at the end of the
previous round. Nothing in these files, safetensors with a checksum, is ever executed.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
from lth.records import files, journal, tables
from lth.records.files import Damaged, RecordError, Unreadable
from lth.records.identity import difference
from lth.records.tables import Run
from lth.settings.arms import ARMS
from lth.training.train import Evaluation, Trained

ENDS = ("first", "second")  # files of --connectivity's two trainings; `first` has the round's own order of the data
PARTS = ("final", "best", "rewind", "drawn", "extra", "masks")  # of a checkpoint
SINGLE = ("initial", "rewind", "drawn", "dense", "checkpoint")  # files that a run has once
SHARED = ("initial", "rewind", "drawn", "dense", "ticket_00", "trained_00", "end_00")  # equal in all arms of a trial
FORMAT = 1  # of the files under saves/; raised when an older program could not read them
# The errors of reading a file with wrong content.
BROKEN = (safetensors.SafetensorError, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Ticket:
    """Masks with the weights that training starts from (not yet masked).

    origin: the file that holds the weights, `initial` or `rewind`, or `own` for the ticket's own file.
    at_random: how many survivors were drawn from weights with equal scores.
    """

    round: int
    masks: Masks
    start: State
    origin: str = "initial"
    at_random: int = 0


@dataclass(frozen=True)
class Store:
    """The files of a run under saves/. Reading one raises FileNotFoundError if it is gone, Damaged if its content is
    damaged or of another experiment than `experiment_id` (if given), and Unreadable if it cannot be read.

    original: the name of the weights that survivors are reset to: `initial`, or with --rewind `rewind`.
    drawn: the name of the weights of round 0 that masks are drawn from: `dense`, or with --draw_at `drawn`.
    """

    run: Run
    experiment_id: str | None = None
    original: str = "initial"
    drawn: str = "dense"

    def file(self, name: str) -> Path:
        """The path of a file, such as `initial` or `ticket_07`."""
        return self.run.saves / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Whether that file exists."""
        return self.file(name).exists()

    def weights(self, name: str) -> State:
        """The weights `initial`, `rewind`, `dense`, `trained_07` or `end_07`."""
        return self._load(name)[0]

    def write_weights(self, name: str, state: State) -> None:
        """Write weights under that name."""
        self._save(name, state)

    def ticket(self, number: int) -> Ticket:
        """The ticket that round `number` starts from."""
        name = numbered("ticket", number)
        tensors, facts = self._load(name)
        with raise_damaged(self.file(name)):
            masks, origin, at_random = _unpacked(tensors, facts), facts["origin"], facts.get("at_random", 0)
            if origin not in ("initial", "rewind", "own") or type(at_random) is not int:
                raise ValueError(f"it starts from {origin!r}, with {at_random!r} weights drawn at random")
            start = _part(tensors, "start") if origin == "own" else self.weights(origin)
            if any(key not in start or start[key].shape != mask.shape for key, mask in masks.items()):
                raise ValueError("its masks do not fit the weights that it starts from")
        return Ticket(number, masks, start, origin, at_random)

    def write_ticket(self, ticket: Ticket) -> None:
        """Write a ticket: its masks and, unless another file has it, its start."""
        start = {f"start/{name}": value for name, value in ticket.start.items()} if ticket.origin == "own" else {}
        facts = {"round": ticket.round, "origin": ticket.origin}
        facts |= {"at_random": ticket.at_random} if ticket.at_random else {}
        self._save_masks(numbered("ticket", ticket.round), ticket.masks, start, **facts)

    def masks(self, number: int) -> Masks:
        """The masks of a round at ES: its ticket's, unless the training changed them. The weights that the ticket
        starts from are not needed."""
        name = numbered("masks" if number and self.changes_masks else "ticket", number)
        with raise_damaged(self.file(name)):
            return _unpacked(*self._load(name))

    def write_masks(self, number: int, masks: Masks) -> None:
        """Write the masks of a round at ES, where the training changed them."""
        self._save_masks(numbered("masks", number), masks, {})

    @property
    def changes_masks(self) -> bool:
        """Whether the trainings of this run change their masks."""
        return self.run.arm in ARMS and ARMS[self.run.arm].changes_masks

    def read_checkpoint(self, name: str = "checkpoint") -> tuple[int, Trained]:
        """The round that a checkpoint belongs to, and the state of its training."""
        tensors, facts = self._load(name)
        parts: dict[str, Any] = {part: _part(tensors, part) for part in PARTS}
        with raise_damaged(self.file(name)):
            evals = [Evaluation(int(row[0]), *map(float, row[1:])) for row in tensors["evals"].tolist()]
            parts |= {"seconds": dict(facts["seconds"]), "supermask": facts["supermask"]}
            parts["settled"] = int(facts.get("settled", 0))
            return int(facts["round"]), Trained(int(facts["iteration"]), evals, **parts)

    def checkpoint(self, number: int, name: str = "checkpoint") -> Trained | None:
        """The state of the training of round `number` when it stopped; None if it had not begun."""
        with suppress(FileNotFoundError):
            round, trained = self.read_checkpoint(name)
            return trained if round == number else None
        return None

    def write_checkpoint(self, number: int, trained: Trained, name: str = "checkpoint") -> None:
        """Write the state of the training of round `number`, complete or not."""
        tensors = {f"{part}/{name}": value for part in PARTS for name, value in getattr(trained, part).items()}
        tensors["evals"] = torch.tensor([list(asdict(e).values()) for e in trained.evals], dtype=torch.float64)
        facts = {"round": number, "iteration": trained.iteration, "seconds": trained.seconds}
        facts |= {"settled": trained.settled} if trained.settled else {}
        self._save(name, tensors, supermask=trained.supermask, **facts)

    def end_of_round(self, number: int, drawn: bool = False) -> State:
        """The weights at the end of a finished round or, if `drawn`, those that pruning looks at. FileNotFoundError if
        they are gone."""
        name = self.drawn if drawn else "dense"
        if number == 0 and self.has(name):
            return self.weights(name)
        if (trained := self.checkpoint(number)) is None:
            raise FileNotFoundError(f"the checkpoint of round {number} of {self.run} is gone")
        return trained.drawn if name == "drawn" else trained.final

    def files_by_round(self, kind: str) -> dict[int, Path]:
        """The files of one kind, such as `ticket`, by round. Files with other names belong to the user."""
        by_round = {}
        for file in self.run.saves.glob(f"{kind}_*.safetensors"):
            number = file.stem.removeprefix(f"{kind}_")
            if number.isdecimal() and file.stem == numbered(kind, int(number)):
                by_round[int(number)] = file
        return dict(sorted(by_round.items()))

    def last_finished(self) -> int:
        """The last finished round that has a ticket; if none is finished, the only round that has one. ValueError if
        several have."""
        tickets, finished = self.files_by_round("ticket"), tables.finished_rounds(self.run)
        if not finished and len(tickets) > 1:
            count, run = len(tickets), self.run
            raise ValueError(f"{run.saves} has tickets of {count} rounds, of which {run.dumps} has none finished")
        return max((number for number in tickets if number < finished), default=next(iter(tickets), 0))

    def keep_sound_rounds(self, tell: Callable[[str], object]) -> None:
        """Discard finished rounds that training cannot continue from; `tell` gets a sentence for each problem.
        RecordError, before anything is discarded, if the weights cannot be read."""
        run = self.run
        journal.repair(run, tell)
        finished = tables.finished_rounds(run)
        if finished and not any(run.saves.glob("*.safetensors")):
            raise RecordError(
                f"{run}: {finished} rounds are finished, but there are no weights in {run.saves}: "
                "is its disk there? --overwrite starts again"
            )
        sound = self._sound_rounds(finished, tell)
        if sound < finished:
            copy = journal.keep_rounds(run, sound)
            problem = f"{run}: continuing from round {sound}, the first that has to be trained again"
            tell(f"{problem}; the old journal is kept as {copy.name}")
        self.drop_rounds(sound)

    def _sound_rounds(self, finished: int, tell: Callable[[str], object]) -> int:
        """The number of finished rounds that training can continue from: those before the first without a ticket or
        masks. The next ticket can be made again from the weights at the end of the last round. Damaged files are set
        aside."""

        def usable(name: str) -> bool:
            try:
                return bool(self._load(name))
            except FileNotFoundError:
                return False
            except Damaged as error:
                renamed = files.set_aside(self.file(name))
                tell(f"{error}; kept as {renamed.name}, continuing from the last good round")
                return False

        numbers = range(finished + 1)
        names = [numbered(kind, number) for kind in ("ticket", "masks", "trained", "end") for number in numbers]
        has = {name: usable(name) for name in (*names, *SINGLE, *ENDS)}
        needed = {"initial", self.original, *([self.drawn] if ARMS[self.run.arm].masks == "one_shot" else [])}
        if not all(has[name] for name in needed):
            return 0
        ends = {0} if has["dense"] and has[self.drawn] else set[int]()  # the rounds whose last weights are there
        ends |= {self.read_checkpoint()[0]} if has["checkpoint"] else set()
        tickets = {number: has[numbered("ticket", number)] for number in numbers}
        masks = {number: has[numbered("masks", number)] or not (number and self.changes_masks) for number in numbers}
        finished = next((n for n in range(finished) if not (tickets[n] and masks[n])), finished)
        while finished and not tickets[finished] and finished - 1 not in ends:
            finished -= 1
        return finished

    def drop_rounds(self, first: int) -> None:
        """Delete the trained weights of the rounds from `first` on and the tickets after it, which are made again."""
        for end in ENDS:
            if self.has(end) and self.read_checkpoint(end)[0] >= first:
                files.delete(self.file(end))
        for kind, start in (("ticket", first + 1), ("masks", first), ("trained", first), ("end", first)):
            for number, file in self.files_by_round(kind).items():
                if number >= start:
                    files.delete(file)

    def copy_dense_round(self) -> bool:
        """Copy the dense round from another arm of this trial, which trains the same network. Returns whether one has
        it."""
        needed = dict.fromkeys(("initial", "dense", numbered("ticket", 0), self.original, self.drawn))
        for run in self.run.other_arms():
            if not journal.sound_entries(run):
                continue
            source = Store(run, self.experiment_id)
            with suppress(Damaged, FileNotFoundError, Unreadable):
                for name in needed:
                    source._load(name)
                trained = [numbered("trained", 0)] if source.has(numbered("trained", 0)) else []
                for name in (*needed, *trained):
                    files.write(self.file(name), files.read(source.file(name)))
                self.ticket(0)
                journal.copy_dense_round(self.run, run)
                return True
        return False

    def _load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return load_tensors(self.file(name), self.experiment_id)

    def _save(self, name: str, tensors: State, **facts: Any) -> None:
        save_tensors(self.file(name), tensors, self.experiment_id or "", **facts)

    def _save_masks(self, name: str, masks: Masks, others: State, **facts: Any) -> None:
        """Write masks as bits, with their shapes in the order of the layers, and `others`, further tensors."""
        bits = {f"mask/{layer}": pruning.pack(mask) for layer, mask in masks.items()}
        self._save(name, bits | others, shapes=[[layer, list(mask.shape)] for layer, mask in masks.items()], **facts)


def numbered(kind: str, round: int) -> str:
    """The name of a round's file, such as ticket_07 or trained_07."""
    return f"{kind}_{round:02d}"


def save_tensors(file: Path, tensors: Mapping[str, Tensor], experiment_id: str, **facts: Any) -> None:
    """Write tensors and `facts` (anything that JSON can express) to a .safetensors file that `load_tensors` can check.
    Its bytes depend only on its content: the library alone would put the metadata in a random order."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"name": file.stem, "run": _owner(file), **facts}, sort_keys=True)
    settings, _, fingerprints = experiment_id.partition(" ")
    metadata = {"format": str(FORMAT), "identity": settings, "facts": text, "checksum": _checksum(tensors, text)}
    metadata |= {"fingerprint": fingerprints} if fingerprints else {}
    content = safetensors.torch.save(tensors, metadata=metadata)
    end = _header_end(content)
    header = json.dumps({**json.loads(content[8:end]), "__metadata__": metadata}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    files.write(file, b"".join([len(header).to_bytes(8, "little"), header, content[end:]]))


def load_tensors(file: Path, experiment_id: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file. FileNotFoundError if there is none; Damaged, with the reason, if it is
    truncated or altered, written by a newer program, or of another experiment; Unreadable if it cannot be read."""
    content = files.read(file)
    with raise_damaged(file):
        metadata = json.loads(content[8 : _header_end(content)])["__metadata__"]
        if int(metadata["format"]) > FORMAT:
            raise Damaged(f"{file} was written by a newer version of this program")
        file_id = f"{metadata['identity']} {metadata.get('fingerprint', '')}"
        if experiment_id and (reason := difference(file_id, experiment_id)):
            raise Damaged(f"{file} was made with {reason}")
        tensors = dict(sorted(safetensors.torch.load(content).items()))
        if metadata["checksum"] != _checksum(tensors, metadata["facts"]):
            raise ValueError("its checksum is wrong")
        facts = json.loads(metadata["facts"])
        if (facts["name"], facts["run"]) != (file.stem, _owner(file)):
            raise Damaged(f"{file} is a copy of {facts['name']}.safetensors of {facts['run']}")
        return tensors, facts


@contextmanager
def raise_damaged(file: Path) -> Iterator[None]:
    """Turn errors of missing or wrong content inside the `with` block into Damaged, which names the file."""
    try:
        yield
    except BROKEN as error:
        missing = " is missing" if isinstance(error, KeyError) else ""
        raise Damaged(f"{file} is damaged: {error}{missing}") from None


def _header_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def _owner(file: Path) -> str:
    """The run that a file names as its own: lt/seed0, or only seed0 if the file is SHARED."""
    run = journal.run_name(file.parent)
    return run.rpartition("/")[2] if file.stem in SHARED else run


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _part(tensors: Mapping[str, Tensor], name: str) -> State:
    """The tensors whose names begin with `name/`, without that prefix."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def _unpacked(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Masks:
    """The masks of a file, in the order of the layers."""
    shapes = {name: tuple(shape) for name, shape in facts["shapes"]}
    for name, shape in shapes.items():
        if min(shape, default=1) < 0 or tensors[f"mask/{name}"].shape != (-(-math.prod(shape) // 8),):
            raise ValueError(f"the mask of {name} is not as long as its layer")
    return {name: pruning.unpack(tensors[f"mask/{name}"], shape) for name, shape in shapes.items()}
