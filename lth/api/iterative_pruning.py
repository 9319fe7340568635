"""`lth.iterative_pruning`, for networks, data and pruning rules of the user's own."""

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
from lth.api.saved_ticket import choose_device
from lth.commands.prepare import command_facts, machine_facts, with_threads
from lth.commands.queue import write_config
from lth.commands.session import TrialsFailed, repair, reporting
from lth.data.loaders import PreparedData, prepare_data
from lth.experiment import Experiment
from lth.experiment.trainer import Callback
from lth.models import building
from lth.models import prunable as layers
from lth.prune import Rule, attach, check_rule, detach
from lth.records import identity, tables
from lth.records.lock import Locks
from lth.records.store import Store, numbered
from lth.records.tables import Run
from lth.rng import derive_seed
from lth.settings import checks, values
from lth.settings.config import Config, ConfigError
from lth.settings.values import LONGEST, Duration
from lth.training import sparse
from lth.training.problem import Problem

# Settings that do not apply if the network has its own `optim`.
SCHEDULE = ("lr_schedule", "lr_milestones", "lr_gamma", "warmup")
OPTIM = ("optimizer", "lr", "momentum", "nesterov", "weight_decay", *SCHEDULE)
SETTINGS = (
    *(*OPTIM, "prune_embeddings", "batch_size", "valid_size", "valid_freq", "precision", "sparse", "threads"),
    *("keep_weights", "name", "print_freq"),
)
ARGUMENTS = {"end_iter": "iterations", "prune_iterations": "rounds", "root": "save", "gpu": "device"}  # by setting
NEVER = 1e9  # seconds between checkpoints: a call is continued by whole rounds


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
            training starts from, and are removed in the end. If the network has them, these are used: `net.optim`, a
            torch.optim optimiser, created again every round from its class, defaults and parameter groups (otherwise
            Adam, learning rate 0.0012); `net.criterion`, a mean loss of only (logits (B, classes), labels (B,))
            (otherwise cross entropy); `net._initialize_weights()`, for fresh weights (otherwise the
            `reset_parameters()` of every module).
        data: `train`, `validation` and `test`, as a named tuple, tuple, dict or object: DataLoaders or other
            re-iterables of batches (examples (B, ...), labels (B,)), or dicts of these (`labels` or the like, and one
            more entry); map-style Datasets of single examples; or the name of a data set, an .npz file, or
            `lth.data.Images`. The validation part decides the early-stop iteration, the test part is only reported.
        iterations: length of each round.
        rounds: number of prunings; there is one training more, the dense one.
        prune_rule: a function that prunes the trained network in place, by any method of torch.nn.utils.prune, and sees
            the masks of earlier rounds. Weights that it sets to 0, in any of net.parameters(), are pruned too. Its
            return value is ignored. `lth.prune.magnitude(0.2)` returns such a function.
        random: whether survivors start from fresh random weights rather than from the initial ones.
        rewind: reset to the weights of this iteration of the dense training (or this fraction of it, if below 1)
            instead of the initial weights.
        recover: folder (`save`) of an earlier call to continue, by whole rounds. The initial weights come from that
            call, and everything but `rounds` must be as it was.
        seed: of the order of the data, what loaders draw on the CPU, fresh weights, dropout and random rules.
        save: folder for the results, in dumps/ (numbers) and saves/ (tickets, weights). None: nothing is kept.
        device: "cpu", "cuda:0", ...; None: a GPU where there is one.
        in_memory: whether the data are read once and kept on the device (random augmentation then happens once) or
            streamed from the loaders. None: kept if they fit and do not change.
        quiet: print nothing.
        trials: repetitions, for error bars. The first is the same as without `trials`; the others begin with fresh
            weights, drawn as for `random`, and have the seeds after `seed`.
        callback: is called with each evaluation and each finished round, as a dict: see `lth.run`.
        settings: fields of `lth.Config` named in SETTINGS of this module, such as valid_freq="100it" (how often to
            evaluate, by default ten times per round), batch_size (by default as in the data, else 60), valid_size (for
            data without a validation part; by default 5000, or a tenth of fewer than 50,000), precision, sparse ("off";
            a network with `optim` always trains densely), prune_embeddings (whether embeddings are pruned, too) and,
            for a network without `optim`, optimizer, lr, momentum, weight_decay.

    Returns:
        `net` itself with the weights of the last round at its early-stop iteration, 0 where pruned, and the history: a
        dict per training with round, remaining (percent of the prunable weights), ES (early-stop iteration), val and
        test (accuracies there, in percent), val_loss, train_loss and weights (surviving). With several trials, `net` is
        from the first one, and the dicts begin with trial, counted from 0.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. Raised before anything is written.
        lth.commands.session.TrialsFailed: a loss was not finite.
        lth.experiment.TrialError, RuntimeError: the code of `net`, its loss, `prune_rule` or `data` failed; the message
            says which, `__cause__` is the error itself.
        lth.records.files.RecordError: a file cannot be written, or another process works on the same results;
            lth.records.files.Damaged, FileNotFoundError: a file that `recover` needs is damaged or missing.
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
        arguments = {"data": data, "iterations": iterations, "rounds": rounds, "prune_rule": prune_rule, **settings}
        arguments |= {"random": random, "rewind": rewind, "device": device, "in_memory": in_memory, "quiet": quiet}
        single = partial(iterative_pruning, callback=callback, **arguments)
        return net, _trials(net, single, trials, seed, save, recover)
    inform: Callable[[str], object] = (lambda text: None) if checks.boolean("quiet", quiet) else print
    train_device, device_note = choose_device(device)
    own_net = OwnNet(net, train_device, checks.boolean("prune_embeddings", settings.get("prune_embeddings", False)))
    if own_net.optim is not None and (unused := [name for name in OPTIM if name in settings]):
        raise ValueError(f"{unused[0]} cannot be given: net.optim already sets it")
    if random:
        own_net.fresh(derive_seed(seed, "weights", 1))  # an error comes now and not after a round
    with ExitStack() as stack, rng.preserved(train_device):
        root = _root(save, recover) or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lth-")))
        valid_size = settings.pop("valid_size", None)
        if valid_size is not None:
            valid_size = checks.integer("valid_size", valid_size, 1)
        prepared = prepare_data(data, train_device, in_memory, valid_size, iterations, settings.get("batch_size", 60))
        own_network.try_out(own_net, prepared, train_device)
        notes = [device_note, getattr(prepared.source, "remark", ""), *own_net.leave_out(prepared.sample[0])]
        options: dict[str, Any] = {
            "valid_freq": Duration(max(iterations // 10, 1), "it"),
            "batch_size": prepared.batch_size or 60,
            "lr": own_net.lr or Config.lr,
            "keep_weights": "all" if save or recover else "last",
            "quiet": quiet,
            **settings,
            "arch_type": type(net).__name__,
            "dataset": values.as_plain_name(prepared.source.name),
            "init": "own",
            "seed": seed,
            "root": root,
            "prune_type": "reinit" if random else "lt",
            "prune_iterations": rounds + 1,
            "rewind": reset_to,
            "end_iter": Duration(iterations, "it"),
            "valid_size": prepared.valid_size,
            "checkpoint_every": NEVER,
            "stack": 1,
            "pixels": getattr(prepared.source, "pixels", Config.pixels),
        }
        try:
            config = Config(**options)
        except ConfigError as error:
            raise error.named(ARGUMENTS) from None
        _check_batch_size(config, prepared)
        run = Run(root, config.arch_type, config.dataset, config.folder(), config.prune_type[0], seed)
        description, fingerprints = own_net.description(prepared), own_net.fingerprints(rule, prepared)
        initial = _initial(run, own_net, recover is not None)
        if mismatch := identity.mismatch([run], config, fingerprints, overwrite=recover is None):
            must = "recover must hold results of the same experiment"
            if recover is None:
                must = "save must be a folder without results of another experiment"
            raise ValueError(f"{must}, but {mismatch[1]}")
        if recover is not None:
            repair([run], config, inform)
        problem = own_network.problem(own_net, prepared, rule, config, initial, fingerprints)
        config = with_threads(config, problem, run, 1, train_device)
        notes.append(layers.unpruned_note(own_net.template, config.prune_embeddings))
        if config.sparse == "auto" and train_device.type == "cpu" and not problem.whole and not sparse.available():
            notes.append(sparse.UNAVAILABLE)
        for note in filter(None, [*notes, problem.cost[1]]):
            inform(note)
        stack.enter_context(Locks(optional=True)).take(run.dumps)
        if recover is None:  # a call that was stopped in its first round may have left files
            tables.move_aside(run, time.strftime("%Y%m%d-%H%M%S"))
        write_config(run, config, _facts(config, description, problem, train_device))
        with reporting(config, {run: rounds + 1 - tables.finished_rounds(run)}, [run], callback) as tell:
            experiment = Experiment(config, problem, train_device, tell)
            experiment.run([run], rounds + 1)
        if experiment.failed:
            raise TrialsFailed(f"{run}: {experiment.failed[run]}")
        detach(net)
        building.load_state(net, _trained_weights(run, rounds))
        history: list[Any] = tables.table(run, "rounds").head(rounds + 1).to_dict("records")
    return net, history


def _trials(
    net: nn.Module, single: Callable[..., Any], trials: int, seed: int, save: Any, recover: Any
) -> list[dict[str, Any]]:
    """The history of `trials` calls of `single`, with seeds from `seed` on: of `net`, then of copies with fresh
    weights."""
    root, own_net = _root(save, recover), OwnNet(net, torch.device("cpu"))
    own_net.fresh(derive_seed(seed + 1, "weights", 0))  # an error comes now and not after a trial
    started = {run.seed for run in tables.find(root)} if root and recover is not None else set[int]()
    history = []
    for trial in range(trials):
        if trial:
            weights = own_net.fresh(derive_seed(seed + trial, "weights", 0))
            net = attach(building.load_state(own_net.make(), weights), own_net.masks)
        folder = {"recover": root} if seed + trial in started else {"save": root}
        history += [{"trial": trial, **row} for row in single(net, seed=seed + trial, **folder)[1]]
    return history


def _root(save: Any, recover: Any) -> Path | None:
    """The folder that the results go to."""
    if recover is None:
        return None if save is None else checks.path("save", save)
    root = tables.root_of("recover", checks.path("recover", recover))
    if save is not None and checks.path("save", save).resolve() not in (root.resolve(), Path(recover).resolve()):
        raise ValueError(f"save must be left out with recover, whose folder {recover} gets the results, not {save}")
    return root


def _check_batch_size(config: Config, data: PreparedData) -> None:
    if config.batch_size > data.largest_batch:
        raise ValueError(
            f"batch_size must be at most {data.largest_batch}, the size of the training data (of a batch, if they are "
            f"streamed), not {config.batch_size}"
        )
    if config.batch_size != data.largest_batch == data.batch_size and "streamed" in data.description:
        raise ValueError(f"batch_size must be that of the streamed batches, {data.batch_size}, or be left out")


def _initial(run: Run, own_net: OwnNet, recover: bool) -> building.State:
    """The initial weights: the network's own or, to `recover`, those of the earlier call. ValueError if that cannot be
    continued, or if the folder holds results without `recover`."""
    if not recover:
        if tables.finished_rounds(run):
            raise ValueError(
                f"save must be a folder without results of these settings and this seed: {run.dumps} has some; "
                f"recover={str(run.root)!r} continues them"
            )
        return own_net.initial
    if not tables.read_config(run):
        others = "".join(f"\n  {other.dumps}" for other in tables.find(run.root)) or " nothing"
        raise ValueError(f"recover must hold results of these settings and this seed, in {run.dumps}, not only{others}")
    store = Store(run)
    return store.weights("initial") if store.has("initial") or tables.finished_rounds(run) else own_net.initial


def _facts(config: Config, description: Mapping[str, str], problem: Problem, device: torch.device) -> dict[str, Any]:
    """The content of the run's config.json."""
    return {
        **command_facts(config, config),
        **machine_facts(config, device),
        **({"sparse_up_to": {}} if problem.whole else {}),  # the user's optimiser needs dense weights
        "own": dict(description),
        "threads": config.threads,
        **({"image_shape": list(shape)} if len(shape := problem.images.shape) == 3 else {}),
        "normalisation": getattr(problem.images, "normalisation", {}),
        "fingerprint": problem.fingerprint,
    }


def _trained_weights(run: Run, number: int) -> building.State:
    """The weights of round `number` at its early-stop iteration."""
    store, name = Store(run), numbered("trained", number)
    if store.has(name):
        return store.weights(name)
    last, saved = store.read_checkpoint()
    if last != number:
        raise ValueError(
            f"rounds must be {last}, since the weights of round {number} were not kept (keep_weights), not {number}"
        )
    return saved.best
