"""Fingerprints of data: the same arrays have the same one, in every process and on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def of_arrays(arrays: Iterable[Tensor]) -> str:
    """The fingerprint of tensors, 16 hexadecimal digits: their types, shapes and all values (for MNIST 0.06 s)."""
    digest = hashlib.sha256()
    for tensor in arrays:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def of_texts(texts: Iterable[str]) -> str:
    """The fingerprint of several texts, in their order."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
