"""Strategy 1 of Frankle & Carbin (arXiv:1803.03635, Appendix B): train, record, prune, reset.

Every step reads and writes files, so that a stop anywhere loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from lth import pruning, rng
from lth.experiment.mode_connectivity import after_round
from lth.experiment.next_ticket import MASKS, STARTS, Chosen, Round
from lth.experiment.trainer import Event, Note, RoundDone, Trainer, one_per_trial
from lth.records import files, identity, journal, tables
from lth.records.files import RecordError
from lth.records.store import Ticket, numbered
from lth.records.tables import Run
from lth.rng import derive_seed
from lth.settings.config import Config
from lth.training.hardware import memory_kept, numerics
from lth.training.problem import Problem
from lth.training.train import Trained, TrialError


class Experiment:
    """Rounds of some runs on one device. `tell` gets an Event now and then, `stop` is asked whether to stop. `failed`
    has the runs that ended early, with the reason."""

    def __init__(
        self,
        config: Config,
        problem: Problem,
        device: torch.device,
        tell: Callable[[Event], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.trainer = Trainer(config, problem, device, tell, stop)
        self.failed = self.trainer.failed

    def run(self, runs: Sequence[Run], rounds: int) -> None:
        """Strategy 1 for several runs at once: `rounds` trainings of each, and a pruning and a reset after all but the
        last."""
        config, device = self.trainer.config, self.trainer.device
        with numerics(config.precision, config.threads or 1), memory_kept(), rng.preserved(device):
            for run in runs:
                self.pick_up(run, rounds)
            for number in range(rounds):
                while stack := self._next_stack(runs, number, rounds):
                    tickets = [self.trainer.ticket(run, number) for run in stack]
                    trained = self.trainer.train(stack, tickets)
                    for run, ticket, result in zip(stack, tickets, trained, strict=False):
                        with self.trainer.alone(run):
                            self.record(run, ticket, result)
                            if number + 1 < rounds:
                                last = Round(self.trainer, run, ticket, result.final, result.drawn or result.final)
                                self.reset(last, self.prune(last))
                if config.connectivity:
                    after_round(self.trainer, runs, number)

    def record(self, run: Run, ticket: Ticket, trained: Trained) -> None:
        """Write what came of a round; its line in the journal makes it finished."""
        if trained.failure is not None:
            raise TrialError(f"round {ticket.round} ended: {trained.failure}; earlier rounds are kept")
        masks, under = (trained.masks, trained.best) if trained.masks else (ticket.masks, trained.final)
        for name, mask in masks.items():
            if under[name][~mask].any():
                raise TrialError(
                    f"round {ticket.round} ended with pruned weights of {name} that are not 0: {run.arch_type} changes "
                    "its weights when it is called, which voids the mask; earlier rounds are kept"
                )
        store, keep = self.trainer.store(run), self.trainer.config.keep_weights
        weights = {} if keep == "none" else {numbered("trained", ticket.round): trained.best}
        if ticket.round == 0:
            weights |= {"dense": trained.final}
            weights |= {name: state for name in ("rewind", "drawn") if (state := getattr(trained, name))}
        for name, state in weights.items():
            store.write_weights(name, state)
        if trained.masks:
            store.write_masks(ticket.round, masks)
        store.write_checkpoint(ticket.round, replace(trained, extra={}))
        if keep == "last":  # before the round counts as finished, so that a stop leaves none behind
            for number in range(ticket.round):
                files.delete(store.file(numbered("trained", number)))
        row = journal.write_round(run, ticket.round, masks, trained, self.trainer.problem.cost[0])
        empty = tuple(name for name, count in pruning.survivors(masks).items() if not count)
        self.trainer.tell(RoundDone(run, row, sum(trained.seconds.values()), empty, ticket.at_random))

    def prune(self, last: Round) -> Chosen:
        """The masks of the next round."""
        return MASKS[last.arm.masks](last)

    def reset(self, last: Round, chosen: Chosen) -> None:
        """Write the ticket of the next round: its masks, and the weights that its survivors start from."""
        start = STARTS[last.arm.start](last, chosen.masks)
        origin = last.store.original if last.arm.start == "original" else "own"
        last.store.write_ticket(Ticket(last.next, chosen.masks, start, origin, chosen.at_random))

    def pick_up(self, run: Run, rounds: int) -> None:
        """Continue the run from where its files say it is; a new one begins with the dense ticket or --ticket's."""
        problem, store, tell = self.trainer.problem, self.trainer.store(run), self.trainer.tell
        if differ := identity.differing(identity.recorded(run), problem.fingerprint):  # edited while workers start
            raise RecordError(f"{run.dumps} holds results of another experiment, {identity.changed(differ)} since")
        store.pick_up(lambda text: tell(Note(text, warning=True)))
        if not (store.has("initial") and store.has(numbered("ticket", 0))):
            masks = pruning.dense(pruning.prunable(problem.make(), self.trainer.config.prune_embeddings))
            start = problem.initial(derive_seed(run.seed, "weights", 0))
            if problem.start_tickets is not None:
                masks, start = problem.start_tickets(run.seed, 0)
            store.write_weights("initial", start)
            store.write_ticket(Ticket(0, masks, start, "initial"))
        self._make_ticket(run, rounds)

    def _make_ticket(self, run: Run, rounds: int) -> None:
        """Prune and reset after the last finished round, where that is left to do: the run was stopped there, took the
        round over from another arm, or had no further round to train."""
        number, store = tables.finished_rounds(run), self.trainer.store(run)
        if 0 < number < rounds and not store.has(numbered("ticket", number)):
            with self.trainer.alone(run):
                final, drawn = (store.end_of_round(number - 1, drawn) for drawn in (False, True))
                last = Round(self.trainer, run, store.ticket(number - 1), final, drawn)
                self.reset(last, self.prune(last))

    def _next_stack(self, runs: Sequence[Run], number: int, rounds: int) -> list[Run]:
        """Runs that wait for round `number` and can be trained as one; the dense round of a trial only once."""
        waiting = [run for run in runs if run not in self.failed and tables.finished_rounds(run) <= number]
        if number == 0:
            waiting = one_per_trial([run for run in waiting if not self._share_dense(run, rounds)])
        return self.trainer.stackable(waiting, number)

    def _share_dense(self, run: Run, rounds: int) -> bool:
        """Take over the dense round, and continue from it, if another arm of this trial has trained it."""
        if not self.trainer.store(run).share_dense():
            return False
        self.trainer.tell(RoundDone(run, tables.table(run, "rounds").iloc[0].to_dict(), 0.0, ()))
        self._make_ticket(run, rounds)
        return True
