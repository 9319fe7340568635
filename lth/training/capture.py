"""A training step as one CUDA graph."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lth import rng
from lth.training import models
from lth.training.network import Network

if TYPE_CHECKING:
    from lth.training.train import Training

SLOWER = "no CUDA graph of this model's step, which is slower"
UNSEEN = (
    "it draws random numbers on the CPU, keeps something besides parameters and buffers from step to step, or cannot "
    "be copied to find that out"
)


def captured(training: Training) -> Callable[[Tensor], None]:
    """`training.step` as one CUDA graph, replayed for each batch: a step of a small network is bound by launches.

    Capturing needs a few steps beforehand; what they changed is put back. The learning rate is a tensor and the batch
    is copied to where the graph reads it, so that neither needs another capture. The plain step, with a warning, where
    the model's step cannot be captured, or where Python decides something anew in each.
    """
    network, device = training.network, training.network.device
    batch = training.feed.epoch(training.order_seeds, 0)[0].clone()
    network.model.train()
    if _decides(network, training.feed.fetch(batch)[0]):
        warnings.warn(f"{SLOWER}: {UNSEEN}", stacklevel=2)
        return training.step
    live = [*network.tensors.values(), *training.optimizer.tensors(), training.loss_sum]
    before = [tensor.detach().clone() for tensor in live]
    random_state = torch.cuda.get_rng_state(device)
    try:
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(3):
                training.step(batch)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Without a stream, the graph would be captured on the device that was current in this process's first capture.
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=side):
            training.step(batch)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # a model whose forward pass waits for the GPU, say
        warnings.warn(f"{SLOWER}: {error}", stacklevel=2)
        return training.step
    finally:
        with torch.no_grad():
            for tensor, value in zip(live, before, strict=True):
                tensor.copy_(value)
        torch.cuda.set_rng_state(random_state, device)

    def replay(new_batch: Tensor) -> None:
        batch.copy_(new_batch)
        graph.replay()

    return replay


def _decides(network: Network, images: Tensor) -> bool:
    """Whether a forward and backward pass draws on the CPU, replaces buffers, changes weights, or leaves something else
    in Python than the pass before it: a graph would repeat in all steps what Python did in one. A copy of the model
    tries it; what only the first pass makes, such as a grid, is no decision."""
    part = images[:2]

    def passed() -> tuple[dict[str, bytes], bytes, list[Tensor]]:
        with rng.preserved(network.device):
            network.forward(model, part.clone()).sum().backward()
            return models.in_python(model), _cpu_state(), list(model.buffers())

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, start = models.copy_of(network.model), _cpu_state()
            (first, _, buffers), (second, drawn, after) = passed(), passed()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model's own code raises: the step itself will report it
        return True
    moved = any(
        not torch.equal(one, other) for one, other in zip(network.model.parameters(), model.parameters(), strict=True)
    )
    replaced = any(one is not other for one, other in zip(buffers, after, strict=True))
    return drawn != start or moved or replaced or first != second


def _cpu_state() -> bytes:
    torch_state, *others = rng.on_cpu()
    return pickle.dumps([torch_state.numpy().tobytes(), others])  # of a tensor, pickle would give its address too
