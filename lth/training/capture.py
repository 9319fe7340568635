"""A training step as one CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lth.training.train import Training


def captured(training: Training) -> Callable[[Tensor], None]:
    """`training.step` as one CUDA graph, replayed for each batch: a step of a small network is bound by launches.

    Capturing needs a few steps beforehand; what they changed is put back. The learning rate is a tensor and the batch
    is copied to where the graph reads it, so that neither needs another capture. The plain step, with a warning, where
    the model's step cannot be captured.
    """
    network, device = training.network, training.network.device
    batch = training.feed.epoch(training.order_seeds, 0)[0].clone()
    live = [*network.tensors.values(), *training.optimizer.tensors(), training.loss_sum]
    before = [tensor.detach().clone() for tensor in live]
    random_state = torch.cuda.get_rng_state(device)
    network.model.train()
    try:
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(3):
                training.step(batch)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            training.step(batch)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # a model whose forward pass waits for the GPU, say
        warnings.warn(f"no CUDA graph of this model's step, which is slower: {error}", stacklevel=2)
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
