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

from lth.models.building import State, load_state
from lth.pruning import Masks
from lth.training import kernels
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
        changing: bool = False,
    ) -> None:
        """`sparse` names the weights that are trained sparsely (lth.training.sparse.choose), `channels_last` is the
        layout of convolutions (lth.training.layout), both in a network alone. `changing` says that the masks will."""
        self.trials, self.criterion, self.device, self.autocast = len(states), criterion, device, autocast
        self.model = load_state(model, states[0]).to(device)
        convolutional = any(weight.ndim == 4 for weight in model.parameters())
        if self.trials == 1 and convolutional and channels_last:
            self.model.to(memory_format=torch.channels_last)
        # Images that one forward pass evaluates: on a CPU, few where what lies between products leaves its cache.
        few = 100 if convolutional else 200 if sparse and not kernels.tiles() else sys.maxsize
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
        kept = set[str]() if changing else {name for name in masks[0] if all(bool(m[name].all()) for m in masks)}
        self.pruned = pruned = [name for name in masks[0] if name not in layers and name not in kept]
        self.masks = [  # in the layout of their weights, or a product copies them
            torch.empty_like(self.tensors[name]).copy_(self._together([mask[name] for mask in masks]))
            for name in pruned
        ]
        self.masked = [self.tensors[name] for name in pruned]
        with torch.no_grad():
            self.apply_masks()

    def _together(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts)) if self.trials > 1 else parts[0]

    def apply_masks(self) -> None:
        """Set pruned weights to 0. Under torch.no_grad."""
        if self.masks:
            torch._foreach_mul_(self.masked, self.masks)

    def masks_of(self, trial: int) -> Masks:
        """The masks of one trial as they are now, on the CPU."""
        return {n: self.part(mask, trial).cpu() != 0 for n, mask in zip(self.pruned, self.masks, strict=True)}

    @torch.no_grad()
    def change_masks(self, masks: Sequence[Masks]) -> None:
        """Give each trial other masks, in place, where a CUDA graph knows them."""
        for name, mask in zip(self.pruned, self.masks, strict=True):
            mask.copy_(self._together([one[name] for one in masks]))
        self.apply_masks()

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of each trial, a scalar for one. images (T * B, C, H, W), labels (T * B,)."""
        if self.trials == 1:
            return self.criterion(self.forward(self.model, images), labels)

        def call(tensors: State, images: Tensor) -> Tensor:
            return self.forward(self._bind(tensors), images)

        logits = vmap(call, randomness="different")(self.tensors, images.unflatten(0, (self.trials, -1)))
        return self.losses_of(logits, labels.unflatten(0, (self.trials, -1)))

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
        if self.criterion is nn.functional.cross_entropy:  # which vmap takes apart into many operations
            each = self.criterion(logits.flatten(0, 1), labels.flatten(), reduction="none")
            return each.view(labels.shape).mean(1)
        return vmap(self.criterion, randomness="different")(logits, labels)

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
        pairs = list(before.values())
        for dtype in {value.dtype for _, value in pairs}:  # foreach copies tensors of one type in one kernel
            buffers, values = zip(*(pair for pair in pairs if pair[1].dtype == dtype), strict=True)
            torch._foreach_copy_(buffers, values)  # no look at whether they have changed, which would wait for a GPU
        if self.trials == 1 and not isinstance(self.model, torch.jit.ScriptModule):  # which changes them in place
            for name, (buffer, _) in before.items():
                path, _, stem = name.rpartition(".")
                self.model.get_submodule(path)._buffers[stem] = buffer

    def state(self, trial: int) -> State:
        """A copy of one trial's parameters and buffers, on the CPU."""
        tensors = self.tensors | self.buffers()
        return copies({name: self.part(tensor, trial, name) for name, tensor in tensors.items()})

    def part(self, tensor: Tensor, trial: int, name: str = "", pruned: float = 0.0) -> Tensor:
        """One trial's part of a tensor of this network or of its optimiser. One that belongs to the parameter
        `name` has that one's whole shape, also where it is trained sparsely: with `pruned` where that is pruned."""
        part = (tensor[trial] if self.trials > 1 else tensor).detach()
        return self.places[name].full(part, pruned) if name in self.places else part

    @torch.no_grad()
    def restore(self, tensor: Tensor, parts: Sequence[Tensor], name: str = "") -> None:
        """Put the parts that `part` took of each trial back into `tensor`."""
        parts = [self.places[name].survivors(part) for part in parts] if name in self.places else parts
        tensor.copy_(self._together(parts))


def copies(tensors: Mapping[str, Tensor]) -> State:
    """Copies on the CPU. Those from a GPU come as the bytes of one tensor, since the host waits for each transfer."""
    if all(tensor.device.type == "cpu" for tensor in tensors.values()):
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    parts = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in tensors.values()]
    pieces = torch.cat(parts).cpu().split([len(part) for part in parts])
    return {
        name: piece.clone().view(tensor.dtype).view(tensor.shape)
        for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)
    }


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

    def masks_changed(self, before: Sequence[Tensor]) -> None:
        """Forget what steps have found out about weights that only one of the network's masks keeps, those of `before`
        or those of now: they are new, or gone."""


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
        """See lth.training.kernels."""
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
                kernels.sgd_(leaves, found, momenta, self._lr, self.decay, self.momentum, self.nesterov)
            else:
                kernels.adam_(leaves, found, moments, self.steps, self._lr, self.decay, self.kind == "adamw")
        if self.kind == "sgd":
            with torch.no_grad():
                self.network.apply_masks()

    def tensors(self) -> list[Tensor]:
        """The moments of each leaf, and the number of steps that Adam corrects its bias by."""
        return [*(tensor for moment in self.moments for tensor in moment), self.steps]

    def state(self, trial: int) -> State:
        """Copies of the same."""
        moments = {
            f"{m}/{i}": self.network.part(tensor, trial, name, math.inf if m else 0.0)
            for m, moment in enumerate(self.moments)
            for i, (name, tensor) in enumerate(zip(self.network.learning, moment, strict=True))
        }
        return copies({**moments, "steps": self.steps})

    def restore(self, states: Sequence[State]) -> None:
        """Go on from what `state` gave of each trial."""
        for m, moment in enumerate(self.moments):
            for i, (name, tensor) in enumerate(zip(self.network.learning, moment, strict=True)):
                self.network.restore(tensor, [state[f"{m}/{i}"] for state in states], name)
        self.steps.copy_(states[0]["steps"])

    def masks_changed(self, before: Sequence[Tensor]) -> None:
        """Moments become 0 but for weights that both keep; the second one is infinite where weights are pruned."""
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
