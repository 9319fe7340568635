"""Linear mode connectivity: is the error low on the straight line between the ends of two trainings?

The line `orders` connects two trainings of one ticket that differ only in the order of the data (Frankle et al. 2020,
arXiv:1912.05671). For round 0, the dense network starts from the point that tickets are rewound to. One of the two
trainings is the round's own if its last weights are still there; otherwise it is repeated.

The line `rounds` connects the end of the previous round with the end of a round (Paul et al. 2023, arXiv:2210.03044);
the weights that were pruned in between shrink to 0 along it.
"""

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
from lth.experiment.trainer import BarriersMeasured, Trainer, one_per_trial
from lth.models import prunable
from lth.models.building import State
from lth.pruning import Masks
from lth.records import files, journal, tables
from lth.records.files import UNUSABLE
from lth.records.store import ENDS, numbered
from lth.records.tables import Run
from lth.rng import derive_seed
from lth.training.network import Network
from lth.training.train import Stopped, TrialError

POINTS = 30  # on the line, both ends included
STATISTICS = 10_000  # training images for running statistics


def after_round(trainer: Trainer, runs: Sequence[Run], number: int) -> None:
    """Measure the lines of round `number` for the runs that have finished it: train missing ends, write the table."""
    running = [run for run in runs if run not in trainer.failed]
    waiting = [run for run in running if tables.done_rounds(run, True) == number < tables.finished_rounds(run)]
    measuring = waiting
    if number == 0:  # the dense round is the same in all arms of a trial: one measures its line, the others copy it
        measuring = one_per_trial([run for run in waiting if not journal.share_connectivity(run)])
    without_end = [run for run in measuring if number and not _has_end(trainer, run, number - 1)]
    _train(trainer, without_end, number - 1, ENDS[0])
    for run in without_end:
        if run not in trainer.failed:
            with trainer.contain_errors(run):
                _keep_end(trainer, run, number - 1)
    for end in ENDS:
        _train(trainer, measuring, number, end)
    for run in measuring:
        if run not in trainer.failed:
            with trainer.contain_errors(run):
                _measure_lines(trainer, run, number)
    for run in waiting:
        if run not in measuring:
            journal.share_connectivity(run)


def _train(trainer: Trainer, runs: Sequence[Run], number: int, end: str) -> None:
    """Repeat the training of a round for the runs that lack that end."""

    def missing() -> list[Run]:
        return [run for run in runs if run not in trainer.failed and _end(trainer, run, number, end) is None]

    while stack := trainer.stackable(missing(), number, end):
        tickets = [trainer.ticket(run, number, end) for run in stack]
        for run, trained in zip(stack, trainer.train(stack, tickets, end), strict=False):
            with trainer.contain_errors(run):
                if trained.failure is not None:
                    raise TrialError(f"round {number}, trained again, ended: {trained.failure}")
                trainer.store(run).write_checkpoint(number, replace(trained, extra={}), end)


def _end(trainer: Trainer, run: Run, number: int, end: str) -> State | None:
    """The last weights of a training; None if they are not stored."""
    store = trainer.store(run)
    if end == "first" and (number or store.original == "initial"):
        with suppress(FileNotFoundError):
            return store.end_of_round(number)
    trained = store.checkpoint(number, end)
    return trained.final if trained and trained.complete(trainer.plan(run, number, end).steps) else None


def _has_end(trainer: Trainer, run: Run, number: int) -> bool:
    """Whether the end of a round has been kept. The end of the dense round is copied from another arm if one has it."""
    store, name = trainer.store(run), numbered("end", number)
    if number == 0 and not store.has(name):
        for source in map(trainer.store, run.other_arms()):
            with suppress(*UNUSABLE):
                source.weights(name)
                files.write(store.file(name), files.read(source.file(name)))
                break
    return store.has(name)


def _keep_end(trainer: Trainer, run: Run, number: int) -> None:
    """Keep the end of a round for the line to the end of the next one."""
    state = _end(trainer, run, number, ENDS[0])
    assert state is not None
    trainer.store(run).write_weights(numbered("end", number), state)


def _measure_lines(trainer: Trainer, run: Run, number: int) -> None:
    store, feed, make = trainer.store(run), trainer.feed([run]), trainer.problem.make
    first, second = (_end(trainer, run, number, end) for end in ENDS)
    assert first is not None and second is not None
    masks, channels_last = store.masks(number), trainer.channels_last(feed)
    line_masks = pruning.dense(masks) if store.changes_masks else masks  # the two ends may have different masks
    options = trainer.device, trainer.problem.criterion, trainer.bf16

    def errors(state: State, masks: Masks = line_masks) -> Errors:
        if trainer.stop():
            raise Stopped
        return measure(Network(make(), [state], [masks], *options, channels_last=channels_last), feed, run.seed)

    points = along(first, second, errors)
    if number:
        previous, previous_masks = store.weights(numbered("end", number - 1)), store.masks(number - 1)
        union = {name: mask | previous_masks[name] for name, mask in masks.items() if name in previous_masks}
        average = 100 - errors(between(previous, first, 0.5), masks).test_error  # of both ends, under the later mask
        columns = {"line": tables.ROUNDS, "average": average}
        points += [{**point, **columns} for point in along(previous, first, lambda state: errors(state, union))]
    _keep_end(trainer, run, number)
    for end in ENDS:  # before the lines are in the journal, so that a stop leaves none behind
        files.delete(store.file(end))
    journal.write_connectivity(run, number, points)
    barrier = tables.barriers([run]).iloc[number]
    stable = max(barrier["train"], barrier["test"]) < tables.STABLE
    from_last = tables.barriers([run], tables.ROUNDS)["test"].iloc[-1] if number else None
    trainer.tell(BarriersMeasured(run, number, barrier["train"], barrier["test"], stable, from_last))


class Errors(NamedTuple):
    """Percent of the images that a network classifies wrongly."""

    train_error: float
    test_error: float


def along(start: State, end: State, errors: Callable[[State], Errors]) -> list[dict[str, Any]]:
    """The errors at POINTS evenly spaced points from `start` to `end`, each with its share of the way, `point`."""
    shares = [number / (POINTS - 1) for number in range(POINTS)]
    return [{"point": share, **errors(between(start, end, share))._asdict()} for share in shares]


def between(start: State, end: State, share: float) -> State:
    """The weights and buffers at that share of the straight line from `start` to `end`; integers stay as in `start`."""
    return {
        name: torch.lerp(tensor, end[name], share) if tensor.is_floating_point() else tensor
        for name, tensor in start.items()
    }


def measure(network: Network, feed: Feed, seed: int) -> Errors:
    """The errors of a network of one trial on its training images and on the test images.

    The running statistics of batch and instance norm and the vectors of spectral norm are computed again from training
    batches, since interpolated ones do not fit the interpolated network. `seed` decides which batches are used, and the
    random numbers of the model.
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
    if not norms and not any(isinstance(part, (_SpectralNorm, SpectralNorm)) for part in [*modules, *hooks]):
        return
    network.model.train()
    for norm in norms:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.zero_()
        norm.momentum = None  # a plain mean over the batches, which replaces the old statistics
    prunable.without_dropout(network.model)
    for number, (images, labels) in enumerate(batches, 1):
        for norm in norms:
            if isinstance(norm, _InstanceNorm):  # which takes None for 0
                norm.momentum = 1 / number
        network.losses(images, labels)  # one forward pass of the whole batch, as in training


def _error(network: Network, chunks: Iterable[tuple[Tensor, Tensor]]) -> float:
    wrong, count = torch.zeros((), device=network.device), 0
    for images, labels in chunks:
        wrong += (network.logits(images, shared=True)[0].argmax(-1) != labels).sum()
        count += len(labels)
    return 100 * wrong.item() / count
