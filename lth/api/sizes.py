"""What a sparse ticket takes, on disk and in time, in the forms that there are for it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.benchmark import Timer

from lth import pruning
from lth.api import compaction, export
from lth.models import building, multiply_adds
from lth.pruning import Masks

BATCHES = (1, 100)  # images per call that is timed
TURNS, SECONDS = 5, 0.05  # measurements of each form, and how long one takes at least


def sizes(model: nn.Module, masks: Masks, example: Tensor) -> pd.DataFrame:
    """The table of `SavedTicket.sizes`. `model` has zeros where it is pruned; `example` are examples (B, ...)."""
    model = building.copy_of(model).cpu().eval()
    state, kept = building.state_of(model), pruning.survivors(masks)
    rest = {name: value for name, value in state.items() if name not in masks}
    pruned = {name: (state[name], mask) for name, mask in masks.items() if not mask.all()}
    rest |= {name: state[name] for name in masks.keys() - pruned.keys()}
    csr, packed = dict(rest), dict(rest)
    for name, (weight, mask) in pruned.items():
        matrix = mask.flatten(1)
        csr[f"{name}/rows"] = functional.pad(matrix.sum(1).cumsum(0), (1, 0)).int()
        csr |= {f"{name}/columns": matrix.nonzero()[:, 1].int(), f"{name}/values": weight[mask]}
        packed |= {f"{name}/mask": pruning.pack(mask), f"{name}/values": weight[mask]}
    sparse = export.sparse(model, masks)
    products = multiply_adds.cost(model, example[:1], ())
    saved = sum(mask.numel() - kept[name] for name, (_, mask) in pruned.items() if _is_sparse(sparse, name))
    rows, models = {"dense": _row(state, products.rest)}, {"dense": model, "csr": sparse}
    with contextlib.suppress(ValueError):  # of a kind of network that cannot be made smaller
        models["compact"] = small = compaction.compact(model, example)
        rows["compact"] = _row(building.state_of(small), multiply_adds.cost(small, example[:1], ()).rest)
    rows["csr"] = _row(csr, products.rest - saved)
    rows["packed"] = _row(packed, math.nan)  # computes nothing until it is unpacked
    for name, times in _milliseconds(models, example).items():
        rows[name] |= times
    return pd.DataFrame(rows.values(), index=pd.Index(rows, name="form"))


def _is_sparse(sparse: nn.Module, name: str) -> bool:
    return isinstance(sparse.get_submodule(name.rpartition(".")[0]), export.SparseLinear)


def _row(tensors: Mapping[str, Tensor], products: float) -> dict[str, float]:
    numbers = sum(value.numel() for value in tensors.values() if value.is_floating_point())
    return {"numbers": numbers, "bytes": len(safetensors.torch.save(dict(tensors))), "multiply_adds": products}


@torch.inference_mode()
def _milliseconds(models: Mapping[str, nn.Module], example: Tensor) -> dict[str, dict[str, float]]:
    """How long a call of each takes, by the images in it, with as many threads as PyTorch has now: the lowest of
    several measurements in turns, which other work on the machine disturbs least."""
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for batch in BATCHES:
        images = example[:1].expand(batch, *example.shape[1:]).contiguous()
        threads = torch.get_num_threads()
        timers = {
            name: Timer("model(images)", globals={"model": model, "images": images}, num_threads=threads)
            for name, model in models.items()
        }
        turns = [{name: timer.blocked_autorange(min_run_time=SECONDS).median for name, timer in timers.items()}
                 for _ in range(TURNS)]  # fmt: skip
        for name in models:
            found[name][f"ms_{batch}"] = 1000 * min(turn[name] for turn in turns)
    return found
