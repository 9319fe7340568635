"""This program's side of the benchmarks, a training of lth as main.py runs it; the images and models of both sides."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from timing import synchronise

from lth import pruning
from lth.data.images import Feed, Images
from lth.data.sets import load
from lth.models import building
from lth.models.building import Build, State
from lth.pruning import Masks
from lth.settings.config import PROJECT, Config
from lth.settings.names import TORCHVISION
from lth.training.hardware import channels_last, numerics
from lth.training.network import Network
from lth.training.optimizers import Fused
from lth.training.schedule import Plan
from lth.training.sparse import choose, limits
from lth.training.train import Training

LR, MOMENTUM = 1.2e-3, 0.9
Keep = float | Mapping[str, float]  # percent of the weights of each layer, or of each of them by name


@dataclass(frozen=True)
class Problem:
    """What both sides train: a model, its initial weights and half of them pruned, and images."""

    name: str
    images: Images
    make: Build
    synthetic: bool

    @classmethod
    def of(cls, name: str, folder: Path) -> Problem:
        """The problem `model/dataset`, as fc1/mnist; made-up images where `folder` has no <dataset>.npz."""
        model, dataset = name.split("/")
        synthetic = not (folder / f"{dataset}.npz").exists() and dataset in TORCHVISION
        images = random_images(dataset) if synthetic else load(dataset, folder)
        return cls(name, images, building.find(model, dataset, images.classes), synthetic)

    @property
    def remark(self) -> str:
        """What a reader must know of the images."""
        dataset = self.name.split("/")[1]
        return f", on made-up images of the size of {dataset}" if self.synthetic else ""

    def state(self, seed: int) -> State:
        """Initial weights."""
        return building.state_of(building.build(self.make, "glorot", seed))

    def masks(self, state: State, keep: Keep = 50.0) -> Masks:
        """Masks that keep the largest `keep` percent of each layer."""
        dense = pruning.dense(pruning.prunable(self.make()))
        percents = keep if isinstance(keep, Mapping) else dict.fromkeys(dense, keep)
        rates = {name: 100 - percents[name] for name in dense}
        return pruning.keep_highest({name: state[name].abs() for name in dense}, dense, pruning.quotas(dense, rates))


def random_images(dataset: str) -> Images:
    """60,000 images of noise in the shape of `dataset`."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (60_000, *TORCHVISION[dataset].shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, TORCHVISION[dataset].classes, (60_000,), generator=generator)
    return Images(
        dataset, pixels[:50_000], labels[:50_000], pixels[50_000:], labels[50_000:], TORCHVISION[dataset].classes
    )


def add_problem_flags(parser: argparse.ArgumentParser, models: Sequence[str]) -> None:
    """The flags that say what is trained."""
    parser.add_argument(
        "--models", nargs="+", default=list(models), metavar="MODEL/DATASET", help="default: %(default)s"
    )
    parser.add_argument("--batch_size", type=int, default=60, help="images per step and trial (default: %(default)s)")
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam", help="default: %(default)s")
    parser.add_argument(
        "--data", type=Path, default=PROJECT / "data", help="folder of the .npz files (default: data/ of the project)"
    )


class Engine:
    """`stack` trials of a problem, pruned to `keep` percent, trained by lth.training.train.Training."""

    def __init__(
        self,
        problem: Problem,
        batch_size: int = 60,
        optimizer: str = "adam",
        device: str = "cpu",
        precision: str = "fast",
        threads: int = 1,
        stack: int = 1,
        keep: Keep = 50.0,
        sparse: str = "off",
    ) -> None:
        self.device, self.precision, self.threads = torch.device(device), precision, threads
        seeds = range(stack)
        states = [problem.state(seed) for seed in seeds]
        masks = [problem.masks(state, keep) for state in states]
        config = Config(batch_size=batch_size, precision=precision, sparse=sparse)
        valid = min(5000, len(problem.images.train) // 2)
        with numerics(precision, threads):
            feed = Feed(problem.images, seeds, valid, batch_size, self.device)
            model = problem.make()
            names = choose(model, masks, limits(config), feed.example())
            network = Network(
                model,
                states,
                masks,
                self.device,
                autocast=precision == "bf16",
                sparse=names,
                channels_last=channels_last(problem.make, feed.example()),
            )
            fused = Fused(optimizer, network, LR, momentum=MOMENTUM if optimizer == "sgd" else 0.0)
            plan = Plan(steps=sys.maxsize, evaluate_every=sys.maxsize, lr=lambda iteration: LR)
            self.training = Training(network, fused, feed, plan, [(seed, "order") for seed in seeds], random_seed=0)

    def run(self, steps: int) -> None:
        """The loop of Training.run: steps, in the order of its epochs, with what it does about them."""
        training = self.training
        with numerics(self.precision, self.threads):
            training.network.model.train()
            for batch in training._batches(until=training.iteration + steps):
                training.optimizer.lr = training.plan.lr(training.iteration)
                training._run_step(batch)
                training.iteration += 1
            synchronise(self.device)

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Each trial's accuracy on the test images, in percent, found as Training does it."""
        training = self.training
        with numerics(self.precision, self.threads):
            training.network.model.eval()
            _, correct, seen = training._measure(training.feed.test(), True, lambda: None)
            return (100 * correct / seen).tolist()
