"""The library's front door for networks, data and pruning rules of the user's own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lth import rng
from lth.api import own_network
from lth.api.own_network import OwnNet
from lth.api.saved_ticket import placed
from lth.commands.prepare import command_facts, machine_facts, with_threads
from lth.commands.session import TrialsFailed, repair, reporting
from lth.data.loaders import PreparedData, prepare_data
from lth.experiment import Experiment
from lth.experiment.trainer import Callback
from lth.models import building
from lth.models import prunable as layers
from lth.prune import Rule, attach, check_rule, detach
from lth.records import identity, tables
from lth.records.files import write_json
from lth.records.lock import Locks
from lth.records.store import Store, numbered
from lth.records.tables import Run
from lth.rng import derive_seed
from lth.settings import checks, values
from lth.settings.config import Config, ConfigError
from lth.settings.values import LONGEST, Duration
from lth.training import sparse
from lth.training.problem import Problem

# Settings that `optim` stands in for.
FIT = ("optimizer", "lr", "momentum", "nesterov", "weight_decay", "lr_schedule", "lr_milestones", "lr_gamma", "warmup")
SETTINGS = (
    *(*FIT, "prune_embeddings", "batch_size", "valid_size", "valid_freq", "precision", "sparse", "threads"),
    *("keep_weights", "name", "print_freq"),
)
ARGUMENTS = {"end_iter": "iterations", "prune_iterations": "rounds", "root": "save", "gpu": "device"}  # of settings
NEVER = 1e9  # seconds between checkpoints: going on is by whole rounds


def iterative_pruning(
    net: nn.Module,
    data: Any,
    iterations: int,
    rounds: int,
    prune_rule: Rule,
    random: bool = False,
    rewind: int | float = 0,
    recover: str | os.PathLike[str] | None = None,
    seed: int = 0,
    save: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    in_memory: bool | None = None,
    quiet: bool = False,
    trials: int = 1,
    callback: Callback | None = None,
    **settings: Any,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Find a ticket in `net` by iterative pruning (Frankle & Carbin, arXiv:1803.03635, Section 2 and Appendix B).

    Args:
        net: the network, with its initial weights. Masks of torch.nn.utils.prune on it are the ticket that the first
            training starts from, and are taken off it in the end. Used where it has them: `net.optim`, a torch.optim
            optimiser, created again every round from its class, defaults and parameter groups (else Adam, learning
            rate 0.0012); `net.criterion`, a mean loss of (logits (B, classes), labels (B,)) alone (else cross entropy);
            `net._initialize_weights()`, for fresh weights (else every module's `reset_parameters()`).
        data: `train`, `validation` and `test`, as a named tuple, tuple, dict or object: DataLoaders or other
            re-iterables of batches (examples (B, ...), labels (B,)), or dicts of these (`labels` or the like, and one
            more entry); map-style Datasets of single examples; or the name of a data set, an .npz file, or
            `lth.data.Images`. The validation part decides the early-stop iteration, the test part is only reported.
        iterations: of each round.
        rounds: prunings; there is one training more, the dense one.
        prune_rule: prunes the trained network that it is given, in place, by any method of torch.nn.utils.prune, and
            sees the masks of earlier rounds. What it sets to 0 in place, in any of net.parameters(), is pruned too.
            What it returns is ignored. `lth.prune.magnitude(0.2)` gives one.
        random: whether survivors start from fresh random weights rather than from the initial ones.
        rewind: reset to the weights of this iteration of the dense training (or this fraction of it, if below 1)
            instead of the initial weights.
        recover: folder (`save`) of an earlier call that is to be continued, by whole rounds. The initial weights are
            then taken from that call, and everything but `rounds` must be as it was.
        seed: of the order of the data, what loaders draw on the CPU, fresh weights, dropout and random rules.
        save: folder that gets dumps/ and saves/: numbers, tickets, weights. None: nothing is kept.
        device: "cpu", "cuda:0", ...; None: a GPU where there is one.
        in_memory: whether the data are read once and kept on the device (random augmentation then happens once) or
            streamed from the loaders. None: kept if they fit and do not change.
        quiet: print nothing.
        trials: repetitions, for error bars. The first is that of one trial; the others begin with fresh weights, drawn
            as for `random`, and have the seeds that follow `seed`.
        callback: is called with each evaluation and each finished round, as a dict: see `lth.run`.
        settings: fields of `lth.Config` named in SETTINGS of this module, such as valid_freq="100it" (how often to
            evaluate, by default ten times per round), batch_size (by default that of the data, else 60), valid_size (of
            data without a validation part; by default 5000, or a tenth of fewer than 50,000), precision, sparse ("off";
            a network with `optim` always trains densely), prune_embeddings (whether embeddings count, and
            `fetch_layers` gives them to the rule), and, for a network without `optim`, optimizer, lr, momentum,
            weight_decay.

    Returns:
        `net` itself with the weights of the last round at its early-stop iteration, 0 where pruned, and the history: a
        dict for each training with round, remaining (percent of the prunable weights), ES (early-stop iteration), val
        and test (accuracies there, in percent), val_loss, train_loss and weights (surviving). Of several trials, `net`
        is the first one's, and the dicts begin with trial, counted from 0.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. Raised before anything is written.
        lth.commands.session.TrialsFailed: a loss was not finite.
        lth.experiment.TrialError, RuntimeError: the code of `net` or of its loss failed in training, or that of
            `prune_rule` or `data`; the message says which, `__cause__` is the error itself.
        lth.records.files.RecordError: a file cannot be written, or another process is at the same results;
            lth.records.files.Damaged, FileNotFoundError: what `recover` needs is damaged or gone.
    """
    iterations, rounds = checks.integer("iterations", iterations, 1, LONGEST), checks.integer("rounds", rounds, 0, 9998)
    rule, seed = check_rule(prune_rule), checks.integer("seed", seed, 0, 2**62)
    reset_to = values.rewind("rewind", rewind, iterations)
    if checks.boolean("random", random) and reset_to.amount:
        raise ValueError(f"rewind must be 0 with random=True, which resets to fresh random weights, not {rewind}")
    checks.known_arguments("iterative_pruning", settings, (*SETTINGS, "seed", "iterations", "rounds", "device", "save"))
    if in_memory is not None:
        checks.boolean("in_memory", in_memory)
    if checks.integer("trials", trials, 1, 9999) > 1:
        options = {"device": device, "in_memory": in_memory, "quiet": quiet, "callback": callback, **settings}
        once = partial(iterative_pruning, data=data, iterations=iterations, rounds=rounds, prune_rule=prune_rule)
        return net, _trials(net, partial(once, random=random, rewind=rewind, **options), trials, seed, save, recover)
    place, remark = placed(device)
    brought = OwnNet(net, place, checks.boolean("prune_embeddings", settings.get("prune_embeddings", False)))
    if brought.optim is not None and (given := [name for name in FIT if name in settings]):
        raise ValueError(f"{given[0]} cannot be given: net.optim already sets it")
    if random:
        brought.fresh(derive_seed(seed, "weights", 1))  # refused now where that cannot be, and not after a round
    with ExitStack() as stack, rng.preserved(place):
        root = _root(save, recover) or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lth-")))
        valid_size = settings.pop("valid_size", None)
        if valid_size is not None:
            valid_size = checks.integer("valid_size", valid_size, 1)
        taken = prepare_data(data, place, in_memory, valid_size, iterations, settings.get("batch_size", 60))
        own_network.try_out(brought, taken, place)
        left_out = brought.leave_out(taken.sample[0])
        asked: dict[str, Any] = {
            "valid_freq": Duration(max(iterations // 10, 1), "it"),
            "batch_size": taken.batch_size or 60,
            "lr": brought.lr or Config.lr,
            "keep_weights": "all" if save or recover else "last",
            "quiet": checks.boolean("quiet", quiet),
            **settings,
            "arch_type": type(net).__name__,
            "dataset": values.as_plain_name(taken.source.name),
            "init": "own",
            "seed": seed,
            "root": root,
            "prune_type": "reinit" if random else "lt",
            "prune_iterations": rounds + 1,
            "rewind": reset_to,
            "end_iter": Duration(iterations, "it"),
            "valid_size": taken.valid_size,
            "checkpoint_every": NEVER,
            "stack": 1,
            "pixels": getattr(taken.source, "pixels", Config.pixels),
        }
        try:
            config = Config(**asked)
        except ConfigError as error:
            raise error.named(ARGUMENTS) from None
        _check_sizes(config, taken)
        run = Run(root, config.arch_type, config.dataset, config.folder(), config.prune_type[0], seed)
        about, prints = brought.about(taken), brought.prints(rule, taken)
        initial = _initial(run, brought, going_on=recover is not None)
        if found := identity.mismatch([run], config, prints, overwrite=recover is None):
            save_or_recover = "save must be a folder without results of another experiment"
            if recover is not None:
                save_or_recover = "recover must hold results of the same experiment"
            raise ValueError(f"{save_or_recover}, but {found[1]}")
        if recover is not None:
            repair([run], config, (lambda text: None) if quiet else print)
        problem = own_network.problem(brought, taken, rule, config, initial, prints)
        config = with_threads(config, problem, run, 1, place)
        densely = config.sparse == "auto" and place.type == "cpu" and not problem.whole and not sparse.available()
        alone = layers.unpruned_note(brought.template, config.prune_embeddings)
        odd = getattr(taken.source, "remark", "")
        for said in (remark, odd, *left_out, alone, sparse.UNAVAILABLE if densely else "", problem.cost[1]):
            if said and not quiet:
                print(said)
        stack.enter_context(Locks(optional=True)).take(run.dumps)
        if recover is None:  # what a call left that was stopped in its first round
            tables.move_aside(run, time.strftime("%Y%m%d-%H%M%S"))
        _write_config(run, config, about, problem, place)
        with reporting(config, {run: rounds + 1 - tables.finished_rounds(run)}, [run], callback) as tell:
            experiment = Experiment(config, problem, place, tell)
            experiment.run([run], rounds + 1)
        if experiment.failed:
            raise TrialsFailed(f"{run}: {experiment.failed[run]}")
        detach(net)
        building.load_state(net, _trained(run, rounds))
        history = tables.table(run, "rounds").head(rounds + 1).to_dict("records")
    return net, [{str(key): value for key, value in row.items()} for row in history]


def _trials(
    net: nn.Module, once: Callable[..., Any], trials: int, seed: int, save: Any, recover: Any
) -> list[dict[str, Any]]:
    """The history of so many calls of `once`, with the seeds from `seed` on, the first of them on `net` itself."""
    root, brought = _root(save, recover), OwnNet(net, torch.device("cpu"))
    brought.fresh(derive_seed(seed + 1, "weights", 0))  # refused now where that cannot be, and not after a trial
    begun = {run.seed for run in tables.find(root)} if root and recover is not None else set[int]()
    history = []
    for trial in range(trials):
        own = net
        if trial:
            weights = brought.fresh(derive_seed(seed + trial, "weights", 0))
            own = attach(building.load_state(brought.make(), weights), brought.masks)
        where = {"recover": root} if seed + trial in begun else {"save": root}
        history += [{"trial": trial, **row} for row in once(own, seed=seed + trial, **where)[1]]
    return history


def _root(save: Any, recover: Any) -> Path | None:
    """The folder that the results go to."""
    if recover is None:
        return None if save is None else checks.path("save", save)
    root = tables.root_of("recover", checks.path("recover", recover))
    if save is not None and checks.path("save", save).resolve() not in (root.resolve(), Path(recover).resolve()):
        raise ValueError(f"save must be left out with recover, whose folder {recover} gets the results, not {save}")
    return root


def _check_sizes(config: Config, taken: PreparedData) -> None:
    if config.batch_size > taken.largest_batch:
        raise ValueError(
            f"batch_size must be at most {taken.largest_batch}, the size of the training data (of a batch, if they are "
            f"streamed), not {config.batch_size}"
        )
    if config.batch_size != taken.largest_batch == taken.batch_size and "streamed" in taken.description:
        raise ValueError(f"batch_size must be that of the streamed batches, {taken.batch_size}, or be left out")


def _initial(run: Run, brought: OwnNet, going_on: bool) -> building.State:
    """The initial weights: the network's own, or from the call that is continued. ValueError if that cannot be
    continued, or if the folder holds results and `recover` was not given."""
    if not going_on:
        if tables.finished_rounds(run):
            raise ValueError(
                f"save must be a folder without results of these settings and this seed: {run.dumps} has some; "
                f"recover={str(run.root)!r} continues them"
            )
        return brought.initial
    if not tables.read_config(run):
        there = "".join(f"\n  {other.dumps}" for other in tables.find(run.root)) or " nothing"
        raise ValueError(f"recover must hold results of these settings and this seed, in {run.dumps}, not only{there}")
    store = Store(run)
    return store.weights("initial") if store.has("initial") or tables.finished_rounds(run) else brought.initial


def _write_config(run: Run, config: Config, about: Mapping[str, str], problem: Problem, device: torch.device) -> None:
    """The run's config.json."""
    facts = {**command_facts(config, config), **machine_facts(config, device)}
    write_json(
        run.dumps / "config.json",
        {
            **facts,
            "sparse_up_to": {} if problem.whole else tables.read_config(run).get("sparse_up_to", facts["sparse_up_to"]),
            "own": dict(about),
            "threads": config.threads,
            **({"image_shape": list(shape)} if len(shape := problem.images.shape) == 3 else {}),
            "normalisation": getattr(problem.images, "normalisation", {}),
            "fingerprint": problem.fingerprint,
            "arm": run.arm,
            "seed": run.seed,
        },
    )


def _trained(run: Run, number: int) -> building.State:
    """The weights that round `number` had at its early-stop iteration."""
    store, name = Store(run), numbered("trained", number)
    if store.has(name):
        return store.weights(name)
    of_round, saved = store.read_checkpoint()
    if of_round != number:
        raise ValueError(
            f"rounds must be {of_round}, since the weights of round {number} were not kept (keep_weights), not {number}"
        )
    return saved.best
