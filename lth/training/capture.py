"""A training step as one CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lth import chance
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
    """Whether the same forward and backward pass, done twice, is not the same for Python, whose decisions of one step a
    graph would repeat in all. A copy of the model tries it: what a first pass leaves for later ones, as a grid that is
    made once, is no decision, unless it changes weights."""
    cpu = torch.device("cpu")
    part = images[:2]

    def passed(model: nn.Module) -> tuple[dict[str, str], dict[str, Tensor], list[Tensor]]:
        with chance.kept(network.device):
            network.forward(model, part.clone()).sum().backward()
            return models.attributes(model), chance.state(cpu), list(model.buffers())

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, start = models.copy_of(network.model), chance.state(cpu)
            (first, _, buffers), (second, drawn, after) = passed(model), passed(model)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model's own code raises: the step itself will say it
        return True
    weights = zip(network.model.parameters(), model.parameters(), strict=True)
    pairs = [*weights, *((start[name], drawn[name]) for name in start)]
    replaced = any(one is not other for one, other in zip(buffers, after, strict=True))
    return first != second or replaced or not all(torch.equal(one, other) for one, other in pairs)
