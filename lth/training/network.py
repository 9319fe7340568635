"""The network that a step trains: one model, or T models of one architecture stacked into one, behind one face.

Stacking (torch.func.stack_module_state and vmap) makes T small networks cost little more than one on a GPU, where a
step of a small network is bound by launching kernels. On a CPU a model alone runs as plain eager PyTorch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lth.pruning import Masks
from lth.training import kernels
from lth.training.models import State, load_state
from lth.training.sparse_linear import become_sparse

Criterion = Callable[[Tensor, Tensor], Tensor]  # (logits, labels) -> mean loss


class Network:
    """T trials of `model`, with the weights `states` and the masks `masks` of each trial."""

    def __init__(
        self,
        model: nn.Module,
        states: Sequence[State],
        masks: Sequence[Masks],
        device: torch.device,
        criterion: Criterion = nn.functional.cross_entropy,
        autocast: bool = False,
        sparse: Sequence[str] = (),
        channels_last: bool = False,
    ) -> None:
        """`sparse` names the weights that are trained sparsely (lth.training.sparse.choose), `channels_last` is the
        layout of convolutions (lth.training.layout), both in a network alone."""
        self.trials, self.criterion, self.device, self.autocast = len(states), criterion, device, autocast
        self.model = load_state(model, states[0]).to(device)
        convolutional = any(weight.ndim == 4 for weight in model.parameters())
        if self.trials == 1 and convolutional and channels_last:
            self.model.to(memory_format=torch.channels_last)
        # Images that one forward pass evaluates: on a CPU, few where what lies between products leaves its cache.
        few = 100 if convolutional else 200 if sparse else sys.maxsize
        self.at_once = few if device.type == "cpu" else sys.maxsize
        self.tensors: dict[str, Tensor] = dict([*model.named_parameters(), *model.named_buffers()])
        self.learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if self.trials > 1:
            self.tensors = {name: torch.stack([state[name] for state in states]).to(device) for name in self.tensors}
            for name in self.learning:
                self.tensors[name].requires_grad_(True)
        layers = become_sparse(self.model, {name: masks[0][name] for name in sparse})
        self.places = {name: layer.places for name, layer in layers.items()}
        self.tensors |= {name: layer.values for name, layer in layers.items()}
        self.leaves = [self.tensors[name] for name in self.learning]
        # A dense network needs no masking: the mask would multiply by ones. Nor do survivors by themselves.
        pruned = [name for name in masks[0] if name not in layers and not all(bool(m[name].all()) for m in masks)]
        self.masks = [
            self._together([mask[name] for mask in masks]).to(device, self.tensors[name].dtype) for name in pruned
        ]
        self.masked = [self.tensors[name] for name in pruned]
        with torch.no_grad():
            self.apply_masks()

    def _together(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts)) if self.trials > 1 else parts[0]

    def apply_masks(self) -> None:
        """Set pruned weights to 0. Under torch.no_grad."""
        if self.masks:
            kernels.multiply_(self.masked, self.masks)

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of each trial, a scalar for one. images (T * B, C, H, W), labels (T * B,)."""
        if self.trials == 1:
            return self.criterion(self.forward(self.model, images), labels)

        def loss(tensors: State, images: Tensor, labels: Tensor) -> Tensor:
            return self.criterion(self.forward(self._bind(tensors), images), labels)

        parts = (images.unflatten(0, (self.trials, -1)), labels.unflatten(0, (self.trials, -1)))
        return vmap(loss, randomness="different")(self.tensors, *parts)

    @torch.no_grad()
    def logits(self, images: Tensor, shared: bool) -> Tensor:
        """The logits (T, n, classes) of images (T * n, ...), or of images (n, ...) that all trials share."""
        if self.trials == 1:
            return torch.cat([self._answers(self.model, part) for part in images.split(self.at_once)])[None]

        def call(tensors: State, images: Tensor) -> Tensor:
            return self._answers(self._bind(tensors), images)

        parts = images if shared else images.unflatten(0, (self.trials, -1))
        return vmap(call, in_dims=(0, None if shared else 0))(self.tensors, parts)

    def _answers(self, call: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Logits (n, classes), also of a model that squeezes away the dimension of a last image that comes alone."""
        return self.forward(call, images).reshape(len(images), -1)

    def losses_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of each trial, (T,), from logits (T, n, classes) and labels (T, n)."""
        if self.trials == 1:
            return self.criterion(logits[0], labels[0])[None]
        return vmap(self.criterion)(logits, labels)

    def _bind(self, tensors: State) -> Callable[[Tensor], Tensor]:
        return lambda images: functional_call(self.model, tensors, (images,))

    def forward(self, call: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """What the model, or what stands for it, gives for images: under autocast where the settings want it."""
        if not self.autocast:
            return call(images)
        with torch.autocast(self.device.type, torch.bfloat16):
            return call(images).float()

    def buffers(self) -> dict[str, Tensor]:
        """The buffers as they are now: a model alone may put new tensors in their places."""
        own = dict(self.model.named_buffers())
        now = own if self.trials == 1 else self.tensors
        return {name: now[name] for name in own if name in self.tensors}

    @torch.no_grad()
    def put_back(self, before: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Give the model the tensors that `buffers` gave before, with the values that stand beside them: in place,
        where a CUDA graph knows them."""
        for name, (buffer, value) in before.items():
            if not torch.equal(buffer, value):
                buffer.copy_(value)
            if self.trials == 1 and not isinstance(self.model, torch.jit.ScriptModule):  # which changes them in place
                path, _, stem = name.rpartition(".")
                self.model.get_submodule(path)._buffers[stem] = buffer

    def state(self, trial: int) -> State:
        """A copy of one trial's parameters and buffers, on the CPU."""
        return {name: self.of(tensor, trial, name) for name, tensor in (self.tensors | self.buffers()).items()}

    def of(self, tensor: Tensor, trial: int, name: str = "", pruned: float = 0.0) -> Tensor:
        """A copy of one trial's part of a tensor of this network or of its optimiser. One that belongs to the parameter
        `name` has that one's whole shape, also where it is trained sparsely: with `pruned` where that is pruned."""
        part = (tensor[trial] if self.trials > 1 else tensor).detach()
        if name in self.places:
            return self.places[name].full(part, pruned)
        return part.to("cpu", copy=True).contiguous()

    @torch.no_grad()
    def restore(self, tensor: Tensor, parts: Sequence[Tensor], name: str = "") -> None:
        """Put the parts that `of` took of each trial back into `tensor`."""
        parts = [self.places[name].survivors(part) for part in parts] if name in self.places else parts
        tensor.copy_(self._together(parts))


class Optimizer(Protocol):
    """What a training needs of an optimiser: steps that leave pruned weights at 0, and its state."""

    lr: float
    capturable: bool  # whether a CUDA graph may hold its step

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change the network's leaves by their gradients; pruned weights stay 0."""

    def tensors(self) -> list[Tensor]:
        """What a step changes beside the leaves."""

    def state(self, trial: int) -> State:
        """Copies, on the CPU, of what decides a trial's following steps."""

    def restore(self, states: Sequence[State]) -> None:
        """Go on from what `state` gave of each trial."""


class Fused:
    """Adam, AdamW and SGD by PyTorch's fused kernels (lth.training.kernels).

    Under Adam a pruned weight has an infinite second moment: its step is m / inf = 0, so that it stays at 0 without
    another pass over all weights (8% of a step of fc1 on a CPU).
    """

    def __init__(
        self,
        kind: str,
        network: Network,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.kind, self.network, self._value = kind, network, lr
        self.decay, self.momentum, self.nesterov = weight_decay, momentum, nesterov
        self._find_leaves()
        self._lr, self.steps = torch.tensor(lr, device=network.device), torch.zeros((), device=network.device)
        count = 2 if kind != "sgd" else 1 if momentum else 0
        self.moments = [[torch.zeros_like(leaf) for leaf in self.leaves] for _ in range(count)]
        self.capturable = (kernels.sgd_ if kind == "sgd" else kernels.adam_).works
        if kind != "sgd":
            second = dict(zip(map(id, network.leaves), self.moments[1], strict=True))
            for weight, mask in zip(network.masked, network.masks, strict=True):
                if id(weight) in second:
                    second[id(weight)].masked_fill_(mask == 0, torch.inf)

    @property
    def lr(self) -> float:
        """The learning rate; setting it changes the tensor that the kernels read, also within a CUDA graph."""
        return self._value

    @lr.setter
    def lr(self, value: float) -> None:
        if value != self._value:
            self._value = value
            self._lr.fill_(value)

    def _find_leaves(self) -> None:
        self.leaves = [leaf.detach() for leaf in self.network.leaves]  # the same memory, out of autograd's sight
        self.places = [leaf.data_ptr() for leaf in self.leaves]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """See lth.training.kernels."""
        if [leaf.data_ptr() for leaf in self.network.leaves] != self.places:  # a model has set its weight.data
            self._find_leaves()
        pairs = zip(gradients, self.leaves, strict=True)  # the kernels take for granted that both have one layout
        gradients = [g if g.stride() == leaf.stride() else _laid_out(g, leaf) for g, leaf in pairs]
        if self.kind == "sgd":
            momenta = self.moments[0] if self.moments else []
            kernels.sgd_(self.leaves, gradients, momenta, self._lr, self.decay, self.momentum, self.nesterov)
            with torch.no_grad():
                self.network.apply_masks()
            return
        self.steps.add_(1)
        adamw = self.kind == "adamw"
        kernels.adam_(self.leaves, gradients, self.moments, self.steps, self._lr, self.decay, adamw)

    def tensors(self) -> list[Tensor]:
        """The moments of each leaf, and the number of steps that Adam corrects its bias by."""
        return [*(tensor for moment in self.moments for tensor in moment), self.steps]

    def state(self, trial: int) -> State:
        """Copies of the same."""
        moments = {
            f"{m}/{i}": self.network.of(tensor, trial, name, math.inf if m else 0.0)
            for m, moment in enumerate(self.moments)
            for i, (name, tensor) in enumerate(zip(self.network.learning, moment, strict=True))
        }
        return {**moments, "steps": self.steps.detach().cpu().clone()}

    def restore(self, states: Sequence[State]) -> None:
        """Go on from what `state` gave of each trial."""
        for m, moment in enumerate(self.moments):
            for i, (name, tensor) in enumerate(zip(self.network.learning, moment, strict=True)):
                self.network.restore(tensor, [state[f"{m}/{i}"] for state in states], name)
        self.steps.copy_(states[0]["steps"])


def _laid_out(gradient: Tensor, leaf: Tensor) -> Tensor:
    """A copy that lies in memory as `leaf` does, also of what nn.Embedding(sparse=True) gives."""
    return torch.empty_like(leaf).copy_(gradient.to_dense())


class Wrapped:
    """Any optimiser of torch.optim's kind, for models that bring their own. One trial only."""

    capturable = False

    def __init__(self, optimizer: torch.optim.Optimizer, network: Network) -> None:
        self.optimizer, self.network = optimizer, network
        self._masks = {id(weight): mask for weight, mask in zip(network.masked, network.masks, strict=True)}
        self.lr = float(optimizer.param_groups[0]["lr"])

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step of the wrapped optimiser. It sees no gradients of pruned weights: by a norm of all, or a factor of
        two matrices, they would change the step of the survivors."""
        for leaf, gradient in zip(self.network.leaves, gradients, strict=True):
            mask = self._masks.get(id(leaf))
            leaf.grad = gradient if mask is None else gradient * mask  # not in place: two leaves may share a gradient
        self.optimizer.step()
        with torch.no_grad():
            self.network.apply_masks()

    def tensors(self) -> list[Tensor]:
        """None: no CUDA graph holds such steps."""
        return []

    def state(self, trial: int) -> State:
        """Nothing: such trainings go on after a stop by whole rounds."""
        return {}

    def restore(self, states: Sequence[State]) -> None:
        """Nothing."""
