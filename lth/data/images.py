"""Images in memory, what a training sees of them (each trial's split and order of batches, made on the device), and
fingerprints of data: equal arrays have equal ones, in every process and on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lth.rng import derive_seed
from lth.settings.config import usual_valid_size
from lth.settings.names import TORCHVISION

CROP = 4  # pixels that a random crop may shift an image by, as in He et al. (arXiv:1512.03385, Section 4.2)
TRIED = 32  # examples that a model is tried on before any training
EVALUATION_CHUNK = 1000  # images of a trial evaluated at once; larger ones leave the processor's cache
STACK_CHUNK = 5000  # images of all trials together
GPU_CHUNK, GPU_VALUES = 10_000, 16_000_000  # the same on a GPU, and the values in them, for its memory


@dataclass(frozen=True)
class Images:
    """A data set called `name`: images `train` and `test`, uint8 (N, C, H, W), or float where they are normalised
    already, with `train_labels` and `test_labels`, int64 (N,), from 0 to below `classes`.

    `validation` holds (images, labels) where a set brings its own; else each trial splits some off the training images.
    Where `as_is`, the model gets what `train` holds, of any type and shape (N, ...), and nothing is normalised; else
    as `pixels` says (--pixels).
    """

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int
    validation: tuple[Tensor, Tensor] | None = None
    as_is: bool = False
    pixels: str = "standard"

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return tuple(self.train.shape[1:])

    @property
    def examples(self) -> Tensor:
        """Copies of some examples as models get them, but not normalised, to try one on."""
        images = self.train[:TRIED].cpu().clone()
        return images if self.ready else images / 255

    @property
    def ready(self) -> bool:
        """Whether models get what `train` holds: where `as_is`, or where images are normalised already."""
        return self.as_is or self.train.is_floating_point()

    @property
    def mirrors(self) -> bool:
        """Whether an image means the same in a mirror, as digits do not: colour pictures do, where it is not known."""
        return TORCHVISION[self.name].mirrors if self.name in TORCHVISION else self.shape[:1] == (3,)

    @cached_property
    def remark(self) -> str:
        """What is odd about the labels, in a sentence; "" if nothing is."""
        absent = sorted({*range(self.classes)} - {*self.train_labels.tolist()})
        if self.classes - len(absent) == 1:
            return f"all training examples have the label {int(self.train_labels[0])}: there is nothing to tell apart"
        labels = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
        return f"no training example has the label {labels}, of labels 0 to {self.classes - 1}" if absent else ""

    @cached_property
    def levels(self) -> tuple[Tensor, Tensor]:
        """Shift and scale, each of one element or (C, 1, 1), of the levels 0 to 255."""
        if self.ready or self.pixels != "standard":
            return torch.zeros(1), torch.full((1,), 1 / 255)
        return normalisation(self.train)

    @property
    def normalisation(self) -> dict[str, Any]:
        """What config.json says of how a model sees levels from 0 to 255: times `scale` plus `shift` per channel, then
        divided by the Euclidean norm of the image if `by_norm`. Empty if the data came normalised, or are no images."""
        if self.ready:
            return {}
        shift, scale = (part.flatten().tolist() for part in self.levels)
        return {"shift": shift, "scale": scale, "by_norm": self.pixels == "norm"}

    def tensors(self) -> list[Tensor]:
        """All tensors, to be moved or shared."""
        return [self.train, self.train_labels, self.test, self.test_labels, *(self.validation or ())]

    @cached_property
    def fingerprint(self) -> str:
        """That of the arrays: other images or labels have another one."""
        return fingerprint_arrays(self.tensors())

    def feed(
        self, seeds: Sequence[int], valid_size: int | None, batch_size: int, device: torch.device, augment: bool = False
    ) -> Feed:
        """What trials of these `seeds` train and evaluate on, on `device`, with `valid_size` images held back; batches
        have `batch_size` images, training ones shifted and mirrored at random with `augment`: see Feed."""
        return Feed(self, seeds, valid_size, batch_size, device, augment)


class Feed:
    """What T trials train and evaluate on: the images on the device, each trial's own split and order of batches.

    A batch is a tensor of draws, (T, B) image indices or, with augmentation, (T, B, 4): index, shift down, shift
    right, flip. `fetch` turns one into normalised images (T * B, C, H, W) and labels (T * B,).

    All trials share `images` and have one of the `seeds` each; `valid_size` training images are held back for
    validation (None: the usual number); a trial's batch has `batch_size` images; `device` is where all is put;
    `augment` shifts and mirrors training images at random.
    """

    def __init__(
        self,
        images: Images,
        seeds: Sequence[int],
        valid_size: int | None,
        batch_size: int,
        device: torch.device,
        augment: bool = False,
    ) -> None:
        self.batch_size, self.device, self.augment = batch_size, device, augment
        self.chunk = max(100, min(EVALUATION_CHUNK, STACK_CHUNK // len(seeds)))
        if device.type == "cuda":  # which is quickest with many at once
            self.chunk = max(100, min(GPU_CHUNK, GPU_VALUES // images.train[0].numel()) // len(seeds))
        self.images, self.labels, self._test, self._test_labels = (x.to(device) for x in images.tensors()[:4])
        self.flip = images.mirrors
        self.ready = images.ready
        self.by_norm = images.pixels == "norm"
        self.shift, self.scale = (part.to(device) for part in images.levels)
        if images.validation is None:
            held_back = usual_valid_size(len(images.train)) if valid_size is None else valid_size
            splits = [split(len(images.train), held_back, seed) for seed in seeds]
            self.train_indices = [train for train, _ in splits]
            # (V, T), so that a chunk has the same number of images of each trial
            valid_indices = torch.stack([valid for _, valid in splits], dim=1)
            self._valid = [
                (self.images.index_select(0, chunk), self.labels.index_select(0, chunk))
                for chunk in (part.T.reshape(-1).to(device) for part in valid_indices.split(self.chunk))
            ]
        else:
            self.train_indices = [torch.arange(len(images.train)) for _ in seeds]
            valid_images, valid_labels = (x.to(device) for x in images.validation)
            pairs = zip(valid_images.split(self.chunk), valid_labels.split(self.chunk), strict=True)
            self._valid = [(torch.cat([x] * len(seeds)), torch.cat([y] * len(seeds))) for x, y in pairs]
        self.epoch_steps = len(self.train_indices[0]) // batch_size  # the last partial batch is dropped
        self._drawn: tuple[object, Tensor] = (None, torch.empty(0))  # the epoch drawn last

    capturable = True  # by a CUDA graph: all batches have one shape and come from the same memory

    def epoch(self, seeds: Sequence[Sequence[object]], epoch: int) -> Tensor:
        """The draws of one epoch, (steps, T, B) or (steps, T, B, 4), decided by each trial's seeds and by `epoch`."""
        if self._drawn[0] != (seeds, epoch):
            draws = [
                self._draws(indices, derive_seed(*seed, epoch))
                for indices, seed in zip(self.train_indices, seeds, strict=True)
            ]
            self._drawn = ((seeds, epoch), torch.stack(draws, dim=1).to(self.device))
        return self._drawn[1]

    def _draws(self, indices: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        count = self.epoch_steps * self.batch_size
        order = indices[torch.randperm(len(indices), generator=generator)[:count]]
        if not self.augment:
            return order.view(self.epoch_steps, self.batch_size)
        shifts = torch.randint(0, 2 * CROP + 1, (count, 2), generator=generator)
        flips = torch.randint(0, 2, (count, 1), generator=generator) * int(self.flip)
        return torch.cat([order[:, None], shifts, flips], dim=1).view(self.epoch_steps, self.batch_size, 4)

    def fetch(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The images and labels that a batch of draws means."""
        if not self.augment:
            indices = batch.reshape(-1)
            return self.normalise(self.images.index_select(0, indices)), self.labels.index_select(0, indices)
        indices, down, right, flip = batch.reshape(-1, 4).unbind(1)
        return self.normalise(self.images.index_select(0, indices), (down, right, flip)), self.labels[indices]

    def normalise(self, images: Tensor, crop: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
        """Float images, scaled as `pixels` of the data set says; first cropped and flipped as `crop` says (black
        outside)."""
        if crop is not None:
            images = crop_and_flip(images, *crop)
        if self.ready:
            return images
        scaled = images.float().mul_(self.scale).add_(self.shift)
        return torch.nn.functional.normalize(scaled.flatten(1)).view_as(scaled) if self.by_norm else scaled

    def training(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of the training images of a single trial, as they are, (n, C, H, W), and labels (n,)."""
        (indices,) = self.train_indices
        parts = (part.to(self.device) for part in indices.split(self.chunk))
        return ((self.normalise(self.images.index_select(0, part)), self.labels[part]) for part in parts)

    def example(self, count: int = 2) -> Tensor:
        """Up to `count` examples as a model gets them, to try it on."""
        return self._own(self.images[:count])

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of validation images, (T * n, C, H, W) with the trials one after another, and labels (T * n,)."""
        return ((self._own(x), y) for x, y in self._valid)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of test images (n, C, H, W), the same for all trials, and labels (n,)."""
        chunks = zip(self._test.split(self.chunk), self._test_labels.split(self.chunk), strict=True)
        return ((self._own(x), y) for x, y in chunks)

    def _own(self, images: Tensor) -> Tensor:
        """A normalised copy: models may change in place what they get."""
        return images.clone() if self.ready else self.normalise(images)


def split(count: int, valid_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a trial's training and validation images: `valid_size` of `count` chosen by the seed, in order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, "split")))
    return order[valid_size:].sort().values, order[:valid_size].sort().values


def crop_and_flip(images: Tensor, down: Tensor, right: Tensor, flip: Tensor) -> Tensor:
    """`images` (N, C, H, W) padded by CROP zeros, cut at rows `down` and columns `right` (N,), mirrored if `flip`, in
    contiguous memory as images that are not augmented."""
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (CROP,) * 4)
    rows = down[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, width)
    columns = torch.where(flip[:, None].bool(), width - 1 - columns, columns) + right[:, None]
    numbers = torch.arange(count, device=images.device)[:, None, None]
    cut = padded.permute(0, 2, 3, 1)[numbers, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return cut.clone(memory_format=torch.contiguous_format)  # contiguous() leaves single channels their strides


def normalisation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale (C, 1, 1) that give uint8 training images (N, C, H, W) mean 0 and deviation 1 in each channel.
    One that is constant becomes 0, other levels than its own at most 1 away from that."""
    shape = (images.shape[1], 1, 1)
    counts = torch.stack([torch.bincount(images[:, c].reshape(-1), minlength=256) for c in range(images.shape[1])])
    levels = torch.arange(256, dtype=torch.float64)
    share = counts.double() / counts.sum(1, keepdim=True)
    mean = (share * levels).sum(1)
    deviation = (share * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    deviation[deviation == 0] = 256  # a power of 2, so that the constant becomes exactly 0
    return (-mean / deviation).float().view(shape), (1 / deviation).float().view(shape)


def fingerprint_arrays(arrays: Iterable[Tensor]) -> str:
    """The fingerprint of tensors, 16 hexadecimal digits: their types, shapes and all values (for MNIST 0.06 s)."""
    digest = hashlib.sha256()
    for tensor in arrays:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def fingerprint_texts(texts: Iterable[str]) -> str:
    """The fingerprint of several texts, in their order."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
