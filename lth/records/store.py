"""The tickets, weights and checkpoints of one run, and continuing from them after a stop.

What is on disk is the state: a round starts from its ticket, and a ticket is made of the weights at the end of the
round before.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lth.models.building import State
from lth.pruning import Masks
from lth.records import files, recording, tables, tickets
from lth.records.files import RecordError, Unreadable
from lth.records.tables import Run
from lth.records.tickets import Damaged, Ticket, numbered, wellformed
from lth.settings.arms import ARMS
from lth.training.train import Evaluation, Trained

ENDS = ("first", "second")  # files of --connectivity's two trainings; `first` has the round's order of the data
PARTS = ("final", "best", "rewind", "drawn", "extra", "masks")  # of a checkpoint


@dataclass(frozen=True)
class Store:
    """What a run keeps under saves/. Reading raises FileNotFoundError where a file is gone, Damaged where it is spoiled
    or belongs to something else than `identity`, if that is given, and Unreadable where it is out of reach.

    original: the name of the weights that survivors are reset to: `initial`, or with --rewind `rewind`.
    drawn: the name of the weights of round 0 that masks are drawn from: `dense`, or with --draw_at `drawn`.
    """

    run: Run
    identity: str | None = None
    original: str = "initial"
    drawn: str = "dense"

    def file(self, name: str) -> Path:
        """The file of that name, such as `initial` or `ticket_07`."""
        return self.run.saves / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Whether there is that file."""
        return self.file(name).exists()

    def weights(self, name: str) -> State:
        """The weights `initial`, `rewind`, `dense`, `trained_07` or `end_07`."""
        return self._load(name)[0]

    def write_weights(self, name: str, state: State) -> None:
        """Keep weights under that name."""
        self._save(name, state)

    def ticket(self, number: int) -> Ticket:
        """The ticket that round `number` starts from."""
        name = numbered("ticket", number)
        tensors, facts = self._load(name)
        with wellformed(self.file(name)):
            masks, origin = tickets.unpacked(tensors, facts["shapes"]), facts["origin"]
            at_random = facts.get("at_random", 0)
            if origin not in ("initial", "rewind", "own") or type(at_random) is not int:
                raise ValueError(f"it starts from {origin!r}, with {at_random!r} weights drawn at random")
            own = {key.removeprefix("start/"): value for key, value in tensors.items() if key.startswith("start/")}
            start = own if origin == "own" else self.weights(origin)
            if any(key not in start or start[key].shape != mask.shape for key, mask in masks.items()):
                raise ValueError("its masks do not fit the weights that it starts from")
        return Ticket(number, masks, start, origin, at_random)

    def masks(self, number: int) -> Masks:
        """The masks of that round at ES: those of its ticket, whatever has become of the weights that it starts from,
        unless the training changed them."""
        name = numbered("masks" if number and self.changes_masks else "ticket", number)
        tensors, facts = self._load(name)
        with wellformed(self.file(name)):
            return tickets.unpacked(tensors, facts["shapes"])

    @property
    def changes_masks(self) -> bool:
        """Whether the trainings of this run change their masks."""
        return self.run.arm in ARMS and ARMS[self.run.arm].changes_masks

    def write_masks(self, number: int, masks: Masks) -> None:
        """Keep the masks of a round at ES, where the training changed them."""
        tensors, shapes = tickets.packed(masks)
        self._save(numbered("masks", number), tensors, shapes=shapes)

    def write_ticket(self, ticket: Ticket) -> None:
        """Keep a ticket: its masks as bits and, where it is its own, its start."""
        tensors, shapes = tickets.packed(ticket.masks)
        if ticket.origin == "own":
            tensors |= {f"start/{name}": value for name, value in ticket.start.items()}
        ties = {"at_random": ticket.at_random} if ticket.at_random else {}
        facts = {"round": ticket.round, "shapes": shapes, "origin": ticket.origin, **ties}
        self._save(numbered("ticket", ticket.round), tensors, **facts)

    def saved(self, name: str = "checkpoint") -> tuple[int, Trained]:
        """The round that a checkpoint belongs to, and where its training is."""
        tensors, facts = self._load(name)
        parts: dict[str, Any] = {part: {} for part in PARTS}
        for key, value in tensors.items():
            part, _, rest = key.partition("/")
            if part in parts:
                parts[part][rest] = value
        with wellformed(self.file(name)):
            evals = [Evaluation(int(row[0]), *map(float, row[1:])) for row in tensors["evals"].tolist()]
            number, iteration, seconds = int(facts["round"]), int(facts["iteration"]), dict(facts["seconds"])
            about = {"seconds": seconds, "supermask": facts["supermask"], "settled": int(facts.get("settled", 0))}
        return number, Trained(iteration, evals, **parts, **about)

    def checkpoint(self, number: int, name: str = "checkpoint") -> Trained | None:
        """Where the training of round `number` was when it stopped; None if it was not begun."""
        try:
            of_round, trained = self.saved(name)
        except FileNotFoundError:
            return None
        return trained if of_round == number else None

    def write_checkpoint(self, number: int, trained: Trained, name: str = "checkpoint") -> None:
        """Keep where the training of round `number` is, complete or not."""
        tensors = {f"{part}/{name}": value for part in PARTS for name, value in getattr(trained, part).items()}
        tensors["evals"] = torch.tensor([list(asdict(e).values()) for e in trained.evals], dtype=torch.float64)
        facts = {"round": number, "iteration": trained.iteration, "seconds": trained.seconds}
        facts |= {"settled": trained.settled} if trained.settled else {}
        self._save(name, tensors, supermask=trained.supermask, **facts)

    def end_of_round(self, number: int) -> State:
        """The weights at the end of a finished round. FileNotFoundError if they are gone."""
        return self._of_round(number, "dense")

    def drawn_from(self, number: int) -> State:
        """The weights of a finished round that pruning looks at, likewise."""
        return self._of_round(number, self.drawn)

    def _of_round(self, number: int, name: str) -> State:
        if number == 0 and self.has(name):
            return self.weights(name)
        if (saved := self.checkpoint(number)) is None:
            raise FileNotFoundError(f"the checkpoint of round {number} of {self.run} is gone")
        return saved.drawn if name == "drawn" else saved.final

    def of_rounds(self, kind: str) -> dict[int, Path]:
        """The files of that kind, such as `ticket`, by their rounds; what else lies beside them is the user's."""
        found = {}
        for file in sorted(self.run.saves.glob(f"{kind}_*.safetensors")):
            number = file.stem.removeprefix(f"{kind}_")
            if number.isdecimal() and numbered(kind, int(number)) == file.stem:
                found[int(number)] = file
        return dict(sorted(found.items()))

    def last_finished(self) -> int:
        """The last finished round that has a ticket; where none is finished, the only one that has. ValueError if there
        are several."""
        have, finished = self.of_rounds("ticket"), tables.finished_rounds(self.run)
        if not finished and len(have) > 1:
            dumps = self.run.dumps
            raise ValueError(f"{self.run.saves} has tickets of {len(have)} rounds, of which {dumps} has none finished")
        return max((number for number in have if number < finished), default=next(iter(have), 0))

    def pick_up(self, tell: Callable[[str], object]) -> None:
        """Take back finished rounds that cannot be built upon; `tell` gets a sentence for whatever is not as it was.
        RecordError, before anything is taken back, if the weights are out of reach."""
        run = self.run
        recording.mend(run, tell)
        finished = tables.finished_rounds(run)
        if finished and not any(run.saves.glob("*.safetensors")):
            raise RecordError(
                f"{run}: {finished} rounds are finished, but there are no weights in {run.saves}: "
                "is its disk there? --overwrite starts again"
            )
        sound = self._sound_rounds(finished, tell)
        if sound < finished:
            copy = recording.keep_rounds(run, sound)
            tell(
                f"{run}: continuing from round {sound}, the first that has to be trained again; the journal of it and "
                f"the later rounds is kept in {copy.name}"
            )
        self.drop_rounds(sound)

    def share_dense(self) -> bool:
        """Take over the dense round from another arm of this trial, the same network. Whether one has it."""
        for sibling in (self.run.of_arm(arm) for arm in ARMS if arm != self.run.arm):
            if tables.sound_entries(sibling):
                try:
                    self._adopt_dense(sibling)
                except (Damaged, FileNotFoundError, Unreadable):
                    continue
                return True
        return False

    def _adopt_dense(self, sibling: Run) -> None:
        theirs = Store(sibling, self.identity)
        needed = dict.fromkeys(("initial", "dense", numbered("ticket", 0), self.original, self.drawn))
        for name in needed:
            theirs._load(name)
        for name in (*needed, numbered("trained", 0)):
            with suppress(FileNotFoundError) if name not in needed else nullcontext():  # it may not be kept
                files.write(self.file(name), files.read(theirs.file(name)))
        self.ticket(0)
        recording.copy_dense(self.run, sibling)

    def _sound_rounds(self, finished: int, tell: Callable[[str], object]) -> int:
        """How many of the finished rounds can be built upon. Unusable files are set aside.

        Round n can start from its ticket, or a ticket can be made of the weights at the end of round n - 1: those are
        in the checkpoint, or for round 0 in `dense`. Tickets start from `initial` or, with --rewind, `rewind`.
        """

        def usable(name: str) -> bool:
            try:
                self._load(name)
            except FileNotFoundError:
                return False
            except Damaged as reason:
                aside = files.set_aside(self.file(name))
                tell(f"{reason}; kept as {aside.name}, continuing from the last good round")
                return False
            return True

        numbers = range(finished + 1)
        names = [numbered(kind, number) for kind in ("ticket", "masks", "trained", "end") for number in numbers]
        names += ["initial", "rewind", "drawn", "dense", "checkpoint", *ENDS]
        found = {name: usable(name) for name in names}
        needed = {"initial", self.original, *([self.drawn] if ARMS[self.run.arm].masks == "one_shot" else [])}
        ended = {0} if found["dense"] and found[self.drawn] else set[int]()  # the rounds whose last weights are there
        ended |= {self.saved()[0]} if found["checkpoint"] else set()
        if not all(found[name] for name in needed):
            return 0
        starts = {number: found[numbered("ticket", number)] for number in numbers}
        masks = {number: found[numbered("masks", number)] or not (number and self.changes_masks) for number in numbers}
        finished = next((n for n in range(finished) if not (starts[n] and masks[n])), finished)
        while finished and not starts[finished] and finished - 1 not in ended:
            finished -= 1
        return finished

    def drop_rounds(self, first: int) -> None:
        """Delete the tickets and trained weights of the rounds from number `first` on; they are about to be made
        again."""
        for end in ENDS:
            if self.has(end) and self.saved(end)[0] >= first:
                files.delete(self.file(end))
        for kind, kept in (("ticket", first + 1), ("masks", first), ("trained", first), ("end", first)):
            for number, file in self.of_rounds(kind).items():
                if number >= kept:
                    files.delete(file)

    def _load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return tickets.load_tensors(self.file(name), self.identity)

    def _save(self, name: str, tensors: State, **facts: Any) -> None:
        tickets.save_tensors(self.file(name), tensors, self.identity or "", **facts)
