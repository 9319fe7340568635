"""The tickets, weights and checkpoints of one run, as files under saves/ that belong to one identity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lth.models.building import State
from lth.pruning import Masks
from lth.records import resume, tickets
from lth.records.tables import Run
from lth.records.tickets import Ticket
from lth.training.train import Trained


@dataclass(frozen=True)
class Store:
    """What a run keeps under saves/. Reading raises FileNotFoundError where a file is gone, and Damaged where it is
    spoiled or says that it belongs to something else than `identity`.

    original: the name of the weights that survivors are reset to: `initial`, or with --rewind `rewind`.
    """

    run: Run
    identity: str
    original: str = "initial"

    def pick_up(self, tell: Callable[[str], object]) -> None:
        """Take back finished rounds that cannot be built upon; `tell` gets a sentence for whatever is not as it was."""
        resume.pick_up(self.run, self.identity, self.original == "rewind", tell)

    def share_dense(self, identity: Callable[[Run], str]) -> bool:
        """Take over the dense round from another arm of this trial. Whether one has it."""
        return resume.share_dense(self.run, identity, self.original == "rewind")

    def has(self, name: str) -> bool:
        """Whether there is a set of weights of this name."""
        return (self.run.saves / f"{name}.safetensors").exists()

    def has_ticket(self, number: int) -> bool:
        """Whether there is the ticket that round `number` starts from."""
        return resume.has_ticket(self.run, number)

    def ticket(self, number: int) -> Ticket:
        """The ticket that round `number` starts from."""
        return tickets.read_ticket(self.run, number, self.identity)

    def masks(self, number: int) -> Masks:
        """The masks of that ticket, whatever has become of the weights that it starts from."""
        return tickets.read_masks(self.run, number, self.identity)

    def write_ticket(self, ticket: Ticket) -> None:
        """Keep a ticket."""
        tickets.write_ticket(self.run, ticket, self.identity)

    def weights(self, name: str) -> State:
        """The weights `initial`, `rewind`, `dense` or `trained_07`."""
        return tickets.read_state(self.run, name, self.identity)

    def write_weights(self, name: str, state: State) -> None:
        """Keep weights under a name."""
        tickets.write_state(self.run, name, state, self.identity)

    def checkpoint(self, number: int, name: str = "checkpoint") -> Trained | None:
        """Where the training of round `number` was when it stopped; None if it was not begun."""
        return resume.checkpoint(self.run, number, self.identity, name)

    def write_checkpoint(self, number: int, trained: Trained, name: str = "checkpoint") -> None:
        """Keep where the training of round `number` is."""
        tickets.write_checkpoint(self.run, number, trained, self.identity, name)

    def end_of_round(self, number: int) -> State:
        """The weights at the end of a finished round, which pruning looks at."""
        return resume.end_of_round(self.run, number, self.identity)
