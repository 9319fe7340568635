"""Gradients and optimisers of a training step: PyTorch's fused kernels, and any optimiser that a model brings.

PyTorch's private functions do the same arithmetic as the public ones without their checks and bookkeeping, which take a
fifth of a step of a small network. The tests compare both.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lth.models.building import State
from lth.training.network import Network, copies

Tensors = list[Tensor]


def gradients(loss: Tensor, leaves: Tensors) -> list[Tensor]:
    """The gradients of a scalar loss, 0 where nothing flows; none is stored. torch.autograd.grad finds the same, but
    its checks take 60 of the 1000 microseconds of a step of fc1 on a CPU."""
    run = torch.autograd.Variable._execution_engine.run_backward
    options: dict[str, Any] = {"allow_unreachable": True, "accumulate_grad": False}
    found = run((loss,), (torch.ones_like(loss),), False, False, tuple(leaves), **options)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def adam_(
    weights: Tensors, found: Tensors, moments: Sequence[Tensors], steps: Tensor, lr: Tensor, decay: float, adamw: bool
) -> None:
    """A step of Adam (Kingma & Ba, arXiv:1412.6980) or AdamW (Loshchilov & Hutter, arXiv:1711.05101) by the gradients
    `found`. Changes the weights and both moments; `steps`, a scalar, counts this step too."""
    fused: Any = torch._fused_adamw_ if adamw else torch._fused_adam_
    options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": decay}
    fused(weights, found, *moments, [], [steps] * len(weights), lr=lr, **options, amsgrad=False, maximize=False)


def sgd_(
    weights: Tensors, found: Tensors, momenta: Tensors, lr: Tensor, decay: float, momentum: float, nesterov: bool
) -> None:
    """A step of SGD by the gradients `found`. Changes the weights and `momenta`, which begin at 0, so that the first
    step needs no other treatment than the rest; there are none without momentum."""
    fused: Any = torch._fused_sgd_
    options: dict[str, Any] = {"lr": lr, "weight_decay": decay, "momentum": momentum, "nesterov": nesterov}
    fused(weights, found, momenta, **options, dampening=0.0, maximize=False, is_first_step=False)


class Fused:
    """Adam, AdamW and SGD by PyTorch's fused kernels.

    Under Adam a pruned weight has an infinite second moment: its step is m / inf = 0, so that it stays at 0 without
    another pass over all weights (8% of a step of fc1 on a CPU).
    """

    capturable = True  # whether a CUDA graph may hold its step

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
        self.masks_changed(network.masks)

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
        kinds = [leaf.dtype for leaf in self.leaves]  # a fused kernel takes tensors of one
        self._groups = [[i for i, kind in enumerate(kinds) if kind == one] for one in dict.fromkeys(kinds)]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change the network's leaves by their gradients; pruned weights stay 0."""
        if [leaf.data_ptr() for leaf in self.network.leaves] != self.places:  # a model has set its weight.data
            self._find_leaves()
        pairs = zip(gradients, self.leaves, strict=True)  # the kernels take for granted that both have one layout
        gradients = [g if g.stride() == leaf.stride() else _laid_out(g, leaf) for g, leaf in pairs]
        if self.kind != "sgd":
            self.steps.add_(1)
        for group in self._groups:
            leaves, found, *moments = ([every[i] for i in group] for every in (self.leaves, gradients, *self.moments))
            if self.kind == "sgd":
                momenta = moments[0] if moments else []
                sgd_(leaves, found, momenta, self._lr, self.decay, self.momentum, self.nesterov)
            else:
                adam_(leaves, found, moments, self.steps, self._lr, self.decay, self.kind == "adamw")
        if self.kind == "sgd":
            with torch.no_grad():
                self.network.apply_masks()

    def tensors(self) -> list[Tensor]:
        """What a step changes beside the leaves: their moments, and the number of steps that Adam corrects by."""
        return [*(tensor for moment in self.moments for tensor in moment), self.steps]

    def state(self, trial: int) -> State:
        """Copies of them, on the CPU, for one trial."""
        moments = {
            f"{m}/{i}": self.network.part(tensor, trial, name, math.inf if m else 0.0)
            for m, moment in enumerate(self.moments)
            for i, (name, tensor) in enumerate(zip(self.network.learning, moment, strict=True))
        }
        return copies({**moments, "steps": self.steps})

    def restore(self, states: Sequence[State]) -> None:
        """Continue from what `state` gave of each trial, also if other layers were sparse then."""
        self._find_leaves()
        self.moments = [[torch.zeros_like(leaf) for leaf in self.leaves] for _ in self.moments]
        for m, moment in enumerate(self.moments):
            for i, (name, tensor) in enumerate(zip(self.network.learning, moment, strict=True)):
                self.network.restore(tensor, [state[f"{m}/{i}"] for state in states], name)
        self.steps.copy_(states[0]["steps"])

    def masks_changed(self, before: Sequence[Tensor]) -> None:
        """Moments become 0 but for weights that the network's masks `before` and now both keep: the others are new, or
        gone. The second moment is infinite where weights are pruned."""
        place = {id(leaf): i for i, leaf in enumerate(self.network.leaves)}
        for weight, mask, earlier in zip(self.network.masked, self.network.masks, before, strict=True):
            for m, moment in enumerate(self.moments if id(weight) in place else ()):
                own = moment[place[id(weight)]].masked_fill_((mask == 0) | (earlier == 0), 0)
                if m:
                    own.masked_fill_(mask == 0, torch.inf)


def _laid_out(gradient: Tensor, leaf: Tensor) -> Tensor:
    """`gradient` in the layout of `leaf`: a copy, also of what nn.Embedding(sparse=True) gives, unless only strides of
    dimensions of size 1 differ, as those of 1 x 1 convolutions in channels_last do."""
    if gradient.layout == torch.strided:
        strides = zip(gradient.stride(), leaf.stride(), leaf.shape, strict=True)
        if all(one == other or size == 1 for one, other, size in strides):
            return gradient.as_strided(leaf.shape, leaf.stride())
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
        """Nothing: after a stop, such trainings continue from the last whole round."""
        return {}

    def restore(self, states: Sequence[State]) -> None:
        """Nothing."""

    def masks_changed(self, before: Sequence[Tensor]) -> None:
        """What has a weight's shape in the optimiser's state counts as its moments."""
        for weight, mask, earlier in zip(self.network.masked, self.network.masks, before, strict=True):
            for value in self.optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_((mask == 0) | (earlier == 0), 0)


Optimizer = Fused | Wrapped
