"""Gradients and optimisers of a training step: PyTorch's fused kernels, and any optimiser of the user's own.

PyTorch's private functions do the same arithmetic as the public ones without their checks and bookkeeping, which take a
fifth of a step of a small network. The tests compare the two.
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
    """The gradients of a scalar loss, 0 for leaves that it does not depend on; sets no `.grad`. torch.autograd.grad
    returns the same, but its checks take 60 of the 1000 microseconds of a step of fc1 on a CPU."""
    run = torch.autograd.Variable._execution_engine.run_backward
    options: dict[str, Any] = {"allow_unreachable": True, "accumulate_grad": False}
    grads = run((loss,), (torch.ones_like(loss),), False, False, tuple(leaves), **options)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves, strict=True)]


def adam_(
    weights: Tensors, grads: Tensors, moments: Sequence[Tensors], steps: Tensor, lr: Tensor, decay: float, adamw: bool
) -> None:
    """A step of Adam (Kingma & Ba, arXiv:1412.6980) or AdamW (Loshchilov & Hutter, arXiv:1711.05101). Changes the
    weights and both moments, given `grads`; `steps`, a scalar, includes this step."""
    fused: Any = torch._fused_adamw_ if adamw else torch._fused_adam_
    options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": decay}
    fused(weights, grads, *moments, [], [steps] * len(weights), lr=lr, **options, amsgrad=False, maximize=False)


def sgd_(
    weights: Tensors, grads: Tensors, momenta: Tensors, lr: Tensor, decay: float, momentum: float, nesterov: bool
) -> None:
    """A step of SGD. Changes the weights and `momenta`, given `grads`. `momenta` start at 0, so that the first step is
    no special case; they are empty without momentum."""
    fused: Any = torch._fused_sgd_
    options: dict[str, Any] = {"lr": lr, "weight_decay": decay, "momentum": momentum, "nesterov": nesterov}
    fused(weights, grads, momenta, **options, dampening=0.0, maximize=False, is_first_step=False)


class Fused:
    """Adam, AdamW and SGD by PyTorch's fused kernels.

    Under Adam a pruned weight has an infinite second moment: its step is m / inf = 0, so it stays 0 without another
    pass over all weights (8% of a step of fc1 on a CPU).
    """

    capturable = True  # whether its step can be part of a CUDA graph

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
        self.leaves = [leaf.detach() for leaf in self.network.leaves]  # the same memory, without autograd
        self.addresses = [leaf.data_ptr() for leaf in self.leaves]
        dtypes = [leaf.dtype for leaf in self.leaves]  # a fused kernel takes tensors of one dtype
        self._groups = [[i for i, x in enumerate(dtypes) if x == dtype] for dtype in dict.fromkeys(dtypes)]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change the network's leaves by their gradients; pruned weights stay 0."""
        if [leaf.data_ptr() for leaf in self.network.leaves] != self.addresses:  # a model has set its weight.data
            self._find_leaves()
        pairs = zip(gradients, self.leaves, strict=True)  # the kernels assume that both have the same layout
        gradients = [g if g.stride() == leaf.stride() else _with_layout_of(leaf, g) for g, leaf in pairs]
        if self.kind != "sgd":
            self.steps.add_(1)
        for group in self._groups:
            leaves, grads, *moments = ([x[i] for i in group] for x in (self.leaves, gradients, *self.moments))
            if self.kind == "sgd":
                momenta = moments[0] if moments else []
                sgd_(leaves, grads, momenta, self._lr, self.decay, self.momentum, self.nesterov)
            else:
                adam_(leaves, grads, moments, self.steps, self._lr, self.decay, self.kind == "adamw")
        if self.kind == "sgd":
            with torch.no_grad():
                self.network.apply_masks()

    def tensors(self) -> list[Tensor]:
        """The tensors that a step changes besides the leaves: moments, and the number of steps (for Adam)."""
        return [*(tensor for moment in self.moments for tensor in moment), self.steps]

    def state(self, trial: int) -> State:
        """A copy of these tensors of one trial, on the CPU."""
        moments = {
            f"{m}/{i}": self.network.part(tensor, trial, name, math.inf if m else 0.0)
            for m, moment in enumerate(self.moments)
            for i, (name, tensor) in enumerate(zip(self.network.learning, moment, strict=True))
        }
        return copies({**moments, "steps": self.steps})

    def restore(self, states: Sequence[State]) -> None:
        """Restore what `state` returned for each trial, even if other layers were sparse then."""
        self._find_leaves()
        self.moments = [[torch.zeros_like(leaf) for leaf in self.leaves] for _ in self.moments]
        for m, moment in enumerate(self.moments):
            for i, (name, tensor) in enumerate(zip(self.network.learning, moment, strict=True)):
                self.network.restore(tensor, [state[f"{m}/{i}"] for state in states], name)
        self.steps.copy_(states[0]["steps"])

    def masks_changed(self, before: Sequence[Tensor]) -> None:
        """Set moments to 0, except of weights that are kept both by the masks `before` and by the current masks. Pruned
        weights get an infinite second moment."""
        index = {id(leaf): i for i, leaf in enumerate(self.network.leaves)}
        for weight, mask, old_mask in zip(self.network.masked, self.network.masks, before, strict=True):
            for m, moment in enumerate(self.moments if id(weight) in index else ()):
                values = moment[index[id(weight)]].masked_fill_((mask == 0) | (old_mask == 0), 0)
                if m:
                    values.masked_fill_(mask == 0, torch.inf)


def _with_layout_of(leaf: Tensor, gradient: Tensor) -> Tensor:
    """`gradient`, dense and in the layout of `leaf`: a copy, unless only strides of dimensions of size 1 differ, as for
    1 x 1 convolutions in channels_last."""
    if gradient.layout == torch.strided:
        strides = zip(gradient.stride(), leaf.stride(), leaf.shape, strict=True)
        if all(stride == leaf_stride or size == 1 for stride, leaf_stride, size in strides):
            return gradient.as_strided(leaf.shape, leaf.stride())
    return torch.empty_like(leaf).copy_(gradient.to_dense())


class Wrapped:
    """Any optimiser with the interface of torch.optim, for a user's own. One trial only."""

    capturable = False

    def __init__(self, optimizer: torch.optim.Optimizer, network: Network) -> None:
        self.optimizer, self.network = optimizer, network
        self._masks = {id(weight): mask for weight, mask in zip(network.masked, network.masks, strict=True)}
        self.lr = float(optimizer.param_groups[0]["lr"])

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step of the wrapped optimiser. Gradients of pruned weights are 0: they would change the step of the
        survivors if it uses a norm over all of them or factors a matrix."""
        for leaf, gradient in zip(self.network.leaves, gradients, strict=True):
            mask = self._masks.get(id(leaf))
            leaf.grad = gradient if mask is None else gradient * mask  # not in place: two leaves may share a gradient
        self.optimizer.step()
        with torch.no_grad():
            self.network.apply_masks()

    def tensors(self) -> list[Tensor]:
        """Empty: no CUDA graph contains such steps."""
        return []

    def state(self, trial: int) -> State:
        """Empty: after a stop, such trainings continue from the last complete round."""
        return {}

    def restore(self, states: Sequence[State]) -> None:
        """Do nothing."""

    def masks_changed(self, before: Sequence[Tensor]) -> None:
        """Set moments to 0 as `Fused` does: all tensors of a weight's shape in the optimiser's state."""
        for weight, mask, old_mask in zip(self.network.masked, self.network.masks, before, strict=True):
            for value in self.optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_((mask == 0) | (old_mask == 0), 0)


Optimizer = Fused | Wrapped
