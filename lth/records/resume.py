"""Continuing after a stop: which finished rounds can be built upon, where the next one stands, whose dense round is
shared.

What is on disk is the state: a round starts from its ticket, a ticket is made of the weights at the end of the round
before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lth.models.building import State
from lth.records import recording, tables, tickets
from lth.records.files import RecordError, Unreadable, delete, set_aside, share
from lth.records.tables import Run
from lth.settings.arms import ARMS
from lth.training.train import Trained


def pick_up(run: Run, identity: str, rewinds: bool, tell: Callable[[str], object]) -> None:
    """Make sure that the run's files can be built upon, and take back rounds that cannot.

    RecordError, before anything is taken back, if the weights are out of reach.
    """
    recording.mend(run, tell)
    finished = tables.finished_rounds(run)
    if finished and not any(run.saves.glob("*.safetensors")):
        raise RecordError(
            f"{run}: {finished} rounds are finished, but there are no weights in {run.saves}: "
            "is its disk there? --overwrite starts again"
        )
    if missing := recording.lost(run):
        tell(missing)
    sound = sound_rounds(run, finished, identity, rewinds, tell)
    if sound < finished:
        kept = recording.keep_rounds(run, sound)
        tell(
            f"{run}: continuing from round {sound}, the first that has to be trained again; the journal of it and the "
            f"later rounds is kept in {kept.name}"
        )
    drop_rounds(run, sound)


def has_ticket(run: Run, number: int) -> bool:
    """Whether the run has the ticket that round `number` starts from."""
    return (run.saves / f"{tickets.numbered('ticket', number)}.safetensors").exists()


def sparse_up_to(run: Run, usual: Mapping[str, float]) -> Mapping[str, float]:
    """The rule by which layers of the run train sparsely (lth.training.sparse.limits): the one it began with, since
    another one gives other numbers; `usual` is that of a new run."""
    found: Mapping[str, float] = tables.config_of(run).get("sparse_up_to", usual)
    return found


def checkpoint(run: Run, number: int, identity: str, name: str = "checkpoint") -> Trained | None:
    """Where round `number` was when it stopped, if it did."""
    try:
        of_round, saved = tickets.read_checkpoint(run, identity, name)
    except FileNotFoundError:
        return None
    return saved if of_round == number else None


def end_of_round(run: Run, number: int, identity: str) -> State:
    """The weights at the end of a finished round, which pruning looks at. FileNotFoundError if they are gone."""
    if number == 0 and (run.saves / "dense.safetensors").exists():
        return tickets.read_state(run, "dense", identity)
    saved = checkpoint(run, number, identity)
    if saved is None:
        raise FileNotFoundError(f"the checkpoint of round {number} of {run} is gone")
    return saved.final


def share_dense(run: Run, identity: Callable[[Run], str], rewinds: bool) -> bool:
    """Take over the dense round if another arm of this trial has it: the same seed, the same network."""
    for arm in ARMS:
        sibling = run.of_arm(arm)
        if arm != run.arm and _begun(sibling):
            try:
                adopt_dense(run, sibling, identity(run), rewinds)
            except (tickets.Damaged, FileNotFoundError, Unreadable):
                continue
            return True
    return False


def _begun(run: Run) -> bool:
    """Whether the run has a finished round, and says so undamaged: it may be none of this command's."""
    try:
        return tables.finished_rounds(run) > 0
    except RecordError:
        return False


def adopt_dense(run: Run, sibling: Run, identity: str, rewinds: bool) -> None:
    """Take over the dense round that another arm of the same trial has trained, with the weights to rewind to where
    the settings want them. Damaged or FileNotFoundError if its files cannot be used."""
    needed = ["initial", "dense", tickets.numbered("ticket", 0), *(["rewind"] if rewinds else [])]
    for name in needed:
        tickets.load_tensors(sibling.saves / f"{name}.safetensors", identity)
    for name in (*needed, tickets.numbered("trained", 0)):
        source = sibling.saves / f"{name}.safetensors"
        try:
            share(source, run.saves / source.name)
        except (FileNotFoundError, RecordError):  # not kept, or no longer: the other arm may be past this round
            if name in needed or source.exists():
                raise
    tickets.read_ticket(run, 0, identity)
    recording.copy_dense(run, sibling)


def sound_rounds(run: Run, finished: int, identity: str, rewinds: bool, tell: Callable[[str], object]) -> int:
    """How many of the finished rounds can be built upon. Unusable files are set aside; `tell` gets a sentence for each.

    Round n can start from its ticket, or a ticket can be made of the weights at the end of round n - 1: those are in
    the checkpoint, or for round 0 in `dense`. Tickets start from `initial` or, where the settings say so, `rewind`.
    """

    def usable(name: str) -> bool:
        file = run.saves / f"{name}.safetensors"
        try:
            tickets.load_tensors(file, identity)
        except FileNotFoundError:
            return False
        except tickets.Damaged as reason:
            tell(f"{reason}; kept as {set_aside(file).name}, continuing from the last good round")
            return False
        return True

    found = {name: usable(name) for name in ("initial", "rewind", "dense", "checkpoint", *tickets.ENDS)}
    needed = ["initial", *(["rewind"] if rewinds else []), *(["dense"] if ARMS[run.arm].masks == "one_shot" else [])]
    if not all(found[name] for name in needed):
        finished = 0
    for number in range(finished):
        usable(tickets.numbered("trained", number))  # nothing is built on these
        if not usable(tickets.numbered("ticket", number)):
            finished = number
            break
    ended = [0] if found["dense"] else []  # the rounds whose last weights are there
    if found["checkpoint"]:
        ended.append(tickets.read_checkpoint(run, identity)[0])
    while not usable(tickets.numbered("ticket", finished)) and finished and finished - 1 not in ended:
        finished -= 1
    return finished


def drop_rounds(run: Run, first: int) -> None:
    """Delete the tickets and trained weights of the rounds from number `first` on; they are about to be made again."""
    for again in tickets.ENDS:  # of rounds that will be trained anew
        file = run.saves / f"{again}.safetensors"
        if file.exists() and tickets.read_checkpoint(run, name=again)[0] >= first:
            delete(file)
    for kind, kept in (("ticket", first + 1), ("trained", first)):
        for number, file in tickets.of_rounds(run, kind).items():
            if number >= kept:
                delete(file)
