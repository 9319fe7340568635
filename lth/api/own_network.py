"""A network given from Python as a `Problem`: its weights, optimiser and loss, and the rule that prunes it."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lth import pruning, rng
from lth.data.images import fingerprint_arrays
from lth.data.loaders import PreparedData
from lth.models import building, fingerprints, probe
from lth.models import prunable as layers
from lth.models.building import State
from lth.prune import Rule, detach
from lth.pruning import prunable
from lth.settings.checks import network, short_repr
from lth.settings.config import Config
from lth.training.network import Criterion, Network
from lth.training.optimizers import Fused, Optimizer, Wrapped
from lth.training.problem import Problem, has_complex, reason, unfit

FEW = 0.01  # share of a layer's weights that may be 0 without a word


class OwnNet:
    """Makes copies of the user's network, with its own `optim`, `criterion` and `_initialize_weights`. TypeError or
    ValueError unless it can be copied, trained and pruned (its embeddings too if `embeddings`).

    masks: the masks of torch.nn.utils.prune on the network, by parameter; its copies have none.
    """

    def __init__(self, net: nn.Module, device: torch.device, embeddings: bool = False) -> None:
        if problem := unfit(network("net", net), embeddings):
            raise ValueError(f"net {problem}")
        if hooked := [name for name, parameter in net.named_parameters() if layers.has_gradient_hooks(parameter)]:
            raise ValueError(
                f"net must have no hooks on gradients, but {hooked[0]} has some: copies of net are trained, without "
                "hooks"
            )
        self.net, self.embeddings = net, embeddings
        try:
            self.template = building.copy_model(net).cpu()
            self.masks = detach(self.template)
        except Exception as error:
            raise ValueError(f"net must be a network that copy.deepcopy can copy: {error}") from error
        for parameter in self.template.parameters():
            parameter.grad = None
        self.initial = building.state_of(self.template)
        self.optim, self.groups = self._optim(net)
        for name, parameter in net.named_parameters():
            if self.optim is None and parameter.is_complex():
                raise ValueError(f"net {has_complex(name)}")
        self.criterion = self._criterion(net, device)

    def make(self) -> nn.Module:
        """A copy with the initial weights."""
        return copy.deepcopy(self.template)

    def leave_out(self, examples: Tensor) -> list[str]:
        """Exclude from pruning the layers that must stay dense (lth/models/probe.py). Returns sentences about them and
        about weights that are 0. ValueError if no weight is left to prune."""
        layers.leave_out(self.template, probe.parameters_to_leave_out(self.make, examples))
        notes = layers.left_out_notes(self.template)
        if not (weights := prunable(self.template, self.embeddings)):
            raise ValueError(f"net must have weights to prune: {'; '.join(notes)}")
        zeros = []
        for name, weight in weights.items():
            count = int(((self.initial[name] == 0) & self.masks.get(name, torch.tensor(True))).sum())
            if FEW * weight.numel() < count < weight.numel():
                zeros.append(f"{count:,} of {weight.numel():,} in {name}")
        if zeros:
            layers_text = ", ".join([*zeros[:4], *(["..."] if len(zeros) > 4 else [])])
            hint = "masks of torch.nn.utils.prune on net would keep them pruned"
            notes.append(f"weights of net are 0 and will be trained: {layers_text}; {hint}")
        return notes

    def fresh(self, seed: int) -> State:
        """New random weights for all parameters that require gradients: from the modules' `reset_parameters`, then from
        the network's `_initialize_weights`. ValueError if that leaves prunable weights as they were."""
        net = self.make()
        with rng.seeded(seed), torch.no_grad():
            for module in _children_first(net):
                reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
                if callable(reset):
                    reset()
            frozen = {name: parameter for name, parameter in net.named_parameters() if not parameter.requires_grad}
            for name, parameter in frozen.items():
                parameter.copy_(self.initial[name])
            if building.draws_itself(net):
                net._initialize_weights()  # type: ignore[operator]
        state = building.state_of(net)
        for name in [*prunable(net), *_parametrized(state)]:
            initial = self.initial[name]
            if name not in frozen and torch.equal(state[name], initial) and (initial != initial.flatten()[0]).any():
                raise ValueError(
                    f"random=True and trials above 1 need new random weights, but nothing draws {name} "
                    "again: give its module a reset_parameters() or net an _initialize_weights()"
                )
        return state

    def optimizer(self, network: Network, config: Config) -> Optimizer:
        """The network's own optimiser, created again, or the one of the settings."""
        if self.optim is None:
            fused = Fused(config.optimizer, network, config.lr, config.weight_decay, config.momentum, config.nesterov)
            fused.capturable = False  # a CUDA graph would freeze whatever Python a model of the user's own runs
            return fused
        named = dict(network.model.named_parameters())
        groups = [{**options, "params": [named[name] for name in names]} for options, names in self.groups]
        return Wrapped(_recreate(self.optim, groups), network)

    def description(self, data: PreparedData) -> dict[str, str]:
        """The network, optimiser, loss and data in words, for config.json."""
        criterion = self.criterion
        name = criterion if isinstance(criterion, nn.Module) else getattr(criterion, "__qualname__", type(criterion))
        return {
            "net": type(self.template).__qualname__,
            "optimizer": "the settings' own" if self.optim is None else " ".join(repr(self.optim).split()),
            "criterion": " ".join(str(name).split()),
            "data": data.description,
        }

    def fingerprints(self, rule: Rule, data: PreparedData) -> dict[str, str]:
        """Fingerprints of the model, data, rule, optimiser and loss, on which the numbers depend beside the
        settings."""
        optim = "the settings' own" if self.optim is None else type(self.optim)
        return {
            "model": fingerprints.fingerprint_network(self.template, without=("optim", "criterion")),
            "data": data.fingerprint,
            **({"masks": fingerprint_arrays([self.masks[name] for name in sorted(self.masks)])} if self.masks else {}),
            "rule": fingerprints.fingerprint_objects(rule),
            "optimizer": fingerprints.fingerprint_objects(optim, self.groups),
            "loss": fingerprints.fingerprint_objects(self.criterion, *getattr(self.criterion, "buffers", tuple)()),
        }

    @property
    def lr(self) -> float | None:
        """The learning rate of the first group of the network's own optimiser that has one above 0."""
        return next((lr for options, _ in self.groups if (lr := float(options.get("lr", 0)))), None)

    @staticmethod
    def _optim(net: nn.Module) -> tuple[torch.optim.Optimizer | None, list[tuple[dict[str, Any], list[str]]]]:
        """The network's optimiser and its groups: their options, and the names of their parameters."""
        optim = getattr(net, "optim", None)
        if optim is None:
            return None, []
        if not isinstance(optim, torch.optim.Optimizer):
            raise TypeError(f"net.optim must be a torch.optim.Optimizer, not {short_repr(optim)}")
        names = layers.names(net)
        groups = []
        for group in optim.param_groups:
            if foreign := sum(id(parameter) not in names for parameter in group["params"]):
                raise ValueError(
                    f"net.optim must hold parameters of net: {foreign} of its {len(group['params'])} are of another "
                    "network, or of layers replaced since"
                )
            options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            groups.append((copy.deepcopy(options), [names[id(parameter)] for parameter in group["params"]]))
        if not any(float(options.get("lr", 0)) for options, _ in groups):
            raise ValueError("net.optim must have a learning rate above 0 in one of its param_groups")
        return optim, groups

    @staticmethod
    def _criterion(net: nn.Module, device: torch.device) -> Criterion:
        criterion = getattr(net, "criterion", None)
        if criterion is None:
            return nn.functional.cross_entropy
        if not callable(criterion):
            raise TypeError(f"net.criterion must be a function of (outputs, labels), not {short_repr(criterion)}")
        if not isinstance(criterion, nn.Module):
            return criterion
        if any(True for _ in criterion.parameters()):
            raise ValueError("net.criterion must have no parameters: only the parameters of net are trained")
        return copy.deepcopy(criterion).to(device)


def _parametrized(state: State) -> list[str]:
    """Parameters from which weights are computed, as under weight norm; `reset_parameters` does not draw them."""
    suffixes = [("_v", "_g"), ("_orig", "_u"), ("original", "original"), ("original1", "original0")]
    return [n for n in state for end, other in suffixes if n.endswith(end) and n.removesuffix(end) + other in state]


def _children_first(net: nn.Module) -> list[nn.Module]:
    """The modules of `net` in the order in which their constructors end: a module may draw its children's weights."""
    return [*dict.fromkeys(module for child in net.children() for module in _children_first(child)), net]


def _recreate(optim: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """An optimiser of the class and defaults of `optim`, without its state, for parameters in `groups`."""
    cls, parameters = type(optim), inspect.signature(type(optim)).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    defaults = {name: value for name, value in optim.defaults.items() if takes_all or name in parameters}
    try:
        return cls([dict(group) for group in groups], **defaults)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"net.optim must be an optimiser that can be created again from its parameters and defaults, "
            f"as {cls.__name__}(params, {', '.join(defaults)}): {error}"
        ) from error


def try_out(own_net: OwnNet, data: PreparedData, device: torch.device) -> None:
    """ValueError unless the network accepts the examples and its loss the labels."""
    net, (x, y) = own_net.make().to(device), (tensor.to(device) for tensor in data.sample)
    shape = tuple(x.shape[1:])
    with rng.preserved(device):
        for training in (False, True) if len(x) > 1 else (False,):  # batch norm cannot train on one example
            try:
                outputs = net.train(training)(x.clone())
            except Exception as error:
                problem = f"net must take the examples of data, (B, {str(shape)[1:]}: {reason(net, error)}"
                raise ValueError(problem) from error
            if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(x):
                got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
                raise ValueError(f"net must give one row of logits per example, ({len(x)}, classes), not {got}")
        if outputs.shape[1] < data.source.classes:
            raise ValueError(
                f"net must give a logit for each of the {data.source.classes} classes of data (labels 0 to "
                f"{data.source.classes - 1}), not {outputs.shape[1]}"
            )
        try:
            loss = own_net.criterion(outputs, y)
        except Exception as error:
            raise ValueError(f"net.criterion must take (outputs, labels): {error}") from error
        if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else short_repr(loss)
            raise ValueError(f"net.criterion must return one differentiable number per batch, the mean loss, not {got}")
        if _depends_on(loss, own_net.net):
            raise ValueError(
                "net.criterion must use outputs and labels alone, not net: copies of net are trained, and it "
                "would see net itself, which stays as it is (net.optim can have a weight_decay)"
            )


def _depends_on(loss: Tensor, net: nn.Module) -> bool:
    """Whether the loss of a copy has a gradient for the parameters of the user's own `net`."""
    leaves = [parameter for parameter in net.parameters() if parameter.requires_grad]
    try:
        return any(x is not None for x in torch.autograd.grad(loss, leaves, allow_unused=True))
    except RuntimeError:  # the graph of an earlier step of the user's network
        return True


def problem(
    own_net: OwnNet, data: PreparedData, rule: Rule, config: Config, initial: State, fingerprints: Mapping[str, str]
) -> Problem:
    """The problem of pruning the user's network by `rule` on `data`, starting from the weights `initial`."""
    dense = pruning.dense(prunable(own_net.make(), config.prune_embeddings))
    return Problem(
        images=data.source,
        make=own_net.make,
        initial=lambda seed: initial,
        fresh=own_net.fresh,
        optimizer=lambda network: own_net.optimizer(network, config),
        criterion=own_net.criterion,
        rule=rule,
        initial_fingerprint=fingerprint_arrays(tensor for _, tensor in sorted(initial.items())),
        compute_fingerprint=lambda: fingerprints,
        whole=own_net.optim is not None,
        start_tickets=(lambda seed, number: ({**dense, **own_net.masks}, initial)) if own_net.masks else None,
    )
