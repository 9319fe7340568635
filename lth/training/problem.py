"""What is trained and pruned: the model, its data and all else that a user may bring besides the settings. Also the
checks, made before anything is written, of whether a model can be trained on some images, pruned and stacked."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

from lth import pruning, rng
from lth.data.images import Images, fingerprint_arrays
from lth.data.loaders import Source
from lth.models import building, probe, prunable
from lth.models import fingerprints as identity
from lth.models.building import Build, State
from lth.models.probe import Cost, cost
from lth.models.prunable import has_gradient_hooks, leave_out
from lth.prune import Rule
from lth.pruning import Masks
from lth.settings.checks import error_message
from lth.settings.config import Config, ConfigError
from lth.training.cuda_graph import captured
from lth.training.hardware import channels_last, numerics
from lth.training.network import Criterion, Network
from lth.training.optimizers import Fused, Optimizer, gradients

# (seed of the trial, number of the round) -> the masks and the weights that the round starts from
Starts = Callable[[int, int], tuple[Masks, State]]
STACK_WEIGHTS = 20_000_000  # at most in one stacked network: with more, arithmetic and not launching takes the time
MEASURED_TRIALS = 4  # stacked trials whose steps are timed


@dataclass(frozen=True)
class Problem:
    """What is trained: images, the model, its initial and its fresh random weights, loss, optimiser, pruning rule.

    `make` returns a network for a ticket to be loaded into; attributes that no ticket holds, such as one that the
    constructor draws, are the same each time. `build(seed)`, for models from a file, returns one as that seed draws it;
    `initial` and `fresh` return weights for a seed. `rule`, if given, prunes instead of the settings' percentages.
    `initial_fingerprint` identifies a user's initial weights: files of runs with other weights are not used.
    `compute_fingerprint` returns the value of `fingerprint`. `whole`: the optimiser must see full weights, pruned ones
    included, as a user's own may need. `start_tickets` returns the saved tickets (--ticket) that rounds start from.
    """

    images: Source
    make: Build
    initial: Callable[[int], State]
    fresh: Callable[[int], State]
    optimizer: Callable[[Network], Optimizer]
    criterion: Criterion = nn.functional.cross_entropy
    rule: Rule | None = None
    initial_fingerprint: str = ""
    compute_fingerprint: Callable[[], Mapping[str, str]] = dict
    whole: bool = False
    start_tickets: Starts | None = None
    build: Callable[[int], nn.Module] | None = None

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Fingerprints of `model`, `data` and, where they are the user's, of `rule`, `optimizer` and `loss`."""
        return dict(self.compute_fingerprint())

    @classmethod
    def of(cls, config: Config, images: Images) -> Problem:
        """The problem that the settings name."""
        make = building.find(config.arch_type, config.dataset, images.classes, config.data)

        def build(seed: int) -> nn.Module:
            return building.build(make, config.init, seed)

        def weights(seed: int) -> State:
            return building.state_of(build(seed))

        def optimizer(network: Network) -> Optimizer:
            return Fused(config.optimizer, network, config.lr, config.weight_decay, config.momentum, config.nesterov)

        def fingerprint() -> dict[str, str]:
            return {"model": identity.fingerprint_model(make), "data": images.fingerprint}

        constant = building.deterministic(make)
        left_out = cache(lambda: probe.parameters_to_leave_out(constant, images.examples))

        def make_prunable() -> nn.Module:
            return leave_out(constant(), left_out())

        return cls(images, make_prunable, weights, weights, optimizer, compute_fingerprint=fingerprint, build=build)

    @cached_property
    def cost(self) -> tuple[Cost | None, str]:
        """Multiply-adds of the forward pass of an example; None and the reason if they cannot be counted."""
        model = self.make()
        try:
            return cost(model, self.images.examples[:1], pruning.prunable(model, embeddings=True)), ""
        except Exception as error:  # whatever a model's own code raises
            return None, f"multiply-adds are not counted: {error_message(error)}"

    def step_multiply_adds(self, batch_size: int) -> float | None:
        """Multiply-adds of a dense training step, the backward pass counted as two forward passes; None if unknown."""
        if self.cost[0] is None:
            return None
        weights = pruning.prunable(self.make(), embeddings=True)
        return 3 * batch_size * self.cost[0].total({name: weight.numel() for name, weight in weights.items()})


def stack_size(config: Config, problem: Problem, device: torch.device) -> int:
    """How many runs train as one network: --stack, or on a GPU as many as STACK_WEIGHTS allows, else 1. Also 1 if the
    model cannot be stacked, or if it has convolutions and stacking is not faster."""
    size = config.stack or 1
    weights = list(problem.make().parameters())
    if not config.stack and device.type == "cuda":
        size = max(1, STACK_WEIGHTS // sum(weight.numel() for weight in weights))
    if size == 1 or not stackable(problem):
        return 1
    measurable = torch.cuda.is_available()  # not from the head of a cluster without a GPU of its own
    if not config.stack and measurable and any(weight.ndim > 2 for weight in weights):
        single, stacked = (step_seconds(config, problem, device, trials) for trials in (1, MEASURED_TRIALS))
        return size if stacked < MEASURED_TRIALS * single else 1
    return size


def step_seconds(config: Config, problem: Problem, device: torch.device, trials: int, steps: int = 10) -> float:
    """Seconds that `steps` steps of `trials` stacked trials take on a GPU, without the optimiser: measured, since vmap
    makes grouped convolutions, which are slow on many cards."""
    model, bf16 = problem.make(), config.precision == "bf16"
    state, masks = building.state_of(model), pruning.dense(pruning.prunable(model))
    images = torch.zeros(trials * config.batch_size, *problem.images.shape, device=device)
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)
    with numerics(config.precision, config.threads or 1), rng.preserved(device):
        fast = trials == 1 and channels_last(problem.make, images[:2], bf16)
        arguments = [state] * trials, [masks] * trials, device, problem.criterion, bf16
        network = Network(model, *arguments, channels_last=fast)

        def step(batch: Tensor) -> None:
            gradients(network.losses(batch, labels).sum(), network.leaves)

        run = captured(step, images, list(network.tensors.values()), network, images) or step
        for number in range(2 * steps):
            if number == steps:  # the first half warms up
                torch.cuda.synchronize(device)
                began = time.perf_counter()
            run(images)
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def stackable(problem: Problem) -> bool:
    """Whether the model can be trained as one stacked network. torch.func.vmap does not support branches on values,
    recurrent layers, new tensors assigned to buffers, or hooks on gradients."""
    model, images = problem.make(), torch.zeros(4, *problem.images.shape)
    state, masks = building.state_of(model), pruning.dense(pruning.prunable(model))
    buffers = list(model.buffers())
    if any(map(has_gradient_hooks, model.parameters())):
        return False  # stacked tensors have none
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # operations that vmap does slowly are reported when they run
            with rng.preserved(torch.device("cpu")), torch.no_grad():
                model.train()(images)
            if any(new is not old for new, old in zip(model.buffers(), buffers, strict=True)):
                return False  # tensors assigned to buffers would be lost
            network = Network(model, [state, state], [masks, masks], torch.device("cpu"), problem.criterion)
            network.losses(images, torch.zeros(4, dtype=torch.int64)).sum().backward()
            model.eval()  # attention has another code path there
            network.logits(images, shared=True)
    except Exception:  # whatever a model's own code raises under vmap
        return False
    return True


def check_fit(
    model: nn.Module,
    image_shape: tuple[int, ...],
    classes: int,
    name: str = "model",
    embeddings: bool = False,
    batch_size: int = 2,
) -> None:
    """Raise ConfigError unless `model` has weights to prune and maps images of that shape (C, H, W) to one logit per
    class, also single images if `batch_size` is 1."""
    shape = " x ".join(map(str, image_shape))
    if torch_prune.is_pruned(model):
        raise ConfigError(f"{name} must come without masks of torch.nn.utils.prune: take them off with prune.remove")
    if message := unfit(model, embeddings):
        raise ConfigError(f"{name} {message}")
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_complex():
            raise ConfigError(f"{name} {has_complex(key)}")
    for key, parameter in model.named_parameters():
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ConfigError(
                f"{name} must come without register_post_accumulate_grad_hook, which {key} has: no gradients are "
                "stored; register_hook gets and changes each"
            )
    mode, known = model.training, dict(model.named_parameters())
    for training in (False, True):
        count = min(2, batch_size) if training else 2
        when = f", in training{' one at a time' if count == 1 else ''}" if training else ""
        try:
            with rng.preserved(torch.device("cpu")), torch.set_grad_enabled(training):
                model.train(training)
                logits = model(torch.zeros(count, *image_shape, dtype=torch.float32))
        except (Exception, SystemExit) as error:
            message = f"{name} does not take images of {shape} (channels x height x width){when}"
            raise ConfigError(f"{message}: {reason(model, error)}") from error
        finally:
            model.train(mode)
        if not isinstance(logits, Tensor) or logits.shape != (count, classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            images = f"{count} image{'s' * (count > 1)}"
            raise ConfigError(f"{name} must give logits of shape ({count}, {classes}) for {images}{when}, not {got}")
    if late := [key for key, _ in model.named_parameters() if key not in known]:
        raise ConfigError(
            f"{name} must make all its parameters in its constructor, but {late[0]} comes with the images"
        )
    if not logits.requires_grad:
        raise ConfigError(f"{name} must give logits that depend on parameters that require gradients")


def check_seeded(build: Callable[[int], nn.Module], name: str = "model") -> None:
    """Raise ConfigError unless `build` returns equal parameters and buffers each time it is called with one seed."""
    first, second = (
        {key: fingerprint_arrays([tensor]) for key, tensor in building.state_of(build(0)).items()} for _ in range(2)
    )
    if differ := [key for key in first if first[key] != second.get(key)]:
        raise ConfigError(
            f"{name} must draw by the functions of torch, np.random or random, which the seed decides, and fill its "
            f"tensors: built twice from one seed, it differs in {', '.join(differ[:3])}"
        )


def reason(model: nn.Module, error: BaseException) -> str:
    """Why a model fails on its examples: its parameters are not float32, or else the error's own message."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32 and "type" in str(error):
            return f"{name} is {parameter.dtype}, but examples are float32: call .float() on the model"
    return error_message(error)


def has_complex(name: str) -> str:
    """The message for a model whose tensor `name` is complex, without the model's name."""
    return f"must have plain tensors, but {name} has complex numbers: torch.view_as_complex makes them of plain ones"


def unfit(model: nn.Module, embeddings: bool = False) -> str:
    """Why a model cannot be copied, trained and pruned (with `embeddings`, these too), as the rest of a sentence that
    begins with its name; "" if it can."""
    if torch.get_default_device().type != "cpu":
        return f"must come without torch.set_default_device, which is {torch.get_default_device()}: leave it at the CPU"
    parameters = dict(model.named_parameters())
    tensors = {**parameters, **dict(model.named_buffers())}
    if any(map(nn.parameter.is_lazy, tensors.values())):
        return "must know its shapes: it has lazy layers, call it on a batch first"
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            return f"must have plain tensors, but {name} is {tensor.layout}: to_dense() makes a plain one"
        if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
            return (
                f"must have plain tensors, but {name} shares memory between its elements, as after expand(): clone() "
                "makes a plain one"
            )
    names: dict[int, str] = {}
    for name, parameter in parameters.items():
        address = parameter.data_ptr()  # 0 without values
        if address and (first := names.setdefault(address, name)) != name:
            return f"must have tied weights as one Parameter, but {first} and {name} are two in the same memory"
    if not any(parameter.requires_grad for parameter in parameters.values()):
        return "must have parameters that require gradients, or there is nothing to train"
    if not pruning.prunable(model, embeddings):
        return (
            "must have weights to prune: of Linear, convolution, attention, recurrent or bilinear layers, or matrices "
            "of its own"
            + (" (see prune_embeddings)" if pruning.prunable(model, True) else "")
            + "".join(f"; {sentence}" for sentence in prunable.left_out_notes(model))
        )
    return ""


def constant_weights(initial: Callable[[int], State], weights: Iterable[str]) -> list[str]:
    """The names among `weights` whose values are the same for two seeds, and so in every trial and in reinit."""
    first, second = initial(1), initial(2)
    return [name for name in weights if torch.equal(first[name], second[name])]
