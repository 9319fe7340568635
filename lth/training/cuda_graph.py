"""A training step as one CUDA graph."""

import functools
import pickle
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lth import rng
from lth.models import building
from lth.training.network import Network, attributes

SLOWER = "no CUDA graph of this model's step, which is slower"
UNSEEN = (
    "it draws random numbers on the CPU, keeps something besides parameters and buffers from step to step, or cannot "
    "be copied to find that out"
)


def captured(
    step: Callable[[Tensor], None], batch: Tensor, live: Sequence[Tensor], network: Network, images: Tensor
) -> Callable[[Tensor], None] | None:
    """`step` as one CUDA graph, to be called with each batch: a step of a small network is bound by kernel launches.

    A few steps run before the capture; the tensors `live`, which they change, and the random state are restored
    afterwards. The learning rate is a tensor, and each batch is copied into `batch`, which the graph reads, so that
    neither needs another capture. Returns None, with a warning, if the step cannot be captured or depends on what
    Python does in each step, as trial steps on some `images` of the batch show.
    """
    device = network.device
    if _depends_on_python(network, images):
        warnings.warn(f"{SLOWER}: {UNSEEN}", stacklevel=3)
        return None
    before, random_state = [tensor.detach().clone() for tensor in live], torch.cuda.get_rng_state(device)
    side = _side_stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    try:
        # A capture that fails leaves its stream current: the outer context does not.
        with torch.cuda.device(device), torch.cuda.stream(side):
            for _ in range(3):
                step(batch)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=side):
                step(batch)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # a model whose forward pass waits for the GPU, say
        if isinstance(error.__context__, torch.OutOfMemoryError):
            raise error.__context__ from None
        warnings.warn(f"{SLOWER}: {error.__context__ or error}", stacklevel=3)  # ending the failed capture raises too
        return None
    finally:
        torch.cuda.current_stream(device).wait_stream(side)
        with torch.no_grad():
            for tensor, value in zip(live, before, strict=True):
                tensor.copy_(value)
        torch.cuda.set_rng_state(random_state, device)

    def replay(new_batch: Tensor) -> None:
        batch.copy_(new_batch)
        graph.replay()

    return replay


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream for all captures on a device: cuBLAS keeps a workspace for each stream that it has used."""
    return torch.cuda.Stream(device)


def _depends_on_python(network: Network, images: Tensor) -> bool:
    """Whether a forward and backward pass draws on the CPU, replaces buffers, changes weights, or leaves other Python
    attributes than the pass before: a graph would repeat in all steps what Python did in one. Tried on a copy of the
    model; attributes that only the first pass sets, such as a cached grid, are allowed."""

    def run_once() -> tuple[list[bytes], bytes, list[Tensor]]:
        with rng.preserved(network.device):
            network.forward(model, images[:2].clone()).sum().backward()
            return attributes(model), _cpu_state(), list(model.buffers())

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, start = building.copy_model(network.model), _cpu_state()
            (first, _, buffers), (second, drawn, buffers_after) = run_once(), run_once()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model's own code raises: the step itself will report it
        return True
    weights = zip(network.model.parameters(), model.parameters(), strict=True)
    changed = any(not torch.equal(before, after) for before, after in weights)
    replaced = any(old is not new for old, new in zip(buffers, buffers_after, strict=True))
    return drawn != start or changed or replaced or first != second


def _cpu_state() -> bytes:
    torch_state, *others = rng.cpu_states()
    return pickle.dumps([torch_state.numpy().tobytes(), others])  # pickling a tensor would include its address
