"""Fingerprints of data: the same arrays have the same one, in every process and on every machine."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor


def of_arrays(arrays: Iterable[Tensor]) -> str:
    """The fingerprint of tensors, 16 hexadecimal digits: their types, shapes and all values (for MNIST 0.06 s)."""
    digest = hashlib.sha256()
    for tensor in arrays:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        if tensor.numel():
            digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def of_texts(texts: Iterable[str]) -> str:
    """The fingerprint of several texts, in their order."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def of_file(file: Path) -> str | None:
    """What tells the content of an .npz file from others without reading it: the check sums it holds of its arrays.
    None if it cannot be read."""
    if not file.is_file():  # opening a named pipe would wait for ever
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            return " ".join(sorted(f"{part.filename} {part.file_size} {part.CRC:08x}" for part in archive.infolist()))
    except (OSError, zipfile.BadZipFile):
        return None


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
