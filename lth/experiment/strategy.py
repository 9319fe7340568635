"""Strategy 1 of Frankle & Carbin (arXiv:1803.03635, Appendix B): train, record, prune, reset.

Every step reads and writes files, so that nothing is lost when the program is stopped at any point.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from lth import pruning, rng
from lth.experiment.mode_connectivity import after_round
from lth.experiment.next_ticket import MASKS, STARTS, Pruned, Round
from lth.experiment.trainer import Event, Note, RoundDone, Trainer, one_per_trial
from lth.records import files, identity, journal, tables
from lth.records.files import RecordError
from lth.records.store import Ticket, numbered
from lth.records.tables import Run
from lth.rng import derive_seed
from lth.settings.config import Config
from lth.training.hardware import keep_memory, numerics
from lth.training.problem import Problem
from lth.training.train import Trained, TrialError


class Experiment:
    """The rounds of several runs on one device. `tell` is called with each Event, `stop` returns whether to stop.
    `failed` has the runs that ended early, with the reason."""

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
        """Strategy 1 for several runs at once: train each `rounds` times; prune and reset after all but the last."""
        config, device = self.trainer.config, self.trainer.device
        with numerics(config.precision, config.threads or 1), keep_memory(), rng.preserved(device):
            for run in runs:
                self.resume(run, rounds)
            for number in range(rounds):
                while stack := self._next_stack(runs, number, rounds):
                    tickets = [self.trainer.ticket(run, number) for run in stack]
                    trained = self.trainer.train(stack, tickets)
                    for run, ticket, result in zip(stack, tickets, trained, strict=False):
                        with self.trainer.contain_errors(run):
                            self.record(run, ticket, result)
                            if number + 1 < rounds:
                                last = Round(self.trainer, run, ticket, result.final, result.drawn or result.final)
                                self.reset(last, self.prune(last))
                if config.connectivity:
                    after_round(self.trainer, runs, number)

    def record(self, run: Run, ticket: Ticket, trained: Trained) -> None:
        """Write the results of a round. It is finished once it is in the journal."""
        if trained.failure is not None:
            raise TrialError(f"round {ticket.round} ended: {trained.failure}; earlier rounds are kept")
        masks, weights = (trained.masks, trained.best) if trained.masks else (ticket.masks, trained.final)
        for name, mask in masks.items():
            if weights[name][~mask].any():
                raise TrialError(
                    f"round {ticket.round} ended with pruned weights of {name} that are not 0: {run.arch_type} changes "
                    "its weights when it is called, which voids the mask; earlier rounds are kept"
                )
        store, keep = self.trainer.store(run), self.trainer.config.keep_weights
        states = {} if keep == "none" else {numbered("trained", ticket.round): trained.best}
        if ticket.round == 0:
            states |= {"dense": trained.final, "rewind": trained.rewind, "drawn": trained.drawn}
        for name, state in states.items():
            if state:  # there are no others without --rewind or --draw_at
                store.write_weights(name, state)
        if trained.masks:
            store.write_masks(ticket.round, masks)
        store.write_checkpoint(ticket.round, replace(trained, extra={}))
        if keep == "last":  # before the round is finished, so that a stop leaves none behind
            for number in range(ticket.round):
                files.delete(store.file(numbered("trained", number)))
        row = journal.write_round(run, ticket.round, masks, trained, self.trainer.problem.cost[0])
        empty = tuple(name for name, count in pruning.survivors(masks).items() if not count)
        self.trainer.tell(RoundDone(run, row, sum(trained.seconds.values()), empty, ticket.at_random))

    def prune(self, last: Round) -> Pruned:
        """The masks of the next round."""
        return MASKS[last.arm.masks](last)

    def reset(self, last: Round, pruned: Pruned) -> None:
        """Write the ticket of the next round: its masks, and the weights that its survivors start from."""
        start = STARTS[last.arm.start](last, pruned.masks)
        origin = last.store.original if last.arm.start == "original" else "own"
        last.store.write_ticket(Ticket(last.next, pruned.masks, start, origin, pruned.at_random))

    def resume(self, run: Run, rounds: int) -> None:
        """Continue the run from its files; a new one begins with the dense ticket or with the one named by --ticket."""
        problem, store, tell = self.trainer.problem, self.trainer.store(run), self.trainer.tell
        # The model's file may have been edited while worker processes started.
        if parts := identity.differing(identity.read_fingerprints(run), problem.fingerprint):
            raise RecordError(f"{run.dumps} holds results of {identity.in_words(parts)}")
        store.keep_sound_rounds(lambda text: tell(Note(text, warning=True)))
        if not (store.has("initial") and store.has(numbered("ticket", 0))):
            masks = pruning.dense(pruning.prunable(problem.make(), self.trainer.config.prune_embeddings))
            start = problem.initial(derive_seed(run.seed, "weights", 0))
            if problem.start_tickets is not None:
                masks, start = problem.start_tickets(run.seed, 0)
            store.write_weights("initial", start)
            store.write_ticket(Ticket(0, masks, start, "initial"))
        self._make_ticket(run, rounds)

    def _make_ticket(self, run: Run, rounds: int) -> None:
        """Prune and reset after the last finished round if that has not been done: the run was stopped there, has
        copied the round from another arm, or had no further round to train."""
        number, store = tables.finished_rounds(run), self.trainer.store(run)
        if 0 < number < rounds and not store.has(numbered("ticket", number)):
            with self.trainer.contain_errors(run):
                final, drawn = (store.end_of_round(number - 1, drawn) for drawn in (False, True))
                last = Round(self.trainer, run, store.ticket(number - 1), final, drawn)
                self.reset(last, self.prune(last))

    def _next_stack(self, runs: Sequence[Run], number: int, rounds: int) -> list[Run]:
        """Runs that wait for round `number` and can be trained as one network; the dense round once per trial."""
        waiting = [run for run in runs if run not in self.failed and tables.finished_rounds(run) <= number]
        if number == 0:
            waiting = one_per_trial([run for run in waiting if not self._copy_dense_round(run, rounds)])
        return self.trainer.stackable(waiting, number)

    def _copy_dense_round(self, run: Run, rounds: int) -> bool:
        """Copy the dense round, and prune and reset after it, if another arm of this trial has trained it."""
        if not self.trainer.store(run).copy_dense_round():
            return False
        self.trainer.tell(RoundDone(run, tables.table(run, "rounds").iloc[0].to_dict(), 0.0, ()))
        self._make_ticket(run, rounds)
        return True
