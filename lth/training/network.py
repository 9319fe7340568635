"""The network that a step trains: one model, or T models of one architecture stacked into one, with one interface.

Stacking (torch.func.vmap) makes T small networks cost little more than one on a GPU, where a step of a small network is
bound by launching kernels. A single model runs as plain eager PyTorch.
"""

import contextlib
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lth.models.building import State, load_state
from lth.pruning import Masks
from lth.training import hardware
from lth.training.sparse import become_dense, become_sparse

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
        """`sparse` names the weights that are trained sparsely (lth.training.sparse.choose), `channels_last` sets the
        layout of convolutions; both are for one trial only. `changing`: the masks will change during training."""
        self.trials, self.criterion, self.device, self.autocast = len(states), criterion, device, autocast
        self.changing = changing
        self.model = load_state(model, states[0]).to(device)
        if self.trials == 1 and channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.tensors: dict[str, Tensor] = dict([*model.named_parameters(), *model.named_buffers()])
        self.learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if self.trials > 1:
            self.tensors = {name: torch.stack([state[name] for state in states]).to(device) for name in self.tensors}
            for name in self.learning:
                self.tensors[name].requires_grad_(True)
        self._arrange(masks, sparse)

    def _arrange(self, masks: Sequence[Masks], sparse: Sequence[str]) -> None:
        """Apply the masks to a dense network, and prepare the weights `sparse` for sparse products."""
        # Images per forward pass in evaluation: few on a CPU where larger activations would leave its cache.
        convolutional = any(weight.ndim == 4 for weight in self.model.parameters())
        few = 100 if convolutional else 200 if sparse and not hardware.uses_amx() else sys.maxsize
        self.chunk_size = few if self.device.type == "cpu" else sys.maxsize
        layers = become_sparse(self.model, {name: masks[0][name] for name in sparse})
        self.places = {name: layer.places for name, layer in layers.items()}
        self.tensors |= {name: layer.values for name, layer in layers.items()}
        self.leaves, self.prunable = [self.tensors[name] for name in self.learning], list(masks[0])
        # Sparse layers need no masking, nor do masks of ones that stay so.
        ones = {name for name in masks[0] if not self.changing and all(bool(m[name].all()) for m in masks)}
        self.pruned = pruned = [name for name in masks[0] if name not in layers and name not in ones]
        self.masks = [  # in the layout of their weights, or a product copies them
            torch.empty_like(self.tensors[name]).copy_(self._stack([mask[name] for mask in masks])) for name in pruned
        ]
        self.masked = [self.tensors[name] for name in pruned]
        with torch.no_grad():
            self.apply_masks()

    def _stack(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts)) if self.trials > 1 else parts[0]

    def apply_masks(self) -> None:
        """Set pruned weights to 0. Under torch.no_grad."""
        if self.masks:
            torch._foreach_mul_(self.masked, self.masks)

    def masks_of(self, trial: int) -> Masks:
        """The masks of one trial as they are now, on the CPU."""
        dense = {n: self.part(mask, trial).cpu() != 0 for n, mask in zip(self.pruned, self.masks, strict=True)}
        masks = dense | {name: places.mask() for name, places in self.places.items()}
        return {name: masks[name] for name in self.prunable if name in masks}

    @torch.no_grad()
    def change_masks(self, masks: Sequence[Masks]) -> None:
        """Set the masks of each trial, in place, since a CUDA graph may hold these tensors."""
        for name, mask in zip(self.pruned, self.masks, strict=True):
            mask.copy_(self._stack([trial_masks[name] for trial_masks in masks]))
        self.apply_masks()

    def train_sparsely(self, sparse: Sequence[str]) -> None:
        """Use sparse products for these weights, and no others, from now on; for one trial whose masks change."""
        masks = self.masks_of(0)
        self.tensors |= become_dense(self.model, self.places)
        self._arrange([masks], sparse)

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of each trial, a scalar for one. images (T * B, C, H, W), labels (T * B,)."""
        if self.trials == 1:
            return self.criterion(self.forward(self.single_model(), images), labels)

        def call(tensors: State, images: Tensor) -> Tensor:
            return self.forward(self._bind(tensors), images)

        logits = vmap(call, randomness="different")(self.stacked_tensors(), images.unflatten(0, (self.trials, -1)))
        return self.losses_of(logits, labels.unflatten(0, (self.trials, -1)))

    @torch.no_grad()
    def logits(self, images: Tensor, shared: bool) -> Tensor:
        """The logits (T, n, classes) of images (T * n, ...), or of images (n, ...) that all trials share."""
        if self.trials == 1:
            model = self.single_model()
            return torch.cat([self._logits(model, chunk) for chunk in images.split(self.chunk_size)])[None]

        def call(tensors: State, images: Tensor) -> Tensor:
            return self._logits(self._bind(tensors), images)

        parts = images if shared else images.unflatten(0, (self.trials, -1))
        return vmap(call, in_dims=(0, None if shared else 0))(self.stacked_tensors(), parts)

    def single_model(self) -> Callable[[Tensor], Tensor]:
        """The function from images to logits that the forward pass of a single trial calls."""
        return self.model

    def stacked_tensors(self) -> State:
        """The stacked parameters and buffers that the forward pass of several trials uses."""
        return self.tensors

    def _logits(self, call: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Logits (n, classes), also if n is 1 and the model squeezes that dimension away."""
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
        """call(images), under autocast if the settings ask for it."""
        if not self.autocast:
            return call(images)
        with torch.autocast(self.device.type, torch.bfloat16):
            return call(images).float()

    def _buffers(self) -> dict[str, Tensor]:
        """The current buffers: the forward pass of a single model may have assigned new tensors to them."""
        buffers = dict(self.model.named_buffers())
        current = buffers if self.trials == 1 else self.tensors
        return {name: current[name] for name in buffers if name in self.tensors}

    @contextlib.contextmanager
    def preserve_buffers(self) -> Iterator[None]:
        """Restore the buffers on exit, tensors and values: models may change them in evaluation too, and results must
        not depend on when and on which images they are evaluated. Buffers stay changed if plain attributes of the model
        have changed as well, such as one that records that a table has been filled."""
        before = self._buffers()
        values = {name: buffer.clone() for name, buffer in before.items()}
        attributes_before = attributes(self.model) if before else []
        try:
            yield
        finally:
            if before and attributes(self.model) != attributes_before:
                before, values = {}, {}
            with torch.no_grad():
                for dtype in {value.dtype for value in values.values()}:  # foreach copies one dtype in one kernel
                    names = [name for name, value in values.items() if value.dtype == dtype]
                    # Without comparing the values first, which would wait for the GPU.
                    torch._foreach_copy_([before[name] for name in names], [values[name] for name in names])
            if self.trials == 1 and not isinstance(self.model, torch.jit.ScriptModule):  # it changes buffers in place
                for name, buffer in before.items():
                    path, _, attribute = name.rpartition(".")
                    self.model.get_submodule(path)._buffers[attribute] = buffer

    def state(self, trial: int) -> State:
        """A copy of one trial's parameters and buffers, on the CPU."""
        tensors = self.tensors | self._buffers()
        return copies({name: self.part(tensor, trial, name) for name, tensor in tensors.items()})

    def mask_state(self, trial: int) -> State:
        """A copy of one trial's masks if they change during training, for a checkpoint."""
        return {f"mask/{name}": mask for name, mask in self.masks_of(trial).items()} if self.changing else {}

    def restore_mask_state(self, states: Sequence[State]) -> None:
        """Restore what `mask_state` returned for each trial; other keys are ignored."""
        if self.changing:
            self.change_masks([{name: state[f"mask/{name}"] for name in self.pruned} for state in states])

    def part(self, tensor: Tensor, trial: int, name: str = "", pruned: float = 0.0) -> Tensor:
        """One trial's part of a tensor of this network or of its optimiser. If it belongs to a parameter `name` that is
        trained sparsely, it is expanded to the full shape, with the value `pruned` at pruned weights."""
        part = (tensor[trial] if self.trials > 1 else tensor).detach()
        return self.places[name].full(part, pruned) if name in self.places else part

    @torch.no_grad()
    def restore(self, tensor: Tensor, parts: Sequence[Tensor], name: str = "") -> None:
        """Copy the trials' parts, as `part` returned them, into `tensor`."""
        parts = [self.places[name].survivors(part) for part in parts] if name in self.places else parts
        tensor.copy_(self._stack(parts))


def copies(tensors: Mapping[str, Tensor]) -> State:
    """Copies on the CPU. Tensors on a GPU are sent as the bytes of one: the host waits for each transfer."""
    if all(tensor.device.type == "cpu" for tensor in tensors.values()):
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    parts = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in tensors.values()]
    pieces = torch.cat(parts).cpu().split([len(part) for part in parts])
    return {
        name: piece.clone().view(tensor.dtype).view(tensor.shape)
        for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)
    }


def attributes(model: nn.Module) -> list[bytes]:
    """The attributes of a model's modules besides tensors and modules, pickled. What cannot be pickled, such as a
    lambda, is left out."""
    usual, pickles = vars(nn.Module()).keys(), []
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in usual and not isinstance(value, (Tensor, nn.Module)):
                with contextlib.suppress(Exception):  # whatever the user's own classes raise
                    pickles.append(pickle.dumps((name, value)))
    return pickles
