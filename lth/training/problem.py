"""What is trained and pruned, apart from the settings: everything that a network of the user's own may bring. Whether a
model can be trained and pruned on some images, and stacked, is asked before anything is written."""

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

# The masks and the weights that a round starts from, by the trial's seed and the round's number.
Starts = Callable[[int, int], tuple[Masks, State]]
STACK_WEIGHTS = 20_000_000  # that one stacked network may have in all, before arithmetic and not launching binds it
FEW = 4  # stacked trials of which a step is measured


@dataclass(frozen=True)
class Problem:
    """What is trained: images, the model, its initial and its fresh random weights, loss, optimiser, pruning rule.

    `initial` and `fresh` give weights for a seed. `rule`, if given, prunes in place of the settings' own percentages.
    `initial_fingerprint` is that of a user's initial weights: files of runs with others are not used.
    `compute_fingerprint` returns the value of `fingerprint`. `whole` says that the optimiser must see weights in
    their shapes, with what is pruned, as one of the user's own may. `start_tickets`, if given, has the saved tickets of
    --ticket that rounds start from. `make` gives a network for a ticket to be put on: what no ticket holds, as an
    attribute that the constructor draws, is the same in all of them. `build`, of a model file, gives one as a seed
    draws it.
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
        """A fingerprint each of the `model`, the `data` and, where they are the user's, the `rule`, the `optimizer`
        and the `loss`."""
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

        def usual() -> nn.Module:
            return leave_out(constant(), left_out())

        return cls(images, usual, weights, weights, optimizer, compute_fingerprint=fingerprint, build=build)

    @cached_property
    def cost(self) -> tuple[Cost | None, str]:
        """Multiply-adds of an example's forward pass; None, and a sentence that says why, where they cannot be counted:
        of what is no layer of PyTorch's."""
        model = self.make()
        try:
            return cost(model, self.images.examples[:1], pruning.prunable(model, embeddings=True)), ""
        except Exception as error:  # whatever a model's own code raises
            return None, f"multiply-adds are not counted: {error_message(error)}"

    def step_multiply_adds(self, batch_size: int) -> float | None:
        """Multiply-adds of a dense training step, whose backward pass has twice as many as the forward pass; None where
        they cannot be counted."""
        if self.cost[0] is None:
            return None
        weights = pruning.prunable(self.make(), embeddings=True)
        return 3 * batch_size * self.cost[0].total({name: weight.numel() for name, weight in weights.items()})


def stack_size(config: Config, problem: Problem, device: torch.device) -> int:
    """How many runs train as one network: --stack, or on a GPU as many as STACK_WEIGHTS allows, else one; one if the
    model cannot be stacked, or if it has convolutions and stacking does not pay."""
    size = config.stack or 1
    weights = list(problem.make().parameters())
    if not config.stack and device.type == "cuda":
        size = max(1, STACK_WEIGHTS // sum(weight.numel() for weight in weights))
    if size == 1 or not stackable(problem):
        return 1
    measurable = torch.cuda.is_available()  # not from the head of a cluster without a GPU of its own
    if not config.stack and measurable and any(weight.ndim > 2 for weight in weights):
        alone, stacked = (step_seconds(config, problem, device, trials) for trials in (1, FEW))
        return size if stacked < FEW * alone else 1
    return size


def step_seconds(config: Config, problem: Problem, device: torch.device, trials: int, steps: int = 10) -> float:
    """How long some steps of so many stacked trials take on a GPU, without the optimiser. vmap makes grouped
    convolutions, which are slow on many cards: only a measurement tells."""
    model, bf16 = problem.make(), config.precision == "bf16"
    state, masks = building.state_of(model), pruning.dense(pruning.prunable(model))
    images = torch.zeros(trials * config.batch_size, *problem.images.shape, device=device)
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)
    with numerics(config.precision, config.threads or 1), rng.preserved(device):
        fast = trials == 1 and channels_last(problem.make, images[:2], bf16)
        options = [state] * trials, [masks] * trials, device, problem.criterion, bf16
        network = Network(model, *options, channels_last=fast)

        def step(batch: Tensor) -> None:
            gradients(network.losses(batch, labels).sum(), network.leaves)

        run = captured(step, images, list(network.tensors.values()), network, images) or step
        for number in range(2 * steps):
            if number == steps:  # the rest is warm
                torch.cuda.synchronize(device)
                began = time.perf_counter()
            run(images)
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def stackable(problem: Problem) -> bool:
    """Whether the model can be trained as one stacked network: torch.func.vmap cannot follow branches on values,
    nor recurrent layers, nor new tensors in the places of buffers, nor hooks on gradients."""
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
            if any(one is not other for one, other in zip(buffers, model.buffers(), strict=True)):
                return False  # what it puts in a buffer's place would be lost
            network = Network(model, [state, state], [masks, masks], torch.device("cpu"), problem.criterion)
            network.losses(images, torch.zeros(4, dtype=torch.int64)).sum().backward()
            model.eval()  # in which attention takes another way
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
    """ConfigError unless `model` maps images of that shape (C, H, W) to one logit a class, alone too where it trains
    in batches of one, and has weights to prune."""
    shape = " x ".join(map(str, image_shape))
    if torch_prune.is_pruned(model):
        raise ConfigError(f"{name} must come without masks of torch.nn.utils.prune: take them off with prune.remove")
    if what := unfit(model, embeddings):
        raise ConfigError(f"{name} {what}")
    for called, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_complex():
            raise ConfigError(f"{name} {has_complex(called)}")
    for called, parameter in model.named_parameters():
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ConfigError(
                f"{name} must come without register_post_accumulate_grad_hook, which {called} has: no gradients are "
                "stored; register_hook gets and changes each"
            )
    mode, known = model.training, {called for called, _ in model.named_parameters()}
    for training in (False, True):
        count = min(2, batch_size) if training else 2
        when = f", in training{' one at a time' if count == 1 else ''}" if training else ""
        try:
            with rng.preserved(torch.device("cpu")), torch.set_grad_enabled(training):
                model.train(training)
                logits = model(torch.zeros(count, *image_shape, dtype=torch.float32))
        except (Exception, SystemExit) as error:
            why = reason(model, error)
            raise ConfigError(
                f"{name} does not take images of {shape} (channels x height x width){when}: {why}"
            ) from error
        finally:
            model.train(mode)
        if not isinstance(logits, Tensor) or logits.shape != (count, classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            images = f"{count} image{'s' * (count > 1)}"
            raise ConfigError(f"{name} must give logits of shape ({count}, {classes}) for {images}{when}, not {got}")
    if late := [called for called, _ in model.named_parameters() if called not in known]:
        raise ConfigError(
            f"{name} must make all its parameters in its constructor, but {late[0]} comes with the images"
        )
    if not logits.requires_grad:
        raise ConfigError(f"{name} must give logits that depend on parameters that require gradients")


def check_seeded(build: Callable[[int], nn.Module], name: str = "model") -> None:
    """ConfigError unless `build` gives equal parameters and buffers whenever it is called with one seed."""
    one, other = (building.state_of(build(0)) for _ in range(2))
    if differ := [
        key for key in one if key not in other or fingerprint_arrays([one[key]]) != fingerprint_arrays([other[key]])
    ]:
        raise ConfigError(
            f"{name} must draw by the functions of torch, np.random or random, which the seed decides, and fill its "
            f"tensors: built twice from one seed, it differs in {', '.join(differ[:3])}"
        )


def reason(model: nn.Module, error: BaseException) -> str:
    """Why a model fails with its examples: its parameters are no float32, or what the error says."""
    for called, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32 and "type" in str(error):
            return f"{called} is {parameter.dtype}, but examples are float32: call .float() on the model"
    return error_message(error)


def has_complex(called: str) -> str:
    """The sentence about a model with a tensor of complex numbers, without the model's name."""
    return f"must have plain tensors, but {called} has complex numbers: torch.view_as_complex makes them of plain ones"


def unfit(model: nn.Module, embeddings: bool = False) -> str:
    """What keeps a model from being copied, trained and pruned (its embeddings too if asked), as the rest of a sentence
    that begins with its name; nothing if it can be."""
    if torch.get_default_device().type != "cpu":
        return f"must come without torch.set_default_device, which is {torch.get_default_device()}: leave it at the CPU"
    parameters = dict(model.named_parameters())
    tensors = {**parameters, **dict(model.named_buffers())}
    if any(map(nn.parameter.is_lazy, tensors.values())):
        return "must know its shapes: it has lazy layers, call it on a batch first"
    for called, tensor in tensors.items():
        if tensor.layout != torch.strided:
            return f"must have plain tensors, but {called} is {tensor.layout}: to_dense() makes a plain one"
        if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
            return (
                f"must have plain tensors, but {called} shares memory between its elements, as after expand(): clone() "
                "makes a plain one"
            )
    places: dict[int, str] = {}
    for called, parameter in parameters.items():
        place = parameter.data_ptr()  # 0 without values
        if place and (first := places.setdefault(place, called)) != called:
            return f"must have tied weights as one Parameter, but {first} and {called} are two in the same memory"
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


def alike(initial: Callable[[int], State], weights: Iterable[str]) -> list[str]:
    """Those of these weights that come out the same for two seeds, and so in every trial and in reinit."""
    one, other = initial(1), initial(2)
    return [name for name in weights if torch.equal(one[name], other[name])]
