"""Private functions of PyTorch that this program calls in place of public ones.

They do the same arithmetic without the checks and bookkeeping of the public ones, which take a fifth of a step of a
small network. If a version of PyTorch lacks one of them or changes its arguments, the public one is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
Form = Callable[..., Any]
BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam and AdamW


class Quick:
    """The private form of a function if a trial of it, made before its first use, returns True; else the public one."""

    def __init__(self, private: Form, public: Form, trial: Callable[[Form], bool]) -> None:
        self.private, self.public, self.trial = private, public, trial
        functools.update_wrapper(self, private)

    @functools.cached_property
    def works(self) -> bool:
        """Whether this PyTorch has what the private form needs."""
        try:
            with torch.enable_grad():
                return self.trial(self.private)
        except (AttributeError, TypeError, RuntimeError, NotImplementedError):
            return False

    def __call__(self, *args: Any) -> Any:
        return self.private(*args) if self.works else self.public(*args)


def quick_form_of(public: Form, trial: Callable[[Form], bool]) -> Callable[[Form], Quick]:
    """Decorates the private form of `public`."""
    return lambda private: Quick(private, public, trial)


def _one(value: float = 1.0) -> Tensor:
    return torch.full((1,), float(value))


# Gradients


def _public_gradients(loss: Tensor, leaves: Tensors) -> Sequence[Tensor | None]:
    return torch.autograd.grad(loss, leaves, allow_unused=True)


def _try_gradients(form: Form) -> bool:
    leaf, unused = _one().requires_grad_(), _one().requires_grad_()
    found = form((3 * leaf).sum(), [leaf, unused])
    return found[0].item() == 3 and found[1] is None


@quick_form_of(_public_gradients, _try_gradients)
def _gradients(loss: Tensor, leaves: Tensors) -> Sequence[Tensor | None]:
    run = torch.autograd.Variable._execution_engine.run_backward
    options: dict[str, Any] = {"allow_unreachable": True, "accumulate_grad": False}
    return run((loss,), (torch.ones_like(loss),), False, False, tuple(leaves), **options)


def gradients(loss: Tensor, leaves: Tensors) -> list[Tensor]:
    """The gradients of a scalar loss, 0 where nothing flows; none is stored. torch.autograd.grad finds the same, but
    its checks take 60 of the 1000 microseconds of a step of fc1 on a CPU."""
    found = _gradients(loss, leaves)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


# Optimisers: torch.optim uses the same kernels, but its bookkeeping takes 150 microseconds of such a step


def _public_adam_(
    weights: Tensors, found: Tensors, moments: Sequence[Tensors], steps: Tensor, lr: Tensor, decay: float, adamw: bool
) -> None:
    kind = torch.optim.AdamW if adamw else torch.optim.Adam
    optimizer = kind(weights, lr=float(lr), betas=BETAS, eps=EPS, weight_decay=decay)
    for weight, first, second in zip(weights, *moments, strict=True):
        before = steps.detach().cpu() - 1  # each weight its own, since each is counted up
        optimizer.state[weight] = {"step": before, "exp_avg": first, "exp_avg_sq": second}
    _step(optimizer, weights, found)


def _try_adam_(form: Form) -> bool:
    moved = [_one(), _one()]
    for adamw, weight in enumerate(moved):
        form([weight], [_one()], [[_one(0)], [_one(0)]], torch.ones(()), torch.tensor(0.5), 0.0, bool(adamw))
    return all(abs(weight.item() - 0.5) < 1e-6 for weight in moved)


@quick_form_of(_public_adam_, _try_adam_)
def adam_(
    weights: Tensors, found: Tensors, moments: Sequence[Tensors], steps: Tensor, lr: Tensor, decay: float, adamw: bool
) -> None:
    """A step of Adam (Kingma & Ba, arXiv:1412.6980) or AdamW (Loshchilov & Hutter, arXiv:1711.05101) by the gradients
    `found`. Changes the weights and both moments; `steps`, a scalar, counts this step too."""
    fused: Any = torch._fused_adamw_ if adamw else torch._fused_adam_
    options = {"lr": lr, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "weight_decay": decay}
    fused(weights, found, *moments, [], [steps] * len(weights), **options, amsgrad=False, maximize=False)


def _public_sgd_(
    weights: Tensors, found: Tensors, momenta: Tensors, lr: Tensor, decay: float, momentum: float, nesterov: bool
) -> None:
    optimizer = torch.optim.SGD(weights, lr=float(lr), weight_decay=decay, momentum=momentum, nesterov=nesterov)
    for weight, buffer in zip(weights, momenta, strict=False):  # there are none without momentum
        optimizer.state[weight] = {"momentum_buffer": buffer}
    _step(optimizer, weights, found)


def _try_sgd_(form: Form) -> bool:
    weight = _one()
    form([weight], [_one()], [_one(0)], torch.tensor(0.5), 0.0, 0.9, False)
    return weight.item() == 0.5


@quick_form_of(_public_sgd_, _try_sgd_)
def sgd_(
    weights: Tensors, found: Tensors, momenta: Tensors, lr: Tensor, decay: float, momentum: float, nesterov: bool
) -> None:
    """A step of SGD by the gradients `found`. Changes the weights and `momenta`, which begin at 0, so that the first
    step needs no other treatment than the rest; there are none without momentum."""
    options: dict[str, Any] = {"lr": lr, "weight_decay": decay, "momentum": momentum, "nesterov": nesterov}
    fused: Any = torch._fused_sgd_
    fused(weights, found, momenta, **options, dampening=0.0, maximize=False, is_first_step=False)


def _step(optimizer: torch.optim.Optimizer, weights: Tensors, found: Tensors) -> None:
    for weight, gradient in zip(weights, found, strict=True):
        weight.grad = gradient
    optimizer.step()
    for weight in weights:
        weight.grad = None


# Sparse products: where they do not work, layers are dense (lth.training.sparse.available)


def sparse_product(offsets: Tensor, columns: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """A sparse matrix (rows, inner) times x (inner, n), (rows, n). Row r has the `values` from offsets[r] to
    offsets[r + 1], in these `columns`; offsets (rows + 1,) and columns are int32. FBGEMM's sums of rows, made for
    embeddings, take less than half the time of MKL's sparse products."""
    bags: Any = torch._embedding_bag_forward_only  # no bookkeeping for a gradient, even of a parameter's values
    return bags(x, columns, offsets, False, 0, False, values, True)[0]


def amx() -> bool:
    """Whether this processor has tiles for products of bfloat16 matrices (AMX), as far as PyTorch says."""
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(asked and asked())


def tiles() -> bool:
    """Whether float32 products are computed with such tiles now (lth.training.numerics)."""
    backends: Any = torch.backends
    return backends.mkldnn.matmul.fp32_precision == "bf16" and amx()
