"""Linear mode connectivity: is the error low on the straight line between the ends of two trainings?

The line `orders` is that between two trainings of one ticket that differ only in the order of the data (Frankle et al.
2020, arXiv:1912.05671). The dense network of round 0 starts from the point that tickets are rewound to, as they do. One
of the two trainings is the round's own if its last weights are still there; otherwise it is repeated.

The line `rounds` goes from the end of the round before to the end of a round (Paul et al. 2023, arXiv:2210.03044): the
weights that were pruned between shrink to 0 on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from lth import pruning, rng
from lth.data.images import Feed
from lth.experiment.trainer import Connected, Trainer, one_per_trial
from lth.models import prunable
from lth.models.building import State
from lth.pruning import Masks
from lth.records import files, journal, tables
from lth.records.files import UNUSABLE
from lth.records.store import ENDS, numbered
from lth.records.tables import Run
from lth.rng import derive_seed
from lth.settings.arms import ARMS
from lth.training.network import Network
from lth.training.train import Stopped, TrialError

POINTS = 30  # on the line, both ends included
STATISTICS = 10_000  # training images from which running statistics are computed


def after_round(trainer: Trainer, runs: Sequence[Run], number: int) -> None:
    """Measure the lines of round `number` of the runs that have finished it: train missing ends, write the table."""
    able = [run for run in runs if run not in trainer.failed]
    waiting = [run for run in able if tables.done_rounds(run, True) == number < tables.finished_rounds(run)]
    chosen = waiting
    if number == 0:  # the dense round is the same in all arms of a trial: one measures its line, the others copy it
        chosen = one_per_trial([run for run in waiting if not journal.share_connectivity(run)])
    behind = [run for run in chosen if number and not _has_end(trainer, run, number - 1)]
    _train(trainer, behind, number - 1, ENDS[0])
    for run in behind:
        if run not in trainer.failed:
            with trainer.alone(run):
                _keep_end(trainer, run, number - 1)
    for end in ENDS:
        _train(trainer, chosen, number, end)
    for run in chosen:
        if run not in trainer.failed:
            with trainer.alone(run):
                _measure_lines(trainer, run, number)
    for run in waiting:
        if run not in chosen:
            journal.share_connectivity(run)


def _train(trainer: Trainer, runs: Sequence[Run], number: int, end: str) -> None:
    """Train the tickets of a round again, of the runs that lack that end."""

    def missing() -> list[Run]:
        return [run for run in runs if run not in trainer.failed and _end(trainer, run, number, end) is None]

    while stack := trainer.stackable(missing(), number, end):
        tickets = [trainer.ticket(run, number, end) for run in stack]
        for run, trained in zip(stack, trainer.train(stack, tickets, end), strict=False):
            with trainer.alone(run):
                if trained.failure is not None:
                    raise TrialError(f"round {number}, trained again, ended: {trained.failure}")
                trainer.store(run).write_checkpoint(number, replace(trained, extra={}), end)


def _end(trainer: Trainer, run: Run, number: int, end: str) -> State | None:
    """The last weights of a training, if they are there."""
    store = trainer.store(run)
    if end == "first" and (number or store.original == "initial"):
        with suppress(FileNotFoundError):
            return store.end_of_round(number)
    trained = store.checkpoint(number, end)
    return trained.final if trained and trained.complete(trainer.plan(run, number, end).steps) else None


def _has_end(trainer: Trainer, run: Run, number: int) -> bool:
    """Whether the end of a round is kept; that of the dense round may come from another arm."""
    store, name = trainer.store(run), numbered("end", number)
    if number == 0 and not store.has(name):
        for other in (trainer.store(run.of_arm(arm)) for arm in ARMS if arm != run.arm):
            with suppress(*UNUSABLE):
                other.weights(name)
                files.write(store.file(name), files.read(other.file(name)))
                break
    return store.has(name)


def _keep_end(trainer: Trainer, run: Run, number: int) -> None:
    """Keep the end of a round, for the line to the end of the next one."""
    state = _end(trainer, run, number, ENDS[0])
    assert state is not None
    trainer.store(run).write_weights(numbered("end", number), state)


def _measure_lines(trainer: Trainer, run: Run, number: int) -> None:
    store, feed, make = trainer.store(run), trainer.feed([run]), trainer.problem.make
    one, other = (_end(trainer, run, number, end) for end in ENDS)
    assert one is not None and other is not None
    masks, channels_last = store.masks(number), trainer.channels_last(feed)
    on_line = pruning.dense(masks) if store.changes_masks else masks  # the ends may have others
    options = trainer.device, trainer.problem.criterion, trainer.bf16

    def errors(state: State, masks: Masks = on_line) -> Errors:
        if trainer.stop():
            raise Stopped
        return measure(Network(make(), [state], [masks], *options, channels_last=channels_last), feed, run.seed)

    points = along(one, other, errors)
    if number:
        before, last = store.masks(number - 1), store.weights(numbered("end", number - 1))
        either = {name: mask | before[name] for name, mask in masks.items() if name in before}
        average = 100 - errors(between(last, one, 0.5), masks).test_error  # of both, under the later mask
        about = {"line": tables.ROUNDS, "average": average}
        points += [{**point, **about} for point in along(last, one, lambda state: errors(state, either))]
    _keep_end(trainer, run, number)
    for end in ENDS:  # before the lines count as measured, so that a stop leaves none behind
        files.delete(store.file(end))
    journal.write_connectivity(run, number, points)
    barrier = tables.barriers([run]).iloc[number]
    stable = max(barrier["train"], barrier["test"]) < tables.STABLE
    last_barrier = tables.barriers([run], tables.ROUNDS)["test"].iloc[-1] if number else None
    trainer.tell(Connected(run, number, barrier["train"], barrier["test"], stable, last_barrier))


class Errors(NamedTuple):
    """Percent of the images that a network classifies wrongly."""

    train_error: float
    test_error: float


def along(one: State, other: State, errors: Callable[[State], Errors]) -> list[dict[str, Any]]:
    """The errors at POINTS evenly spaced points from `one` to `other`, each with its share of the way, `point`."""
    shares = [number / (POINTS - 1) for number in range(POINTS)]
    return [{"point": share, **errors(between(one, other, share))._asdict()} for share in shares]


def between(one: State, other: State, share: float) -> State:
    """The weights and buffers at that share of the straight line from `one` to `other`; integers come from `one`."""
    return {
        name: torch.lerp(tensor, other[name], share) if tensor.is_floating_point() else tensor
        for name, tensor in one.items()
    }


def measure(network: Network, feed: Feed, seed: int) -> Errors:
    """The errors of a network of one trial on its training images and the test images.

    The running statistics of batch and instance norm, and the vectors of spectral norm, are computed from training
    batches, since the mean of two networks' statistics is not that of the network between them. `seed` decides which
    batches, and what the model draws.
    """
    batches = feed.epoch([(seed, "statistics")], 0)[: math.ceil(STATISTICS / feed.batch_size)]
    with rng.seeded(derive_seed(seed, "line")):
        _renew_statistics(network, (feed.fetch(batch) for batch in batches))
        network.model.eval()
        return Errors(*(_error(network, chunks) for chunks in (feed.training(), feed.test())))


@torch.no_grad()
def _renew_statistics(network: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    modules = list(network.model.modules())
    norms = [m for m in modules if isinstance(m, _NormBase) and m.track_running_stats]
    hooks = [hook for m in modules for hook in m._forward_pre_hooks.values()]
    if not norms and not any(isinstance(each, (_SpectralNorm, SpectralNorm)) for each in [*modules, *hooks]):
        return
    network.model.train()
    for norm in norms:  # one that the model keeps in evaluation mode sees no batch and keeps its statistics
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.zero_()
        norm.momentum = None  # a plain mean over the batches; the first replaces what was there
    prunable.without_dropout(network.model)
    for number, (images, labels) in enumerate(batches, 1):
        for norm in norms:
            if isinstance(norm, _InstanceNorm):  # which takes no momentum for 0
                norm.momentum = 1 / number
        network.losses(images, labels)  # of the whole batch at once, as in training


def _error(network: Network, chunks: Iterable[tuple[Tensor, Tensor]]) -> float:
    wrong, seen = torch.zeros((), device=network.device), 0
    for images, labels in chunks:
        wrong += (network.logits(images, shared=True)[0].argmax(-1) != labels).sum()
        seen += len(labels)
    return 100 * wrong.item() / seen
